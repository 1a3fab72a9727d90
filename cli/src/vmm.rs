//! `limosa vmm`: the reference VMM as a process, driven over QMP.

use crate::guest::{DirtierOptions, MachineOptions};
use limosa_transport::{Address, AddressError, TransportError};
use limosa_vmm::{BOOT_SECTOR_BYTES, GuestConfig, Host, Machine, Program, Refused, SerialOutput, VmmError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use thiserror::Error;

/// Which machine, which guest, and where its monitor is.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Unix socket of the QMP monitor: `unix:PATH`, or just a path.
    #[arg(long, value_name = "SOCKET")]
    qmp: String,
    /// Wait for a guest at this address, for example tcp:127.0.0.1:4444; `defer` waits for `migrate-incoming`.
    #[arg(long, value_name = "URI", conflicts_with = "boot_sector")]
    incoming: Option<String>,
    /// Begin paused, and leave a guest that arrives paused.
    #[arg(long)]
    paused: bool,
    #[command(flatten)]
    machine: MachineOptions,
    #[command(flatten)]
    dirtier: DirtierOptions,
    /// A file to be the guest's RAM, shared; created if missing.
    #[arg(long, value_name = "PATH")]
    memory_file: Option<PathBuf>,
    /// The memory file holds the prefill already.
    #[arg(long, requires_all = ["memory_file", "prefill"])]
    prefilled: bool,
    /// Boot this 512-byte sector at 0x7c00 in real mode, in place of the built-in guest. Needs KVM.
    #[arg(long, value_name = "PATH")]
    boot_sector: Option<PathBuf>,
    /// Where the guest's COM1 goes: `stdout`, or a file.
    #[arg(long, value_name = "WHERE")]
    serial: Option<PathBuf>,
    /// Quit when standard input ends: a VMM does not outlive whoever started it.
    #[arg(long, hide = true)]
    quit_with_stdin: bool,
}

/// Why the VMM could not begin.
#[derive(Debug, Error)]
pub(crate) enum VmmCommandError {
    #[error(transparent)]
    Vmm(#[from] VmmError),
    #[error("the monitor at {path}")]
    Monitor {
        path: PathBuf,
        #[source]
        source: TransportError,
    },
    #[error("--incoming {text}")]
    IncomingAddress {
        text: String,
        #[source]
        source: AddressError,
    },
    #[error("the guest cannot be waited for")]
    Incoming(#[from] Refused),
    #[error("boot sector {path}")]
    BootSector {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("boot sector {path} has {got} bytes; expected {BOOT_SECTOR_BYTES}")]
    BootSectorLength { path: PathBuf, got: usize },
}

/// Runs the VMM until a client says `quit`.
///
/// # Errors
/// A machine that cannot be made, or a monitor that cannot listen.
pub(crate) fn run(options: Options) -> Result<ExitCode, VmmCommandError> {
    let program = match (&options.incoming, &options.boot_sector) {
        (Some(_), _) => Program::Incoming,
        (None, Some(path)) => Program::BootSector(read_boot_sector(path)?),
        (None, None) => Program::Dirtier(options.dirtier.dirtier(options.prefilled)),
    };
    let machine = Machine::new(&GuestConfig {
        kind: options.machine.kind(),
        memory: options.machine.memory(),
        vcpus: options.machine.vcpus,
        memory_file: options.memory_file.clone(),
        program,
        serial: match options.serial {
            None => SerialOutput::Discard,
            Some(path) if path.as_os_str() == "stdout" => SerialOutput::Stdout,
            Some(path) => SerialOutput::File(path),
        },
    })?;
    if let Some(reason) = machine.kvm_unusable() {
        eprintln!("limosa: no KVM here ({reason}); the guest is a process guest");
    }
    let host = Host::new(machine, options.incoming.is_some())?;
    host.set_autostart(!options.paused);
    let path = PathBuf::from(options.qmp.strip_prefix("unix:").unwrap_or(&options.qmp));
    let server =
        host.listen(&path).map_err(|source| VmmCommandError::Monitor { path: path.clone(), source })?;
    match options.incoming.as_deref() {
        None if options.paused => {}
        None => host.run()?,
        Some("defer") => {}
        Some(text) => {
            let parse = |source| VmmCommandError::IncomingAddress { text: text.to_owned(), source };
            host.await_guest(&text.parse::<Address>().map_err(parse)?)?;
        }
    }
    if options.quit_with_stdin {
        quit_with_stdin(&host);
    }
    host.wait_for_quit();
    // Lets the answer to `quit` go out.
    drop(server);
    Ok(ExitCode::SUCCESS)
}

fn quit_with_stdin(host: &Arc<Host>) {
    let host = Arc::clone(host);
    std::thread::spawn(move || {
        let mut byte = [0];
        // An error is as good as an end: nobody is there any more.
        while matches!(io::stdin().read(&mut byte), Ok(1)) {}
        host.quit();
    });
}

fn read_boot_sector(path: &Path) -> Result<Box<[u8; BOOT_SECTOR_BYTES]>, VmmCommandError> {
    let bytes = std::fs::read(path)
        .map_err(|source| VmmCommandError::BootSector { path: path.to_owned(), source })?;
    let got = bytes.len();
    let sector = <Box<[u8; BOOT_SECTOR_BYTES]>>::try_from(bytes.into_boxed_slice());
    sector.map_err(|_| VmmCommandError::BootSectorLength { path: path.to_owned(), got })
}

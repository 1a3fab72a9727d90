//! `limosa vmm`: the reference VMM as a process, driven over QMP.

use crate::channels::ChannelOptions;
use crate::guest::{DirtierOptions, MachineOptions};
use crate::postcopy::PostcopyOptions;
use crate::signals;
use limosa_qmp::{Command, CommandError, Commands};
use limosa_transport::{Address, AddressError, TransportError};
use limosa_vmm::{
    BOOT_SECTOR_BYTES, Executor, GuestConfig, Host, Machine, NotRunnable, Occurrence, Program, QuitCause,
    Refused, SerialOutput, VmmError,
};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use thiserror::Error;

/// Run a virtual machine, to be driven over QMP as QEMU is (docs/qmp.md).
///
/// It runs until a client says `quit`, or until SIGINT or SIGTERM; it ends with code 1 if no guest comes of `--incoming`.
/// Without `--incoming` its guest is the built-in one, which writes pages that can be verified, or a boot sector.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Unix socket of the QMP monitor: `unix:PATH`, or just a path.
    #[arg(long, value_name = "SOCKET")]
    qmp: String,
    /// Wait for a guest: tcp:HOST:PORT (port 0: any free one), unix:PATH, exec:COMMAND, fd:NUMBER or file:PATH; `defer`
    /// waits for the command `migrate-incoming`. Kind, memory and vCPUs must be those of the source; what the guest does
    /// comes with it.
    #[arg(long, value_name = "URI", conflicts_with = "boot_sector")]
    incoming: Option<String>,
    /// Begin paused, or leave a guest that arrives paused; `cont` lets it run.
    #[arg(long)]
    paused: bool,
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
    #[command(flatten)]
    channels: ChannelOptions,
    #[command(flatten)]
    postcopy: PostcopyOptions,
    #[command(flatten)]
    machine: MachineOptions,
    #[command(flatten)]
    dirtier: DirtierOptions,
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
    #[error("the migration cannot be set up as asked")]
    Settings(#[from] CommandError),
    #[error("the guest did not arrive: {reason}")]
    NotArrived { reason: String },
    #[error("the guest cannot run")]
    NotRunnable(#[from] NotRunnable),
    #[error("signals cannot be waited for")]
    Signals(#[source] io::Error),
    #[error("boot sector {path}")]
    BootSector {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("boot sector {path} has {got} bytes; expected {BOOT_SECTOR_BYTES}")]
    BootSectorLength { path: PathBuf, got: usize },
}

/// Runs the VMM until a client says `quit`, or a signal comes.
///
/// # Errors
/// A machine that cannot be made, a monitor that cannot listen, or a guest that did not arrive.
pub(crate) fn run(options: Options) -> Result<ExitCode, VmmCommandError> {
    // Before the first thread is started.
    let signals = signals::hold_back().map_err(VmmCommandError::Signals)?;
    let incoming = options.incoming.as_deref().map(parse_incoming).transpose()?;
    let machine = make_machine(&options)?;
    if let Some(reason) = machine.kvm_unusable() {
        eprintln!("limosa: no KVM here ({reason}); the guest is a process guest");
    }
    let executor = machine.executor();
    let host = Host::new(machine, incoming.is_some())?;
    host.set_autostart(!options.paused);
    set_migration(&host, &options)?;
    let path = PathBuf::from(options.qmp.strip_prefix("unix:").unwrap_or(&options.qmp));
    // Before the monitor: its first client may ask at once where the guest is awaited.
    let begun = begin(&host, incoming, options.paused)?;
    let server =
        host.listen(&path).map_err(|source| VmmCommandError::Monitor { path: path.clone(), source })?;
    if options.quit_with_stdin {
        quit_with_stdin(&host);
    } else {
        // Whoever watches our standard input has started us and knows.
        eprintln!("limosa: monitor at {}; {} {begun}", path.display(), describe(executor, &options));
    }
    let signalled = Arc::clone(&host);
    signals.then(move |_| signalled.quit(QuitCause::Signal));
    let ended = wait_for_end(&host);
    host.close();
    // Lets the answer to `quit` go out, and removes the socket.
    drop(server);
    ended.map(|()| ExitCode::SUCCESS)
}

/// Where `--incoming` waits.
enum Waiting {
    /// At this address, from the start.
    At(Address),
    /// Where `migrate-incoming` will say.
    Deferred,
}

fn parse_incoming(text: &str) -> Result<Waiting, VmmCommandError> {
    match text {
        "defer" => Ok(Waiting::Deferred),
        _ => text
            .parse()
            .map(Waiting::At)
            .map_err(|source| VmmCommandError::IncomingAddress { text: text.to_owned(), source }),
    }
}

fn make_machine(options: &Options) -> Result<Machine, VmmCommandError> {
    let program = match (&options.incoming, &options.boot_sector) {
        (Some(_), _) => Program::Incoming,
        (None, Some(path)) => Program::BootSector(read_boot_sector(path)?),
        (None, None) => Program::Dirtier(options.dirtier.dirtier(options.prefilled)),
    };
    Ok(Machine::new(&GuestConfig {
        kind: options.machine.kind(),
        memory: options.machine.memory(),
        vcpus: options.machine.vcpus,
        memory_file: options.memory_file.clone(),
        program,
        serial: match &options.serial {
            None => SerialOutput::Discard,
            Some(path) if path.as_os_str() == "stdout" => SerialOutput::Stdout,
            Some(path) => SerialOutput::File(path.clone()),
        },
    })?)
}

/// Says what a client of the monitor could say too late for a guest that is awaited from the start.
fn set_migration(host: &Host, options: &Options) -> Result<(), CommandError> {
    host.execute(Command::MigrateSetParameters(options.channels.parameters()))?;
    let mut capabilities = options.channels.capabilities().to_vec();
    capabilities.extend(options.postcopy.capabilities());
    host.execute(Command::MigrateSetCapabilities(capabilities))?;
    Ok(())
}

/// Lets the guest run, or waits for it; what that is, in words.
fn begin(host: &Host, incoming: Option<Waiting>, paused: bool) -> Result<String, VmmCommandError> {
    Ok(match incoming {
        None if paused => "is paused".to_owned(),
        None => {
            host.run()?;
            "runs".to_owned()
        }
        Some(Waiting::Deferred) => "waits for migrate-incoming".to_owned(),
        Some(Waiting::At(asked)) => {
            let bound = host.await_guest(&asked)?;
            format!("is awaited at {}", bound.unwrap_or(asked))
        }
    })
}

/// Waits until the VMM shall end; an error if a guest that was to arrive did not.
fn wait_for_end(host: &Host) -> Result<(), VmmCommandError> {
    loop {
        match host.wait() {
            Occurrence::Quit => return Ok(()),
            Occurrence::ArrivalFailed { reason, fatal: true } => {
                return Err(VmmCommandError::NotArrived { reason });
            }
            Occurrence::ArrivalFailed { reason, fatal: false } => {
                eprintln!("limosa: the guest did not arrive: {reason}");
            }
        }
    }
}

/// The guest, in words.
fn describe(executor: Executor, options: &Options) -> String {
    let kind = match executor {
        Executor::Kvm => "KVM guest",
        Executor::Process => "process guest",
    };
    format!("a {kind} of {} with {}", options.machine.memory, options.machine.vcpus_in_words())
}

fn quit_with_stdin(host: &Arc<Host>) {
    let host = Arc::clone(host);
    std::thread::spawn(move || {
        let mut byte = [0];
        // An error is as good as an end: nobody is there any more.
        while matches!(io::stdin().read(&mut byte), Ok(1)) {}
        host.quit(QuitCause::Signal);
    });
}

fn read_boot_sector(path: &Path) -> Result<Box<[u8; BOOT_SECTOR_BYTES]>, VmmCommandError> {
    let bytes = std::fs::read(path)
        .map_err(|source| VmmCommandError::BootSector { path: path.to_owned(), source })?;
    let got = bytes.len();
    let sector = <Box<[u8; BOOT_SECTOR_BYTES]>>::try_from(bytes.into_boxed_slice());
    sector.map_err(|_| VmmCommandError::BootSectorLength { path: path.to_owned(), got })
}

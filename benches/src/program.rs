//! The two programs that are compared, and their command lines.

use crate::scenario::{GuestKind, Scenario};
use limosa_stress::qemu::{Accelerator, FLASH_BYTES, Payload, Release};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program that can be both ends of a migration.
///
/// Both sources map the memory file that they are given; both destinations have memory of their own, in the way that is
/// the program's default: QEMU anonymous with huge pages advised, Limosa a memfd.
pub trait Program {
    /// Its name in the results.
    fn name(&self) -> &'static str;

    /// A source whose guest lies in `memory`, with its monitor at `monitor`; files it needs go to `folder`.
    ///
    /// # Errors
    /// The files cannot be written.
    fn source(
        &self,
        scenario: &Scenario,
        memory: &Path,
        monitor: &Path,
        folder: &Path,
    ) -> io::Result<Command>;

    /// A destination that waits for `migrate-incoming`.
    ///
    /// # Errors
    /// As [`Self::source`].
    fn destination(&self, scenario: &Scenario, monitor: &Path, folder: &Path) -> io::Result<Command>;
}

/// `limosa vmm`.
#[derive(Clone, Debug)]
pub struct Limosa {
    path: PathBuf,
}

/// A microvm of QEMU's: the least machine it has, so that as little as possible but RAM is moved.
#[derive(Clone, Debug)]
pub struct Qemu {
    path: PathBuf,
    accelerator: Accelerator,
}

/// Two bytes per instruction: `cli; hlt; jmp back`. A guest that will never wake up again.
const HALT: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];
/// Where a processor starts, from the end of the flash.
const RESET_VECTOR: usize = FLASH_BYTES - 16;

/// Ticks per second of QEMU's busy guest: often enough that its writes are spread out.
const TICKS_PER_SECOND: u64 = 100;
/// What a port read costs the guest under KVM, in microseconds; the only clock it has.
const PORT_READ_US: u64 = 10;

impl Limosa {
    /// The binary at `path`.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    fn machine(&self, scenario: &Scenario, monitor: &Path) -> Command {
        let mut command = Command::new(&self.path);
        command.arg("vmm").arg("--quit-with-stdin");
        command.arg(format!("--qmp=unix:{}", monitor.display()));
        command.arg(format!("--memory={}", scenario.memory.0));
        command.arg(match scenario.guest {
            GuestKind::Auto => "--guest=auto",
            GuestKind::Process => "--guest=process",
        });
        command
    }
}

impl Program for Limosa {
    fn name(&self) -> &'static str {
        "limosa"
    }

    fn source(&self, scenario: &Scenario, memory: &Path, monitor: &Path, _: &Path) -> io::Result<Command> {
        let mut command = self.machine(scenario, monitor);
        command.arg(format!("--memory-file={}", memory.display()));
        command.arg("--prefilled").arg(format!("--prefill={}", scenario.content_word()));
        command.arg(format!("--content={}", scenario.content_word()));
        match scenario.busy {
            None => command.arg("--dirty-rate=0"),
            Some(busy) => command
                .arg(format!("--dirty-rate={}", busy.pages_per_second))
                .arg(format!("--working-set={}", busy.working_set.bytes().0)),
        };
        Ok(command)
    }

    fn destination(&self, scenario: &Scenario, monitor: &Path, _: &Path) -> io::Result<Command> {
        let mut command = self.machine(scenario, monitor);
        command.arg("--incoming=defer");
        Ok(command)
    }
}

impl Qemu {
    /// The one that this machine has, or `None` after saying on stderr that there is none.
    pub fn find() -> Option<Self> {
        let path = Release::Current.require()?.path().to_owned();
        Some(Self { path, accelerator: Accelerator::of_this_machine() })
    }

    fn machine(
        &self,
        scenario: &Scenario,
        options: &str,
        monitor: &Path,
        folder: &Path,
    ) -> io::Result<Command> {
        let flash = folder.join("flash");
        fs::write(&flash, flash_of(scenario))?;
        let mut command = Command::new(&self.path);
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-machine", &format!("microvm,accel={}{options}", self.accelerator)]);
        command.arg("-m").arg(format!("{}M", scenario.memory.0 >> 20));
        command.arg("-bios").arg(flash);
        let socket = format!("socket,id=monitor,server=on,wait=off,path={}", monitor.display());
        command.args(["-chardev", &socket, "-mon", "chardev=monitor,mode=control"]);
        command.args(["-serial", "null"]);
        Ok(command)
    }
}

impl Program for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn source(
        &self,
        scenario: &Scenario,
        memory: &Path,
        monitor: &Path,
        folder: &Path,
    ) -> io::Result<Command> {
        let mut command = self.machine(scenario, ",memory-backend=microvm.ram", monitor, folder)?;
        let bytes = scenario.memory.0;
        // Named as the block is named that the destination has by default.
        let object =
            format!("memory-backend-file,id=microvm.ram,size={bytes},share=on,mem-path={}", memory.display());
        command.args(["-object", &object]);
        Ok(command)
    }

    fn destination(&self, scenario: &Scenario, monitor: &Path, folder: &Path) -> io::Result<Command> {
        let mut command = self.machine(scenario, "", monitor, folder)?;
        command.args(["-incoming", "defer"]);
        Ok(command)
    }
}

/// The firmware that is QEMU's whole guest.
fn flash_of(scenario: &Scenario) -> Vec<u8> {
    match scenario.busy {
        None => {
            let mut flash = vec![0; FLASH_BYTES];
            flash[RESET_VECTOR..][..HALT.len()].copy_from_slice(&HALT);
            flash
        }
        Some(busy) => Payload {
            working_set: busy.working_set,
            pages_per_tick: (busy.pages_per_second / TICKS_PER_SECOND) as u32,
            pause: (1_000_000 / TICKS_PER_SECOND / PORT_READ_US) as u32,
        }
        .flash(),
    }
}

//! What a QEMU is started with.

use super::binary::{Accelerator, Binary};
use super::payload::Payload;
use super::process::{Qemu, QemuError};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A machine type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// The smallest one: no PCI, no version in its name.
    Microvm,
    /// The i440FX of the release at hand.
    Pc,
    /// The Q35 of the release at hand.
    Q35,
    /// The i440FX as 7.2 had it, which every later release can be.
    Pc7_2,
}

/// How the guest comes to run the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// The payload is the flash: no firmware of others runs, and none travels in the stream.
    Flash(Payload),
    /// QEMU's own firmware loads the payload from the first sector of an IDE disk ([`Machine::Pc`] alone).
    Sector(Payload),
}

/// What guest RAM lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// QEMU's own anonymous memory, as everybody uses.
    Anonymous,
    /// A file shared with us: the only way to see RAM that lies behind a ROM ([`Qemu::ram_file`]).
    SharedFile,
}

/// What a QEMU is started with. Source and destination of a migration differ in [`Self::incoming`] alone.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Machine type.
    pub machine: Machine,
    /// Options of the machine type, each `name=value`.
    pub machine_options: Vec<&'static str>,
    /// Properties of objects that have no option of their own, each `driver.name=value`.
    pub globals: Vec<&'static str>,
    /// Must be the same at both ends: KVM has sections that TCG has not, and the reverse.
    pub accelerator: Accelerator,
    /// Guest RAM in MiB.
    pub memory_mib: u32,
    /// The payload and its way in.
    pub boot: Boot,
    /// What guest RAM lies in.
    pub backing: Backing,
    /// Content that is put in guest RAM before the guest starts: a file and a guest-physical address.
    pub preload: Option<(PathBuf, u64)>,
    /// Start without a guest and wait for [`Qemu::migrate_incoming`].
    pub incoming: bool,
}

impl Machine {
    /// The RAM block that is the guest's memory.
    pub fn ram_block(self) -> &'static str {
        match self {
            Self::Microvm => "microvm.ram",
            Self::Pc | Self::Q35 | Self::Pc7_2 => "pc.ram",
        }
    }
}

impl Boot {
    /// What the guest does once it runs.
    pub fn payload(&self) -> Payload {
        let (Self::Flash(payload) | Self::Sector(payload)) = self;
        *payload
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Microvm => "microvm",
            Self::Pc => "pc",
            Self::Q35 => "q35",
            Self::Pc7_2 => "pc-i440fx-7.2",
        })
    }
}

impl Setup {
    /// A `machine` with 16 MiB that runs the default payload from flash, at a thousand ticks a second or so.
    pub fn new(machine: Machine, accelerator: Accelerator) -> Self {
        Self {
            machine,
            machine_options: Vec::new(),
            globals: Vec::new(),
            accelerator,
            memory_mib: 16,
            boot: Boot::Flash(Payload::paced(accelerator)),
            backing: Backing::Anonymous,
            preload: None,
            incoming: false,
        }
    }

    /// The same machine, as a destination.
    pub fn destination(&self) -> Self {
        Self { incoming: true, ..self.clone() }
    }

    /// Starts `binary` with it.
    ///
    /// # Errors
    /// QEMU does not start, or ends at once: its words are in the error.
    pub fn start(&self, binary: &Binary) -> Result<Qemu, QemuError> {
        Qemu::start(binary, self)
    }

    /// Gives `command` its arguments; files the guest boots from are written to `folder`.
    pub(super) fn apply(&self, command: &mut Command, folder: &Path) -> std::io::Result<()> {
        let mut machine = format!("{},accel={}", self.machine, self.accelerator);
        for option in &self.machine_options {
            machine.push(',');
            machine.push_str(option);
        }
        let size = format!("{}M", self.memory_mib);
        if self.backing == Backing::SharedFile {
            let id = self.machine.ram_block();
            let path = ram_file(folder);
            machine.push_str(&format!(",memory-backend={id}"));
            let object =
                format!("memory-backend-file,id={id},size={size},share=on,mem-path={}", path.display());
            command.args(["-object", &object]);
        }
        command.args(["-machine", &machine, "-m", &size]);
        for property in &self.globals {
            command.args(["-global", property]);
        }
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        match self.boot {
            Boot::Flash(payload) => {
                let path = folder.join("flash");
                std::fs::write(&path, payload.flash())?;
                command.arg("-bios").arg(path);
            }
            Boot::Sector(payload) => {
                let path = folder.join("disk");
                std::fs::write(&path, payload.boot_sector())?;
                command.args(["-drive", &format!("if=ide,format=raw,snapshot=on,file={}", path.display())]);
            }
        }
        if let Some((file, address)) = &self.preload {
            let device = format!("loader,force-raw=on,addr={address:#x},file={}", file.display());
            command.args(["-device", &device]);
        }
        if self.incoming {
            command.args(["-incoming", "defer"]);
        }
        Ok(())
    }
}

/// Where [`Backing::SharedFile`] lies.
pub(super) fn ram_file(folder: &Path) -> PathBuf {
    folder.join("ram")
}

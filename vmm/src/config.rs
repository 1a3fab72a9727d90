//! What a machine is made of.

use crate::workload::Dirtier;
use limosa_pages::ByteCount;
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of a boot sector.
pub const BOOT_SECTOR_BYTES: usize = 512;

/// What executes the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuestKind {
    /// KVM where it is usable, else threads of this process.
    #[default]
    Auto,
    /// vCPUs under KVM.
    Kvm,
    /// Threads of this process that write into the guest's memory.
    Process,
}

/// What the guest executes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// The built-in guest: it writes pages that prove themselves.
    Dirtier(Dirtier),
    /// A boot sector, at 0x7c00 in real mode, on the first vCPU. Needs KVM.
    BootSector(Box<[u8; BOOT_SECTOR_BYTES]>),
    /// Whatever the migration stream brings. RAM is left untouched.
    Incoming,
}

/// Where the bytes go that the guest writes to COM1.
#[derive(Clone, Debug, Default)]
pub enum SerialOutput {
    /// Nowhere.
    #[default]
    Discard,
    /// This process's standard output.
    Stdout,
    /// Appended to the file, which is created if missing.
    File(PathBuf),
    /// Kept in memory, for tests. Grows without limit.
    Buffer(SerialBuffer),
}

/// Bytes that a guest has written to COM1. A clone is another handle to the same bytes.
#[derive(Clone, Debug, Default)]
pub struct SerialBuffer {
    bytes: Arc<parking_lot::Mutex<Vec<u8>>>,
}

/// A machine as its owner orders it.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// What executes the guest.
    pub kind: GuestKind,
    /// RAM: more than 1 MiB and at most 32 GiB, a multiple of 4 KiB.
    pub memory: ByteCount,
    /// vCPUs, or workers of a process guest: 1 to 64.
    pub vcpus: u32,
    /// A file to be mapped as RAM, shared; `None` is a memfd.
    pub memory_file: Option<PathBuf>,
    /// What it executes.
    pub program: Program,
    /// Where COM1 writes.
    pub serial: SerialOutput,
}

impl Default for GuestConfig {
    /// An idle guest of 256 MiB with one vCPU.
    fn default() -> Self {
        Self {
            kind: GuestKind::default(),
            memory: ByteCount(256 << 20),
            vcpus: 1,
            memory_file: None,
            program: Program::Dirtier(Dirtier::default()),
            serial: SerialOutput::default(),
        }
    }
}

impl SerialBuffer {
    /// What has been written so far.
    pub fn contents(&self) -> Vec<u8> {
        self.bytes.lock().clone()
    }

    pub(crate) fn push(&self, byte: u8) {
        self.bytes.lock().push(byte);
    }
}

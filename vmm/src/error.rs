//! What keeps a machine from being made, resumed or checked.

use crate::kvm::KvmUnusable;
use crate::run_control::GuestEnd;
use limosa_pages::{ByteCount, LayoutError, PageCount};
use limosa_ram::{DirtyLogError, RamError};
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// A machine that cannot be, or cannot do what it is asked.
#[derive(Debug, Error)]
pub enum VmmError {
    /// A RAM size outside of the possible.
    #[error("RAM of {got} bytes; expected a multiple of 4096 from {minimum} to {maximum}")]
    Memory {
        /// Bytes asked for.
        got: ByteCount,
        /// Smallest possible.
        minimum: ByteCount,
        /// Largest possible.
        maximum: ByteCount,
    },
    /// A number of vCPUs outside of the possible.
    #[error("{got} vCPUs; expected 1 to {maximum}")]
    Vcpus {
        /// vCPUs asked for.
        got: u32,
        /// Largest possible number.
        maximum: u32,
    },
    /// A working set without a page for every worker, or greater than RAM.
    #[error("a working set of {pages} pages for {workers} workers; {content} pages are there")]
    WorkingSet {
        /// Pages asked for.
        pages: PageCount,
        /// Workers to share them.
        workers: u32,
        /// Content pages in RAM.
        content: PageCount,
    },
    /// A boot sector needs a processor.
    #[error("a boot sector cannot run in a process guest; it needs KVM")]
    BootSectorWithoutKvm,
    /// KVM was asked for and is not there.
    #[error("KVM is not usable: {0}")]
    KvmUnusable(#[from] KvmUnusable),
    /// KVM refused.
    #[error("{call} failed")]
    Kvm {
        /// What was asked of it.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// RAM could not be made.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The RAM block could not be described.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The dirty log could not be made.
    #[error(transparent)]
    DirtyLog(#[from] DirtyLogError),
    /// The file for the serial port could not be opened.
    #[error("cannot open {path:?} for the serial port")]
    SerialFile {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start the thread of worker {worker}")]
    Thread {
        /// Which vCPU or worker.
        worker: u32,
        /// Why.
        source: io::Error,
    },
    /// The guest has ended and cannot be resumed.
    #[error("the guest has ended: {0:?}")]
    Ended(GuestEnd),
    /// Only the built-in guest knows what its memory must be.
    #[error("the guest is not the built-in one, or has not arrived yet; its memory cannot be verified")]
    NothingToVerify,
}

//! Which pages the guest wrote.
//!
//! [`DirtyLog`] has three implementations: [`KvmDirtyLog`] asks KVM, [`PagemapDirtyLog`] the page tables of this
//! process (asynchronous userfaultfd write protection, Linux 6.7), and [`FakeDirtyLog`] nobody. What the VMM itself
//! writes for the guest, its device emulation above all, is in none of them; it is reported to [`HostWrites`], which
//! every log ORs in.

mod fake;
mod host_writes;
mod kvm;
mod process;

pub use fake::FakeDirtyLog;
pub use host_writes::HostWrites;
pub use kvm::{ClearMode, KvmDirtyLog, KvmSlot};
pub use process::PagemapDirtyLog;

use crate::populated::Populated;
use limosa_pages::{BlockId, BlockName, DirtyMap, PageCount, PageRun};
use std::io;
use thiserror::Error;

/// Tells which pages were written since it was last asked.
///
/// The rule that all implementations keep: **a write that happens after [`start`](Self::start) has returned is
/// reported by some later [`sync_into`](Self::sync_into)**, unless its bytes were already there when a reader looked after
/// [`clear_before_read`](Self::clear_before_read). A log may report too much, never too little.
///
/// One thread owns the log. Writers run at any time.
pub trait DirtyLog: Send {
    /// Begins to log. Writes before it returns may be reported or not: send everything once after it.
    ///
    /// # Errors
    /// What the kernel says. Nothing is logged then.
    ///
    /// # Panics
    /// If the log runs already.
    fn start(&mut self) -> Result<(), DirtyLogError>;

    /// The pages of `block` that may hold anything but zero, without reading them. Call it after [`Self::start`].
    ///
    /// The others were zero at a moment since `start`, and a write after that moment will be reported. So they need
    /// not be sent, nor read, nor cleared, **until a sync reports them**: from the very next one on, a page that was
    /// reported counts as populated, whatever was said here.
    ///
    /// This looks in the order that [`RamBlock::populated`](crate::RamBlock::populated) alone cannot keep, where a page
    /// written between the look and the log's beginning would be lost.
    ///
    /// # Errors
    /// What the kernel says.
    ///
    /// # Panics
    /// If the log does not run.
    fn populated(&mut self, block: BlockId) -> Result<Populated, DirtyLogError>;

    /// Owes in `dirty` what was written since the last call; returns how many pages became owed that were not.
    ///
    /// # Errors
    /// What the kernel says. Writes may be lost then: the migration has to end.
    ///
    /// # Panics
    /// If the log does not run.
    fn sync_into(&mut self, dirty: &DirtyMap) -> Result<PageCount, DirtyLogError>;

    /// Call before the bytes of `run` are read for sending (invariant I2).
    ///
    /// It makes the hypervisor forget older writes to the run and watch for new ones, if that was put off. Cheap when
    /// nothing was. Not needed once the guest has stopped and will not write again.
    ///
    /// # Errors
    /// What the kernel says.
    ///
    /// # Panics
    /// If the log does not run.
    fn clear_before_read(&mut self, block: BlockId, run: PageRun) -> Result<(), DirtyLogError>;

    /// Ends the log. Harmless if it does not run.
    ///
    /// # Errors
    /// What the kernel says.
    fn stop(&mut self) -> Result<(), DirtyLogError>;
}

/// A log that cannot be had, or that failed.
#[derive(Debug, Error)]
pub enum DirtyLogError {
    /// This machine, or this process, does not have the mechanism.
    #[error("{what} is not available; {remedy}")]
    Unavailable {
        /// The mechanism.
        what: &'static str,
        /// What the user can do about it.
        remedy: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused an operation on a block.
    #[error("RAM block {block}: {call} failed")]
    Kernel {
        /// Which block.
        block: BlockName,
        /// The ioctl.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

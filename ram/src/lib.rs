//! Guest memory: the one place that touches a running guest's bytes.
//!
//! [`GuestRam`] is a shared list of [`RamBlock`]s. A block is mapped twice where its backing allows it: once for
//! the guest, and once for the engine (the *alias*), so that a page can be filled while the guest still faults
//! on it. [`Gather`] sends from guest memory and [`Scatter`] receives into it without a copy of our own; a
//! [`DirtyLog`] tells which pages were written since it was last asked.
//!
//! A guest writes while we read. This crate therefore never makes a `&[u8]` of guest memory: it copies with
//! volatile accesses, or lets the kernel copy. What it reads may be a mixture of old and new bytes. That is
//! harmless: a write that tears a page also re-dirties it, the log reports it, and the page is sent again
//! (invariant I2, *clear before read*).
//!
//! ```
//! use limosa_pages::{BlockId, BlockName, ByteCount, PageIndex};
//! use limosa_ram::{GuestRam, RamBlock};
//!
//! let block = RamBlock::memfd(BlockName::new("pc.ram")?, ByteCount(2 << 20))?;
//! let ram = GuestRam::new(vec![block])?;
//! ram.block(BlockId(0)).copy_in(4096, b"hello");
//! assert!(!ram.block(BlockId(0)).is_zero(PageIndex(1)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Trade-off taken: everything goes through the engine's mapping, also where the guest's is warmer. One rule is
//! easier to keep than a faster one with a role in it, and the destination must never fault on its own guest.
//!
//! **Deliberately absent:** records, sockets of its own, threads, policy. Which page leaves when is decided above.

mod block;
pub mod dirty_log;
mod error;
mod gather;
mod guest_ram;
mod mapping;
mod pagemap;
mod populated;
mod preallocation;
mod scatter;
#[cfg(feature = "vm-memory")]
mod vm_memory;
mod volatile;
mod zero;

pub use block::{Backing, RamBlock};
pub use dirty_log::{DirtyLog, DirtyLogError};
pub use error::RamError;
pub use gather::Gather;
pub use guest_ram::GuestRam;
pub use populated::{Evidence, Populated};
pub use preallocation::{AllocationAhead, Preallocation, REGION};
pub use scatter::Scatter;
#[cfg(feature = "vm-memory")]
pub use vm_memory::blocks_of;
pub use zero::is_zero;

//! The arithmetic of guest RAM, with no RAM in it.
//!
//! A guest's RAM is a list of named blocks ([`RamLayout`]); a block is an array of 4 KiB target pages.
//! Which pages the destination is still owed is a [`DirtyMap`]; which it holds is a [`ReceivedMap`];
//! [`PageScheduler`] decides what leaves next. Claiming pages is one atomic operation, so the background
//! scan and an urgent request race without a lock (invariant I1, *debt*).
//!
//! Trade-off taken: bitmaps count target pages of 4 KiB whatever the host's page size, because that is the
//! unit of the wire; a block with larger host pages only restricts where runs may begin and end.
//!
//! **Deliberately absent:** memory, clocks, threads, I/O.
#![forbid(unsafe_code)]

mod bitmap;
mod layout;
mod map;
mod scheduler;
mod units;

pub use bitmap::{DirtyBitmap, ReceivedBitmap};
pub use layout::{BlockLayout, BlockName, LayoutError, RamLayout};
pub use map::{DirtyMap, ReceivedMap};
pub use scheduler::{PageBatch, PageScheduler, Urgency};
pub use units::{BlockId, ByteCount, PAGE_BYTES, PageCount, PageIndex, PageRun, PageSize};

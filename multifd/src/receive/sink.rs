//! Where received pages go.

use limosa_pages::{BlockId, BlockName, DirtyMap, PAGE_BYTES, PageCount, PageRun, ReceivedMap};
use limosa_ram::GuestRam;
use std::io;
use thiserror::Error;

/// Where received pages go. All channels use one sink at the same time, each for other pages.
pub trait PageSink: Send + Sync {
    /// The memory that the pages are for. Their bytes are received straight into it, through the engine's mapping.
    fn ram(&self) -> &GuestRam;

    /// The bytes of `run`, which is inside its block, are in [`Self::ram`]: makes them visible to the guest, and
    /// then marks them as received (invariant I3).
    ///
    /// # Errors
    /// If the kernel refuses.
    fn place(&self, block: BlockId, run: PageRun) -> Result<(), PlaceError>;

    /// Makes the pages of `run` zero, and marks them as received.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn zero(&self, block: BlockId, run: PageRun) -> Result<(), PlaceError>;
}

/// Received pages could not be put where they belong.
#[derive(Debug, Error)]
#[error("RAM block {block}: {count} pages from page {start} on cannot be placed", start = run.start, count = run.count)]
pub struct PlaceError {
    /// Which block.
    pub block: BlockName,
    /// Which pages.
    pub run: PageRun,
    /// Why.
    pub source: io::Error,
}

/// A sink for a guest that does not run yet: what is in its memory is visible.
pub struct RamSink {
    ram: GuestRam,
    received: ReceivedMap,
    /// A bit for each page that had memory behind it at the start; the others are zero until received.
    populated: DirtyMap,
}

impl RamSink {
    /// A sink for `ram`, of which nothing is received yet. Notes which pages are known to be zero.
    pub fn new(ram: GuestRam) -> Self {
        let populated = DirtyMap::clean(ram.layout());
        for (id, block) in ram.iter() {
            block.populated().owe_into(populated.block(id));
        }
        Self { received: ReceivedMap::empty(ram.layout()), populated, ram }
    }

    /// What is received.
    pub fn received(&self) -> &ReceivedMap {
        &self.received
    }
}

impl PageSink for RamSink {
    fn ram(&self) -> &GuestRam {
        &self.ram
    }

    fn place(&self, block: BlockId, run: PageRun) -> Result<(), PlaceError> {
        self.received.block(block).mark(run);
        Ok(())
    }

    fn zero(&self, block: BlockId, run: PageRun) -> Result<(), PlaceError> {
        let (received, populated) = (self.received.block(block), self.populated.block(block));
        let ram = self.ram.block(block);
        for page in run.pages() {
            // A page that nothing was ever written to is zero already; to look at it would give it memory.
            let fresh = !received.is_received(page) && !populated.is_owed(page);
            if !fresh && !ram.is_zero(page) {
                ram.copy_in(page.byte_offset(), &[0; PAGE_BYTES]);
            }
            received.mark(PageRun::new(page, PageCount(1)));
        }
        Ok(())
    }
}

//! Where received pages go.

use limosa_pages::{BlockId, BlockName, DirtyMap, PAGE_BYTES, PageRun, ReceivedMap};
use limosa_ram::{AllocationAhead, GuestRam, Populated, Preallocation};
use std::io;
use std::sync::Arc;
use thiserror::Error;

/// Where received pages go. All channels use one sink at the same time, each for other pages.
pub trait PageSink: Send + Sync {
    /// The memory that the pages are for. Their bytes are received straight into it, through the engine's mapping.
    fn ram(&self) -> &GuestRam;

    /// Bytes are about to be written into `run`, which is inside its block: gives it memory in large pieces, where that
    /// is worth while. A sink that has no use for it does nothing.
    fn before_content(&self, _block: BlockId, _run: PageRun) {}

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
    received: Arc<ReceivedMap>,
    /// A bit for each page that had memory behind it at the start; the others are zero until received.
    populated: DirtyMap,
    preallocation: Arc<Preallocation>,
}

impl RamSink {
    /// A sink for `ram`, of which nothing is received yet. Notes which pages are known to be zero.
    pub fn new(ram: GuestRam) -> Self {
        let now: Vec<Populated> = ram.iter().map(|(_, block)| block.populated()).collect();
        let populated = DirtyMap::clean(ram.layout());
        for ((_, map), now) in populated.iter().zip(&now) {
            now.owe_into(map);
        }
        let preallocation = Arc::new(Preallocation::new(ram.clone(), &now));
        Self { received: Arc::new(ReceivedMap::empty(ram.layout())), populated, preallocation, ram }
    }

    /// What gives memory to pages before their content; it can be told what the source has.
    pub fn preallocation(&self) -> &Preallocation {
        &self.preallocation
    }

    /// Gives memory to what the source has just ahead of its content, until the handle is dropped. To be called when
    /// [`Self::preallocation`] was told all of it, once.
    ///
    /// # Errors
    /// If there is no thread to be had; content then gets its memory from whoever reads it.
    pub fn allocate_ahead(&self) -> io::Result<AllocationAhead> {
        AllocationAhead::start(Arc::clone(&self.preallocation))
    }

    /// What is received. It may be kept when the guest runs and its pages go elsewhere.
    pub fn received(&self) -> &Arc<ReceivedMap> {
        &self.received
    }
}

impl PageSink for RamSink {
    fn ram(&self) -> &GuestRam {
        &self.ram
    }

    #[inline]
    fn before_content(&self, block: BlockId, run: PageRun) {
        self.preallocation.before_content(block, run);
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
        }
        // In the first round all of them are; what comes again had its memory before.
        if received.mark(run) == run.count {
            self.preallocation.zero(block, run);
        }
        Ok(())
    }
}

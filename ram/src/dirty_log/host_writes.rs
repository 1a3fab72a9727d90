//! What the VMM itself wrote into guest RAM.

use limosa_pages::{BlockId, DirtyMap, PageCount, PageIndex, PageRun, RamLayout};

/// Pages that the VMM wrote on the guest's behalf: no hypervisor logs those.
///
/// Shared between the device threads, which mark, and the dirty log, which takes.
pub struct HostWrites {
    written: DirtyMap,
}

impl HostWrites {
    /// Nothing written.
    pub fn new(layout: &RamLayout) -> Self {
        Self { written: DirtyMap::clean(layout) }
    }

    /// Reports that `length` bytes at byte `offset` of `block` were written. Call it *after* the write: a page that is
    /// reported first may be taken, and sent, before the bytes arrive.
    ///
    /// Cost: one atomic OR per 64 pages; no lock. It may be called whether a log runs or not.
    ///
    /// # Panics
    /// If the bytes leave the block.
    pub fn mark(&self, block: BlockId, offset: u64, length: u64) {
        if length > 0 {
            let first = PageIndex::containing(offset);
            let last = PageIndex::containing(offset + length - 1);
            self.written.block(block).mark(PageRun::new(first, PageCount(last.0 + 1 - first.0)));
        }
    }

    /// Forgets what was marked.
    pub(crate) fn forget(&self) {
        self.written.iter().for_each(|(_, block)| block.clear());
    }

    /// Moves what was marked into `dirty`; returns how many pages became owed that were not.
    pub(crate) fn take_into(&self, dirty: &DirtyMap) -> PageCount {
        let mut fresh = PageCount(0);
        for (id, written) in self.written.iter() {
            let mut from = PageIndex(0);
            while let Some(run) = written.claim_next(from, PageCount(u64::MAX)) {
                fresh += dirty.block(id).mark(run);
                from = run.end();
            }
        }
        fresh
    }
}

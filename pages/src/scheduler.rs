//! Which pages leave next: requested ones first, then a cursor that walks the blocks in order.

use crate::bitmap::DirtyBitmap;
use crate::layout::RamLayout;
use crate::map::DirtyMap;
use crate::units::{BlockId, PageCount, PageIndex, PageRun};
use std::collections::VecDeque;

/// Why a batch leaves now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Somebody waits for these pages (I10: urgent first).
    Urgent,
    /// The cursor came by.
    Background,
}

/// Claimed pages of one block, as runs in ascending order. Reuse one batch: it keeps its allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageBatch {
    /// Block of all runs.
    pub block: BlockId,
    /// Claimed runs, ascending and disjoint.
    pub runs: Vec<PageRun>,
    /// Why they leave.
    pub urgency: Urgency,
}

/// Walks a [`DirtyMap`] and claims batches.
#[derive(Debug, Default)]
pub struct PageScheduler {
    urgent: VecDeque<(BlockId, PageRun)>,
    block: u32,
    page: PageIndex,
    /// Pages of a host page of each block, where these are claimed whole.
    units: Vec<PageCount>,
}

impl Default for PageBatch {
    fn default() -> Self {
        Self { block: BlockId(0), runs: Vec::new(), urgency: Urgency::Background }
    }
}

impl PageBatch {
    /// Pages in all runs.
    pub fn pages(&self) -> PageCount {
        self.runs.iter().map(|run| run.count).sum()
    }
}

impl PageScheduler {
    /// Starts at the first page of the first block.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on host pages of `layout`, the layout of the map, are claimed whole: in postcopy they are placed whole
    /// (wire 5.6). What is owed of a block with huge pages must be whole host pages then, and so must requests.
    pub fn claim_whole_host_pages(&mut self, layout: &RamLayout) {
        self.units = layout.iter().map(|(_, block)| block.page_size.target_pages()).collect();
    }

    /// Puts `run` before everything else. Asking twice is harmless: a claimed page is not claimed again.
    pub fn request(&mut self, block: BlockId, run: PageRun) {
        self.urgent.push_back((block, run));
    }

    /// Goes on at `page` of `block`: somebody faulted there.
    pub fn seek(&mut self, block: BlockId, page: PageIndex) {
        (self.block, self.page) = (block.0, page);
    }

    /// Claims the next pages into `batch`, at most `max`, or one host page where they are claimed whole and it is larger;
    /// `false` if nothing is owed.
    ///
    /// After a request the cursor goes on behind it, because faults have neighbours.
    ///
    /// # Panics
    /// If `max` is zero.
    pub fn next_batch(&mut self, dirty: &DirtyMap, max: PageCount, batch: &mut PageBatch) -> bool {
        assert!(max.0 > 0, "a batch of no pages would never end");
        batch.runs.clear();
        while let Some((block, run)) = self.urgent.pop_front() {
            self.claim_requested(dirty, block, run, max, batch);
            if !batch.runs.is_empty() {
                return true;
            }
        }
        batch.urgency = Urgency::Background;
        let blocks = dirty.iter().count() as u32;
        // One turn through all blocks, and the head of the first once more.
        for _ in 0..=blocks {
            if self.block >= blocks {
                (self.block, self.page) = (0, PageIndex(0));
            }
            self.claim_from_cursor(dirty, max, batch);
            if !batch.runs.is_empty() {
                return true;
            }
            (self.block, self.page) = (self.block + 1, PageIndex(0));
        }
        false
    }

    fn claim_from_cursor(&mut self, dirty: &DirtyMap, max: PageCount, batch: &mut PageBatch) {
        batch.block = BlockId(self.block);
        let Some((_, bitmap)) = dirty.iter().nth(self.block as usize) else { return };
        let unit = self.unit(batch.block);
        let mut left = max;
        while left.0 > 0
            && (unit <= left || batch.runs.is_empty())
            && let Some(run) = claim_next(bitmap, self.page, left, unit)
        {
            self.page = run.end();
            left = PageCount(left.0.saturating_sub(run.count.0));
            batch.runs.push(run);
        }
    }

    fn claim_requested(
        &mut self,
        dirty: &DirtyMap,
        block: BlockId,
        run: PageRun,
        max: PageCount,
        batch: &mut PageBatch,
    ) {
        (batch.block, batch.urgency) = (block, Urgency::Urgent);
        let (bitmap, unit) = (dirty.block(block), self.unit(block));
        let mut left = max;
        let mut page = run.start;
        while page < run.end() {
            if left < unit && !batch.runs.is_empty() {
                // The rest of a long request stays urgent.
                let rest = PageRun::new(page, PageCount(run.end().0 - page.0));
                self.urgent.push_front((block, rest));
                break;
            }
            if bitmap.claim_host_page(PageRun::new(page, unit)) {
                left = PageCount(left.0.saturating_sub(unit.0));
                match batch.runs.last_mut() {
                    Some(last) if last.end() == page => last.count += unit,
                    _ => batch.runs.push(PageRun::new(page, unit)),
                }
            }
            page = page + unit;
        }
        if !batch.runs.is_empty() {
            (self.block, self.page) = (block.0, run.end());
        }
    }

    /// What is claimed of a block at once, at least.
    fn unit(&self, block: BlockId) -> PageCount {
        self.units.get(block.index()).copied().unwrap_or(PageCount(1))
    }
}

fn claim_next(bitmap: &DirtyBitmap, from: PageIndex, max: PageCount, unit: PageCount) -> Option<PageRun> {
    match unit {
        PageCount(1) => bitmap.claim_next(from, max),
        _ => bitmap.claim_next_host_page(from, unit),
    }
}

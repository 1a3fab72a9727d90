//! Which pages of a batch go into its packet with their bytes.

use super::{SendBatch, ZeroDetection};
use limosa_pages::{PageCount, PageIndex, PageRun};
use limosa_ram::RamBlock;

/// The pages of a batch, sorted into those that are sent and those that are zero.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Offsets of the pages that are sent, in the order of the payload.
    pub(super) normal: Vec<u64>,
    /// Offsets of the pages that are zero.
    pub(super) zero: Vec<u64>,
    /// `normal` as runs: a run is one piece of a vectored send.
    pub(super) runs: Vec<PageRun>,
}

impl Contents {
    /// Replaces the contents by those of `batch`.
    pub(super) fn sort(&mut self, block: &RamBlock, batch: &SendBatch, detection: ZeroDetection) {
        self.normal.clear();
        self.zero.clear();
        self.runs.clear();
        for page in batch.content.iter().flat_map(|run| run.pages()) {
            if detection == ZeroDetection::Multifd && block.is_zero(page) {
                self.zero.push(page.byte_offset());
            } else {
                self.push_normal(page);
            }
        }
        let untouched = batch.untouched.iter().flat_map(|run| run.pages());
        self.zero.extend(untouched.map(PageIndex::byte_offset));
    }

    fn push_normal(&mut self, page: PageIndex) {
        self.normal.push(page.byte_offset());
        match self.runs.last_mut() {
            Some(last) if last.end() == page => last.count += PageCount(1),
            _ => self.runs.push(PageRun::new(page, PageCount(1))),
        }
    }
}

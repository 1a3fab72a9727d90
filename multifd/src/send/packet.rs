//! Which pages of a batch go into its packet with their bytes.

use super::{SendBatch, ZeroDetection};
use crate::runs::push_page;
use limosa_pages::{PageIndex, PageRun};
use limosa_ram::RamBlock;

/// The pages of a batch, sorted into those that are sent and those that are zero.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Offsets of the pages that are sent, in the order of the payload.
    pub(super) normal: Vec<u64>,
    /// Offsets of the pages that are zero: first those that were found to be, then those that were never touched.
    pub(super) zero: Vec<u64>,
    /// How many were found to be.
    zero_found: usize,
    /// Pages that leave straight from guest RAM, behind everything else: a run is one piece of a vectored send.
    pub(super) raw: Vec<PageRun>,
}

impl Contents {
    /// Replaces the contents by those of `batch`, and shows each page that is sent to `normal`, in order.
    pub(super) fn sort(
        &mut self,
        block: &RamBlock,
        batch: &SendBatch,
        detection: ZeroDetection,
        mut normal: impl FnMut(PageIndex),
    ) {
        self.normal.clear();
        self.zero.clear();
        self.raw.clear();
        for page in batch.content.iter().flat_map(|run| run.pages()) {
            if detection == ZeroDetection::Multifd && block.is_zero(page) {
                self.zero.push(page.byte_offset());
            } else {
                self.normal.push(page.byte_offset());
                normal(page);
            }
        }
        self.zero_found = self.zero.len();
        let untouched = batch.untouched.iter().flat_map(|run| run.pages());
        self.zero.extend(untouched.map(PageIndex::byte_offset));
    }

    /// Pages that the other side may have as something else than they are sent now: all but the untouched ones.
    pub(super) fn found_zero(&self) -> impl Iterator<Item = PageIndex> {
        self.zero[..self.zero_found].iter().map(|&offset| PageIndex::containing(offset))
    }

    /// As [`Self::sort`]; all pages that are sent leave straight from guest RAM.
    pub(super) fn sort_raw(&mut self, block: &RamBlock, batch: &SendBatch, detection: ZeroDetection) {
        let mut raw = std::mem::take(&mut self.raw);
        raw.clear();
        self.sort(block, batch, detection, |page| push_page(&mut raw, page));
        self.raw = raw;
    }
}

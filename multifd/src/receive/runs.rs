//! Where the pages of a packet belong.

use super::{PageSink, PlaceError};
use crate::error::ReceiveFailure;
use crate::runs::push_page;
use limosa_pages::{BlockId, PageRun};
use limosa_ram::RamBlock;
use limosa_wire::multifd::PagesHeader;

/// Where the pages of a packet belong; kept for its allocations.
#[derive(Debug, Default)]
pub(super) struct Runs {
    pub(super) normal: Vec<PageRun>,
    pub(super) zero: Vec<PageRun>,
}

impl Runs {
    /// Replaces the runs by those of `header`, of which no page may be outside of `block`.
    pub(super) fn locate(
        &mut self,
        block: &RamBlock,
        header: &PagesHeader<'_>,
    ) -> Result<(), ReceiveFailure> {
        self.normal.clear();
        self.zero.clear();
        header.normal().try_for_each(|offset| push(block, offset, &mut self.normal))?;
        header.zero().try_for_each(|offset| push(block, offset, &mut self.zero))
    }

    /// Tells the sink which pages are zero, and that bytes are about to be put into the normal ones. In this order: a
    /// region with zero pages is not taken for one that is full.
    pub(super) fn announce_to(&self, sink: &dyn PageSink, block: BlockId) -> Result<(), PlaceError> {
        self.zero.iter().try_for_each(|&run| sink.zero(block, run))?;
        self.normal.iter().for_each(|&run| sink.before_content(block, run));
        Ok(())
    }

    /// Tells the sink: the bytes of the normal pages are in its memory.
    pub(super) fn give_to(&self, sink: &dyn PageSink, block: BlockId) -> Result<(), PlaceError> {
        self.normal.iter().try_for_each(|&run| sink.place(block, run))
    }
}

fn push(block: &RamBlock, offset: u64, runs: &mut Vec<PageRun>) -> Result<(), ReceiveFailure> {
    let page = block.page_at(offset).ok_or_else(|| ReceiveFailure::PageOutside {
        name: block.name().to_string(),
        offset,
        length: block.length(),
    })?;
    push_page(runs, page);
    Ok(())
}

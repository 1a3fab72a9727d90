//! The section `ram`: counts per block, and no page kept.

use crate::inspect::report::BlockReport;
use limosa_pages::{PAGE_BYTES, PageCount, PageIndex, PageRun, ReceivedBitmap};
use limosa_wire::{BlockUse, PageAddress, RamContext, RamDecoder, RamItem, RamSetup, Step, WireError};
use std::collections::HashMap;
use thiserror::Error;

pub(super) const FOUR_KIB: u64 = PAGE_BYTES as u64;

/// Most pages whose being sent is remembered, one bit each: 4 TiB of RAM make 128 MiB of bits. Blocks beyond
/// that have their records counted, but neither repeated nor untouched pages.
const MAX_TRACKED_PAGES: u64 = (4 << 40) / FOUR_KIB;

/// A record that can be decoded and yet cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum RamProblem {
    #[error("a second block list")]
    SecondBlockList,
    #[error("two blocks are called {name:?}")]
    DuplicateBlock { name: String },
    #[error("block {name:?} is not in the block list")]
    UnknownBlock { name: String },
    #[error("the page at {page:#x} lies outside of block {name:?}, which has {length:#x} bytes")]
    OutsideBlock { name: String, page: u64, length: u64 },
    #[error("a block with its own place in a file, although the stream is not mapped-ram")]
    MappedBlock,
}

/// What the caller does after a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Passes over this many bytes of payload, and reads the next record.
    Skip(u64),
    /// The body has ended.
    End,
}

/// Counts the records of one channel.
pub(super) struct RamCounter {
    decoder: RamDecoder,
    blocks: Vec<Block>,
    by_name: HashMap<String, usize>,
    /// Block of the last record.
    current: usize,
    has_list: bool,
    flushes: u64,
}

struct Block {
    report: BlockReport,
    sent: Option<ReceivedBitmap>,
}

impl RamCounter {
    pub(super) fn new(context: RamContext) -> Self {
        Self {
            decoder: RamDecoder::new(context),
            blocks: Vec::new(),
            by_name: HashMap::new(),
            current: 0,
            has_list: false,
            flushes: 0,
        }
    }

    /// The next record at the start of `input`.
    #[inline]
    pub(super) fn decode(&mut self, input: &[u8]) -> Result<Step<RamItem>, WireError> {
        self.decoder.next(input)
    }

    /// Counts `item`, whose head had `head` bytes.
    ///
    /// # Errors
    /// Blocks and pages that do not exist.
    #[inline]
    pub(super) fn count(&mut self, item: RamItem, head: u64) -> Result<Next, RamProblem> {
        match item {
            RamItem::Zero(page) => {
                let block = self.touch(page, head)?;
                block.zero += 1;
                Ok(Next::Skip(0))
            }
            RamItem::Page(page) => {
                let block = self.touch(page, head + FOUR_KIB)?;
                block.normal += 1;
                Ok(Next::Skip(FOUR_KIB))
            }
            RamItem::Xbzrle { page, length } => {
                let length = u64::from(length);
                let block = self.touch(page, head + length)?;
                block.xbzrle += 1;
                block.xbzrle_bytes += length;
                Ok(Next::Skip(length))
            }
            // What the source has; the destination does with it what it likes.
            RamItem::Populated { .. } => Ok(Next::Skip(0)),
            RamItem::MultifdFlush => {
                self.flushes += 1;
                Ok(Next::Skip(0))
            }
            RamItem::Setup(setup) => self.list(setup).map(|()| Next::Skip(0)),
            RamItem::EndOfSection => Ok(Next::End),
            RamItem::MappedSetup { .. } | RamItem::MappedBlock(_) => Err(RamProblem::MappedBlock),
        }
    }

    /// The counts per block, and the flush marks met.
    pub(super) fn finish(self) -> (Vec<BlockReport>, u64) {
        let blocks = self.blocks.into_iter().map(|Block { mut report, sent }| {
            report.untouched = sent.map(|sent| report.pages - sent.count().0);
            report
        });
        (blocks.collect(), self.flushes)
    }

    #[inline]
    fn touch(&mut self, page: PageAddress, bytes: u64) -> Result<&mut BlockReport, RamProblem> {
        if page.block == BlockUse::Named {
            self.current = self.named()?;
        }
        // The decoder answers `Continued` only after a record that named a block, and those were looked up.
        let Block { report, sent } = &mut self.blocks[self.current];
        if page.offset >= report.length {
            let (name, length) = (report.name.clone(), report.length);
            return Err(RamProblem::OutsideBlock { name, page: page.offset, length });
        }
        report.bytes += bytes;
        if let (Some(sent), Some(repeated)) = (sent, &mut report.repeated) {
            let fresh = sent.mark(PageRun::new(PageIndex(page.offset / FOUR_KIB), PageCount(1)));
            *repeated += 1 - fresh.0;
        }
        Ok(report)
    }

    fn named(&self) -> Result<usize, RamProblem> {
        let name = self.decoder.block_name().expect("a record that names its block leaves the name behind");
        self.by_name.get(name).copied().ok_or_else(|| RamProblem::UnknownBlock { name: name.to_owned() })
    }

    fn list(&mut self, setup: RamSetup) -> Result<(), RamProblem> {
        if std::mem::replace(&mut self.has_list, true) {
            return Err(RamProblem::SecondBlockList);
        }
        let mut room = MAX_TRACKED_PAGES;
        for block in setup.blocks {
            let name = block.name.as_str().to_owned();
            if self.by_name.insert(name.clone(), self.blocks.len()).is_some() {
                return Err(RamProblem::DuplicateBlock { name });
            }
            let pages = block.length.0 / FOUR_KIB;
            let tracked = pages <= room;
            if tracked {
                room -= pages;
            }
            let report = BlockReport {
                name,
                length: block.length.0,
                host_page_bytes: block.page_size.map(|size| size.bytes()),
                guest_address: block.guest_address,
                pages,
                zero: 0,
                normal: 0,
                xbzrle: 0,
                xbzrle_bytes: 0,
                bytes: 0,
                repeated: tracked.then_some(0),
                untouched: None,
            };
            let sent = tracked.then(|| ReceivedBitmap::empty(PageCount(pages)));
            self.blocks.push(Block { report, sent });
        }
        Ok(())
    }
}

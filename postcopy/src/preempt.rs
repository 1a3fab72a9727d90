//! The channel that brings the pages somebody waits for (wire 5.8).

use crate::error::PreemptError;
use crate::sink::UffdSink;
use limosa_pages::{BlockId, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_transport::{During, Failure, LinkReader, TransportError};
use limosa_wire::{BlockUse, PageAddress, RamContext, RamDecoder, RamItem, Step};
use std::os::fd::BorrowedFd;

/// Bytes asked of the kernel at once: sixteen pages. More are seldom on their way; the buffer stays in the cache, and faults
/// are read again after so many pages at most.
const READ_SIZE: usize = 16 * (PAGE_BYTES + 64);

/// A preempt channel, read piece by piece as it comes: what has come of a record is kept until the rest of it comes.
pub(crate) struct PreemptReader {
    link: LinkReader,
    decoder: RamDecoder,
    block: Option<BlockId>,
    /// The page whose bytes come next; its record was read.
    page: Option<(BlockId, PageIndex)>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    consumed: u64,
    /// Bytes that are missing of what comes next, by the last look.
    missing: usize,
}

/// Whether more can come on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Yes.
    Open,
    /// The peer has ended it between two records.
    Ended,
}

impl PreemptReader {
    /// At the start of a channel, with no block named yet.
    pub(crate) fn new(link: LinkReader) -> Self {
        Self {
            link,
            decoder: RamDecoder::new(RamContext::new()),
            block: None,
            page: None,
            buffer: vec![0; 2 * READ_SIZE].into(),
            start: 0,
            end: 0,
            consumed: 0,
            missing: 0,
        }
    }

    /// Becomes readable when [`Self::receive`] has something to do.
    pub(crate) fn descriptor(&self) -> Result<BorrowedFd<'_>, TransportError> {
        self.link.descriptor()
    }

    /// Takes what is here, without waiting and no more than [`READ_SIZE`], and puts the pages in that are whole by that.
    ///
    /// # Errors
    /// [`PreemptError`]: nothing of use can come any more.
    pub(crate) fn receive(&mut self, sink: &UffdSink) -> Result<Reading, PreemptError> {
        self.make_room();
        match self.link.read_ready(&mut self.buffer[self.end..self.end + READ_SIZE])? {
            None => return Ok(Reading::Open),
            Some(0) => return self.finish(),
            Some(count) => self.end += count,
        }
        loop {
            self.missing = self.take_next(sink)?;
            if self.missing > 0 {
                return Ok(Reading::Open);
            }
        }
    }

    /// Takes the next record or page if all of it is here; otherwise says how many bytes are missing.
    fn take_next(&mut self, sink: &UffdSink) -> Result<usize, PreemptError> {
        let here = self.end - self.start;
        if let Some((block, page)) = self.page {
            if here < PAGE_BYTES {
                return Ok(PAGE_BYTES - here);
            }
            sink.put(block, page, &self.buffer[self.start..self.start + PAGE_BYTES])?;
            self.page = None;
            self.consume(PAGE_BYTES);
            return Ok(0);
        }
        match self.decoder.next(&self.buffer[self.start..self.end]) {
            Ok(Step::Item { used, item }) => {
                self.consume(used);
                self.take_record(item, sink).map(|()| 0)
            }
            Ok(Step::Need(total)) => Ok(total - here),
            Err(source) => Err(PreemptError::Wire { offset: self.consumed, source }),
        }
    }

    fn take_record(&mut self, item: RamItem, sink: &UffdSink) -> Result<(), PreemptError> {
        match item {
            RamItem::Page(address) => {
                self.page = Some(self.locate(address, sink)?);
                Ok(())
            }
            RamItem::Zero(address) => {
                let (block, page) = self.locate(address, sink)?;
                Ok(sink.zero(block, PageRun::new(page, PageCount(1)))?)
            }
            RamItem::EndOfSection => Ok(()), // The last word of machines up to 7.2.
            RamItem::Xbzrle { .. } => Err(PreemptError::Record { record: "an XBZRLE delta" }),
            RamItem::MultifdFlush => Err(PreemptError::Record { record: "a multifd flush" }),
            RamItem::Setup(_)
            | RamItem::Populated { .. }
            | RamItem::MappedSetup { .. }
            | RamItem::MappedBlock(_) => Err(PreemptError::Record { record: "a part of the block list" }),
        }
    }

    fn locate(
        &mut self,
        address: PageAddress,
        sink: &UffdSink,
    ) -> Result<(BlockId, PageIndex), PreemptError> {
        let layout = sink.ram().layout();
        let id = match (address.block, self.block) {
            (BlockUse::Continued, Some(id)) => id,
            _ => {
                let name = self.decoder.block_name().expect("a page record has or continues a block");
                layout.find(name).ok_or_else(|| PreemptError::UnknownBlock { name: name.to_owned() })?
            }
        };
        self.block = Some(id);
        let block = sink.ram().block(id);
        let outside = || PreemptError::Outside { block: block.name().clone(), offset: address.offset };
        Ok((id, block.page_at(address.offset).ok_or_else(outside)?))
    }

    /// The peer has ended the stream.
    fn finish(&self) -> Result<Reading, PreemptError> {
        if self.page.is_none() && self.start == self.end {
            return Ok(Reading::Ended);
        }
        let failure = Failure::Ended { wanted: self.missing as u64 };
        Err(TransportError { role: self.link.role(), during: During::Read, failure }.into())
    }

    /// Makes room for at least as much as is asked of the kernel at once.
    fn make_room(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < READ_SIZE {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        self.consumed += count as u64;
    }
}

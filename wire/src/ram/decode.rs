//! Bytes of a RAM channel to records.

use crate::cursor::{Cursor, Halt, Step, aligned, at_most, expect, step};
use crate::error::{Field, WireError};
use crate::ram::populated;
use crate::ram::setup::{RamContext, RamSetup, SetupBlock};
use crate::ram::{
    BlockUse, CONTINUE, END_OF_SECTION, FLAGS, MAX_RAM_BLOCKS, MAX_XBZRLE_BYTES, MEM_SIZE, MULTIFD_FLUSH,
    PAGE, POPULATED, PageAddress, RamItem, XBZRLE, XBZRLE_ENCODING, ZERO,
};
use limosa_pages::ByteCount;

/// Decodes the records of one channel: bodies of `ram` sections on the main channel, or the bare records of a
/// preempt channel (wire 3.1, 5.8).
///
/// The name of the last block is kept from one section to the next, as the senders do.
#[derive(Debug)]
pub struct RamDecoder {
    context: RamContext,
    /// Name in the last record that had one; empty before that. Reused, so naming allocates once at most.
    block: String,
    mapped: Option<MappedBlocks>,
}

/// Progress through the block list of a file with fixed page offsets.
#[derive(Clone, Copy, Debug)]
struct MappedBlocks {
    left: ByteCount,
    seen: usize,
}

/// What a record does to the decoder's memory.
struct Record<'a> {
    item: RamItem,
    named: Option<&'a str>,
    mapped: Option<MappedBlocks>,
}

impl RamDecoder {
    /// At the start of a channel, with no block named yet.
    pub fn new(context: RamContext) -> Self {
        Self { context, block: String::new(), mapped: None }
    }

    /// Name of the block that the last page record belongs to; `None` before the first.
    pub fn block_name(&self) -> Option<&str> {
        if self.block.is_empty() { None } else { Some(&self.block) }
    }

    /// The next record at the start of `input`.
    ///
    /// Bytes that belong to a record but are taken by the caller are not counted in `used`. A page or zero
    /// record that continues the last block costs a few instructions and no allocation.
    ///
    /// # Errors
    /// Bytes that cannot be a record. The decoder's state is unchanged then.
    #[inline]
    pub fn next(&mut self, input: &[u8]) -> Result<Step<RamItem>, WireError> {
        if let Some((word, rest)) = input.split_first_chunk() {
            let word = u64::from_be_bytes(*word);
            let page = PageAddress { offset: word & !FLAGS, block: BlockUse::Continued };
            if word & FLAGS == PAGE | CONTINUE && self.continues() {
                return Ok(Step::Item { used: 8, item: RamItem::Page(page) });
            }
            if word & FLAGS == ZERO | CONTINUE && rest.first() == Some(&0) && self.continues() {
                return Ok(Step::Item { used: 9, item: RamItem::Zero(page) });
            }
        }
        self.next_of_any_kind(input)
    }

    /// Whether a record may leave its block's name out.
    fn continues(&self) -> bool {
        !self.block.is_empty() && self.mapped.is_none()
    }

    #[inline(never)]
    fn next_of_any_kind(&mut self, input: &[u8]) -> Result<Step<RamItem>, WireError> {
        let (used, record) = match step(input, |cursor| self.read(cursor))? {
            Step::Need(total) => return Ok(Step::Need(total)),
            Step::Item { used, item } => (used, item),
        };
        if let Some(name) = record.named {
            self.block.clear();
            self.block.push_str(name);
        }
        self.mapped = record.mapped;
        Ok(Step::Item { used, item: record.item })
    }

    fn read<'a>(&self, cursor: &mut Cursor<'a>) -> Result<Record<'a>, Halt> {
        match self.mapped {
            Some(blocks) => self.read_mapped_block(blocks, cursor),
            None => self.read_record(cursor),
        }
    }

    fn read_record<'a>(&self, cursor: &mut Cursor<'a>) -> Result<Record<'a>, Halt> {
        let at = cursor.at();
        let word = cursor.u64()?;
        let (offset, flags) = (word & !FLAGS, word & FLAGS);
        let continued = flags & CONTINUE != 0;
        match flags & !CONTINUE {
            kind @ (ZERO | PAGE | XBZRLE) => {
                let (block, named) = self.read_block(at, continued, cursor)?;
                let item = read_page(kind, PageAddress { offset, block }, cursor)?;
                Ok(Record { item, named, mapped: None })
            }
            POPULATED => {
                aligned(at, Field::RamOffset, offset, populated::REGION_BYTES)?;
                let (block, named) = self.read_block(at, continued, cursor)?;
                let start = PageAddress { offset, block };
                let item = RamItem::Populated { start, pages: populated::read(cursor)? };
                Ok(Record { item, named, mapped: None })
            }
            MEM_SIZE if !continued => self.read_setup(ByteCount(offset), cursor),
            MULTIFD_FLUSH if !continued => bare(at, offset, RamItem::MultifdFlush),
            END_OF_SECTION if !continued => bare(at, offset, RamItem::EndOfSection),
            _ => Err(WireError::Unknown { at, field: Field::RamFlags, got: flags }.into()),
        }
    }

    fn read_setup<'a>(&self, total: ByteCount, cursor: &mut Cursor<'a>) -> Result<Record<'a>, Halt> {
        if !self.context.is_mapped() {
            let setup = RamSetup::read(&self.context, total, cursor)?;
            return Ok(Record { item: RamItem::Setup(setup), named: None, mapped: None });
        }
        let mapped = (total.0 > 0).then_some(MappedBlocks { left: total, seen: 0 });
        Ok(Record { item: RamItem::MappedSetup { total }, named: None, mapped })
    }

    fn read_mapped_block<'a>(
        &self,
        mut blocks: MappedBlocks,
        cursor: &mut Cursor<'a>,
    ) -> Result<Record<'a>, Halt> {
        blocks.seen += 1;
        at_most(cursor.at(), Field::BlockCount, blocks.seen as u64, MAX_RAM_BLOCKS as u64)?;
        let block = SetupBlock::read(&self.context, &mut blocks.left, cursor)?;
        let mapped = (blocks.left.0 > 0).then_some(blocks);
        Ok(Record { item: RamItem::MappedBlock(block), named: None, mapped })
    }

    fn read_block<'a>(
        &self,
        at: usize,
        continued: bool,
        cursor: &mut Cursor<'a>,
    ) -> Result<(BlockUse, Option<&'a str>), Halt> {
        if !continued {
            return Ok((BlockUse::Named, Some(cursor.str8(Field::BlockName)?)));
        }
        if self.block.is_empty() {
            return Err(WireError::NoPreviousBlock { at }.into());
        }
        Ok((BlockUse::Continued, None))
    }
}

/// A record that is nothing but its word.
fn bare<'a>(at: usize, offset: u64, item: RamItem) -> Result<Record<'a>, Halt> {
    expect(at, Field::RamOffset, 0, offset)?;
    Ok(Record { item, named: None, mapped: None })
}

fn read_page(kind: u64, page: PageAddress, cursor: &mut Cursor<'_>) -> Result<RamItem, Halt> {
    match kind {
        PAGE => Ok(RamItem::Page(page)),
        ZERO => {
            cursor.expect_u8(Field::ZeroByte, 0)?;
            Ok(RamItem::Zero(page))
        }
        _ => {
            let at = cursor.at();
            let encoding = cursor.u8()?;
            expect(at, Field::XbzrleEncoding, u64::from(XBZRLE_ENCODING), u64::from(encoding))?;
            let at = cursor.at();
            let length = cursor.u16()?;
            at_most(at, Field::XbzrleLength, u64::from(length), u64::from(MAX_XBZRLE_BYTES))?;
            Ok(RamItem::Xbzrle { page, length })
        }
    }
}

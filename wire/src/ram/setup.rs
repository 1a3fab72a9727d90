//! The block list, and what of it the stream itself does not tell.

use crate::cursor::{Cursor, Halt, aligned, at_most, expect};
use crate::encode;
use crate::error::{Field, WireError};
use crate::mapped_ram::MappedRamHeader;
use crate::ram::MEM_SIZE;
use limosa_pages::{BlockName, ByteCount, PAGE_BYTES, PageSize, RamLayout};

/// Most blocks in a list. A large guest has 256 memory devices and a few blocks per PCI function.
pub const MAX_RAM_BLOCKS: usize = 4096;

/// What both sides must know to read a block list: it has optional fields and no sign of them.
#[derive(Clone, Debug, Default)]
pub struct RamContext {
    /// Blocks whose page size is on the wire.
    large_page_blocks: Vec<BlockName>,
    guest_addresses: bool,
    mapped_ram: bool,
}

/// The block list of a START section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RamSetup {
    /// The blocks in wire order; at most [`MAX_RAM_BLOCKS`]. Names are not checked for duplicates.
    pub blocks: Vec<SetupBlock>,
}

/// One block of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupBlock {
    /// Its name.
    pub name: BlockName,
    /// Bytes in use; a positive multiple of 4 KiB.
    pub length: ByteCount,
    /// Its host pages' size, when postcopy may follow and the size is not 4 KiB.
    pub page_size: Option<PageSize>,
    /// Its guest-physical address, when shared RAM is left out of the migration.
    pub guest_address: Option<u64>,
    /// Where its pages lie in the file, with mapped-ram.
    pub mapped: Option<MappedRamHeader>,
}

impl RamContext {
    /// A list of names and lengths only, as nearly every stream has it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Postcopy may follow: blocks of `layout` with host pages above 4 KiB carry their page size (wire 3.3).
    pub fn with_postcopy(mut self, layout: &RamLayout) -> Self {
        let large = layout.iter().filter(|(_, block)| block.page_size > PageSize::FOUR_KIB);
        self.large_page_blocks = large.map(|(_, block)| block.name.clone()).collect();
        self
    }

    /// Capability `x-ignore-shared`: every block carries its guest-physical address.
    pub fn with_guest_addresses(mut self) -> Self {
        self.guest_addresses = true;
        self
    }

    /// Capability `mapped-ram`: every block carries a [`MappedRamHeader`], and its pages follow it in the file.
    pub fn with_mapped_ram(mut self) -> Self {
        self.mapped_ram = true;
        self
    }

    pub(super) fn is_mapped(&self) -> bool {
        self.mapped_ram
    }
}

impl RamSetup {
    /// Sum of the blocks' lengths, which opens the list on the wire.
    pub fn total(&self) -> ByteCount {
        self.blocks.iter().map(|block| block.length).sum()
    }

    /// Appends the list; the end-of-section mark is not part of it.
    ///
    /// # Panics
    /// If there are more than [`MAX_RAM_BLOCKS`], a length is no positive multiple of 4 KiB, or a block has a
    /// mapped-ram header: such blocks go out one by one, with their pages between them.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.blocks.len() <= MAX_RAM_BLOCKS, "{} RAM blocks", self.blocks.len());
        encode_total(self.total(), out);
        for block in &self.blocks {
            assert!(block.mapped.is_none(), "block {} has its pages behind it", block.name);
            block.encode(out);
        }
    }

    /// Reads the blocks that make up `total`.
    pub(super) fn read(
        context: &RamContext,
        total: ByteCount,
        cursor: &mut Cursor<'_>,
    ) -> Result<Self, Halt> {
        let mut blocks = Vec::new();
        let mut left = total;
        while left.0 > 0 {
            at_most(cursor.at(), Field::BlockCount, blocks.len() as u64 + 1, MAX_RAM_BLOCKS as u64)?;
            blocks.push(SetupBlock::read(context, &mut left, cursor)?);
        }
        Ok(Self { blocks })
    }
}

impl SetupBlock {
    /// A block with a name and a length only.
    pub fn new(name: BlockName, length: ByteCount) -> Self {
        Self { name, length, page_size: None, guest_address: None, mapped: None }
    }

    /// Absolute offset in the file at which the stream goes on behind the block's pages; `None` without a
    /// mapped-ram header. The decoder has checked that it does not overflow.
    pub fn mapped_resume_offset(&self) -> Option<u64> {
        self.mapped.map(|header| header.pages_offset + self.length.0)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let length = self.length.0;
        assert!(
            length > 0 && length.is_multiple_of(PAGE_BYTES as u64),
            "block {} of {length} bytes",
            self.name
        );
        encode::str8(self.name.as_str(), out);
        encode::u64(length, out);
        if let Some(size) = self.page_size {
            encode::u64(size.bytes(), out);
        }
        if let Some(address) = self.guest_address {
            encode::u64(address, out);
        }
        if let Some(header) = &self.mapped {
            header.encode(out);
        }
    }

    /// Reads one block and takes its length off `left`.
    pub(super) fn read(
        context: &RamContext,
        left: &mut ByteCount,
        cursor: &mut Cursor<'_>,
    ) -> Result<Self, Halt> {
        let name = cursor.block_name()?;
        let at = cursor.at();
        let length = cursor.u64()?;
        if length == 0 {
            return Err(WireError::Empty { at, field: Field::BlockLength }.into());
        }
        aligned(at, Field::BlockLength, length, PAGE_BYTES as u64)?;
        at_most(at, Field::BlockLengthSum, length, left.0)?;
        let mut block = Self::new(name, ByteCount(length));
        if context.large_page_blocks.contains(&block.name) {
            block.page_size = Some(read_page_size(cursor)?);
        }
        if context.guest_addresses {
            block.guest_address = Some(cursor.u64()?);
        }
        if context.mapped_ram {
            block.mapped = Some(MappedRamHeader::read(block.length, cursor)?);
        }
        *left -= block.length;
        Ok(block)
    }
}

pub(super) fn encode_total(total: ByteCount, out: &mut Vec<u8>) {
    encode::u64(total.0 | MEM_SIZE, out);
}

fn read_page_size(cursor: &mut Cursor<'_>) -> Result<PageSize, Halt> {
    let at = cursor.at();
    let bytes = cursor.u64()?;
    aligned(at, Field::BlockPageSize, bytes, PAGE_BYTES as u64)?;
    // Not a power of two: the nearest one below is what it could have been.
    let nearest = if bytes == 0 { PAGE_BYTES as u64 } else { 1 << bytes.ilog2() };
    expect(at, Field::BlockPageSize, nearest, bytes)?;
    Ok(PageSize::new(bytes).expect("a power of two of at least 4 KiB, as just checked"))
}

//! Files in which every page has a fixed offset (wire 6.1).

use crate::cursor::{Cursor, Halt, Step, aligned, at_most, expect, step};
use crate::encode;
use crate::error::{Field, WireError};
use limosa_pages::{ByteCount, PAGE_BYTES};

/// Name of the capability in the configuration.
pub const MAPPED_RAM_CAPABILITY: &str = "mapped-ram";

/// Pages begin at a multiple of this: 1 MiB suits any direct-I/O alignment.
pub const MAPPED_RAM_ALIGNMENT: u64 = 1 << 20;

const VERSION: u32 = 1;

/// Header behind a block's entry in the block list. All offsets are absolute in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedRamHeader {
    /// Where the bitmap of present pages lies; its words are little-endian on x86-64.
    pub bitmap_offset: u64,
    /// Where the block's first page lies.
    pub pages_offset: u64,
}

impl MappedRamHeader {
    /// Bytes on the wire: version, page size and two offsets.
    pub const BYTES: usize = 28;

    /// The header for a block of `length` bytes when the header itself begins at file offset `position`:
    /// bitmap directly behind it, pages at the next MiB.
    ///
    /// # Panics
    /// If the offsets overflow.
    pub fn at(position: u64, length: ByteCount) -> Self {
        let bitmap_offset = position + Self::BYTES as u64;
        let end = bitmap_offset + bitmap_bytes(length).0;
        Self { bitmap_offset, pages_offset: end.next_multiple_of(MAPPED_RAM_ALIGNMENT) }
    }

    /// Appends the header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode::u32(VERSION, out);
        encode::u64(PAGE_BYTES as u64, out);
        encode::u64(self.bitmap_offset, out);
        encode::u64(self.pages_offset, out);
    }

    /// The header at the start of `input`, of a block with `length` bytes.
    ///
    /// # Errors
    /// Another version or page size, unaligned pages, or a bitmap that reaches into the pages.
    pub fn decode(length: ByteCount, input: &[u8]) -> Result<Step<Self>, WireError> {
        step(input, |cursor| Self::read(length, cursor))
    }

    pub(crate) fn read(length: ByteCount, cursor: &mut Cursor<'_>) -> Result<Self, Halt> {
        cursor.expect_u32(Field::MappedRamVersion, VERSION)?;
        let at = cursor.at();
        expect(at, Field::MappedRamPageSize, PAGE_BYTES as u64, cursor.u64()?)?;
        let at = cursor.at();
        let bitmap_offset = cursor.u64()?;
        let pages_offset = cursor.u64()?;
        aligned(at + 8, Field::MappedRamPagesOffset, pages_offset, PAGE_BYTES as u64)?;
        at_most(at + 8, Field::MappedRamPagesOffset, pages_offset, u64::MAX - length.0)?;
        let room = pages_offset.saturating_sub(bitmap_bytes(length).0);
        at_most(at, Field::MappedRamBitmapOffset, bitmap_offset, room)?;
        Ok(Self { bitmap_offset, pages_offset })
    }
}

/// Bytes of the bitmap of present pages of a block with `length` bytes: whole 64-bit words.
pub fn bitmap_bytes(length: ByteCount) -> ByteCount {
    ByteCount(length.pages_rounded_up().0.div_ceil(64) * 8)
}

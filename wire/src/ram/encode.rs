//! Records to bytes of a RAM channel.

use crate::encode;
use crate::ram::populated;
use crate::ram::setup::{RamSetup, SetupBlock, encode_total};
use crate::ram::{
    CONTINUE, END_OF_SECTION, FLAGS, MAX_XBZRLE_BYTES, MULTIFD_FLUSH, PAGE, POPULATED, XBZRLE,
    XBZRLE_ENCODING, ZERO,
};
use limosa_pages::{BlockId, BlockName, ByteCount};

/// Encodes the records of one channel into the caller's buffer; the twin of
/// [`RamDecoder`](crate::RamDecoder).
///
/// A record of the same block as the one before leaves the name out. Start with a new encoder on every new
/// connection, and call [`Self::forget_block`] when postcopy starts.
#[derive(Clone, Debug, Default)]
pub struct RamEncoder {
    block: Option<BlockId>,
}

impl RamEncoder {
    /// At the start of a channel: the first record names its block.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next record names its block, whatever came before: when postcopy starts, and after a recovery.
    pub fn forget_block(&mut self) {
        self.block = None;
    }

    /// Appends the block list of a START section.
    ///
    /// # Panics
    /// See the limits of [`RamSetup`]; blocks with a mapped-ram header go through [`Self::mapped_block`].
    pub fn setup(&mut self, setup: &RamSetup, out: &mut Vec<u8>) {
        setup.encode(out);
    }

    /// Appends the opening of a block list whose blocks bring their pages with them (wire 6.1).
    pub fn mapped_setup(&mut self, total: ByteCount, out: &mut Vec<u8>) {
        encode_total(total, out);
    }

    /// Appends one block of such a list; its bitmap and pages follow at the offsets of its header.
    ///
    /// # Panics
    /// If the block has no mapped-ram header.
    pub fn mapped_block(&mut self, block: &SetupBlock, out: &mut Vec<u8>) {
        assert!(block.mapped.is_some(), "block {} has no mapped-ram header", block.name);
        block.encode(out);
    }

    /// Appends the head of a page record; the page's 4096 bytes follow.
    ///
    /// `offset` is in bytes from the start of the block, which `block` and `name` both stand for.
    ///
    /// # Panics
    /// If `offset` is not a multiple of 4 KiB.
    #[inline]
    pub fn page(&mut self, block: BlockId, name: &BlockName, offset: u64, out: &mut Vec<u8>) {
        self.head(PAGE, block, name, offset, out);
    }

    /// Appends a zero-page record, complete.
    ///
    /// # Panics
    /// If `offset` is not a multiple of 4 KiB.
    #[inline]
    pub fn zero(&mut self, block: BlockId, name: &BlockName, offset: u64, out: &mut Vec<u8>) {
        self.head(ZERO, block, name, offset, out);
        out.push(0);
    }

    /// Appends an XBZRLE record, complete with `delta`.
    ///
    /// # Panics
    /// If `offset` is not a multiple of 4 KiB or `delta` is longer than [`MAX_XBZRLE_BYTES`].
    pub fn xbzrle(&mut self, block: BlockId, name: &BlockName, offset: u64, delta: &[u8], out: &mut Vec<u8>) {
        assert!(delta.len() <= usize::from(MAX_XBZRLE_BYTES), "an XBZRLE delta of {} bytes", delta.len());
        self.head(XBZRLE, block, name, offset, out);
        out.push(XBZRLE_ENCODING);
        encode::u16(delta.len() as u16, out);
        out.extend_from_slice(delta);
    }

    /// Appends how many pages have memory here, for each region of
    /// [`POPULATED_REGION`](crate::POPULATED_REGION) from byte `offset` on.
    ///
    /// # Panics
    /// If no region begins at `offset`, there are no regions or more than
    /// [`MAX_POPULATED_REGIONS`](crate::MAX_POPULATED_REGIONS), or one has more pages than there are.
    pub fn populated(
        &mut self,
        block: BlockId,
        name: &BlockName,
        offset: u64,
        pages: &[u16],
        out: &mut Vec<u8>,
    ) {
        assert!(offset.is_multiple_of(populated::REGION_BYTES), "no region begins at {offset:#x}");
        self.head(POPULATED, block, name, offset, out);
        populated::encode(pages, out);
    }

    /// Appends the mark at which the destination waits for one SYNC packet of every multifd channel.
    pub fn multifd_flush(&mut self, out: &mut Vec<u8>) {
        encode::u64(MULTIFD_FLUSH, out);
    }

    /// Appends the mark that ends the section's body.
    pub fn end_of_section(&mut self, out: &mut Vec<u8>) {
        encode::u64(END_OF_SECTION, out);
    }

    #[inline]
    fn head(&mut self, kind: u64, block: BlockId, name: &BlockName, offset: u64, out: &mut Vec<u8>) {
        assert!(offset & FLAGS == 0, "page offset {offset:#x} inside a page");
        if self.block == Some(block) {
            encode::u64(offset | kind | CONTINUE, out);
        } else {
            encode::u64(offset | kind, out);
            encode::str8(name.as_str(), out);
            self.block = Some(block);
        }
    }
}

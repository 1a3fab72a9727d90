//! The section `ram`: block list, page records, end marks (wire 3).
//!
//! [`RamDecoder`] and [`RamEncoder`] are two ends of one channel. Both remember the block of the last record,
//! because a record may leave its block's name out; that memory is per channel and survives section
//! boundaries. A page's 4096 bytes never pass through here: they are read straight into guest RAM.

mod decode;
mod encode;
mod populated;
mod setup;

pub use decode::RamDecoder;
pub use encode::RamEncoder;
pub use populated::{MAX_POPULATED_REGIONS, POPULATED_REGION};
pub use setup::{MAX_RAM_BLOCKS, RamContext, RamSetup, SetupBlock};

use limosa_pages::ByteCount;

/// idstr of the section.
pub const RAM_IDSTR: &str = "ram";

/// The only version of the section's format in use.
pub const RAM_VERSION: u32 = 4;

/// Longest XBZRLE encoding of a page; what does not shrink below a page is sent as a page.
pub const MAX_XBZRLE_BYTES: u16 = limosa_pages::PAGE_BYTES as u16;

// The low 12 bits of a record's word; the rest is a byte offset in the block.
const FLAGS: u64 = 0xfff;
const ZERO: u64 = 0x002;
const MEM_SIZE: u64 = 0x004;
const PAGE: u64 = 0x008;
const END_OF_SECTION: u64 = 0x010;
const CONTINUE: u64 = 0x020;
const XBZRLE: u64 = 0x040;
const MULTIFD_FLUSH: u64 = 0x200;
/// Ours; QEMU has no flag of this value.
const POPULATED: u64 = 0x400;

/// The only encoding byte of an XBZRLE record.
const XBZRLE_ENCODING: u8 = 0x01;

/// Where a record's page lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageAddress {
    /// Byte offset of the page in its block; a multiple of 4 KiB, not yet held against the block's length.
    pub offset: u64,
    /// Whether the block changed.
    pub block: BlockUse,
}

/// How a record names its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockUse {
    /// By name: look [`RamDecoder::block_name`] up again.
    Named,
    /// It is the block of the record before, on this channel.
    Continued,
}

/// One record of the section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RamItem {
    /// The block list of a START section.
    Setup(RamSetup),
    /// A block list begins whose blocks bring their pages with them: as many
    /// [`RamItem::MappedBlock`] follow as their lengths need to make up this total (wire 6.1).
    MappedSetup {
        /// Sum of the lengths of all blocks.
        total: ByteCount,
    },
    /// One block of a file with fixed page offsets. The stream goes on where
    /// [`SetupBlock::mapped_resume_offset`] says; the caller moves there.
    MappedBlock(SetupBlock),
    /// The page is zero.
    Zero(PageAddress),
    /// The page's 4096 bytes follow, taken by the caller.
    Page(PageAddress),
    /// `length` bytes follow, taken by the caller: what changed in the page.
    Xbzrle {
        /// The page to patch.
        page: PageAddress,
        /// Bytes of the encoding; at most [`MAX_XBZRLE_BYTES`].
        length: u16,
    },
    /// How many pages have memory on the source, in each region of [`POPULATED_REGION`] from `start` on: 1 to
    /// [`MAX_POPULATED_REGIONS`] regions, not yet held against the block's length (wire 3.7).
    Populated {
        /// Where the first region begins.
        start: PageAddress,
        /// One number for each region.
        pages: Vec<u16>,
    },
    /// Wait for one SYNC packet of every multifd channel.
    MultifdFlush,
    /// The section's body ends.
    EndOfSection,
}

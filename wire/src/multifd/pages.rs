//! Packets that carry pages, and the SYNC packet, which carries none.

use crate::cursor::{Cursor, Halt, aligned, at_most, expect};
use crate::encode;
use crate::error::{Field, WireError};
use crate::multifd::device_state::{encode_padded_name, padded_name};
use crate::multifd::per_packet::{PerPacketHead, max_per_packet_bytes};
use crate::multifd::{METHOD, MULTIFD_MAGIC, MULTIFD_VERSION, SYNC};
use limosa_pages::{BlockName, PAGE_BYTES};
use std::ops::RangeInclusive;

/// Most pages in a packet: 128 x 4 KiB = 512 KiB.
pub const PACKET_PAGES: usize = 128;

/// Longest compressed payload: twice 128 pages, the size of the buffer that QEMU reads it into.
pub const MAX_COMPRESSED_BYTES: u32 = 2 * (PACKET_PAGES * PAGE_BYTES) as u32;

const NAME_BYTES: usize = 256;
const OFFSETS_BYTES: usize = PACKET_PAGES * 8;
const RESERVED_BYTES: usize = 4 + 24;

/// How the payload of a packet is compressed. All but [`PerPacket`](Self::PerPacket) are QEMU's; there one compressor
/// lives as long as its channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// The pages themselves.
    #[default]
    None,
    /// One zlib stream per channel, flushed after every packet.
    Zlib,
    /// One zstd frame per channel, flushed after every packet.
    Zstd,
    /// Intel QPL.
    Qpl,
    /// UADK.
    Uadk,
    /// Intel QATzip.
    Qatzip,
    /// Each packet by itself, as its [head](crate::multifd::PerPacketHead) says: only between two Limosas (wire 4.10).
    PerPacket,
}

/// Header of a packet with pages, or of a SYNC packet (wire 4.4). Borrows the offsets from the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesHeader<'a> {
    /// Wait until the main channel says so, after the pages of this packet.
    pub sync: bool,
    /// How the payload is compressed.
    pub compression: Compression,
    /// Number over all channels, from 0; informational.
    pub packet_number: u64,
    block: Option<&'a str>,
    normal: &'a [[u8; 8]],
    zero: &'a [[u8; 8]],
    payload_bytes: u32,
}

/// What a sender puts into a packet with pages.
#[derive(Clone, Copy, Debug)]
pub struct PagesPacket<'a> {
    /// Block of all pages.
    pub block: &'a BlockName,
    /// Byte offsets of the pages in the payload, in its order.
    pub normal: &'a [u64],
    /// Byte offsets of the zero pages.
    pub zero: &'a [u64],
    /// How the payload is compressed.
    pub compression: Compression,
    /// Bytes of the payload that follows: `normal.len()` x 4096 unless compressed.
    pub payload_bytes: u32,
    /// Number over all channels, from 0.
    pub packet_number: u64,
}

impl<'a> PagesHeader<'a> {
    /// Bytes on the wire, also of a SYNC packet: the array of offsets is never shortened.
    pub const BYTES: usize = 1344;

    /// Block of all pages; `None` if there are no pages.
    pub fn block(&self) -> Option<&'a str> {
        self.block
    }

    /// Byte offsets of the pages in the payload, in its order: multiples of 4 KiB, not yet held against the
    /// block's length.
    pub fn normal(&self) -> impl ExactSizeIterator<Item = u64> + use<'a> {
        self.normal.iter().map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// Byte offsets of the zero pages, likewise. A zero page that was never received need not be written: fresh
    /// RAM is zero.
    pub fn zero(&self) -> impl ExactSizeIterator<Item = u64> + use<'a> {
        self.zero.iter().map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// Bytes of the payload that follows; at most [`MAX_COMPRESSED_BYTES`].
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes as usize
    }

    /// Reads what follows the flags; `flags_at` is where they stood.
    pub(super) fn read(flags_at: usize, flags: u32, cursor: &mut Cursor<'a>) -> Result<Self, Halt> {
        let compression = Compression::from_method(flags_at, flags & METHOD)?;
        let at = cursor.at();
        let allocated = u64::from(cursor.u32()?);
        at_most(at, Field::PagesAllocated, allocated, PACKET_PAGES as u64)?;
        let normal = u64::from(cursor.u32()?);
        at_most(at + 4, Field::NormalPages, normal, allocated)?;
        let announced = cursor.u32()?;
        let packet_number = cursor.u64()?;
        let zero_at = cursor.at();
        let zero = u64::from(cursor.u32()?);
        at_most(zero_at, Field::ZeroPages, zero, allocated - normal)?;
        cursor.take(RESERVED_BYTES)?;
        let payload_bytes = payload_bytes(at + 8, compression, normal as u32, announced)?;
        let block = if normal + zero > 0 {
            Some(padded_name(Field::BlockName, cursor)?)
        } else {
            cursor.take(NAME_BYTES)?;
            None
        };
        let at = cursor.at();
        let (offsets, _) = cursor.take(OFFSETS_BYTES)?.as_chunks::<8>();
        let (normal, rest) = offsets.split_at(normal as usize);
        let zero = &rest[..zero as usize];
        let header =
            Self { sync: flags & SYNC != 0, compression, packet_number, block, normal, zero, payload_bytes };
        for (index, offset) in header.normal().chain(header.zero()).enumerate() {
            aligned(at + index * 8, Field::RamOffset, offset, PAGE_BYTES as u64)?;
        }
        Ok(header)
    }
}

impl PagesPacket<'_> {
    /// Appends the header; the payload follows.
    ///
    /// # Panics
    /// If there are no pages or more than [`PACKET_PAGES`], or the payload length does not fit them.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (normal, zero) = (self.normal.len(), self.zero.len());
        assert!((1..=PACKET_PAGES).contains(&(normal + zero)), "{normal} + {zero} pages in a packet");
        match (normal, self.compression) {
            (0, _) => assert_eq!(self.payload_bytes, 0, "a payload without pages"),
            (_, Compression::None) => assert_eq!(self.payload_bytes as usize, normal * PAGE_BYTES),
            (_, compression) => {
                let possible = compression.payload_bytes_possible(normal as u32);
                assert!(possible.contains(&self.payload_bytes), "payload of {}", self.payload_bytes);
            }
        }
        let counts = [PACKET_PAGES as u32, normal as u32, self.payload_bytes];
        head(u32::from(self.compression.method()), counts, self.packet_number, zero as u32, out);
        encode_padded_name(self.block.as_str(), out);
        let end = out.len() + OFFSETS_BYTES;
        for offset in self.normal.iter().chain(self.zero) {
            assert!(offset.is_multiple_of(PAGE_BYTES as u64), "page offset {offset:#x} inside a page");
            encode::u64(*offset, out);
        }
        out.resize(end, 0);
    }

    /// Appends a SYNC packet: every channel sends one for each flush record of the main channel.
    pub fn encode_sync(packet_number: u64, out: &mut Vec<u8>) {
        head(SYNC, [0; 3], packet_number, 0, out);
        let end = out.len() + NAME_BYTES + OFFSETS_BYTES;
        out.resize(end, 0);
    }
}

impl Compression {
    /// The method's name, as `multifd-compression` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
            Self::Qpl => "qpl",
            Self::Uadk => "uadk",
            Self::Qatzip => "qatzip",
            Self::PerPacket => "per packet",
        }
    }

    /// The bits of a packet's flags that name the method.
    pub(crate) const fn method(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Zlib => 0x02,
            Self::Zstd => 0x04,
            Self::Qpl => 0x08,
            Self::Uadk => 0x10,
            Self::Qatzip => 0x20,
            // All bits of the field: QEMU sets one of them.
            Self::PerPacket => METHOD as u8,
        }
    }

    /// How many bytes the compressed form of `normal` pages may have; at least one page.
    fn payload_bytes_possible(self, normal: u32) -> RangeInclusive<u32> {
        match self {
            Self::PerPacket => PerPacketHead::BYTES as u32..=max_per_packet_bytes(normal as usize) as u32,
            _ => 1..=MAX_COMPRESSED_BYTES,
        }
    }

    pub(crate) fn from_method(at: usize, method: u32) -> Result<Self, WireError> {
        let all = [Self::None, Self::Zlib, Self::Zstd, Self::Qpl, Self::Uadk, Self::Qatzip, Self::PerPacket];
        all.into_iter()
            .find(|compression| u32::from(compression.method()) == method)
            .ok_or(WireError::Unknown { at, field: Field::MultifdMethod, got: u64::from(method) })
    }
}

/// Bytes behind the header. Without pages there are none, whatever is announced: older sources leave the length
/// of the packet before in the field.
fn payload_bytes(at: usize, compression: Compression, normal: u32, announced: u32) -> Result<u32, WireError> {
    if normal == 0 {
        return Ok(0);
    }
    let whole = normal * PAGE_BYTES as u32;
    if compression == Compression::None {
        expect(at, Field::PayloadLength, u64::from(whole), u64::from(announced))?;
    }
    let possible = compression.payload_bytes_possible(normal);
    at_most(at, Field::PayloadLength, u64::from(announced), u64::from(*possible.end()))?;
    if announced == 0 {
        return Err(WireError::Empty { at, field: Field::PayloadLength });
    }
    if announced < *possible.start() {
        return Err(WireError::Misplaced { at, field: Field::PayloadLength, got: u64::from(announced) });
    }
    Ok(announced)
}

/// Magic to reserved bytes; `counts` are pages allocated, normal pages and payload bytes.
fn head(flags: u32, counts: [u32; 3], packet_number: u64, zero: u32, out: &mut Vec<u8>) {
    encode::u32(MULTIFD_MAGIC, out);
    encode::u32(MULTIFD_VERSION, out);
    encode::u32(flags, out);
    for count in counts {
        encode::u32(count, out);
    }
    encode::u64(packet_number, out);
    encode::u32(zero, out);
    out.extend_from_slice(&[0; RESERVED_BYTES]);
}

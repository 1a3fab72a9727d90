//! The head of a payload whose packet stands for itself: an extension between two Limosas (wire 4.10).
//!
//! Behind the head come one compressed block, the delta records, and the raw pages. The raw pages are last, so that
//! a sender takes them straight from guest RAM and a receiver reads them straight into it.

use crate::cursor::{Cursor, Halt, Step, at_most, expect, step};
use crate::encode;
use crate::error::{Field, WireError};
use crate::multifd::PACKET_PAGES;
use limosa_pages::PAGE_BYTES;

/// Longest delta record: a quarter of a page. What changes more is better compressed, or sent as it is.
pub const MAX_DELTA_BYTES: usize = PAGE_BYTES / 4;

/// Shortest delta record: a map of lines, none of them changed.
pub const MIN_DELTA_BYTES: usize = 8;

/// Longest payload of a packet of `pages` pages: the head, and nothing smaller than the pages themselves.
pub const fn max_per_packet_bytes(pages: usize) -> usize {
    PerPacketHead::BYTES + pages * PAGE_BYTES
}

/// How the compressed block of a packet is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BlockMethod {
    /// There is no block: every page is raw or a delta.
    #[default]
    None,
    /// One LZ4 block, without frame or length.
    Lz4,
    /// One zstd frame, which is over.
    Zstd,
}

/// Which normal pages of a packet, by their place in it; at most [`PACKET_PAGES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PageMap(pub u128);

/// Head of the payload of a packet with per-packet compression (wire 4.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerPacketHead {
    /// How the pages that are neither raw nor deltas are compressed; [`BlockMethod::None`] if there are none.
    pub method: BlockMethod,
    /// Bytes of the compressed block, fewer than its pages have.
    pub compressed_bytes: u32,
    /// Bytes of all delta records.
    pub delta_bytes: u32,
    /// Pages that are sent as they are.
    pub raw: PageMap,
    /// Pages that are sent as their difference from the version of an earlier synchronisation interval.
    pub delta: PageMap,
}

impl PageMap {
    /// The first `pages` pages.
    ///
    /// # Panics
    /// If there are more than [`PACKET_PAGES`].
    pub const fn first(pages: usize) -> Self {
        assert!(pages <= PACKET_PAGES, "more pages than a packet has");
        if pages == PACKET_PAGES { Self(u128::MAX) } else { Self((1 << pages) - 1) }
    }

    /// Whether `page` is in the map.
    ///
    /// # Panics
    /// If no packet has such a page.
    pub const fn contains(self, page: usize) -> bool {
        assert!(page < PACKET_PAGES, "a page that no packet has");
        self.0 >> page & 1 == 1
    }

    /// Puts `page` into the map.
    ///
    /// # Panics
    /// If no packet has such a page.
    pub const fn insert(&mut self, page: usize) {
        assert!(page < PACKET_PAGES, "a page that no packet has");
        self.0 |= 1 << page;
    }

    /// How many pages are in the map.
    pub const fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The pages that are in either map.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The pages that are in this map and not in the other.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The pages of the map, in the order of the packet.
    pub fn pages(self) -> impl Iterator<Item = usize> + Clone {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let page = rest.trailing_zeros() as usize;
            // The lowest page leaves the map; an empty one stays empty.
            rest &= rest.wrapping_sub(1);
            (page < PACKET_PAGES).then_some(page)
        })
    }
}

impl PerPacketHead {
    /// Bytes on the wire.
    pub const BYTES: usize = 44;

    /// The head of a packet of `pages` pages that are all raw.
    ///
    /// # Panics
    /// If there are more than [`PACKET_PAGES`].
    pub const fn all_raw(pages: usize) -> Self {
        Self {
            method: BlockMethod::None,
            compressed_bytes: 0,
            delta_bytes: 0,
            raw: PageMap::first(pages),
            delta: PageMap(0),
        }
    }

    /// The pages in the compressed block of a packet of `pages` normal pages.
    pub const fn compressed(&self, pages: usize) -> PageMap {
        PageMap::first(pages).without(self.raw).without(self.delta)
    }

    /// Bytes of the payload, with the head.
    pub const fn payload_bytes(&self) -> usize {
        Self::BYTES
            + self.compressed_bytes as usize
            + self.delta_bytes as usize
            + self.raw.count() * PAGE_BYTES
    }

    /// Appends the head of a packet of `pages` normal pages.
    ///
    /// # Panics
    /// If [`decode`](Self::decode) would refuse it.
    pub fn encode(&self, pages: usize, out: &mut Vec<u8>) {
        assert!(pages <= PACKET_PAGES, "{pages} pages in a packet");
        let checked = self.check([0; 5], pages, self.payload_bytes());
        assert!(checked.is_ok(), "the head of a packet of {pages} pages is wrong: {checked:?}");
        out.extend_from_slice(&[self.method.code(), 0, 0, 0]);
        encode::u32(self.compressed_bytes, out);
        encode::u32(self.delta_bytes, out);
        out.extend_from_slice(&self.raw.0.to_be_bytes());
        out.extend_from_slice(&self.delta.0.to_be_bytes());
    }

    /// The head at the start of `input`, which is the payload of a packet with `pages` normal pages and
    /// `payload_bytes` bytes behind its header, as [`PagesHeader`](crate::multifd::PagesHeader) says. What it
    /// announces is then exactly that payload.
    ///
    /// # Errors
    /// A head that does not fit the packet, or whose parts do not fit each other.
    pub fn decode(input: &[u8], pages: usize, payload_bytes: usize) -> Result<Step<Self>, WireError> {
        step(input, |cursor| Self::read(cursor, pages, payload_bytes))
    }

    fn read(cursor: &mut Cursor<'_>, pages: usize, payload_bytes: usize) -> Result<Self, Halt> {
        let method = BlockMethod::read(cursor)?;
        for _ in 0..3 {
            cursor.expect_u8(Field::PerPacketReserved, 0)?;
        }
        let (compressed_at, compressed_bytes) = (cursor.at(), cursor.u32()?);
        let (delta_bytes_at, delta_bytes) = (cursor.at(), cursor.u32()?);
        let (raw_at, raw) = (cursor.at(), PageMap(cursor.u128()?));
        let (delta_at, delta) = (cursor.at(), PageMap(cursor.u128()?));
        let head = Self { method, compressed_bytes, delta_bytes, raw, delta };
        head.check([0, compressed_at, delta_bytes_at, raw_at, delta_at], pages, payload_bytes)?;
        Ok(head)
    }

    /// Whether the head fits its packet; `at` is where the five fields stand, in the order of the wire.
    fn check(&self, at: [usize; 5], pages: usize, payload_bytes: usize) -> Result<(), WireError> {
        let [method_at, compressed_at, delta_bytes_at, raw_at, delta_at] = at;
        inside(raw_at, Field::RawMap, self.raw, PageMap::first(pages))?;
        inside(delta_at, Field::DeltaMap, self.delta, PageMap::first(pages).without(self.raw))?;
        let compressed = self.compressed(pages).count();
        // No page without a method, no method without a page: one packet has one form.
        if (compressed == 0) != (self.method == BlockMethod::None) {
            let got = u64::from(self.method.code());
            return Err(WireError::Misplaced { at: method_at, field: Field::BlockMethod, got });
        }
        let bytes = u64::from(self.compressed_bytes);
        let limit = (compressed * PAGE_BYTES).saturating_sub(1) as u64;
        at_most(compressed_at, Field::CompressedLength, bytes, limit)?;
        if compressed > 0 && bytes == 0 {
            return Err(WireError::Empty { at: compressed_at, field: Field::CompressedLength });
        }
        let bytes = u64::from(self.delta_bytes);
        let deltas = self.delta.count();
        at_most(delta_bytes_at, Field::DeltaLength, bytes, (deltas * MAX_DELTA_BYTES) as u64)?;
        if bytes < (deltas * MIN_DELTA_BYTES) as u64 {
            return Err(WireError::Misplaced { at: delta_bytes_at, field: Field::DeltaLength, got: bytes });
        }
        expect(compressed_at, Field::PayloadLength, payload_bytes as u64, self.payload_bytes() as u64)
    }
}

impl BlockMethod {
    const ALL: [Self; 3] = [Self::None, Self::Lz4, Self::Zstd];

    const fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Halt> {
        let at = cursor.at();
        let got = cursor.u8()?;
        let method = Self::ALL.into_iter().find(|method| method.code() == got);
        let unknown = WireError::Unknown { at, field: Field::BlockMethod, got: u64::from(got) };
        method.ok_or(Halt::Wrong(unknown))
    }
}

/// `map` may hold pages of `allowed` only; the error names the first that is not.
fn inside(at: usize, field: Field, map: PageMap, allowed: PageMap) -> Result<(), WireError> {
    match map.without(allowed).pages().next() {
        None => Ok(()),
        Some(page) => Err(WireError::Misplaced { at, field, got: page as u64 }),
    }
}

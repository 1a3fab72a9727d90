//! The normal pages of a packet, on their way to the encoder.

use crate::{Page, delta};
use limosa_pages::PAGE_BYTES;
use limosa_wire::multifd::{MAX_DELTA_BYTES, PACKET_PAGES, PageMap};

/// The normal pages of one packet, in its order, each in the form in which it is to go.
///
/// A page is copied to the [candidate](Self::candidate), looked at there, and then added in one of three forms. What
/// is to be compressed so lies in one piece, and nothing is copied twice. Memory: 640 KiB, kept between packets.
#[derive(Debug)]
pub struct PacketPages {
    /// Room for a full packet; the first `compressed` pages of it are taken, the next one is the candidate.
    bytes: Box<[u8]>,
    compressed: usize,
    records: Vec<u8>,
    raw: PageMap,
    delta: PageMap,
    count: usize,
}

impl PacketPages {
    /// A packet without pages.
    pub fn new() -> Self {
        Self {
            bytes: vec![0; PACKET_PAGES * PAGE_BYTES].into(),
            compressed: 0,
            records: Vec::with_capacity(PACKET_PAGES * MAX_DELTA_BYTES),
            raw: PageMap::default(),
            delta: PageMap::default(),
            count: 0,
        }
    }

    /// Forgets all pages.
    pub fn clear(&mut self) {
        self.records.clear();
        (self.compressed, self.count) = (0, 0);
        (self.raw, self.delta) = (PageMap::default(), PageMap::default());
    }

    /// How many pages were added; the next one has this number in the packet.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Room for the next page. It holds anything until it is written, and what was written until it is added to be
    /// compressed: of a page that was added as a delta, what was sent can be read here.
    ///
    /// # Panics
    /// If all pages of a packet are to be compressed.
    pub fn candidate(&mut self) -> &mut Page {
        &mut self.bytes.as_chunks_mut().0[self.compressed]
    }

    /// Adds the candidate, to be compressed.
    ///
    /// # Panics
    /// If the packet is full.
    pub fn compress(&mut self) {
        self.assert_room();
        self.compressed += 1;
        self.count += 1;
    }

    /// Adds a page that its sender takes straight from guest RAM.
    ///
    /// # Panics
    /// If the packet is full.
    pub fn raw(&mut self) {
        self.assert_room();
        self.raw.insert(self.count);
        self.count += 1;
    }

    /// Adds the candidate as its difference from `old`, the version that the other side has, if it is small
    /// enough; says whether it was added.
    ///
    /// # Panics
    /// If the packet is full.
    #[must_use = "a page that was not added has to be added in another form"]
    pub fn delta(&mut self, old: &Page) -> bool {
        self.assert_room();
        let new = &self.bytes.as_chunks().0[self.compressed];
        let added = delta::encode(old, new, &mut self.records);
        if added {
            self.delta.insert(self.count);
            self.count += 1;
        }
        added
    }

    /// The bytes of the pages that are to be compressed.
    pub(super) fn compressed(&self) -> &[u8] {
        &self.bytes[..self.compressed * PAGE_BYTES]
    }

    pub(super) fn delta_records(&self) -> &[u8] {
        &self.records
    }

    /// Pages that were added as raw.
    pub fn raw_pages(&self) -> PageMap {
        self.raw
    }

    /// Pages that were added as deltas.
    pub fn delta_pages(&self) -> PageMap {
        self.delta
    }

    fn assert_room(&self) {
        assert!(self.count < PACKET_PAGES, "the packet is full");
    }
}

impl Default for PacketPages {
    fn default() -> Self {
        Self::new()
    }
}

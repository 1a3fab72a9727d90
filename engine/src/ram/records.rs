//! The records of a batch, as they leave: headers and copies of the pages behind them.

use limosa_pages::{PAGE_BYTES, PageCount, PageRun};
use limosa_ram::{Gather, RamBlock};
use std::ops::Range;

/// Header of a page whose block is that of the record before it (wire 3.3): all but the first of a stream.
const SHORT_HEADER: usize = 8;

/// What a page takes with its header.
const SLOT: usize = SHORT_HEADER + PAGE_BYTES;

/// Records in order, in two buffers that are used again for every batch.
///
/// Pages are copied into slots, each behind room for its header, so that neighbours leave as one piece. Sending them
/// from guest RAM instead takes two vectors a page and the page tables of the engine's mapping; it measured 209 ms of
/// processor time per GiB against 147 for this copy by `preadv` and one contiguous send (medians of 15 alternating runs).
pub(super) struct Records {
    slots: Box<[u8]>,
    /// Slots that hold pages of this batch.
    filled: usize,
    /// Everything else: longer headers, zero records, deltas.
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    header: Vec<u8>,
}

/// Bytes of one of the buffers, next in the order of sending.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    buffer: Buffer,
    range: Range<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Buffer {
    Slots,
    Bytes,
}

/// A page that was copied from the guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot(usize);

impl Records {
    /// Room for batches of at most `pages`.
    pub(super) fn of(pages: PageCount) -> Self {
        Self {
            slots: vec![0; pages.0 as usize * SLOT].into_boxed_slice(),
            filled: 0,
            bytes: Vec::new(),
            pieces: Vec::new(),
            header: Vec::new(),
        }
    }

    /// Begins a new batch.
    pub(super) fn clear(&mut self) {
        self.filled = 0;
        self.bytes.clear();
        self.pieces.clear();
    }

    /// Copies `run` out of the guest; what becomes of each page is said next.
    ///
    /// # Panics
    /// If the batch has more pages than it was made for, or the run leaves the block.
    pub(super) fn copy(&mut self, block: &RamBlock, run: PageRun) -> impl Iterator<Item = Slot> + use<> {
        let first = self.filled;
        self.filled += run.count.0 as usize;
        block.copy_out_spaced(run, SHORT_HEADER, &mut self.slots[first * SLOT..self.filled * SLOT]);
        (first..self.filled).map(Slot)
    }

    /// The page in `slot`.
    pub(super) fn page(&self, slot: Slot) -> &[u8; PAGE_BYTES] {
        self.slots[slot.0 * SLOT + SHORT_HEADER..].first_chunk().expect("a slot holds a page")
    }

    /// Adds the record of a copied page: the header that `encode` appends, and the page.
    pub(super) fn push_page(&mut self, slot: Slot, encode: impl FnOnce(&mut Vec<u8>)) {
        self.header.clear();
        encode(&mut self.header);
        let start = slot.0 * SLOT;
        let end = start + SLOT;
        if let Ok(header) = <[u8; SHORT_HEADER]>::try_from(self.header.as_slice()) {
            self.slots[start..start + SHORT_HEADER].copy_from_slice(&header);
            self.extend(Buffer::Slots, start..end);
        } else {
            let header = std::mem::take(&mut self.header);
            self.push(|out| out.extend_from_slice(&header));
            self.header = header;
            self.extend(Buffer::Slots, start + SHORT_HEADER..end);
        }
    }

    /// Adds what `encode` appends: a record without a copied page.
    pub(super) fn push(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        encode(&mut self.bytes);
        self.extend(Buffer::Bytes, start..self.bytes.len());
    }

    /// The records, if they are few bytes: a batch of zeros or deltas, better collected than sent alone.
    pub(super) fn without_pages(&self) -> Option<&[u8]> {
        let has_pages = self.pieces.iter().any(|piece| piece.buffer == Buffer::Slots);
        (!has_pages).then_some(self.bytes.as_slice())
    }

    /// The records in order.
    pub(super) fn gather(&self) -> Gather<'_> {
        let mut gather = Gather::new();
        for Piece { buffer, range } in &self.pieces {
            gather.bytes(match buffer {
                Buffer::Slots => &self.slots[range.clone()],
                Buffer::Bytes => &self.bytes[range.clone()],
            });
        }
        gather
    }

    fn extend(&mut self, buffer: Buffer, range: Range<usize>) {
        match self.pieces.last_mut() {
            Some(last) if last.buffer == buffer && last.range.end == range.start => {
                last.range.end = range.end
            }
            _ => self.pieces.push(Piece { buffer, range }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use limosa_pages::{BlockName, ByteCount, PageIndex};

    fn all(records: &Records) -> Vec<u8> {
        let mut gather = records.gather();
        let mut bytes = vec![0; gather.remaining().0 as usize];
        assert_eq!(gather.copy_to(&mut bytes), bytes.len());
        bytes
    }

    #[test]
    fn records_leave_in_the_order_in_which_they_were_pushed() {
        let block = RamBlock::memfd(BlockName::new("ram").unwrap(), ByteCount(4 * 4096)).unwrap();
        (0..4_u8).for_each(|page| block.copy_in(u64::from(page) * 4096, &[page; PAGE_BYTES]));
        let mut records = Records::of(PageCount(4));
        let slots: Vec<Slot> = records.copy(&block, PageRun::new(PageIndex(0), PageCount(4))).collect();

        records.push_page(slots[0], |out| out.extend_from_slice(b"a header with a name"));
        records.push_page(slots[1], |out| out.extend_from_slice(b"header 1"));
        records.push(|out| out.extend_from_slice(b"zero"));
        records.push_page(slots[3], |out| out.extend_from_slice(b"header 3"));
        let pages = [0_u8, 1, 3].map(|page| [page; PAGE_BYTES]);
        let expected: [&[u8]; 7] =
            [b"a header with a name", &pages[0], b"header 1", &pages[1], b"zero", b"header 3", &pages[2]];
        assert_eq!(all(&records), expected.concat());
        assert_eq!(records.pieces.len(), 4, "neighbours are one piece");
        assert!(records.without_pages().is_none());
    }

    #[test]
    fn a_new_batch_has_nothing_of_the_old_one() {
        let block = RamBlock::memfd(BlockName::new("ram").unwrap(), ByteCount(4096)).unwrap();
        let mut records = Records::of(PageCount(1));
        let run = PageRun::new(PageIndex(0), PageCount(1));
        for slot in records.copy(&block, run) {
            records.push_page(slot, |out| out.extend_from_slice(b"header 1"));
        }
        records.clear();
        records.push(|out| out.extend_from_slice(b"zero"));
        assert_eq!(records.without_pages(), Some(b"zero".as_slice()));
        assert_eq!(records.copy(&block, run).count(), 1, "its slot is free again");
    }
}

//! The versions of pages that the other side has, as far as there is room for them.

use crate::Page;
use limosa_pages::{BlockId, ByteCount, PAGE_BYTES, PageIndex};

#[cfg(test)]
mod tests;

/// Slots that a page may be in. More find room more often and take longer to search; their keys share a few
/// cache lines.
const WAYS: usize = 8;

/// Multiplier that spreads keys over the sets (the golden ratio's Weyl sequence).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Keeps the pages of different blocks apart.
const BLOCK_STEP: u64 = 0xe703_7ed1_a0b4_28db;

/// A page of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageKey {
    /// Its block.
    pub block: BlockId,
    /// Its place in the block.
    pub page: PageIndex,
}

/// Number of a synchronisation interval: from one SYNC of the channels to the next. The first is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(pub u64);

/// A bounded cache of the versions of pages that were sent.
///
/// A version is of use only in a later interval than its own: only then is it certain to be in the other side's RAM
/// when the delta arrives (I5). Whoever sends a page in a way that leaves no copy of exactly what was sent must
/// [forget](Self::forget) it.
///
/// Made for one thread. Several caches, each for a part of the [shards](PageKey::shard), serve several.
///
/// A set keeps what it holds as long as that was used in this interval or the one before: rounds come in the order
/// of addresses, and whoever gave up the oldest for the newest would, with a set of dirty pages a little larger than
/// the cache, have always just lost what comes next.
#[derive(Debug)]
pub struct PageVersions {
    slots: Vec<Slot>,
    /// The page of each slot. Zeroed memory, which the kernel gives when it is first written.
    pages: Vec<u8>,
    held: usize,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Interval in which the version was sent; 0 if the slot is empty, which no interval is.
    interval: u64,
    key: PageKey,
}

const EMPTY: Slot = Slot { interval: 0, key: PageKey { block: BlockId(0), page: PageIndex(0) } };

impl PageKey {
    /// Which of `shards` caches the page belongs to. Neighbouring pages have different ones.
    pub const fn shard(self, shards: usize) -> usize {
        (self.page.0 % shards as u64) as usize
    }

    const fn spread(self) -> u64 {
        (self.page.0 ^ (self.block.0 as u64).wrapping_mul(BLOCK_STEP)).wrapping_mul(SPREAD)
    }
}

impl PageVersions {
    /// A cache of at most `budget` bytes, all told; nothing fits into less than 33 KiB.
    pub fn new(budget: ByteCount) -> Self {
        let set_bytes = WAYS * (PAGE_BYTES + size_of::<Slot>());
        let slots = budget.0 as usize / set_bytes * WAYS;
        Self { slots: vec![EMPTY; slots], pages: vec![0; slots * PAGE_BYTES], held: 0 }
    }

    /// The version of a page that was sent before `now`.
    pub fn before(&self, key: PageKey, now: Interval) -> Option<&Page> {
        let slot = self.find(key)?;
        (self.slots[slot].interval < now.0).then(|| self.page(slot))
    }

    /// Keeps `sent` as the version of a page, in the place of an older one; says whether there is room for it.
    /// Without room nothing is kept of the page.
    ///
    /// # Panics
    /// In interval 0, which does not exist (I9).
    pub fn keep(&mut self, key: PageKey, now: Interval, sent: &Page) -> bool {
        assert!(now.0 > 0, "intervals are counted from 1");
        let Some(slot) = self.find(key).or_else(|| self.room(key, now)) else { return false };
        self.held += usize::from(self.slots[slot].interval == 0);
        self.slots[slot] = Slot { interval: now.0, key };
        self.pages.as_chunks_mut().0[slot] = *sent;
        true
    }

    /// Forgets the version of a page: the other side has another one.
    pub fn forget(&mut self, key: PageKey) {
        if let Some(slot) = self.find(key) {
            self.slots[slot] = EMPTY;
            self.held -= 1;
        }
    }

    /// How many versions are kept.
    pub fn held(&self) -> usize {
        self.held
    }

    /// How many there is room for.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    fn page(&self, slot: usize) -> &Page {
        &self.pages.as_chunks().0[slot]
    }

    /// The slots that the page may be in; none if there are no slots at all.
    fn set(&self, key: PageKey) -> std::ops::Range<usize> {
        let sets = (self.slots.len() / WAYS) as u128;
        let set = ((u128::from(key.spread()) * sets) >> 64) as usize;
        let first = set * WAYS;
        first..(first + WAYS).min(self.slots.len())
    }

    fn find(&self, key: PageKey) -> Option<usize> {
        self.set(key).find(|&slot| self.slots[slot].interval > 0 && self.slots[slot].key == key)
    }

    /// A slot for a new page: an empty one, or the oldest, unless that is still of use.
    fn room(&self, key: PageKey, now: Interval) -> Option<usize> {
        let oldest = self.set(key).min_by_key(|&slot| self.slots[slot].interval)?;
        (self.slots[oldest].interval + 1 < now.0 || self.slots[oldest].interval == 0).then_some(oldest)
    }
}

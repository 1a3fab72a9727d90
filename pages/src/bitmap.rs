//! One bit per page of one block, shared between threads without a lock.

use crate::units::{PageCount, PageIndex, PageRun, PageSize};
use std::sync::atomic::{AtomicU64, Ordering};

const BITS: u64 = u64::BITS as u64;

/// The pages of a block that the destination is owed: a set bit is a debt (invariant I1).
pub struct DirtyBitmap {
    bits: AtomicBits,
}

/// The pages of a block that the destination holds; a bit is set only after the bytes are visible (I3).
pub struct ReceivedBitmap {
    bits: AtomicBits,
}

impl DirtyBitmap {
    /// No page owed.
    pub fn clean(pages: PageCount) -> Self {
        Self { bits: AtomicBits::new(pages) }
    }

    /// Length of the block.
    pub fn pages(&self) -> PageCount {
        self.bits.pages
    }

    /// Owes every page of `run`; returns how many were not owed before.
    ///
    /// # Panics
    /// If `run` leaves the block: runs are validated where they enter.
    pub fn mark(&self, run: PageRun) -> PageCount {
        self.bits.set(run)
    }

    /// ORs words of a dirty log in, bit 0 of `words[0]` being page `first`; returns how many pages became owed.
    ///
    /// Bits past the end of the block are ignored: KVM pads its bitmaps to whole words.
    ///
    /// # Panics
    /// If `first` is not a multiple of 64, or `words` begins past the end of the block.
    pub fn merge(&self, first: PageIndex, words: &[u64]) -> PageCount {
        assert!(first.0.is_multiple_of(BITS), "a log is merged by whole words, not from page {first}");
        let start = (first.0 / BITS) as usize;
        let mut fresh = 0;
        for (target, (index, word)) in self.bits.words[start..].iter().zip((start as u64..).zip(words)) {
            let word = word & self.bits.valid(index);
            if word != 0 {
                fresh += u64::from((word & !target.fetch_or(word, Ordering::AcqRel)).count_ones());
            }
        }
        PageCount(fresh)
    }

    /// Takes responsibility for the first owed pages at or after `from`: one contiguous run of at most `max`.
    ///
    /// The bits of the returned run are clear afterwards: exactly one caller wins each page, so the background
    /// scan and the urgent path may race here without a lock (I1). A won page must be shipped; only
    /// [`Self::mark`] or [`Self::replace_with_missing`] makes it owed again.
    ///
    /// Cost: one load per 64 clean pages, one compare-and-swap per 64 pages won.
    #[must_use = "a won claim must be shipped; nobody else will"]
    pub fn claim_next(&self, from: PageIndex, max: PageCount) -> Option<PageRun> {
        let mut from = from.0;
        loop {
            let start = self.bits.next_set(from)?;
            let won = self.claim_prefix(start, max.0);
            if won > 0 {
                return Some(PageRun::new(PageIndex(start), PageCount(won)));
            }
            from = start + 1; // Another claimer was faster by a hair: that page is theirs.
        }
    }

    /// Takes responsibility for `page`; `false` if it was not owed or another claimer has it.
    #[must_use = "a won claim must be shipped; nobody else will"]
    pub fn claim(&self, page: PageIndex) -> bool {
        self.bits.clear_bit(page)
    }

    /// Takes responsibility for a host page of several target pages, all of which are owed or none: `false` if they are not
    /// owed or another claimer has them.
    ///
    /// Its first page stands for all. A block whose host pages leave as a whole must be claimed with this alone, and be
    /// owed in whole host pages, as [`Self::owe_whole`] makes it.
    ///
    /// # Panics
    /// If the host page leaves the block.
    #[must_use = "a won claim must be shipped; nobody else will"]
    pub fn claim_host_page(&self, host_page: PageRun) -> bool {
        let won = self.bits.clear_bit(host_page.start);
        if won && host_page.count > PageCount(1) {
            self.bits.clear(host_page);
        }
        won
    }

    /// As [`Self::claim_host_page`] for the first host page of `unit` pages at or after `from` that can be had; one that
    /// holds `from` counts.
    #[must_use = "a won claim must be shipped; nobody else will"]
    pub fn claim_next_host_page(&self, from: PageIndex, unit: PageCount) -> Option<PageRun> {
        let mut from = from.0 - from.0 % unit.0;
        loop {
            let owed = self.bits.next_set(from)?;
            let host_page = PageRun::new(PageIndex(owed - owed % unit.0), unit);
            if self.claim_host_page(host_page) {
                return Some(host_page);
            }
            from = host_page.end().0; // Another claimer is about to clear the rest of it.
        }
    }

    /// Owes a host page that the caller has claimed and does not ship. Others may claim meanwhile.
    ///
    /// # Panics
    /// If the host page leaves the block.
    pub fn owe_host_page(&self, host_page: PageRun) {
        // Its first page last: whoever wins that one clears the others, and would leave behind what is set later.
        self.mark(PageRun::new(host_page.start + PageCount(1), host_page.count - PageCount(1)));
        self.mark(PageRun::new(host_page.start, PageCount(1)));
    }

    /// Owes every host page of `size` of which a target page is owed. Nobody may claim meanwhile.
    pub fn owe_whole(&self, size: PageSize) {
        let unit = size.target_pages();
        let mut from = PageIndex(0);
        while let Some(run) = self.next_owed(from, PageCount(1)) {
            let start = PageIndex(run.start.0 - run.start.0 % unit.0);
            let host_page = PageRun::new(start, PageCount(unit.0.min(self.bits.pages.0 - start.0)));
            self.mark(host_page);
            from = host_page.end();
        }
    }

    /// The first owed run at or after `from`, at most `max` long, left owed.
    pub fn next_owed(&self, from: PageIndex, max: PageCount) -> Option<PageRun> {
        let start = self.bits.next_set(from.0)?;
        let mut end = start;
        while end - start < max.0 && end < self.bits.pages.0 && self.is_owed(PageIndex(end)) {
            end += 1;
        }
        // Between the two looks the bit may have been claimed; one page is still an honest hint.
        Some(PageRun::new(PageIndex(start), PageCount((end - start).max(1))))
    }

    /// What is owed here and not in `other`. Cost: two loads per 64 pages.
    ///
    /// # Panics
    /// If the two bitmaps differ in length.
    pub fn without(&self, other: &Self) -> Self {
        assert_eq!(self.bits.pages, other.bits.pages, "bitmaps of two different blocks");
        let word = |(here, there): (&AtomicU64, &AtomicU64)| {
            AtomicU64::new(here.load(Ordering::Acquire) & !there.load(Ordering::Acquire))
        };
        let words = self.bits.words.iter().zip(&other.bits.words).map(word).collect();
        Self { bits: AtomicBits { words, pages: self.bits.pages } }
    }

    /// Whether the destination is owed `page`.
    pub fn is_owed(&self, page: PageIndex) -> bool {
        self.bits.get(page)
    }

    /// How many pages are owed. Cost: one load per 64 pages.
    pub fn count(&self) -> PageCount {
        self.bits.count()
    }

    /// Forgets every debt.
    pub fn clear(&self) {
        self.bits.fill(false);
    }

    /// Owes the whole block.
    pub fn owe_all(&self) {
        self.bits.fill(true);
    }

    /// Recovery: owed becomes exactly what is not in `received` (I1).
    ///
    /// # Panics
    /// If the two bitmaps differ in length.
    pub fn replace_with_missing(&self, received: &ReceivedBitmap) {
        assert_eq!(self.bits.pages, received.bits.pages, "bitmaps of two different blocks");
        for (index, (owed, held)) in self.bits.words.iter().zip(&received.bits.words).enumerate() {
            owed.store(!held.load(Ordering::Acquire) & self.bits.valid(index as u64), Ordering::Release);
        }
    }

    /// Claims the contiguous owed pages from `start`, at most `max`; returns how many were won.
    fn claim_prefix(&self, start: u64, max: u64) -> u64 {
        let limit = max.min(self.bits.pages.0 - start);
        let mut won = 0;
        while won < limit {
            let at = start + won;
            let (word, shift) = ((at / BITS) as usize, at % BITS);
            let room = (limit - won).min(BITS - shift);
            let here = self.claim_stretch(word, shift, room);
            won += here;
            if here < BITS - shift {
                break;
            }
        }
        won
    }

    /// Claims the owed pages of `word` from bit `shift` up to the first that is not owed, at most `max`.
    ///
    /// Compare-and-swap rather than `fetch_and`: a stretch that a racing claimer has just cut must not be
    /// cleared behind the cut, not even for an instant, or an urgent request for such a page would be
    /// taken for one in flight.
    fn claim_stretch(&self, word: usize, shift: u64, max: u64) -> u64 {
        let mut seen = self.bits.words[word].load(Ordering::Acquire);
        loop {
            let count = u64::from((seen >> shift).trailing_ones()).min(max);
            if count == 0 {
                return 0;
            }
            let rest = seen & !(low_bits(count) << shift);
            match self.bits.words[word].compare_exchange_weak(seen, rest, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return count,
                Err(now) => seen = now,
            }
        }
    }
}

impl ReceivedBitmap {
    /// Nothing received.
    pub fn empty(pages: PageCount) -> Self {
        Self { bits: AtomicBits::new(pages) }
    }

    /// Length of the block.
    pub fn pages(&self) -> PageCount {
        self.bits.pages
    }

    /// Notes that the bytes of `run` are visible in guest RAM (I3); returns how many were not held before.
    ///
    /// # Panics
    /// If `run` leaves the block.
    pub fn mark(&self, run: PageRun) -> PageCount {
        self.bits.set(run)
    }

    /// Notes that the pages of `run` are gone again.
    ///
    /// # Panics
    /// If `run` leaves the block.
    pub fn forget(&self, run: PageRun) {
        self.bits.clear(run);
    }

    /// Whether `page` is held.
    pub fn is_received(&self, page: PageIndex) -> bool {
        self.bits.get(page)
    }

    /// How many pages are held.
    pub fn count(&self) -> PageCount {
        self.bits.count()
    }

    /// The bitmap as little-endian words, page 0 in bit 0: the form of the recovery message (wire 5.9).
    pub fn to_words(&self) -> Vec<u64> {
        self.bits.words.iter().map(|word| word.load(Ordering::Acquire)).collect()
    }
}

/// `count` ones from bit 0; `count` is 1 to 64.
const fn low_bits(count: u64) -> u64 {
    u64::MAX >> (BITS - count)
}

/// Bits past the end of the block are never set: every entry masks them.
struct AtomicBits {
    words: Box<[AtomicU64]>,
    pages: PageCount,
}

impl AtomicBits {
    fn new(pages: PageCount) -> Self {
        Self { words: (0..pages.0.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect(), pages }
    }

    /// The bits of word `index` that stand for pages of the block.
    fn valid(&self, index: u64) -> u64 {
        low_bits((self.pages.0 - index * BITS).min(BITS))
    }

    fn get(&self, page: PageIndex) -> bool {
        self.words[(page.0 / BITS) as usize].load(Ordering::Acquire) & (1 << (page.0 % BITS)) != 0
    }

    fn clear_bit(&self, page: PageIndex) -> bool {
        let bit = 1 << (page.0 % BITS);
        self.words[(page.0 / BITS) as usize].fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }

    fn set(&self, run: PageRun) -> PageCount {
        let mut fresh = 0;
        self.for_each_mask(run, |word, mask| {
            fresh += u64::from((mask & !word.fetch_or(mask, Ordering::AcqRel)).count_ones());
        });
        PageCount(fresh)
    }

    fn clear(&self, run: PageRun) {
        self.for_each_mask(run, |word, mask| {
            word.fetch_and(!mask, Ordering::AcqRel);
        });
    }

    fn for_each_mask(&self, run: PageRun, mut apply: impl FnMut(&AtomicU64, u64)) {
        assert!(run.end() <= PageIndex(self.pages.0), "{run:?} leaves a block of {} pages", self.pages);
        let mut at = run.start.0;
        while at < run.end().0 {
            let shift = at % BITS;
            let count = (BITS - shift).min(run.end().0 - at);
            apply(&self.words[(at / BITS) as usize], low_bits(count) << shift);
            at += count;
        }
    }

    fn fill(&self, value: bool) {
        for (index, word) in self.words.iter().enumerate() {
            word.store(if value { self.valid(index as u64) } else { 0 }, Ordering::Release);
        }
    }

    fn next_set(&self, from: u64) -> Option<u64> {
        if from >= self.pages.0 {
            return None;
        }
        let mut index = from / BITS;
        let mut word = self.words[index as usize].load(Ordering::Acquire) & (u64::MAX << (from % BITS));
        while word == 0 {
            index += 1;
            word = self.words.get(index as usize)?.load(Ordering::Acquire);
        }
        Some(index * BITS + u64::from(word.trailing_zeros()))
    }

    fn count(&self) -> PageCount {
        PageCount(self.words.iter().map(|word| u64::from(word.load(Ordering::Acquire).count_ones())).sum())
    }
}

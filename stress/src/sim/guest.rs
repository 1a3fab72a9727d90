//! An abstract guest: pages that carry generations in place of bytes, and one device register.

use super::rng::Rng;
use limosa_pages::{ByteCount, DirtyBitmap, PAGE_BYTES, PageCount, PageIndex, PageRun};
use std::fmt;

/// Pages of the guest: more than a link holds, few enough to compare at every barrier.
pub const PAGES: usize = 20;

/// What the guest's state really is, wherever it runs.
#[derive(Debug)]
pub struct Guest {
    /// Content of every page.
    pub truth: [u64; PAGES],
    /// The device register counts the guest's writes.
    pub device: u64,
    /// Writes until it falls idle, so that every run ends.
    writes_left: u32,
    /// It writes the first so many pages.
    working_set: u64,
}

/// RAM on the source: bytes, the hypervisor's dirty log, and what the destination is owed.
pub struct SourceMemory {
    /// Content of every page.
    pub pages: [u64; PAGES],
    /// The hypervisor's log; all set at first, and cleared page by page (manual protect, initially set).
    pub log: [bool; PAGES],
    /// What the destination is owed.
    pub owed: DirtyBitmap,
}

impl Guest {
    /// A guest that makes `writes` writes to its first `working_set` pages.
    pub const fn new(writes: u32, working_set: u64) -> Self {
        Self { truth: [1; PAGES], device: 0, writes_left: writes, working_set }
    }

    /// Writes a page of its choice and returns it.
    pub fn write(&mut self, rng: &mut Rng, memory: &mut [u64; PAGES]) -> Option<usize> {
        let page = self.choose(rng);
        self.write_page(page, memory).then_some(page)
    }

    /// The page that it will write next.
    pub fn choose(&self, rng: &mut Rng) -> usize {
        rng.below(self.working_set) as usize
    }

    /// Writes this page, if it is not idle.
    pub fn write_page(&mut self, page: usize, memory: &mut [u64; PAGES]) -> bool {
        if self.writes_left == 0 {
            return false;
        }
        self.writes_left -= 1;
        self.device += 1;
        self.truth[page] += 1;
        memory[page] = self.truth[page];
        true
    }
}

impl SourceMemory {
    /// RAM that nobody has been sent yet.
    pub fn new() -> Self {
        Self { pages: [1; PAGES], log: [true; PAGES], owed: DirtyBitmap::clean(PageCount(PAGES as u64)) }
    }

    /// Merges the log into what is owed. The log is not cleared here but before each page is read (I2).
    pub fn sync(&mut self) {
        for page in (0..PAGES).filter(|page| self.log[*page]) {
            self.owed.mark(PageRun::new(PageIndex(page as u64), PageCount(1)));
        }
    }

    /// Takes over the debt of the next owed page.
    pub fn claim_next(&mut self) -> Option<usize> {
        let run = self.owed.claim_next(PageIndex(0), PageCount(1))?;
        Some(run.start.0 as usize)
    }

    /// What the destination lacks is owed, and nothing else.
    pub fn owe_missing(&self, received: &[u8]) {
        self.owed.clear();
        for page in (0..PAGES).filter(|page| received[page / 8] & (1 << (page % 8)) == 0) {
            self.owed.mark(PageRun::new(PageIndex(page as u64), PageCount(1)));
        }
    }

    /// Bytes owed.
    pub fn owed_bytes(&self) -> ByteCount {
        self.owed.count().bytes()
    }
}

impl fmt::Debug for SourceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("SourceMemory");
        out.field("pages", &self.pages).field("log", &self.log).field("owed", &self.owed.count()).finish()
    }
}

impl Default for SourceMemory {
    fn default() -> Self {
        Self::new()
    }
}

/// A page record on the simulated wire: header and bytes.
pub(super) const RECORD_BYTES: u64 = PAGE_BYTES as u64 + 8;

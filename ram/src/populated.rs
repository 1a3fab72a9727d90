//! Which pages were ever touched, without reading them.
//!
//! Reading a page that nobody has touched allocates it (in a file) or maps the shared zero page (in anonymous
//! memory), at one to four microseconds. The kernel knows better: a file tells its holes by `SEEK_DATA`, whoever
//! filled it; private memory tells its pages by `PAGEMAP_SCAN`.

use crate::block::Backing;
use crate::pagemap::{Category, Pagemap, Request};
use crate::preallocation::{self, REGION};
use limosa_pages::{DirtyBitmap, PAGE_BYTES, PageCount, PageIndex, PageRun};
use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::unistd::{Whence, lseek};
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

/// A hole page that is read is allocated, at 4 microseconds; a page that is there costs 0.06 to search. At one hole in
/// 256 pages the search costs 0.06 x 256 / 4 = 4 times what it spares, and memory grows by no more than 0.4 %.
const HOLES_WORTH_FINDING: u64 = 256;

/// The unit of `st_blocks`, whatever the file system's own.
const STATUS_BLOCK: u64 = 512;

/// The pages of a block that may hold anything but zero. All others are zero and were never written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Populated {
    runs: Vec<PageRun>,
    evidence: Evidence,
}

/// Who said which pages are populated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The file, by `SEEK_DATA` and `SEEK_HOLE`: whoever wrote the pages.
    FileHoles,
    /// The page tables, by `PAGEMAP_SCAN`.
    PageTables,
    /// The file, by its number of blocks: next to none is missing. Every page counts as populated.
    FileBlocks,
    /// Nobody: the kernel cannot tell. Every page counts as populated.
    Unknown,
}

impl Populated {
    /// Every page of `whole`, on this evidence.
    pub fn everything(whole: PageRun, evidence: Evidence) -> Self {
        Self { runs: vec![whole], evidence }
    }

    /// The populated pages: ascending, disjoint, never empty runs.
    pub fn runs(&self) -> &[PageRun] {
        &self.runs
    }

    /// Who says so; [`Evidence::Unknown`] means that the answer is only "everything".
    pub fn evidence(&self) -> Evidence {
        self.evidence
    }

    /// How many pages are populated.
    pub fn pages(&self) -> PageCount {
        self.runs.iter().map(|run| run.count).sum()
    }

    /// Whether `page` is populated. Cost: a binary search.
    pub fn contains(&self, page: PageIndex) -> bool {
        let after = self.runs.partition_point(|run| run.start <= page);
        after > 0 && self.runs[after - 1].contains(page)
    }

    /// The pages of `whole` that are not populated, as runs in ascending order.
    pub fn untouched(&self, whole: PageRun) -> impl Iterator<Item = PageRun> {
        let starts = std::iter::once(whole.start).chain(self.runs.iter().map(|run| run.end()));
        let ends = self.runs.iter().map(|run| run.start).chain(std::iter::once(whole.end()));
        starts.zip(ends).filter_map(|(start, end)| {
            let count = end.0.checked_sub(start.0).filter(|&count| count > 0)?;
            Some(PageRun::new(start, PageCount(count)))
        })
    }

    /// How many pages are populated in each region of [`REGION`](crate::REGION) of a block of `pages` pages.
    pub fn by_region(&self, pages: PageCount) -> Vec<u16> {
        let mut regions = vec![0; pages.0.div_ceil(REGION.0) as usize];
        for part in self.runs.iter().flat_map(|&run| preallocation::parts(run)) {
            regions[(part.start.0 / REGION.0) as usize] += part.count.0 as u16;
        }
        regions
    }

    /// Owes the populated pages; returns how many were not owed before.
    pub fn owe_into(&self, dirty: &DirtyBitmap) -> PageCount {
        self.runs.iter().map(|&run| dirty.mark(run)).sum()
    }

    /// What is populated here or in `other`, on the evidence of `self`.
    pub(crate) fn or(self, other: &Self) -> Self {
        let mut runs = self.runs;
        runs.extend_from_slice(&other.runs);
        runs.sort_unstable();
        let mut merged = Self { runs: Vec::with_capacity(runs.len()), evidence: self.evidence };
        runs.into_iter().for_each(|run| merged.push(run));
        merged
    }

    /// Nothing yet.
    pub(crate) fn nothing(evidence: Evidence) -> Self {
        Self { runs: Vec::new(), evidence }
    }

    /// Adds `run`, which does not begin before the last.
    pub(crate) fn push(&mut self, run: PageRun) {
        match self.runs.last_mut() {
            Some(last) if run.start <= last.end() => {
                let end = last.end().max(run.end());
                last.count = PageCount(end.0 - last.start.0);
            }
            _ if run.is_empty() => {}
            _ => self.runs.push(run),
        }
    }
}

/// What the file says; everything, if it does not know holes, or has next to none.
///
/// A search costs 60 ns for each page that is there: 30 ms per GiB of a full file, twice with some logs, before the first
/// byte is sent. That is more than reading the few pages which it might spare.
pub(crate) fn by_seeking(file: BorrowedFd<'_>, offset: u64, whole: PageRun) -> Populated {
    if is_nearly_full(file) {
        return Populated::everything(whole, Evidence::FileBlocks);
    }
    let mut populated = Populated::nothing(Evidence::FileHoles);
    match each_extent(file, offset, whole, |data| populated.push(data)) {
        Ok(()) => populated,
        Err(_) => Populated::everything(whole, Evidence::Unknown),
    }
}

/// Whether fewer than one byte in [`HOLES_WORTH_FINDING`] of the file is a hole, by the kernel's count of its blocks.
fn is_nearly_full(file: BorrowedFd<'_>) -> bool {
    fstat(file).is_ok_and(|status| {
        let (size, allocated) = (status.st_size as u64, status.st_blocks as u64 * STATUS_BLOCK);
        size - size / HOLES_WORTH_FINDING < allocated
    })
}

/// What the page tables of private anonymous memory at `base` say; everything, if the kernel is too old to ask.
pub(crate) fn by_pagemap(base: NonNull<u8>, whole: PageRun) -> Populated {
    let mut populated = Populated::nothing(Evidence::PageTables);
    // The shared zero page is present but nobody wrote it: it is what reading an untouched page leaves behind.
    let request = Request {
        any_of: Category::PRESENT | Category::SWAPPED,
        none_of: Category::PFN_ZERO,
        ..Request::default()
    };
    let scanned = Pagemap::open()
        .and_then(|mut pagemap| pagemap.scan(base, whole.count, request, |run, _| populated.push(run)));
    match scanned {
        Ok(()) => populated,
        Err(_) => Populated::everything(whole, Evidence::Unknown),
    }
}

/// Calls `visit` for every page of `run` that may hold data, in order.
///
/// One search per page found, and none for the hole behind it: that would walk to the end of the extent.
pub(crate) fn for_each_data_page(backing: &Backing, run: PageRun, mut visit: impl FnMut(PageIndex)) {
    let Backing::SharedFile { file, offset } = backing else { return run.pages().for_each(visit) };
    let mut at = run.start;
    while at < run.end() {
        match lseek(file, (offset + at.byte_offset()) as i64, Whence::SeekData) {
            // The search begins at a page of the run, so what it finds lies there or behind.
            Ok(data) => at = PageIndex::containing(data as u64 - offset),
            Err(Errno::ENXIO) => return,
            Err(_) => {} // The file cannot tell: this page may hold data.
        }
        if at < run.end() {
            visit(at);
        }
        at = at + PageCount(1);
    }
}

/// Whether the file knows of data in `run`. Memory without a file has none: what was given back is gone.
pub(crate) fn has_data(backing: &Backing, run: PageRun) -> bool {
    let Backing::SharedFile { file, offset } = backing else { return false };
    let found = lseek(file, (offset + run.byte_offset()) as i64, Whence::SeekData);
    found.is_ok_and(|data| (data as u64) < offset + run.end().byte_offset())
}

/// Calls `visit` for every extent of data of `file` inside `run`, in order, widened to whole pages.
fn each_extent(
    file: BorrowedFd<'_>,
    offset: u64,
    run: PageRun,
    mut visit: impl FnMut(PageRun),
) -> nix::Result<()> {
    let end = run.end().byte_offset();
    let mut at = run.byte_offset();
    while at < end {
        let data = match lseek(file, (offset + at) as i64, Whence::SeekData) {
            Ok(data) => (data as u64 - offset) / PAGE_BYTES as u64 * PAGE_BYTES as u64,
            // No data from here to the end of the file.
            Err(Errno::ENXIO) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        if data >= end {
            return Ok(());
        }
        let hole = lseek(file, (offset + data) as i64, Whence::SeekHole)? as u64 - offset;
        let first = PageIndex::containing(data.max(at));
        let after = hole.min(end).div_ceil(PAGE_BYTES as u64);
        // A writer may have punched the extent between the two calls; the next search then begins behind it.
        let after = after.max(first.0 + 1);
        visit(PageRun::new(first, PageCount(after - first.0)));
        at = after * PAGE_BYTES as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const WHOLE: PageRun = PageRun { start: PageIndex(0), count: PageCount(64) };

    fn populated(pages: &BTreeSet<u64>) -> Populated {
        let mut populated = Populated::nothing(Evidence::FileHoles);
        pages.iter().for_each(|&page| populated.push(PageRun::new(PageIndex(page), PageCount(1))));
        populated
    }

    fn pages<'a>(runs: impl IntoIterator<Item = &'a PageRun>) -> BTreeSet<u64> {
        runs.into_iter().flat_map(|run| run.pages()).map(|page| page.0).collect()
    }

    proptest! {
        #[test]
        fn runs_are_a_set_of_pages_and_untouched_is_the_rest(
            one in prop::collection::btree_set(0..64_u64, 0..64),
            other in prop::collection::btree_set(0..64_u64, 0..64),
        ) {
            let (a, b) = (populated(&one), populated(&other));
            prop_assert_eq!(pages(a.runs()), one.clone());
            prop_assert!(a.runs().windows(2).all(|pair| pair[0].end() < pair[1].start), "{:?}", a.runs());
            prop_assert_eq!(a.pages(), PageCount(one.len() as u64));
            prop_assert!((0..64).all(|page| a.contains(PageIndex(page)) == one.contains(&page)));

            let rest: Vec<_> = a.untouched(WHOLE).collect();
            prop_assert_eq!(pages(&rest), (0..64).filter(|page| !one.contains(page)).collect());

            let either = a.or(&b);
            prop_assert_eq!(pages(either.runs()), one.union(&other).copied().collect());
        }
    }
}

//! Memory for a destination in large pieces, just ahead of the content that needs it.
//!
//! A page that the kernel has to allocate one by one, at the first byte received into it, costs two to three
//! microseconds: more than receiving it. In a huge page it costs a quarter of a microsecond. But a huge page is memory
//! for 512 pages, and the source may have only a few of them.

mod ahead;

pub use ahead::AllocationAhead;

use crate::block::RamBlock;
use crate::guest_ram::GuestRam;
use crate::populated::{self, Populated};
use ahead::Front;
use limosa_pages::{BlockId, DirtyBitmap, PageCount, PageIndex, PageRun, PageSize};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Pages that get their memory at once: 2 MiB, a huge page of x86.
pub const REGION: PageCount = PageCount(512);

/// Of 50 pages of a region as many must be populated for it to count as whole. The others get memory that the source
/// does not have: at most 10 of 502 in a full region, which is less than 2 %.
const WHOLE_OF_50: u64 = 49;

/// Pages of content from which on nobody's word is needed: a region with so many, and next to no zero pages so far, is
/// taken for whole. The 15 pages before pay for it with a page fault of their own, 3 % of the region.
const GUESS_FROM: u64 = 16;

/// Regions that a reader allocates with one call, if the source has them all: 32 MiB. To collapse one region alone takes 0.2
/// milliseconds of work, but also a wait until every processor has emptied its lists of new pages, which a busy one
/// does when it comes to it.
const BY_READER: usize = 16;

/// Gives regions of untouched memory huge pages when content begins to arrive in them.
///
/// Which regions, the source says ([`Self::expect`]). Where it does not, this is a guess: regions whose first pages are
/// content. A region that turns out to have been guessed wrong gives back what got no content, as soon as each of its
/// pages was heard of once, or in [`Self::give_back_rest`] at the latest.
///
/// Any number of threads may use it at once, each for pages of its own. A region is allocated once; whoever has content
/// for it waits for that instead of faulting in its pages one by one.
pub struct Preallocation {
    ram: GuestRam,
    blocks: Vec<Regions>,
    /// How far the readers have come, for [`AllocationAhead`].
    front: Front,
    /// What should be given back, and the kernel has kept.
    kept: Mutex<Vec<(BlockId, PageRun)>>,
}

/// The regions of one block.
struct Regions {
    regions: Box<[Region]>,
    /// A bit for each page of a guessed region that got content.
    content: DirtyBitmap,
}

struct Region {
    /// Content has come for it.
    entered: AtomicBool,
    /// Nothing is left to do: what nearly every look at a region finds.
    settled: AtomicBool,
    plan: Mutex<Plan>,
}

enum Plan {
    /// It has memory, or gets it page by page.
    Settled,
    /// The source has all of it: allocated with the first content, here or just before it.
    Whole,
    /// Nobody said.
    Guess(Guess),
}

/// What was heard of a region in the first round, in which every page comes once.
#[derive(Default)]
struct Guess {
    content: u64,
    zero: u64,
    allocated: bool,
}

impl Preallocation {
    /// For `ram` with `populated`, one for each block, as the memory it has now: regions that have any are left alone.
    /// So are blocks with huge pages of their own.
    ///
    /// # Panics
    /// If there is not one `populated` for each block.
    pub fn new(ram: GuestRam, populated: &[Populated]) -> Self {
        assert_eq!(populated.len(), ram.layout().iter().count());
        let blocks = ram.iter().zip(populated).map(|((_, block), populated)| Regions::new(block, populated));
        Self { blocks: blocks.collect(), ram, front: Front::default(), kept: Mutex::default() }
    }

    /// The source has memory for `populated` pages of the region of `block` that begins at page `start`.
    ///
    /// To be called before the first content. Nothing happens if there is no such region.
    pub fn expect(&self, block: BlockId, start: PageIndex, populated: PageCount) {
        let Some(region) = self.blocks[block.index()].regions.get((start.0 / REGION.0) as usize) else {
            return;
        };
        let pages = region_run(self.ram.block(block), start).count;
        let mut plan = region.plan.lock();
        if matches!(*plan, Plan::Settled) {
            return;
        }
        if is_whole(populated.0, pages.0) {
            *plan = Plan::Whole;
        } else {
            region.settle(&mut plan);
        }
    }

    /// Tells that content is about to be written into `run`, and returns when the memory for it is there, where that is
    /// of use.
    ///
    /// # Panics
    /// If the run leaves the block.
    #[inline]
    pub fn before_content(&self, block: BlockId, run: PageRun) {
        let regions = &self.blocks[block.index()];
        for part in parts(run) {
            let index = (part.start.0 / REGION.0) as usize;
            let region = &regions.regions[index];
            if !region.entered.load(Ordering::Relaxed) && !region.entered.swap(true, Ordering::Relaxed) {
                self.front.reach((block.index(), index));
            }
            if !region.settled.load(Ordering::Acquire) {
                let kept = regions.before_content(index, self.ram.block(block), part);
                self.keep(block, kept);
            }
        }
    }

    /// Tells that the pages of `run` have come as zero, for the first time.
    ///
    /// # Panics
    /// If the run leaves the block.
    #[inline]
    pub fn zero(&self, block: BlockId, run: PageRun) {
        let regions = &self.blocks[block.index()];
        for part in parts(run) {
            let region = &regions.regions[(part.start.0 / REGION.0) as usize];
            if !region.settled.load(Ordering::Acquire) {
                let kept = region.zero(self.ram.block(block), part, &regions.content);
                self.keep(block, kept);
            }
        }
    }

    /// Gives back what could not be given back in time. To be called when nobody receives any more, and the guest does
    /// not run yet. Cost: nothing, unless a guess was wrong, and its region in use by another reader at that moment.
    pub fn give_back_rest(&self) {
        for (block, run) in self.kept.lock().drain(..) {
            // If the kernel refuses, the guest has more memory than it needs, and all that it should have.
            let _ = give_back(self.ram.block(block), run);
        }
    }

    fn keep(&self, block: BlockId, runs: Vec<PageRun>) {
        if !runs.is_empty() {
            self.kept.lock().extend(runs.into_iter().map(|run| (block, run)));
        }
    }
}

impl Regions {
    fn new(block: &RamBlock, populated: &Populated) -> Self {
        let count = block.pages().0.div_ceil(REGION.0);
        let regions: Box<[Region]> = (0..count).map(|_| Region::new()).collect();
        let settle =
            |regions: &[Region]| regions.iter().for_each(|region| region.settle(&mut region.plan.lock()));
        if block.layout().page_size > PageSize::FOUR_KIB {
            settle(&regions);
        }
        for run in populated.runs() {
            let (first, last) = (run.start.0 / REGION.0, (run.end().0 - 1) / REGION.0);
            settle(&regions[first as usize..=last as usize]);
        }
        Self { regions, content: DirtyBitmap::clean(block.pages()) }
    }

    /// The lock of a region is held while it gets memory: another reader with content for it waits here.
    ///
    /// Returns what should be given back and could not.
    #[cold]
    fn before_content(&self, index: usize, block: &RamBlock, part: PageRun) -> Vec<PageRun> {
        let region = &self.regions[index];
        let mut plan = region.plan.lock();
        match &mut *plan {
            Plan::Settled => Vec::new(),
            Plan::Whole => {
                self.allocate_from(index, block, &mut plan, BY_READER);
                Vec::new()
            }
            Plan::Guess(guess) => {
                guess.content += self.content.mark(part).0;
                let seen = guess.content + guess.zero;
                if !guess.allocated && guess.content >= GUESS_FROM && is_whole(guess.content, seen) {
                    allocate(block, region_run(block, part.start));
                    guess.allocated = true;
                }
                region.end_guess_if_complete(&mut plan, block, part, &self.content)
            }
        }
    }

    /// Allocates the region whose `plan` this is, and those behind it that the source has as well, `most` together. One
    /// that somebody else looks at in this moment ends them: nobody waits for a lock while holding one.
    fn allocate_from(&self, index: usize, block: &RamBlock, plan: &mut Plan, most: usize) {
        let behind = self.regions.iter().skip(index + 1).take(most - 1);
        let plans: Vec<_> = behind
            .map_while(|region| Some((region, region.plan.try_lock()?)))
            .take_while(|(_, plan)| matches!(**plan, Plan::Whole))
            .collect();
        let mut run = region_run(block, PageIndex(index as u64 * REGION.0));
        for _ in &plans {
            run.count += region_run(block, run.end()).count;
        }
        allocate(block, run);
        self.regions[index].settle(plan);
        plans.into_iter().for_each(|(region, mut plan)| region.settle(&mut plan));
    }
}

impl Region {
    fn new() -> Self {
        let (entered, settled) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { entered, settled, plan: Mutex::new(Plan::Guess(Guess::default())) }
    }

    fn settle(&self, plan: &mut Plan) {
        *plan = Plan::Settled;
        self.settled.store(true, Ordering::Release);
    }

    /// Returns what should be given back and could not.
    #[cold]
    fn zero(&self, block: &RamBlock, part: PageRun, content: &DirtyBitmap) -> Vec<PageRun> {
        let mut plan = self.plan.lock();
        let Plan::Guess(guess) = &mut *plan else { return Vec::new() };
        guess.zero += part.count.0;
        self.end_guess_if_complete(&mut plan, block, part, content)
    }

    /// When every page has come once, a region that was guessed wrong gives back the pages that came as zero.
    ///
    /// They are nobody's at this moment: a page that comes again, with content, does so behind a synchronisation point
    /// that its reader and this one must both have passed.
    fn end_guess_if_complete(
        &self,
        plan: &mut Plan,
        block: &RamBlock,
        part: PageRun,
        content: &DirtyBitmap,
    ) -> Vec<PageRun> {
        let Plan::Guess(guess) = plan else { return Vec::new() };
        let run = region_run(block, part.start);
        if guess.content + guess.zero < run.count.0 {
            return Vec::new();
        }
        let wrong = guess.allocated && !is_whole(guess.content, run.count.0);
        self.settle(plan);
        if !wrong {
            return Vec::new();
        }
        without_content(run, content).filter(|&empty| !give_back(block, empty)).collect()
    }
}

fn is_whole(populated: u64, pages: u64) -> bool {
    populated * 50 >= pages * WHOLE_OF_50
}

/// The pages of `run` that got no content.
fn without_content(run: PageRun, content: &DirtyBitmap) -> impl Iterator<Item = PageRun> {
    let has_content = |page: u64| content.is_owed(PageIndex(page));
    let mut at = run.start.0;
    std::iter::from_fn(move || {
        let start = (at..run.end().0).find(|&page| !has_content(page))?;
        at = (start..run.end().0).find(|&page| has_content(page)).unwrap_or(run.end().0);
        Some(PageRun::new(PageIndex(start), PageCount(at - start)))
    })
}

/// Gives memory back, and says whether the kernel took it.
///
/// Part of a huge page cannot be had while the page is in use, in a page fault of another reader for example. The kernel
/// does not say so: it makes the pages zero and keeps them.
fn give_back(block: &RamBlock, run: PageRun) -> bool {
    block.punch(run).is_ok() && !populated::has_data(block.backing(), run)
}

/// Gives memory to `run`.
fn allocate(block: &RamBlock, run: PageRun) {
    // Only a help: without it each page gets its memory when its content is written, or fails there.
    let _ = block.preallocate(run);
}

/// The whole region that `page` lies in; the last one ends with the block.
fn region_run(block: &RamBlock, page: PageIndex) -> PageRun {
    let start = PageIndex(page.0 / REGION.0 * REGION.0);
    PageRun::new(start, PageCount(REGION.0.min(block.pages().0 - start.0)))
}

/// `run`, cut where regions begin.
pub(crate) fn parts(run: PageRun) -> impl Iterator<Item = PageRun> {
    let mut rest = run;
    std::iter::from_fn(move || {
        let count = PageCount(rest.count.0.min(REGION.0 - rest.start.0 % REGION.0));
        let part = PageRun::new(rest.start, count);
        rest = PageRun::new(part.end(), rest.count - count);
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use limosa_pages::{BlockName, ByteCount};
    use std::sync::Barrier;

    const BLOCK: BlockId = BlockId(0);

    fn run(start: u64, count: u64) -> PageRun {
        PageRun::new(PageIndex(start), PageCount(count))
    }

    /// Two regions and a half.
    fn ram() -> GuestRam {
        let name = BlockName::new("ram").unwrap();
        GuestRam::new(vec![RamBlock::memfd(name, ByteCount(5 << 20)).unwrap()]).unwrap()
    }

    fn preallocation(ram: &GuestRam) -> Preallocation {
        Preallocation::new(ram.clone(), &[ram.block(BLOCK).populated()])
    }

    fn populated(ram: &GuestRam) -> Vec<PageRun> {
        ram.block(BLOCK).populated().runs().to_vec()
    }

    #[test]
    fn a_region_that_the_source_has_gets_memory_with_its_first_content() {
        let ram = ram();
        let preallocation = preallocation(&ram);
        preallocation.expect(BLOCK, PageIndex(0), REGION);
        preallocation.expect(BLOCK, PageIndex(512), PageCount(502));
        preallocation.expect(BLOCK, PageIndex(1024), PageCount(256));
        preallocation.before_content(BLOCK, run(1279, 1));
        assert_eq!(populated(&ram), [run(1024, 256)], "the last region ends with the block");
        preallocation.before_content(BLOCK, run(100, 1));
        assert_eq!(populated(&ram), [run(0, 1280)], "with the next one, which the source has too");
    }

    #[test]
    fn a_region_that_the_source_has_in_part_gets_its_memory_page_by_page() {
        let ram = ram();
        let preallocation = preallocation(&ram);
        preallocation.expect(BLOCK, PageIndex(0), PageCount(501));
        preallocation.expect(BLOCK, PageIndex(512), PageCount(0));
        preallocation.expect(BLOCK, PageIndex(1024), PageCount(250));
        preallocation.before_content(BLOCK, run(0, 1280));
        assert_eq!(populated(&ram), []);
    }

    #[test]
    fn a_report_about_a_region_that_is_not_there_is_ignored() {
        let ram = ram();
        preallocation(&ram).expect(BLOCK, PageIndex(1536), REGION);
        assert_eq!(populated(&ram), []);
    }

    #[test]
    fn without_a_report_a_region_gets_memory_when_it_has_seen_enough_content() {
        let ram = ram();
        let preallocation = preallocation(&ram);
        preallocation.before_content(BLOCK, run(512, GUESS_FROM - 1));
        preallocation.before_content(BLOCK, run(0, 1));
        assert_eq!(populated(&ram), []);
        preallocation.before_content(BLOCK, run(1023, 2));
        assert_eq!(populated(&ram), [run(512, 512)]);
    }

    #[test]
    fn a_region_of_which_some_comes_as_zero_is_not_guessed_whole() {
        let ram = ram();
        let preallocation = preallocation(&ram);
        preallocation.zero(BLOCK, run(512, 12));
        preallocation.before_content(BLOCK, run(524, 500));
        assert_eq!(populated(&ram), []);
    }

    #[test]
    fn a_wrong_guess_gives_back_what_came_as_zero_when_all_has_come() {
        let ram = ram();
        let preallocation = preallocation(&ram);
        preallocation.before_content(BLOCK, run(0, 20));
        preallocation.zero(BLOCK, run(20, 200));
        preallocation.before_content(BLOCK, run(220, 1));
        preallocation.zero(BLOCK, run(221, 290));
        assert_eq!(populated(&ram), [run(0, 512)], "one page is missing");
        ram.block(BLOCK).copy_in(220 * 4096, &[7]);
        preallocation.zero(BLOCK, run(511, 1));
        assert_eq!(populated(&ram), [run(0, 20), run(220, 1)]);
        let mut byte = [0];
        ram.block(BLOCK).copy_out(220 * 4096, &mut byte);
        assert_eq!(byte, [7], "what was received is still there");
    }

    #[test]
    fn a_guess_that_was_right_but_for_two_percent_stays() {
        let ram = ram();
        let preallocation = preallocation(&ram);
        preallocation.before_content(BLOCK, run(0, 502));
        preallocation.zero(BLOCK, run(502, 10));
        assert_eq!(populated(&ram), [run(0, 512)]);
    }

    #[test]
    fn a_region_that_had_memory_before_is_left_alone() {
        let ram = ram();
        ram.block(BLOCK).copy_in(700 * 4096, &[1]);
        let preallocation = preallocation(&ram);
        preallocation.expect(BLOCK, PageIndex(512), REGION);
        preallocation.before_content(BLOCK, run(512, 512));
        assert_eq!(populated(&ram), [run(700, 1)]);
    }

    #[test]
    fn whoever_returns_finds_the_memory_there_however_many_come_at_once() {
        const READERS: u64 = 4;
        let ram = ram();
        let preallocation = preallocation(&ram);
        preallocation.expect(BLOCK, PageIndex(512), REGION);
        let start = Barrier::new(READERS as usize);
        std::thread::scope(|scope| {
            for reader in 0..READERS {
                let (start, preallocation, ram) = (&start, &preallocation, &ram);
                scope.spawn(move || {
                    start.wait();
                    preallocation.before_content(BLOCK, run(512 + 128 * reader, 128));
                    assert_eq!(populated(ram), [run(512, 512)]);
                });
            }
        });
    }

    #[test]
    fn parts_make_up_the_run_and_lie_in_one_region_each() {
        let cut = |start, count| parts(run(start, count)).collect::<Vec<_>>();
        assert_eq!(cut(500, 600), [run(500, 12), run(512, 512), run(1024, 76)]);
        assert_eq!(cut(512, 512), [run(512, 512)]);
        assert_eq!(cut(7, 0), []);
    }
}

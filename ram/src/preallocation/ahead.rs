//! Memory that is there before its readers come: a thread that allocates just ahead of them.

use super::{Plan, Preallocation};
use limosa_pages::BlockId;
use parking_lot::{Condvar, Mutex};
use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// Regions allocated with one call, 16 MiB: the wait that each call costs (see [`super::BY_READER`]) is nobody's here, and
/// what is allocated should still be in the processor's cache when its content comes.
const AT_ONCE: usize = 8;

/// How many regions behind the one that content has reached may be allocated: 32 MiB, two calls. Further ahead it would
/// only leave the cache again, and be in vain if the migration ends here.
const WINDOW: usize = 16;

/// How far content has come: block and region, in the order in which a first round goes through RAM.
#[derive(Default)]
pub(super) struct Front {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// `None` before the first: a guest of zero pages needs no memory.
    reached: Option<(usize, usize)>,
    stopped: bool,
}

/// A thread that gives memory to the regions that the source has, ahead of whoever reads their content. Ends with its
/// work, or when this is dropped, which waits for the call that the thread is in.
///
/// Readers that come to a region before the thread allocate it themselves; nothing depends on it but time.
pub struct AllocationAhead {
    preallocation: Arc<Preallocation>,
    thread: Option<JoinHandle<()>>,
}

impl AllocationAhead {
    /// Starts the thread. To be called when everything that the source has was told to `preallocation`, once.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(preallocation: Arc<Preallocation>) -> io::Result<Self> {
        let own = Arc::clone(&preallocation);
        let thread = Builder::new().name("ram-allocate".into()).spawn(move || own.allocate_ahead())?;
        Ok(Self { preallocation, thread: Some(thread) })
    }
}

impl Drop for AllocationAhead {
    fn drop(&mut self) {
        self.preallocation.front.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there has said so itself, and its regions are allocated by their readers.
            let _ = thread.join();
        }
    }
}

impl Front {
    /// Content has come for a region.
    #[cold]
    pub(super) fn reach(&self, region: (usize, usize)) {
        let mut state = self.state.lock();
        if Some(region) > state.reached {
            state.reached = Some(region);
            self.moved.notify_one();
        }
    }

    fn stop(&self) {
        self.state.lock().stopped = true;
        self.moved.notify_one();
    }

    /// Waits until content is near the region; `false` if nobody wants it any more.
    fn wait_near(&self, (block, index): (usize, usize)) -> bool {
        let mut state = self.state.lock();
        // The first regions of a block are near when the block before it is reached: small ones come between large ones.
        let near = |(at, region): (usize, usize)| {
            (block, index) <= (at, region + WINDOW) || block > at && index < WINDOW
        };
        while !state.stopped && !state.reached.is_some_and(near) {
            self.moved.wait(&mut state);
        }
        !state.stopped
    }
}

impl Preallocation {
    fn allocate_ahead(&self) {
        for (block, regions) in self.blocks.iter().enumerate() {
            for (index, region) in regions.regions.iter().enumerate() {
                if !self.front.wait_near((block, index)) {
                    return;
                }
                // One that somebody looks at is allocated by him, with those behind it.
                if let Some(mut plan) = region.plan.try_lock()
                    && matches!(*plan, Plan::Whole)
                {
                    let ram = self.ram.block(BlockId(block as u32));
                    regions.allocate_from(index, ram, &mut plan, AT_ONCE);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::RamBlock;
    use crate::guest_ram::GuestRam;
    use crate::preallocation::REGION;
    use limosa_pages::{BlockName, ByteCount, PageCount, PageIndex, PageRun};
    use std::time::{Duration, Instant};

    const BLOCK: BlockId = BlockId(0);
    const REGIONS: u64 = 64;

    fn ram() -> GuestRam {
        let block = |name, regions: u64| {
            RamBlock::memfd(BlockName::new(name).unwrap(), ByteCount(regions << 21)).unwrap()
        };
        GuestRam::new(vec![block("ram", REGIONS), block("other", 2)]).unwrap()
    }

    fn preallocation(ram: &GuestRam) -> Arc<Preallocation> {
        let now: Vec<_> = ram.iter().map(|(_, block)| block.populated()).collect();
        Arc::new(Preallocation::new(ram.clone(), &now))
    }

    fn expect(
        preallocation: &Preallocation,
        block: BlockId,
        regions: std::ops::Range<u64>,
        pages: PageCount,
    ) {
        regions.for_each(|region| preallocation.expect(block, PageIndex(region * REGION.0), pages));
    }

    fn regions(start: u64, count: u64) -> PageRun {
        PageRun::new(PageIndex(start * REGION.0), PageCount(count * REGION.0))
    }

    fn populated(ram: &GuestRam, block: BlockId) -> Vec<PageRun> {
        ram.block(block).populated().runs().to_vec()
    }

    fn wait_for(ram: &GuestRam, block: BlockId, expected: &[PageRun]) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while populated(ram, block) != expected {
            assert!(Instant::now() < deadline, "{:?}, expected {expected:?}", populated(ram, block));
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_the_source_has_gets_memory_before_its_content_but_not_far_before() {
        let ram = ram();
        let preallocation = preallocation(&ram);
        expect(&preallocation, BLOCK, 0..REGIONS, REGION);
        let ahead = AllocationAhead::start(Arc::clone(&preallocation)).unwrap();
        let window = WINDOW as u64;
        // Where a call begins depends on who is faster; the last one begins in the last region of the window at most.
        let allocated = |from: u64| {
            let memory = populated(&ram, BLOCK);
            let limit = regions(0, from + window + AT_ONCE as u64).end();
            assert!(memory.last().is_none_or(|run| run.end() <= limit), "{memory:?}");
            let near = regions(from, window + 1);
            memory.iter().any(|run| run.start <= near.start && near.end() <= run.end())
        };
        for reached in [0, 10, 40] {
            preallocation.before_content(BLOCK, PageRun::new(regions(reached, 1).start, PageCount(1)));
            let deadline = Instant::now() + Duration::from_secs(60);
            while !allocated(reached) {
                assert!(Instant::now() < deadline, "{:?}", populated(&ram, BLOCK));
                std::thread::yield_now();
            }
        }
        drop(ahead);
        assert!(allocated(40));
    }

    #[test]
    fn regions_that_the_source_does_not_have_stay_without_memory_and_blocks_follow_each_other() {
        let (ram, other) = (ram(), BlockId(1));
        let preallocation = preallocation(&ram);
        expect(&preallocation, BLOCK, 0..2, REGION);
        expect(&preallocation, BLOCK, 2..REGIONS, PageCount(100));
        expect(&preallocation, other, 1..2, REGION);
        let _ahead = AllocationAhead::start(Arc::clone(&preallocation)).unwrap();
        preallocation.before_content(BLOCK, PageRun::new(PageIndex(0), PageCount(1)));
        wait_for(&ram, BLOCK, &[regions(0, 2)]);
        preallocation.before_content(BLOCK, regions(REGIONS - 1, 1));
        preallocation.before_content(other, PageRun::new(PageIndex(0), PageCount(1)));
        wait_for(&ram, other, &[regions(1, 1)]);
        assert_eq!(populated(&ram, BLOCK), [regions(0, 2)]);
    }

    #[test]
    fn nothing_gets_memory_before_any_content_has_come() {
        let ram = ram();
        let preallocation = preallocation(&ram);
        expect(&preallocation, BLOCK, 0..REGIONS, REGION);
        let ahead = AllocationAhead::start(Arc::clone(&preallocation)).unwrap();
        preallocation.zero(BLOCK, regions(0, 3));
        drop(ahead);
        assert_eq!(populated(&ram, BLOCK), []);
    }

    #[test]
    fn a_reader_finds_memory_whether_it_or_the_thread_comes_first() {
        let ram = ram();
        let preallocation = preallocation(&ram);
        expect(&preallocation, BLOCK, 0..REGIONS, REGION);
        let _ahead = AllocationAhead::start(Arc::clone(&preallocation)).unwrap();
        for region in 0..REGIONS {
            preallocation.before_content(BLOCK, PageRun::new(regions(region, 1).start, PageCount(1)));
            let memory = populated(&ram, BLOCK);
            assert!(memory[0].end() >= regions(region, 1).end(), "{region}: {memory:?}");
        }
    }
}

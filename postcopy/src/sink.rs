//! Where pages go that come while the guest runs, or may run.

use crate::error::{PlaceError, UffdError};
use crate::landed::{Landed, Landing};
use crate::statistics::{Counters, PostcopyStatistics};
use crate::uffd::{FaultEvent, FaultReader, Uffd, landing_ram};
use limosa_pages::{BlockId, PAGE_BYTES, PageCount, PageIndex, PageRun, ReceivedMap};
use limosa_protocol::{FaultTable, KernelThread, PageFault};
use limosa_ram::{GuestRam, RamBlock};
use parking_lot::{Mutex, MutexGuard};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

/// Target pages that are mapped with one that a thread missed although it was here: 64 KiB take 5 microseconds, a fault
/// for each page of them 16 times that.
const FAULT_AROUND: PageCount = PageCount(16);

/// Target pages mapped in one call by [`UffdSink::map_received`]: 2 MiB take less than 200 microseconds, in which the kernel
/// keeps faults of the same page table waiting.
const MAP_PAGES: PageCount = PageCount(512);

/// Guest memory that is watched for faults, and the one place where its pages come in.
///
/// Threads share it behind an `Arc`: the readers of all channels put pages in, and the
/// [`FaultThread`](crate::FaultThread) reads faults out. A page is placed once (I4), in one step; its received bit is set
/// after that (I3), and the table of faults is told last. A fault is entered in the table only if, under the table's lock, the page
/// is not received: so of the two that meet at a page, one always sees the other.
///
/// A page of zeros is not given memory before somebody touches it. Of a block with huge host pages, a host page is
/// placed when its last target page has come.
///
/// Dropping the sink ends the watch. Whoever waits for a page then goes on with whatever is there: stop the guest first, or
/// call [`Self::end`].
pub struct UffdSink {
    uffd: Uffd,
    guest: GuestRam,
    /// Where bytes are received: the aliases, or memory beside the guest's.
    landing: GuestRam,
    received: Arc<ReceivedMap>,
    /// Pages whose bytes somebody has begun to put in; never cleared while a channel lives.
    begun: ReceivedMap,
    /// What has come of huge host pages, block by block.
    landed: Vec<Option<Landed>>,
    table: Mutex<FaultTable>,
    counters: Counters,
}

impl UffdSink {
    /// Watches all blocks of `ram` from now on (LISTEN). `received` is what precopy delivered and no discard has taken back.
    ///
    /// From here on nobody may write to guest memory but through this sink, and our own threads must not touch the
    /// guest's mapping, nor the engine's of a block without alias: they would wait for themselves.
    ///
    /// # Errors
    /// As [`probe`](crate::probe).
    pub fn listen(ram: GuestRam, received: Arc<ReceivedMap>) -> Result<Self, UffdError> {
        let landing = landing_ram(&ram)?;
        let landed = ram.iter().map(|(_, block)| Landed::of(block));
        Ok(Self {
            uffd: Uffd::watch(ram.clone())?,
            landing,
            begun: ReceivedMap::empty(ram.layout()),
            landed: landed.collect(),
            received,
            table: Mutex::default(),
            counters: Counters::default(),
            guest: ram,
        })
    }

    /// The memory to receive into, block for block like the guest's: not visible to the guest before [`Self::place`].
    pub fn ram(&self) -> &GuestRam {
        &self.landing
    }

    /// What the guest can see.
    pub fn received(&self) -> &ReceivedMap {
        &self.received
    }

    /// Announces that the bytes of `run` will be received into [`Self::ram`], by this caller alone.
    ///
    /// # Errors
    /// [`PlaceError::Twice`] if one of the pages is here or announced by somebody else: its bytes must not be written.
    ///
    /// # Panics
    /// If the run leaves the block.
    pub fn begin(&self, block: BlockId, run: PageRun) -> Result<(), PlaceError> {
        if run.pages().all(|page| self.claim(block, page)) {
            return Ok(());
        }
        Err(self.twice(block, run))
    }

    /// The bytes of `run` are in [`Self::ram`]: makes them visible to the guest, wakes who waits for them, and marks them
    /// as received.
    ///
    /// # Errors
    /// If the kernel refuses; [`PlaceError::Twice`] if a page was received before.
    ///
    /// # Panics
    /// If the run leaves the block.
    pub fn place(&self, block: BlockId, run: PageRun) -> Result<(), PlaceError> {
        let arrived = Instant::now();
        self.for_each_whole(block, run, |run| {
            if self.has_alias(block) {
                self.uffd.map_cached(block, run)?;
            } else {
                let landing = self.landing.block(block);
                self.uffd.copy_from_landing(block, run, landing)?;
                landing.punch(run).map_err(|source| PlaceError::Landing { run, source })?;
            }
            self.mark(block, run, arrived)
        })
    }

    /// Puts one page in. A page that is here already stays as it is: the guest may have written to it.
    ///
    /// # Errors
    /// If the kernel refuses.
    ///
    /// # Panics
    /// If the page is outside the block, or `bytes` is not a page.
    pub fn put(&self, block: BlockId, page: PageIndex, bytes: &[u8]) -> Result<(), PlaceError> {
        assert_eq!(bytes.len(), PAGE_BYTES, "not a page");
        if !self.claim(block, page) {
            self.counters.twice();
            return Ok(());
        }
        let (arrived, run) = (Instant::now(), PageRun::new(page, PageCount(1)));
        if self.has_alias(block) || self.landed[block.index()].is_some() {
            self.landing.block(block).copy_in(page.byte_offset(), bytes);
            return self.place(block, run);
        }
        self.uffd.copy(block, run, bytes)?;
        self.mark(block, run, arrived)
    }

    /// Makes the pages of `run` zero, but for those that are here already.
    ///
    /// # Errors
    /// If the kernel refuses.
    ///
    /// # Panics
    /// If the run leaves the block.
    pub fn zero(&self, block: BlockId, run: PageRun) -> Result<(), PlaceError> {
        let mut from = run.start;
        while from < run.end() {
            let Some(start) = pages_from(from, run).find(|page| self.claim_or_count(block, *page)) else {
                break;
            };
            let end = pages_from(start + PageCount(1), run)
                .find(|page| !self.claim_or_count(block, *page))
                .unwrap_or(run.end());
            self.zero_claimed(block, PageRun::new(start, PageCount(end.0 - start.0)))?;
            from = end + PageCount(1); // The page at the end was looked at.
        }
        Ok(())
    }

    /// After a loss, when every thread that puts pages in has ended: pages that came in part may come again.
    pub fn forget_unfinished(&self) {
        for (id, block) in self.guest.iter() {
            self.begun.block(id).forget(block.whole());
            if let Some(landed) = &self.landed[id.index()] {
                landed.forget();
            }
        }
    }

    /// Maps what precopy delivered, so that the guest need not fault on it. For a thread of its own, after LISTEN; the guest may
    /// run. Returns how many pages were mapped or known to be.
    ///
    /// Without it each 64 KiB that the guest touches cost it one local fault, of 10 to 50 microseconds. Cost: 50 to 65 ms
    /// for a GiB.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn map_received(&self) -> Result<PageCount, PlaceError> {
        let mut mapped = PageCount(0);
        for (id, block) in self.guest.iter().filter(|(_, block)| block.has_alias()) {
            for stretch in block.populated().runs() {
                let mut from = stretch.start;
                while let Some(run) = self.received_run(id, from, *stretch) {
                    self.uffd.map_cached(id, run)?;
                    mapped += run.count;
                    from = run.end();
                }
            }
        }
        Ok(mapped)
    }

    /// Threads whose waits are added up, in this order; usually the vCPUs. Forgets those of before.
    pub fn watch_threads(&self, threads: &[KernelThread]) {
        self.table.lock().watch_threads(threads);
    }

    /// What has been measured so far.
    pub fn statistics(&self) -> PostcopyStatistics {
        let blocktime = self.table.lock().blocktime(Instant::now());
        self.counters.snapshot(blocktime)
    }

    /// Checks that every page has come.
    ///
    /// # Errors
    /// [`UffdError::Missing`], with the first page that has not.
    pub fn check_whole(&self) -> Result<(), UffdError> {
        for (id, block) in self.guest.iter() {
            let received = self.received.block(id);
            let count = received.pages() - received.count();
            if let Some(page) = block.whole().pages().find(|page| count.0 > 0 && !received.is_received(*page))
            {
                let first = PageRun::new(page, PageCount(1));
                return Err(UffdError::Missing { block: block.name().clone(), count, first });
            }
        }
        Ok(())
    }

    /// Ends the watch of memory that is whole. From then on the guest's memory is as any other.
    ///
    /// # Errors
    /// [`UffdError::Missing`] if it is not: the watch goes on. What the kernel says.
    pub fn end(&self) -> Result<(), UffdError> {
        self.check_whole()?;
        self.uffd.unwatch()
    }

    /// Reads the faults that have come.
    pub(crate) fn read_faults(
        &self,
        reader: &mut FaultReader,
        faults: &mut Vec<FaultEvent>,
    ) -> Result<(), UffdError> {
        self.uffd.read(reader, faults)
    }

    /// Enters a fault in the table, or ends it if the page is here.
    pub(crate) fn fault(&self, fault: FaultEvent, noticed: Instant) -> Result<(), PlaceError> {
        let FaultEvent { block, page, thread } = fault;
        {
            let mut table = self.table.lock();
            if !self.received.block(block).is_received(page) {
                table.fault(PageFault { block, page, thread, noticed });
                return Ok(());
            }
        }
        let host_page = self.host_page(block, page);
        self.uffd.place_zero(block, host_page)?; // Zero only where the cache holds nothing.
        self.counters.local(noticed, Instant::now());
        let around = PageRun::new(page, FAULT_AROUND);
        let inside = self.guest.block(block).layout().contains(around);
        let small = self.has_alias(block) && self.landed[block.index()].is_none();
        if small
            && inside
            && let Some(run) = self.received_run(block, page + PageCount(1), around)
        {
            self.uffd.map_cached(block, run)?;
        }
        Ok(())
    }

    /// The table of faults; hold it briefly.
    pub(crate) fn table(&self) -> MutexGuard<'_, FaultTable> {
        self.table.lock()
    }

    /// Name and host page size of a block, for requests.
    pub(crate) fn block(&self, id: BlockId) -> &RamBlock {
        self.guest.block(id)
    }

    /// Becomes readable when there are faults.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }

    /// Zeros for pages that are claimed.
    fn zero_claimed(&self, block: BlockId, run: PageRun) -> Result<(), PlaceError> {
        let arrived = Instant::now();
        let huge = self.landed[block.index()].is_some();
        if self.has_alias(block) || huge {
            self.landing.block(block).fill_zero(run);
        }
        if huge {
            return self.place(block, run);
        }
        if !self.has_alias(block) {
            // The shared page of zeros takes no memory.
            self.uffd.place_zero(block, run)?;
            return self.mark(block, run, arrived);
        }
        self.received.block(block).mark(run);
        // Whoever faults from here on sees the received bit. Who was entered before is served now.
        let waiting =
            |page: &PageIndex| self.table.lock().waits_for(block, PageRun::new(*page, PageCount(1)));
        if self.table.lock().waits_for(block, run) {
            run.pages()
                .filter(waiting)
                .try_for_each(|page| self.uffd.place_zero(block, PageRun::new(page, PageCount(1))))?;
        }
        self.answer(block, run, arrived);
        Ok(())
    }

    /// The pages of `run`, whole host pages, are visible.
    fn mark(&self, block: BlockId, run: PageRun, arrived: Instant) -> Result<(), PlaceError> {
        if self.received.block(block).mark(run) != run.count {
            return Err(self.twice(block, run));
        }
        self.answer(block, run, arrived);
        Ok(())
    }

    /// Counts that a page of `run` had come before.
    fn twice(&self, block: BlockId, run: PageRun) -> PlaceError {
        self.counters.twice();
        PlaceError::Twice { block: self.guest.block(block).name().clone(), run }
    }

    fn answer(&self, block: BlockId, run: PageRun, arrived: Instant) {
        let placed = Instant::now();
        let answered = self.table.lock().answer(block, run, placed);
        let host_page = self.guest.block(block).layout().page_size.target_pages();
        self.counters.placed(run.count, &answered, host_page, arrived, placed);
    }

    /// Calls `place` for the whole host pages that are complete with `run`: for all of it, if the host's pages are the target's.
    fn for_each_whole(
        &self,
        block: BlockId,
        run: PageRun,
        mut place: impl FnMut(PageRun) -> Result<(), PlaceError>,
    ) -> Result<(), PlaceError> {
        let Some(landed) = &self.landed[block.index()] else { return place(run) };
        let mut page = run.start;
        while page < run.end() {
            let host_page = self.host_page(block, page);
            let end = host_page.end().min(run.end());
            let part = PageRun::new(page, PageCount(end.0 - page.0));
            match landed.add(part) {
                Landing::Complete => place(host_page)?,
                Landing::Partial => {}
                Landing::Twice => return Err(self.twice(block, run)),
            }
            page = end;
        }
        Ok(())
    }

    fn claim(&self, block: BlockId, page: PageIndex) -> bool {
        !self.received.block(block).is_received(page)
            && self.begun.block(block).mark(PageRun::new(page, PageCount(1))).0 == 1
    }

    fn claim_or_count(&self, block: BlockId, page: PageIndex) -> bool {
        let claimed = self.claim(block, page);
        if !claimed {
            self.counters.twice();
        }
        claimed
    }

    fn has_alias(&self, block: BlockId) -> bool {
        self.guest.block(block).has_alias()
    }

    /// The host page that holds `page`.
    fn host_page(&self, block: BlockId, page: PageIndex) -> PageRun {
        let size = self.guest.block(block).layout().page_size.target_pages();
        PageRun::new(PageIndex(page.0 - page.0 % size.0), size)
    }

    /// The first received pages at or after `from` inside `within`, at most [`MAP_PAGES`] long, in whole host pages.
    fn received_run(&self, block: BlockId, from: PageIndex, within: PageRun) -> Option<PageRun> {
        let received = self.received.block(block);
        let start = pages_from(from, within).find(|page| received.is_received(*page))?;
        let host_page = self.host_page(block, start);
        if host_page.count.0 > 1 {
            return Some(host_page);
        }
        let most = PageRun::new(start, MAP_PAGES.min(PageCount(within.end().0 - start.0)));
        let end = most.pages().find(|page| !received.is_received(*page)).unwrap_or(most.end());
        Some(PageRun::new(start, PageCount(end.0 - start.0)))
    }
}

/// The pages of `run` that are not before `from`.
fn pages_from(from: PageIndex, run: PageRun) -> impl Iterator<Item = PageIndex> {
    (from.max(run.start).0..run.end().0).map(PageIndex)
}

//! A log for tests: what was marked by hand.

use super::{DirtyLog, DirtyLogError, HostWrites};
use crate::populated::{Evidence, Populated};
use limosa_pages::{BlockId, DirtyMap, PageCount, PageIndex, PageRun, RamLayout};
use std::sync::Arc;

/// Reports exactly what was marked in its [`HostWrites`].
pub struct FakeDirtyLog {
    layout: RamLayout,
    writes: Arc<HostWrites>,
    running: bool,
}

impl FakeDirtyLog {
    /// A log over blocks of this layout; no memory is needed.
    pub fn new(layout: &RamLayout) -> Self {
        Self { layout: layout.clone(), writes: Arc::new(HostWrites::new(layout)), running: false }
    }

    /// Where a test marks the pages that its guest "writes".
    pub fn writes(&self) -> Arc<HostWrites> {
        Arc::clone(&self.writes)
    }

    /// Whether the log runs.
    pub fn is_running(&self) -> bool {
        self.running
    }
}

impl DirtyLog for FakeDirtyLog {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        assert!(!self.running, "the log runs already");
        self.writes.forget();
        self.running = true;
        Ok(())
    }

    fn populated(&mut self, block: BlockId) -> Result<Populated, DirtyLogError> {
        assert!(self.running, "the log does not run");
        let whole = PageRun::new(PageIndex(0), self.layout.block(block).pages());
        Ok(Populated::everything(whole, Evidence::Unknown))
    }

    fn sync_into(&mut self, dirty: &DirtyMap) -> Result<PageCount, DirtyLogError> {
        assert!(self.running, "the log does not run");
        Ok(self.writes.take_into(dirty))
    }

    fn clear_before_read(&mut self, block: BlockId, run: PageRun) -> Result<(), DirtyLogError> {
        assert!(self.running, "the log does not run");
        assert!(self.layout.block(block).contains(run), "{run:?} leaves its block");
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        self.running = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use limosa_pages::{BlockLayout, BlockName, PageSize, RamLayout};

    fn log() -> (FakeDirtyLog, DirtyMap) {
        let name = BlockName::new("ram").unwrap();
        let length = PageCount(100).bytes();
        let layout =
            RamLayout::new(vec![BlockLayout { name, length, page_size: PageSize::FOUR_KIB }]).unwrap();
        (FakeDirtyLog::new(&layout), DirtyMap::clean(&layout))
    }

    #[test]
    fn marked_bytes_are_reported_once_as_the_pages_they_touch() {
        let (mut log, owed) = log();
        log.start().unwrap();
        log.writes().mark(BlockId(0), 4095, 2);
        log.writes().mark(BlockId(0), 99 * 4096, 4096);
        log.writes().mark(BlockId(0), 50 * 4096, 0);
        assert_eq!(log.sync_into(&owed).unwrap(), PageCount(3));
        let reported: Vec<_> =
            (0..100).filter(|&page| owed.block(BlockId(0)).claim(PageIndex(page))).collect();
        assert_eq!(reported, [0, 1, 99]);
        assert_eq!(log.sync_into(&owed).unwrap(), PageCount(0));
    }

    #[test]
    fn only_pages_that_were_not_owed_count() {
        let (mut log, owed) = log();
        log.start().unwrap();
        assert!(owed.block(BlockId(0)).mark(PageRun::new(PageIndex(3), PageCount(1))) == PageCount(1));
        log.writes().mark(BlockId(0), 3 * 4096, 2 * 4096);
        assert_eq!(log.sync_into(&owed).unwrap(), PageCount(1));
    }

    #[test]
    fn what_was_written_before_the_start_is_forgotten() {
        let (mut log, owed) = log();
        log.writes().mark(BlockId(0), 0, 1);
        log.start().unwrap();
        assert_eq!(log.sync_into(&owed).unwrap(), PageCount(0));
        log.stop().unwrap();
        assert!(!log.is_running());
    }

    #[test]
    #[should_panic(expected = "does not run")]
    fn a_log_that_does_not_run_is_not_asked() {
        let (mut log, owed) = log();
        let _ = log.sync_into(&owed);
    }
}

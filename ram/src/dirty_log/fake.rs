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

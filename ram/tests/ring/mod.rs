//! What the tests of the kernel ring share: a loud way to be left out, and a copy that follows a dirty log.

use limosa_pages::{DirtyMap, PageCount, PageIndex, PageRun};
use limosa_ram::{DirtyLog, GuestRam};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Says that a test was left out because the machine lacks `what`; a failure where nothing may be left out.
pub(crate) fn left_out(what: &str, why: &dyn std::fmt::Display) {
    let required = std::env::var("LIMOSA_REQUIRE_ALL_RINGS").is_ok_and(|value| value == "1");
    assert!(!required, "kernel ring: {what} is required here: {why}");
    eprintln!("LEFT OUT: a test of the kernel ring needs {what}: {why}");
}

/// Tells writers to end when it goes, also by a failed assertion: a scope waits for its threads.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Calls `round` until `writes`, which writers count, has risen by `more`; returns the sum of what it returned.
pub(crate) fn rounds_during(
    writes: &AtomicU64,
    more: u64,
    mut round: impl FnMut() -> PageCount,
) -> PageCount {
    let enough = writes.load(Ordering::Relaxed) + more;
    let mut seen = PageCount(0);
    while writes.load(Ordering::Relaxed) < enough {
        seen += round();
    }
    seen + round()
}

/// A second copy of guest RAM, kept up to date by nothing but a dirty log: what a migration does.
pub(crate) struct Follower {
    ram: GuestRam,
    owed: DirtyMap,
    copies: Vec<Vec<u8>>,
}

impl Follower {
    /// Starts `log` and owes what it says is populated.
    pub(crate) fn start(ram: &GuestRam, log: &mut dyn DirtyLog) -> Self {
        log.start().unwrap();
        let owed = DirtyMap::clean(ram.layout());
        for (id, _) in ram.iter() {
            log.populated(id).unwrap().owe_into(owed.block(id));
        }
        let copies = ram.iter().map(|(_, block)| vec![0; block.length().0 as usize]).collect();
        Self { ram: ram.clone(), owed, copies }
    }

    /// Copies what is owed, in runs of at most 64 pages, and asks the log for more.
    pub(crate) fn round(&mut self, log: &mut dyn DirtyLog) -> PageCount {
        for (id, block) in self.ram.iter() {
            let mut from = PageIndex(0);
            while let Some(run) = self.owed.block(id).claim_next(from, PageCount(64)) {
                log.clear_before_read(id, run).unwrap();
                let (start, end) = (run.byte_offset() as usize, run.end().byte_offset() as usize);
                block.copy_out(run.byte_offset(), &mut self.copies[id.index()][start..end]);
                from = run.end();
            }
        }
        log.sync_into(&self.owed).unwrap()
    }

    /// After the last writer has stopped: the copy must become equal to the memory.
    pub(crate) fn finish(mut self, log: &mut dyn DirtyLog) {
        log.sync_into(&self.owed).unwrap();
        self.round(log);
        log.stop().unwrap();
        for ((_, block), copy) in self.ram.iter().zip(&self.copies) {
            let mut memory = vec![0; copy.len()];
            block.copy_out(0, &mut memory);
            let differs = |run: &PageRun| {
                let bytes = run.byte_offset() as usize..run.end().byte_offset() as usize;
                memory[bytes.clone()] != copy[bytes]
            };
            let pages = block.whole().pages().map(|page| PageRun::new(page, PageCount(1)));
            let lost: Vec<_> = pages.filter(differs).map(|run| run.start.0).collect();
            assert!(lost.is_empty(), "{}: {} pages were lost: {lost:?}", block.name(), lost.len());
        }
    }
}

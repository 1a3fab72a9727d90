//! Memory for a destination that its host has not taken away.
//!
//! The host of a virtual machine takes free memory away from it, huge pages first, within two seconds. The first touch of each
//! of its pages then costs the host up to ten microseconds, twenty times what a migration costs; that measures the
//! host, and hits whoever comes first. Memory that was in use a moment ago is still there.

use crate::error::BenchError;
use limosa_pages::{BlockName, ByteCount, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_ram::RamBlock;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// Given back at once: whole huge pages.
const STEP: PageCount = PageCount(512);
/// How far the memory that was given back is ahead of the destination: half a second at 3 GB/s. With 256 MiB a destination
/// that allocates in large pieces found memory of the host's every other time, and took twice as long.
const AHEAD: ByteCount = ByteCount(1536 << 20);
/// Time between two looks at the destination: 6 MB at 3 GB/s.
const LOOK: Duration = Duration::from_millis(2);

/// As much memory as a destination will need, touched and held.
pub(crate) struct WarmMemory {
    block: RamBlock,
    /// Everything before is given back.
    next: PageIndex,
}

impl WarmMemory {
    /// Takes `memory` bytes in huge pages.
    pub(crate) fn take(memory: ByteCount) -> Result<Self, BenchError> {
        let name = BlockName::new("warm").expect("a short name");
        let block = RamBlock::anonymous(name, memory)?;
        block.preallocate(block.whole())?;
        Ok(Self { block, next: PageIndex(0) })
    }

    /// Gives the memory back as the process `destination` grows, just ahead of it, until `end` is closed.
    pub(crate) fn hand_over(mut self, destination: u32, end: &Receiver<()>) -> Result<(), BenchError> {
        let before = resident(destination);
        while end.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            let wanted = resident(destination).saturating_sub(before) + AHEAD.0;
            while self.next < self.block.whole().end() && self.next.byte_offset() < wanted {
                let left = PageCount(self.block.pages().0 - self.next.0);
                let run = PageRun::new(self.next, STEP.min(left));
                self.block.punch(run)?;
                self.next = run.end();
            }
        }
        Ok(())
    }
}

/// Bytes of memory that the process has; 0 if it is gone.
fn resident(process: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    let pages: Option<u64> = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0) * PAGE_BYTES as u64
}

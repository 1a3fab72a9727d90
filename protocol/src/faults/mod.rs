//! Which pages the destination's guest waits for: each is asked for once (wire 5.7).
//!
//! The kernel repeats a fault whenever a thread that was woken finds its page still missing, and every thread that
//! touches the page faults by itself. The table makes one request of all of them. When the connection is lost, nothing
//! counts as asked any more, and after the recovery everything that is still missing is asked for again, longest
//! waiting first.

mod blocktime;
#[cfg(test)]
mod tests;

pub use blocktime::{Blocktime, BlocktimeReport, KernelThread};

use limosa_pages::{BlockId, PageIndex, PageRun};
use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

/// Pages that can be waited for at the same time. A thread waits for one, but a thread that a signal takes out of its wait
/// leaves its page behind. 65,536 entries of less than 100 bytes are 6 MiB. A page beyond is not asked for; it comes with the
/// others.
pub const WAITING_PAGES_MAX: usize = 1 << 16;

/// A fault, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// Block of the page.
    pub block: BlockId,
    /// First target page of the missing host page.
    pub page: PageIndex,
    /// Who waits.
    pub thread: KernelThread,
    /// When the fault was read from the kernel.
    pub noticed: Instant,
}

/// A page that was waited for and has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnsweredFault {
    /// Block of the page.
    pub block: BlockId,
    /// First target page of the host page.
    pub page: PageIndex,
    /// When the first thread's fault was read from the kernel.
    pub noticed: Instant,
    /// When it was last asked for; `None` if it came by itself before that.
    pub asked: Option<Instant>,
}

/// The pages that are waited for, and what is known of each.
#[derive(Debug, Default)]
pub struct FaultTable {
    waiting: BTreeMap<(BlockId, PageIndex), WaitingPage>,
    /// Pages to ask for, in the order of their faults. One that has come in between is no longer in `waiting`.
    unasked: VecDeque<(BlockId, PageIndex)>,
    /// Whether there is somebody to ask.
    asking: bool,
    blocktime: Blocktime,
}

#[derive(Clone, Copy, Debug)]
struct WaitingPage {
    noticed: Instant,
    asked: Option<Instant>,
}

impl FaultTable {
    /// Nobody waits, and nobody can be asked yet: [`Self::resume`] begins.
    pub fn new() -> Self {
        Self::default()
    }

    /// Threads whose waits are added up, in this order; usually the vCPUs. Forgets those of before.
    pub fn watch_threads(&mut self, threads: &[KernelThread]) {
        self.blocktime = Blocktime::of(threads);
    }

    /// Notes a fault on a page that is not here. [`Self::next_request`] says whether to ask.
    pub fn fault(&mut self, fault: PageFault) {
        let key = (fault.block, fault.page);
        if !self.waiting.contains_key(&key) {
            if self.waiting.len() >= WAITING_PAGES_MAX {
                return;
            }
            self.waiting.insert(key, WaitingPage { noticed: fault.noticed, asked: None });
            self.unasked.push_back(key);
        }
        self.blocktime.block(fault.thread, key, fault.noticed);
    }

    /// The next page to ask for; it counts as asked from `now` on. `None` if there is none, or nobody to ask.
    pub fn next_request(&mut self, now: Instant) -> Option<(BlockId, PageIndex)> {
        if !self.asking {
            return None;
        }
        while let Some(key) = self.unasked.pop_front() {
            if let Some(page) = self.waiting.get_mut(&key)
                && page.asked.is_none()
            {
                page.asked = Some(now);
                return Some(key);
            }
        }
        None
    }

    /// The connection is lost: nothing is asked any more, and nothing that was asked will be answered.
    pub fn pause(&mut self) {
        self.asking = false;
        self.waiting.values_mut().for_each(|page| page.asked = None);
        let mut keys: Vec<_> = self.waiting.iter().map(|(key, page)| (page.noticed, *key)).collect();
        keys.sort_unstable();
        self.unasked = keys.into_iter().map(|(_, key)| key).collect();
    }

    /// There is a peer to ask, for the first time or again.
    pub fn resume(&mut self) {
        self.asking = true;
    }

    /// Whether somebody waits for a page of `run`.
    pub fn waits_for(&self, block: BlockId, run: PageRun) -> bool {
        self.waiting.range((block, run.start)..(block, run.end())).next().is_some()
    }

    /// The pages of `run` are in place since `now`. Returns those that were waited for; without any it allocates nothing.
    pub fn answer(&mut self, block: BlockId, run: PageRun, now: Instant) -> Vec<AnsweredFault> {
        let answered: Vec<AnsweredFault> = self
            .waiting
            .range((block, run.start)..(block, run.end()))
            .map(|(&(block, page), waiting)| AnsweredFault {
                block,
                page,
                noticed: waiting.noticed,
                asked: waiting.asked,
            })
            .collect();
        for fault in &answered {
            let key = (fault.block, fault.page);
            self.waiting.remove(&key);
            self.blocktime.unblock(key, now);
        }
        answered
    }

    /// Pages that somebody waits for, in order.
    pub fn waiting(&self) -> impl Iterator<Item = (BlockId, PageIndex)> {
        self.waiting.keys().copied()
    }

    /// How long the watched threads have waited until `now`.
    pub fn blocktime(&self, now: Instant) -> BlocktimeReport {
        self.blocktime.report(now)
    }
}

//! How long threads have waited for pages, each by itself and all at once.

use limosa_pages::{BlockId, PageIndex};
use std::time::{Duration, Instant};

/// The kernel's number of a thread, as `gettid` says it and a fault brings it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelThread(pub u32);

/// Adds up the waits of a fixed list of threads.
///
/// The meaning is that of QEMU's `postcopy-blocktime`: for each vCPU the time in which it waited for a page, and overall
/// the time in which all of them waited at once.
#[derive(Debug, Default)]
pub struct Blocktime {
    threads: Vec<Watched>,
    /// Since when all of them wait, while they do.
    all_since: Option<Instant>,
    overall: Duration,
}

/// What [`Blocktime`] has added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlocktimeReport {
    /// Time in which every watched thread waited at once.
    pub overall: Duration,
    /// Time in which each thread waited, in the order of the list.
    pub threads: Vec<Duration>,
}

#[derive(Debug)]
struct Watched {
    thread: KernelThread,
    wait: Option<(Instant, (BlockId, PageIndex))>,
    total: Duration,
}

impl Blocktime {
    /// Nobody waits yet.
    pub fn of(threads: &[KernelThread]) -> Self {
        let watched = |&thread| Watched { thread, wait: None, total: Duration::ZERO };
        Self { threads: threads.iter().map(watched).collect(), ..Self::default() }
    }

    /// `thread` waits for the page `key`. A thread that waited for another one has left that wait, and waits on.
    pub fn block(&mut self, thread: KernelThread, key: (BlockId, PageIndex), now: Instant) {
        let Some(watched) = self.threads.iter_mut().find(|watched| watched.thread == thread) else { return };
        let since = watched.wait.map_or(now, |(since, _)| since);
        watched.wait = Some((since, key));
        if self.all_since.is_none() && self.threads.iter().all(|watched| watched.wait.is_some()) {
            self.all_since = Some(now);
        }
    }

    /// The page `key` is there: whoever waited for it goes on.
    pub fn unblock(&mut self, key: (BlockId, PageIndex), now: Instant) {
        for watched in &mut self.threads {
            if let Some((since, _)) = watched.wait.take_if(|(_, page)| *page == key) {
                watched.total += now.saturating_duration_since(since);
                if let Some(since) = self.all_since.take() {
                    self.overall += now.saturating_duration_since(since);
                }
            }
        }
    }

    /// What has been added up, with the waits that last.
    pub fn report(&self, now: Instant) -> BlocktimeReport {
        let lasting = |since: Option<Instant>| {
            since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
        };
        let of = |watched: &Watched| watched.total + lasting(watched.wait.map(|(since, _)| since));
        BlocktimeReport {
            overall: self.overall + lasting(self.all_since),
            threads: self.threads.iter().map(of).collect(),
        }
    }
}

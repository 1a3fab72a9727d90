//! When what happened: rounds, and the parts of the downtime.

use crate::ram::RamStatistics;
use limosa_pages::{ByteCount, PageCount};
use limosa_protocol::Timeline;
use std::time::{Duration, Instant};

/// One pass over the dirty pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Counted from 1.
    pub number: u64,
    /// Pages owed when it began.
    pub owed: PageCount,
    /// Pages sent, zero pages and deltas among them.
    pub pages: PageCount,
    /// Bytes written to the main channel.
    pub bytes: ByteCount,
    /// From one look at the dirty log to the next.
    pub time: Duration,
}

/// The parts of the time in which the guest ran nowhere, as seen from the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Downtime {
    /// Stopping the vCPUs.
    pub stop: Duration,
    /// The last look at the dirty log, and the operator's pause in `pre-switchover` if there was one.
    pub sync: Duration,
    /// Writing the last of RAM.
    pub ram: Duration,
    /// Saving and writing device state.
    pub devices: Duration,
    /// Until the destination said that all is loaded.
    pub load: Duration,
    /// From the last byte until the destination said that the guest runs. Its word travels within this
    /// time, so the sum is an upper bound.
    pub resume: Duration,
}

impl Downtime {
    /// All parts together.
    pub fn total(&self) -> Duration {
        let Self { stop, sync, ram, devices, load, resume } = *self;
        stop + sync + ram + devices + load + resume
    }
}

impl Downtime {
    /// The parts as the machine's clock saw them; `None` until the guest's stop has led to an end.
    pub(super) fn of(timeline: &Timeline) -> Option<Self> {
        let (asked, stopped) = (timeline.stop_asked?, timeline.vm_stopped?);
        let (synced, completed) = (timeline.final_synced?, timeline.precopy_completed?);
        if timeline.package_sent.is_some() {
            // The guest runs there as soon as its devices are loaded; that its memory follows is no downtime.
            let (saved, runs) = (timeline.devices_saved?, timeline.runs_there?);
            return Some(Self {
                stop: stopped - asked,
                sync: synced - stopped,
                ram: completed - synced,
                devices: saved - completed,
                load: runs - saved,
                resume: Duration::ZERO,
            });
        }
        let (saved, end_sent, ended) = (timeline.devices_saved?, timeline.end_sent?, timeline.ended?);
        let loaded = timeline.devices_loaded.unwrap_or(saved);
        Some(Self {
            stop: stopped - asked,
            sync: synced - stopped,
            ram: completed - synced,
            devices: saved - completed,
            load: loaded - saved,
            // Writing the last bytes belongs to the wait for the answer: the destination reads meanwhile.
            resume: ended.max(end_sent) - loaded,
        })
    }
}

/// Keeps the rounds.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    done: Vec<Round>,
    current: Option<Open>,
}

#[derive(Debug)]
struct Open {
    began: Instant,
    owed: PageCount,
    pages: PageCount,
    bytes: ByteCount,
}

impl Rounds {
    /// The dirty log has been read: the current round ends, the next one begins.
    pub(super) fn next(&mut self, now: Instant, ram: &RamStatistics, written: ByteCount) {
        self.end(now, ram, written);
        self.current = Some(Open { began: now, owed: ram.owed, pages: sent_pages(ram), bytes: written });
    }

    /// Ends the current round.
    pub(super) fn end(&mut self, now: Instant, ram: &RamStatistics, written: ByteCount) {
        if let Some(open) = self.current.take() {
            self.done.push(Round {
                number: self.done.len() as u64 + 1,
                owed: open.owed,
                pages: sent_pages(ram) - open.pages,
                bytes: written - open.bytes,
                time: now - open.began,
            });
        }
    }

    pub(super) fn done(&self) -> &[Round] {
        &self.done
    }
}

fn sent_pages(ram: &RamStatistics) -> PageCount {
    ram.normal + ram.zero + ram.xbzrle_pages
}

//! Whether compression keeps its promise on a fast link.
//!
//! Prices know nothing of processors that senders, workers and perhaps the receiver share. Where the link takes pages as
//! they are nearly as fast as a plan promises to get them through, that decides. So both are measured, by the pages that
//! were written and the time that they took: pages as they are first, and the plan only then. A plan that turns out to be
//! slower is not used for a while, each time for longer.

use super::Reason;
use super::plan::{Capacity, Plan};
use std::time::Duration;

#[cfg(test)]
mod tests;

/// Where a plan promises to be more than so many times as fast as raw pages, it is believed.
const BELIEVED: f64 = 1.7;

/// On a slower link, in bytes a second, a page takes longer than processors need for it by any method worth a thought.
const FAST_LINK: f64 = 800e6;

/// A plan is slower if it takes more than so many times as long as raw pages.
const SLOWER: f64 = 1.05;

/// It is measured over so many packets, and so long, at least.
const WINDOW_PACKETS: u32 = 16;
const WINDOW_MIN: Duration = Duration::from_millis(4);

/// A window in which packets have fewer pages than this says little: something else than pages took the time.
const PAGES_MIN: u32 = 32;

/// Weight of a new measurement against earlier ones of the same kind.
const WEIGHT: f64 = 0.5;

/// What raw pages took is measured again after so many packets: half a gigabyte.
const MEMORY_PACKETS: u32 = 1024;

/// It holds while the link looks no more than so many times faster or slower. It looks slower while compression keeps its
/// writers from their processor.
const SAME_LINK: f64 = 3.0;

/// Packets for which a plan that was slower is not used, at first and at most.
const BAN_FIRST: u32 = 192;
const BAN_MAX: u32 = 6144;

/// One that promises less than this share of the time of the plan that was slower is another plan: the content has changed.
const OTHER_PROMISE: f64 = 0.85;

/// What raw pages took, and what the plan takes that is in use.
#[derive(Clone, Debug)]
pub(super) struct Outcomes {
    /// Packets between choice and end of write: those chosen for an earlier plan may still be on their way.
    in_flight: u32,
    raw: Option<Known>,
    /// Seconds a page of the plan in use, if it compresses.
    current: Option<f64>,
    ban: Option<Ban>,
    /// Packets of the next one.
    next_ban: u32,
    window: Window,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    /// Seconds a page.
    took: f64,
    /// What the link seemed to take then.
    rate: f64,
    /// Packets since.
    age: u32,
}

/// A plan was slower than raw pages.
#[derive(Clone, Copy, Debug)]
struct Ban {
    /// Packets for which it is not used.
    left: u32,
    /// Seconds a page that it promised.
    promise: f64,
}

#[derive(Clone, Debug, Default)]
struct Window {
    /// Packets of the plan before that are still to come.
    settling: u32,
    start: Option<Duration>,
    packets: u32,
    pages: u32,
}

impl Outcomes {
    /// `in_flight`: packets between choice and end of write, over all channels.
    pub(super) fn new(in_flight: u32) -> Self {
        let window = Window::default();
        Self { in_flight, raw: None, current: None, ban: None, next_ban: BAN_FIRST, window }
    }

    /// Whether to use `plan`, the best by its promise, or else why `raw`, which leaves all pages as they are.
    pub(super) fn admit(&mut self, plan: &Plan, raw: &Plan, capacity: Capacity) -> Result<(), Reason> {
        let known = self.raw.filter(|known| known.is_of(capacity));
        let raw_takes = known.map_or(raw.seconds, |known| known.took);
        if plan.is_raw() || capacity.rate < FAST_LINK || raw_takes > plan.seconds * BELIEVED {
            return Ok(());
        }
        if self.ban.is_some_and(|ban| plan.seconds < ban.promise * OTHER_PROMISE) {
            (self.ban, self.next_ban) = (None, BAN_FIRST);
        }
        if self.ban.is_some_and(|ban| ban.left > 0) {
            return Err(Reason::TurnedOutSlower);
        }
        if known.is_none() {
            return Err(Reason::RawTimed);
        }
        if self.current.is_some_and(|current| current > raw_takes * SLOWER) {
            self.ban = Some(Ban { left: self.next_ban, promise: plan.seconds });
            self.current = None;
            self.next_ban = (self.next_ban * 2).min(BAN_MAX);
            return Err(Reason::TurnedOutSlower);
        }
        Ok(())
    }

    /// Another plan is in use, or nothing was sent for a while.
    pub(super) fn restart(&mut self) {
        self.window = Window { settling: self.in_flight, ..Window::default() };
    }

    /// A packet with so many pages was written; `now` the plan in use is `plan`.
    pub(super) fn written(&mut self, now: Duration, pages: u32, plan: &Plan, capacity: Capacity) {
        self.grow_older();
        let window = &mut self.window;
        if window.settling > 0 {
            window.settling -= 1;
            return;
        }
        let Some(start) = window.start else {
            window.start = Some(now);
            return;
        };
        window.packets += 1;
        window.pages += pages;
        let length = now.saturating_sub(start);
        if window.packets < WINDOW_PACKETS || length < WINDOW_MIN {
            return;
        }
        let (packets, pages) = (window.packets, window.pages);
        *window = Window { start: Some(now), ..Window::default() };
        if pages >= packets * PAGES_MIN {
            self.learn(length.as_secs_f64() / f64::from(pages), plan, capacity);
        }
    }

    fn learn(&mut self, seconds: f64, plan: &Plan, capacity: Capacity) {
        if !plan.is_raw() {
            self.current = Some(self.current.map_or(seconds, |before| mix(before, seconds)));
            return;
        }
        self.current = None;
        let before = self.raw.filter(|known| known.is_of(capacity));
        let took = before.map_or(seconds, |known| mix(known.took, seconds));
        self.raw = Some(Known { took, rate: capacity.rate, age: 0 });
    }

    fn grow_older(&mut self) {
        self.ban = self.ban.map(|ban| Ban { left: ban.left.saturating_sub(1), ..ban });
        let older = self.raw.map(|known| Known { age: known.age + 1, ..known });
        self.raw = older.filter(|known| known.age <= MEMORY_PACKETS);
    }
}

impl Known {
    /// Whether the link may be the one that it was.
    fn is_of(&self, capacity: Capacity) -> bool {
        (self.rate / capacity.rate).max(capacity.rate / self.rate) <= SAME_LINK
    }
}

fn mix(old: f64, new: f64) -> f64 {
    old + (new - old) * WEIGHT
}

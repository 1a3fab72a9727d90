//! How fast a worker may go: steps handed out in small grants, time as an argument.

use std::time::{Duration, Instant};

/// How fast a guest dirties its memory, all workers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rate {
    /// Not at all: the workers sleep in the VMM.
    #[default]
    Idle,
    /// At most this many pages in a second; 0 is idle too.
    PagesPerSecond(u64),
    /// As fast as the processor can.
    Unlimited,
}

/// Steps in one grant of an unlimited worker: 2048 pages at about 1 us each are 2 ms between two exits, so the
/// exits cost less than 1 % and a changed rate is obeyed at once.
const UNLIMITED_GRANT: u64 = 2048;
/// A limited worker is granted what it has earned in this time: 100 exits a second at most, and a page rate
/// that looks even to a dirty log that is read every few tens of milliseconds.
const GRANT_INTERVAL: Duration = Duration::from_millis(10);
/// What a worker that was paused or starved may catch up on: two intervals, so no burst follows a pause.
const CREDIT_INTERVALS: u128 = 2;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// What a worker is told when it asks for steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    /// So many steps, at least one.
    Steps(u64),
    /// None before this moment.
    After(Instant),
    /// None until the rate changes.
    Never,
}

/// One worker's share of the rate, and what it has earned and not yet used.
#[derive(Clone, Debug)]
pub(crate) struct Pacer {
    rate: Rate,
    workers: u32,
    /// Whether the worker has asked before. The first time it gets one step for nothing, so that its progress shows
    /// when it runs again and not when the first grant is earned.
    has_asked: bool,
    /// In pages * workers * nanoseconds per second, so that nothing is ever rounded away.
    credit: u128,
    counted_until: Instant,
}

impl Pacer {
    /// A worker among `workers`, with nothing earned.
    pub(crate) fn new(rate: Rate, workers: u32, now: Instant) -> Self {
        assert!(workers > 0);
        Self { rate, workers, has_asked: false, credit: 0, counted_until: now }
    }

    /// Adopts `rate`. What was earned under another one is forgotten.
    pub(crate) fn set_rate(&mut self, rate: Rate, now: Instant) {
        if rate != self.rate {
            *self = Self::new(rate, self.workers, now);
        }
    }

    /// Answers a worker that asks for steps at `now`.
    pub(crate) fn ask(&mut self, now: Instant) -> Grant {
        let rate = match self.rate {
            Rate::Idle | Rate::PagesPerSecond(0) => return Grant::Never,
            Rate::Unlimited => return Grant::Steps(UNLIMITED_GRANT),
            Rate::PagesPerSecond(rate) => u128::from(rate),
        };
        if !std::mem::replace(&mut self.has_asked, true) {
            return Grant::Steps(1);
        }
        let step = NANOS_PER_SECOND * u128::from(self.workers);
        let enough = (rate * GRANT_INTERVAL.as_nanos()).max(step);
        let earned = rate * now.saturating_duration_since(self.counted_until).as_nanos();
        self.credit = (self.credit + earned).min(enough * CREDIT_INTERVALS);
        self.counted_until = self.counted_until.max(now);
        if self.credit < enough {
            let missing = Duration::from_nanos((enough - self.credit).div_ceil(rate) as u64);
            return Grant::After(now + missing);
        }
        let steps = self.credit / step;
        self.credit -= steps * step;
        Grant::Steps(steps as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks as a worker does: again whenever it was told to, with all steps used up in no time.
    fn steps_in(rate: u64, workers: u32, seconds: u64) -> u64 {
        let start = Instant::now();
        let mut pacer = Pacer::new(Rate::PagesPerSecond(rate), workers, start);
        let (mut now, mut steps) = (start, 0);
        while now <= start + Duration::from_secs(seconds) {
            match pacer.ask(now) {
                Grant::Steps(granted) => steps += granted,
                Grant::After(later) => now = later,
                Grant::Never => panic!("a positive rate is never refused for good"),
            }
        }
        steps
    }

    #[test]
    fn a_worker_that_asks_in_time_gets_exactly_its_share() {
        // And the one step that a worker gets for nothing.
        assert_eq!(steps_in(1, 1, 10), 10 + 1);
        assert_eq!(steps_in(100_000, 2, 3), 150_000 + 1);
        assert_eq!(steps_in(7, 3, 9), 21 + 1);
    }

    #[test]
    fn a_long_absence_is_not_caught_up_on() {
        let start = Instant::now();
        let mut pacer = Pacer::new(Rate::PagesPerSecond(1000), 1, start);
        assert_eq!(pacer.ask(start), Grant::Steps(1));
        // Two intervals of 10 ms at 1000 pages/s are 20 pages.
        assert_eq!(pacer.ask(start + Duration::from_secs(60)), Grant::Steps(20));
    }

    #[test]
    fn idle_is_never_granted_and_unlimited_always() {
        let now = Instant::now();
        assert_eq!(Pacer::new(Rate::Idle, 1, now).ask(now), Grant::Never);
        assert_eq!(Pacer::new(Rate::PagesPerSecond(0), 1, now).ask(now), Grant::Never);
        assert_eq!(Pacer::new(Rate::Unlimited, 1, now).ask(now), Grant::Steps(UNLIMITED_GRANT));
    }

    #[test]
    fn a_new_rate_holds_at_once_and_the_same_rate_changes_nothing() {
        let start = Instant::now();
        let mut pacer = Pacer::new(Rate::Idle, 1, start);
        pacer.set_rate(Rate::PagesPerSecond(100), start);
        assert_eq!(pacer.ask(start), Grant::Steps(1));
        assert_eq!(pacer.ask(start), Grant::After(start + Duration::from_millis(10)));
        pacer.set_rate(Rate::PagesPerSecond(100), start + Duration::from_millis(5));
        assert_eq!(pacer.ask(start + Duration::from_millis(10)), Grant::Steps(1));
    }
}

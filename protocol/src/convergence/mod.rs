//! When to switch over.
//!
//! The downtime limit is what the user can bear, not what the guest should pay. So a rest that fits the limit is
//! sent in another live round as long as that shortens the downtime noticeably and is cheap; a rest that does not
//! fit always is.

use crate::bandwidth::{BandwidthEstimate, BandwidthSample};
use crate::units::BytesPerSecond;
use limosa_pages::ByteCount;
use std::time::{Duration, Instant};

/// QEMU's default, so that users meet what they know.
pub const DOWNTIME_LIMIT_DEFAULT: Duration = Duration::from_millis(300);

/// A gain below this is not worth a round: stopping and starting vCPUs costs about as much.
pub const GAIN_MIN: Duration = Duration::from_micros(500);

/// A gain below this part of the downtime is within the error of the estimate: an eighth.
pub const GAIN_PART: u32 = 8;

/// Most rounds spent on a rest that fits already. Each but the last wins an eighth or more: (7/8)^16 = 0.12.
pub const POLISH_ROUNDS_MAX: u32 = 16;

/// Those rounds together take at most this part of the time before them: a quarter.
pub const POLISH_PART: u32 = 4;

/// But a second is always worth it: short migrations have small totals and the same downtime.
pub const POLISH_TIME_MIN: Duration = Duration::from_secs(1);

/// Rounds before a rest can be called stalled: the first carries all of RAM, and the rest after it says what the guest dirties
/// in that time; a second one shows whether that shrinks.
pub const AUTO_ROUNDS_MIN: u32 = 2;

/// What the user wants of the switchover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvergenceConfig {
    /// The longest the guest may be stopped, as far as can be estimated.
    pub downtime_limit: Duration,
    /// The rate to assume for the switchover, in place of the measured one.
    pub switchover_bandwidth: Option<BytesPerSecond>,
    /// Go over to postcopy without being told to; `None` waits for the user's word. Means nothing where postcopy is not enabled.
    pub auto_postcopy: Option<AutoPostcopy>,
}

/// When to go over to postcopy: when another round would no longer shorten the rest, or at a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AutoPostcopy {
    /// After so many rounds.
    pub rounds_max: Option<u32>,
    /// After so long, also in the middle of a round.
    pub time_max: Option<Duration>,
}

/// What one finished round was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundSample {
    /// How the link did.
    pub link: BandwidthSample,
    /// From this round's sync to the next one's: the time in which the guest dirtied what is owed now.
    pub whole: Duration,
}

/// What would have to move while the guest is stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rest {
    /// Live state; another round can make it smaller.
    pub owed: ByteCount,
    /// Device state; it stays as it is.
    pub device: ByteCount,
    /// Bytes that wait in the link in front of it; waiting makes them fewer.
    pub queued: ByteCount,
}

/// What to do with a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it while the guest runs.
    Iterate,
    /// Nothing is owed, but the link's queue alone would take too long: let it drain.
    Wait,
    /// Stop the guest.
    Switchover,
    /// Go over to postcopy: the rest does not fit, and another round would not change that.
    Postcopy,
}

/// Decides after every sync. Pure arithmetic over what the source has measured.
#[derive(Clone, Debug)]
pub struct Convergence {
    config: ConvergenceConfig,
    began: Instant,
    bandwidth: BandwidthEstimate,
    round_trip: Option<Duration>,
    sync: Duration,
    last_round: Option<Duration>,
    last_downtime: Option<Duration>,
    last_owed: Option<ByteCount>,
    rounds: u32,
    polish_rounds: u32,
    polish_time: Duration,
}

impl Default for ConvergenceConfig {
    fn default() -> Self {
        Self { downtime_limit: DOWNTIME_LIMIT_DEFAULT, switchover_bandwidth: None, auto_postcopy: None }
    }
}

impl Convergence {
    /// Knows nothing yet. `now` is when RAM begins to move.
    pub fn new(config: ConvergenceConfig, now: Instant) -> Self {
        Self {
            config,
            began: now,
            bandwidth: BandwidthEstimate::new(),
            round_trip: None,
            sync: Duration::ZERO,
            last_round: None,
            last_downtime: None,
            last_owed: None,
            rounds: 0,
            polish_rounds: 0,
            polish_time: Duration::ZERO,
        }
    }

    /// Changes the limit from the next decision on.
    pub fn set_downtime_limit(&mut self, limit: Duration) {
        self.config.downtime_limit = limit;
    }

    /// Changes the assumed rate from the next decision on; `None` goes back to the measured one.
    pub fn set_switchover_bandwidth(&mut self, rate: Option<BytesPerSecond>) {
        self.config.switchover_bandwidth = rate;
    }

    /// Takes in how long a PING took to come back. The shortest counts: longer ones waited behind other bytes.
    pub fn note_round_trip(&mut self, took: Duration) {
        self.round_trip = Some(self.round_trip.map_or(took, |known| known.min(took)));
    }

    /// Takes in how long the last sync of the dirty log took; the switchover needs one too.
    pub fn note_sync(&mut self, took: Duration) {
        self.sync = took;
    }

    /// Takes in what the round that has just ended was like.
    pub fn round_finished(&mut self, round: RoundSample) {
        self.bandwidth.observe(round.link);
        self.last_round = Some(round.whole);
        self.rounds += 1;
    }

    /// The measured rate of the link.
    pub const fn bandwidth(&self) -> Option<BytesPerSecond> {
        self.bandwidth.rate()
    }

    /// The downtime that the last rest would have cost.
    pub const fn expected_downtime(&self) -> Option<Duration> {
        self.last_downtime
    }

    /// What a switchover costs whatever the rest is: the last sync, and two round trips (the proof that the devices
    /// are loaded, and the end that lets the guest run).
    pub fn fixed_cost(&self) -> Duration {
        self.sync + self.round_trip.unwrap_or_default() * 2
    }

    /// Decides about `rest`, once per sync.
    pub fn decide(&mut self, rest: Rest, now: Instant) -> Verdict {
        let downtime = self.downtime(rest);
        let before = std::mem::replace(&mut self.last_downtime, downtime);
        let fits = downtime.is_some_and(|downtime| downtime <= self.config.downtime_limit);
        let owed_before = self.last_owed.replace(rest.owed);
        if !fits && rest.owed.0 > 0 && self.postcopy_is_better(rest, owed_before, now) {
            return Verdict::Postcopy;
        }
        if rest.owed.0 == 0 {
            return if fits || rest.queued.0 == 0 { Verdict::Switchover } else { Verdict::Wait };
        }
        // The first round is what precopy is, whatever the limit would allow.
        let (Some(last_round), Some(downtime), true) = (self.last_round, downtime, fits) else {
            return Verdict::Iterate;
        };
        // A local minimum: the guest rewrites the same pages, and the last round won nothing worth having.
        if before.is_some_and(|before| before.saturating_sub(downtime) < noticeable(before)) {
            return Verdict::Switchover;
        }
        let Some(round) = self.worthwhile_round(rest, downtime, last_round, now) else {
            return Verdict::Switchover;
        };
        self.polish_rounds += 1;
        self.polish_time += round;
        Verdict::Iterate
    }

    /// Whether the time of precopy is up, by policy.
    pub fn postcopy_due(&self, now: Instant) -> bool {
        let time_max = self.config.auto_postcopy.and_then(|policy| policy.time_max);
        time_max.is_some_and(|limit| now.saturating_duration_since(self.began) >= limit)
    }

    /// Whether policy wants postcopy for a rest that does not fit.
    fn postcopy_is_better(&self, rest: Rest, owed_before: Option<ByteCount>, now: Instant) -> bool {
        let Some(policy) = self.config.auto_postcopy else { return false };
        if self.postcopy_due(now) || policy.rounds_max.is_some_and(|most| self.rounds >= most) {
            return true;
        }
        // What a round is owed before the first is all of RAM: only from the second on a comparison tells something.
        let stalled = |before: ByteCount| rest.owed.0 > before.0 - before.0 / u64::from(GAIN_PART);
        self.rounds >= AUTO_ROUNDS_MIN && owed_before.is_some_and(stalled)
    }

    /// How long another round would take, if it would shorten the downtime noticeably and cheaply.
    fn worthwhile_round(
        &self,
        rest: Rest,
        downtime: Duration,
        last_round: Duration,
        now: Instant,
    ) -> Option<Duration> {
        let rate = self.bandwidth.rate().or(self.config.switchover_bandwidth)?;
        let next_round = rate.time_for(rest.owed).saturating_add(self.fixed_cost());
        // The guest has dirtied this rest in the time of the last round; it will dirty in proportion in the next.
        let part = (next_round.as_secs_f64() / last_round.as_secs_f64()).min(1.0);
        let next_rest = Rest { owed: ByteCount((rest.owed.0 as f64 * part) as u64), ..rest };
        let gain = downtime.saturating_sub(self.downtime(next_rest)?);
        if gain < noticeable(downtime) || self.polish_rounds >= POLISH_ROUNDS_MAX {
            return None;
        }
        let allowed = (now.saturating_duration_since(self.began) / POLISH_PART).max(POLISH_TIME_MIN);
        (self.polish_time.saturating_add(next_round) <= allowed).then_some(next_round)
    }

    fn downtime(&self, rest: Rest) -> Option<Duration> {
        let rate = self.config.switchover_bandwidth.or(self.bandwidth.rate())?;
        let bytes = ByteCount(rest.owed.0.saturating_add(rest.device.0).saturating_add(rest.queued.0));
        Some(rate.time_for(bytes).saturating_add(self.fixed_cost()))
    }
}

/// The least gain on `downtime` that is worth a round.
fn noticeable(downtime: Duration) -> Duration {
    (downtime / GAIN_PART).max(GAIN_MIN)
}

#[cfg(test)]
mod tests;

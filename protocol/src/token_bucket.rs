//! The limit on what leaves while the guest runs.

use crate::units::BytesPerSecond;
use limosa_pages::{ByteCount, PAGE_BYTES};
use std::time::{Duration, Instant};

/// How much may leave at once after a pause. 40 ms of a second are 4 %, so no second carries more than
/// 4 % above the limit, and a slice that passes its allowance by a page stays inside 5 % from 410 KB/s upward.
pub const BURST: Duration = Duration::from_millis(40);

/// How much a slice should be allowed before it is worth its overhead: a hundred slices a second at most. A
/// shell that wakes up to 30 ms late (`BURST` less this) loses nothing of its rate.
pub const SLICE_WORTH_SENDING: Duration = Duration::from_millis(10);

/// The least that can leave: one page and its record header of 8 bytes, a name of at most 256 with its length,
/// rounded up. A limit below 25 times this per second bursts by one page.
const RECORD_BYTES: u64 = PAGE_BYTES as u64 + 512;

const NANOSECONDS_PER_SECOND: i128 = 1_000_000_000;

/// Tokens are bytes. They come at the rate and are kept up to [`BURST`]; what was sent too much is a debt.
///
/// A slice is paid for when it is allowed, not when it is sent: what comes in while it leaves is kept for the next.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: Option<BytesPerSecond>,
    /// Tokens, in bytes times 10^9, so that no refill is rounded.
    level: i128,
    /// What the slice under way was charged; `None` for one that was allowed without a limit.
    charged: Option<ByteCount>,
    refilled_at: Instant,
}

impl TokenBucket {
    /// A full bucket; without a rate there is no limit.
    pub fn new(rate: Option<BytesPerSecond>, now: Instant) -> Self {
        Self { rate, level: rate.map_or(0, capacity), charged: None, refilled_at: now }
    }

    /// The limit.
    pub const fn rate(&self) -> Option<BytesPerSecond> {
        self.rate
    }

    /// Changes the limit. What was earned at the old rate stays, as far as the new burst allows.
    pub fn set_rate(&mut self, rate: Option<BytesPerSecond>, now: Instant) {
        self.refill(now);
        // Out of no limit one begins with what a new bucket holds.
        let had_limit = self.rate.is_some();
        self.rate = rate;
        self.level = match rate {
            Some(rate) if had_limit => self.level.min(capacity(rate)),
            Some(rate) => capacity(rate),
            None => 0,
        };
    }

    /// Allows a slice of at most `most` and charges for it; `None` if what could leave now is not worth a slice.
    pub fn take(&mut self, most: ByteCount, now: Instant) -> Option<ByteCount> {
        self.refill(now);
        let Some(rate) = self.rate else {
            self.charged = None;
            return Some(most);
        };
        if self.level < worth_sending(rate).min(billionths(most)) {
            return None;
        }
        let tokens = u64::try_from(self.level / NANOSECONDS_PER_SECOND).unwrap_or(u64::MAX);
        let allowed = most.min(ByteCount(tokens));
        self.level -= billionths(allowed);
        self.charged = Some(allowed);
        Some(allowed)
    }

    /// Corrects the charge for the last slice by what has left in truth.
    pub fn settle(&mut self, sent: ByteCount, now: Instant) {
        self.refill(now);
        if let (Some(rate), Some(charged)) = (self.rate, self.charged.take()) {
            self.level = (self.level + billionths(charged) - billionths(sent)).min(capacity(rate));
        }
    }

    /// When a slice is worth sending again; `None` if it is now, or never will be because the rate is zero.
    pub fn ready_at(&self) -> Option<Instant> {
        let rate = self.rate?;
        let missing = worth_sending(rate) - self.level;
        if missing <= 0 || rate.0 == 0 {
            return None;
        }
        let bytes = u64::try_from((missing - 1) / NANOSECONDS_PER_SECOND + 1).unwrap_or(u64::MAX);
        self.refilled_at.checked_add(rate.time_for(ByteCount(bytes)))
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.refilled_at);
        self.refilled_at = self.refilled_at.max(now);
        let Some(rate) = self.rate else { return };
        // 2^64 B/s for 10^9 s is below 2^94 billionths: no overflow.
        let earned = i128::from(rate.0) * passed.as_nanos().min(1 << 60) as i128;
        self.level = (self.level + earned).min(capacity(rate));
    }
}

fn capacity(rate: BytesPerSecond) -> i128 {
    billionths(rate.bytes_in(BURST).max(ByteCount(RECORD_BYTES)))
}

fn billionths(bytes: ByteCount) -> i128 {
    i128::from(bytes.0) * NANOSECONDS_PER_SECOND
}

fn worth_sending(rate: BytesPerSecond) -> i128 {
    billionths(rate.bytes_in(SLICE_WORTH_SENDING).max(ByteCount(RECORD_BYTES)))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What left, and when its slice was allowed.
    type Slices = Vec<(Duration, u64)>;

    /// Sends for `seconds` as an eager sender would whose slices take `busy` of the time that the limit gives them, and
    /// who wakes up `late`.
    fn send(rate: u64, seconds: u64, busy: f64, late: Duration, excess: u64) -> Slices {
        let start = Instant::now();
        let (mut now, mut slices) = (start, Vec::new());
        let mut bucket = TokenBucket::new(Some(BytesPerSecond(rate)), now);
        while now - start < Duration::from_secs(seconds) {
            if let Some(allowed) = bucket.take(ByteCount(u64::MAX), now) {
                let sent = allowed.0 + excess;
                slices.push((now - start, sent));
                now += Duration::from_secs_f64(sent as f64 / rate as f64 * busy);
                bucket.settle(ByteCount(sent), now);
            } else {
                now = bucket.ready_at().expect("a limit above zero") + late;
            }
        }
        slices
    }

    /// The most that left in any second that begins with a slice.
    fn busiest_second(slices: &Slices) -> u64 {
        let second = |from: Duration| from..from + Duration::from_secs(1);
        let sums = slices.iter().map(|(from, _)| {
            slices.iter().filter(|(at, _)| second(*from).contains(at)).map(|(_, sent)| sent).sum()
        });
        sums.max().unwrap_or(0)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_second_carries_five_percent_more_than_the_limit_and_the_mean_no_less(
            rate in 500_000_u64..20_000_000_000,
            busy in 0.0_f64..0.9,
            late_microseconds in 0_u64..25_000,
            excess in 0_u64..4_096,
        ) {
            let late = Duration::from_micros(late_microseconds);
            let slices = send(rate, 3, busy, late, excess);
            prop_assert!(busiest_second(&slices) as f64 <= rate as f64 * 1.05);
            let total: u64 = slices.iter().map(|(_, sent)| sent).sum();
            prop_assert!(total as f64 >= rate as f64 * 3.0 * 0.95, "{total} of {}", rate * 3);
        }
    }

    #[test]
    fn without_a_limit_everything_may_leave() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(None, now);
        assert_eq!(bucket.take(ByteCount(u64::MAX), now), Some(ByteCount(u64::MAX)));
        bucket.settle(ByteCount(u64::MAX), now);
        assert_eq!(bucket.take(ByteCount(1), now), Some(ByteCount(1)));
    }

    #[test]
    fn a_limit_that_comes_during_a_slice_does_not_charge_for_it() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(None, now);
        bucket.take(ByteCount(500_000_000), now);
        bucket.set_rate(Some(BytesPerSecond(1_000_000)), now);
        bucket.settle(ByteCount(500_000_000), now);
        assert_eq!(bucket.take(ByteCount(u64::MAX), now), Some(ByteCount(40_000)));
    }

    #[test]
    fn a_lower_limit_keeps_no_more_than_its_own_burst() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(Some(BytesPerSecond(100_000_000)), now);
        bucket.set_rate(Some(BytesPerSecond(1_000_000)), now);
        assert_eq!(bucket.take(ByteCount(u64::MAX), now), Some(ByteCount(40_000)));
        assert_eq!(bucket.take(ByteCount(u64::MAX), now), None);
        assert_eq!(bucket.ready_at(), Some(now + SLICE_WORTH_SENDING));
    }

    #[test]
    fn what_a_slice_leaves_over_is_given_back() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(Some(BytesPerSecond(1_000_000)), now);
        bucket.take(ByteCount(u64::MAX), now);
        bucket.settle(ByteCount(10_000), now);
        assert_eq!(bucket.take(ByteCount(u64::MAX), now), Some(ByteCount(30_000)));
    }

    #[test]
    fn the_slowest_limit_still_lets_a_page_go_at_a_time() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(Some(BytesPerSecond(1)), now);
        assert_eq!(bucket.take(ByteCount(u64::MAX), now), Some(ByteCount(RECORD_BYTES)));
    }

    #[test]
    fn at_rate_zero_nothing_is_ever_ready() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(Some(BytesPerSecond(0)), now);
        bucket.take(ByteCount(u64::MAX), now);
        assert_eq!(bucket.take(ByteCount(u64::MAX), now), None);
        assert_eq!(bucket.ready_at(), None);
    }
}

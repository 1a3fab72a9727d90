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
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: Option<BytesPerSecond>,
    /// Tokens, in bytes times 10^9, so that no refill is rounded.
    level: i128,
    refilled_at: Instant,
}

impl TokenBucket {
    /// A full bucket; without a rate there is no limit.
    pub fn new(rate: Option<BytesPerSecond>, now: Instant) -> Self {
        Self { rate, level: rate.map_or(0, capacity), refilled_at: now }
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

    /// What may leave now, at most `most`; nothing if it would be too little to be worth a slice, unless `most` is
    /// less than that.
    pub fn allowance(&mut self, most: ByteCount, now: Instant) -> Option<ByteCount> {
        self.refill(now);
        let Some(rate) = self.rate else { return Some(most) };
        let worth = worth_sending(rate).min(i128::from(most.0) * NANOSECONDS_PER_SECOND);
        if self.level < worth {
            return None;
        }
        let tokens = u64::try_from(self.level / NANOSECONDS_PER_SECOND).unwrap_or(u64::MAX);
        Some(most.min(ByteCount(tokens)))
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

    /// Takes what has left.
    pub fn spend(&mut self, sent: ByteCount, now: Instant) {
        self.refill(now);
        if self.rate.is_some() {
            self.level -= i128::from(sent.0) * NANOSECONDS_PER_SECOND;
        }
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
    i128::from(rate.bytes_in(BURST).0.max(RECORD_BYTES)) * NANOSECONDS_PER_SECOND
}

fn worth_sending(rate: BytesPerSecond) -> i128 {
    i128::from(rate.bytes_in(SLICE_WORTH_SENDING).0.max(RECORD_BYTES)) * NANOSECONDS_PER_SECOND
}

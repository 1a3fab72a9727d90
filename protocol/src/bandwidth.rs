//! How fast the link is, as far as what was sent tells.

use crate::units::BytesPerSecond;
use limosa_pages::ByteCount;
use std::time::Duration;

/// A sample of fewer bytes says more about latency than about bandwidth: 1 MiB takes 0.8 ms at 10 Gb/s, several
/// times the round trip of the barrier that ends it.
pub const SAMPLE_BYTES_MIN: ByteCount = ByteCount(1 << 20);

/// What a stretch of sending tells about the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BandwidthSample {
    /// Bytes that have arrived (or at least left the socket's queue).
    pub bytes: ByteCount,
    /// From the first byte's start to the last one's arrival.
    pub time: Duration,
    /// Sending paused for the bandwidth limit, so the link can do at least this.
    pub throttled: bool,
}

/// An exponentially weighted mean of samples; every new one counts half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BandwidthEstimate {
    rate: Option<BytesPerSecond>,
    /// The rate comes from samples too small to mean much, and gives way to the first that is not.
    provisional: bool,
}

impl BandwidthEstimate {
    /// Nothing known.
    pub fn new() -> Self {
        Self::default()
    }

    /// The estimate; `None` before the first sample.
    pub const fn rate(&self) -> Option<BytesPerSecond> {
        self.rate
    }

    /// Takes a sample in. A small one only counts while nothing better is known, and a throttled one only where it
    /// proves more than was thought.
    pub fn observe(&mut self, sample: BandwidthSample) {
        let Some(seen) = BytesPerSecond::of(sample.bytes, sample.time) else { return };
        if sample.bytes.0 == 0 {
            return;
        }
        let small = sample.bytes < SAMPLE_BYTES_MIN;
        (self.rate, self.provisional) = match self.rate {
            None => (Some(seen), small),
            Some(_) if self.provisional => (Some(seen), small),
            Some(known) if small => (Some(known), false),
            Some(known) if sample.throttled => (Some(known.max(seen)), false),
            Some(known) => (Some(BytesPerSecond(known.0 / 2 + seen.0 / 2)), false),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(bytes: u64, milliseconds: u64) -> BandwidthSample {
        BandwidthSample {
            bytes: ByteCount(bytes),
            time: Duration::from_millis(milliseconds),
            throttled: false,
        }
    }

    #[test]
    fn a_new_sample_counts_half() {
        let mut estimate = BandwidthEstimate::new();
        estimate.observe(sample(100_000_000, 1000));
        estimate.observe(sample(200_000_000, 1000));
        assert_eq!(estimate.rate(), Some(BytesPerSecond(150_000_000)));
    }

    #[test]
    fn a_small_sample_is_better_than_none_and_worse_than_any_other() {
        let mut estimate = BandwidthEstimate::new();
        estimate.observe(sample(4096, 1));
        assert_eq!(estimate.rate(), Some(BytesPerSecond(4_096_000)));
        estimate.observe(sample(1_000_000_000, 1000));
        estimate.observe(sample(4096, 1));
        assert_eq!(estimate.rate(), Some(BytesPerSecond(1_000_000_000)));
    }

    #[test]
    fn a_throttled_sample_raises_the_estimate_and_never_lowers_it() {
        let mut estimate = BandwidthEstimate::new();
        estimate.observe(sample(100_000_000, 1000));
        estimate.observe(BandwidthSample { throttled: true, ..sample(10_000_000, 1000) });
        assert_eq!(estimate.rate(), Some(BytesPerSecond(100_000_000)));
        estimate.observe(BandwidthSample { throttled: true, ..sample(300_000_000, 1000) });
        assert_eq!(estimate.rate(), Some(BytesPerSecond(300_000_000)));
    }

    #[test]
    fn a_sample_without_bytes_or_time_says_nothing() {
        let mut estimate = BandwidthEstimate::new();
        estimate.observe(sample(0, 10));
        estimate.observe(sample(10, 0));
        assert_eq!(estimate.rate(), None);
    }
}

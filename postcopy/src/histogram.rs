//! Latencies, counted in buckets.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets of each power of two: a bucket is at most 1/32 of its values wide, 3.2 %.
const PARTS: u64 = 32;
/// Bits of a value that choose the part.
const PART_BITS: u32 = PARTS.trailing_zeros();
/// Longest latency told apart, in powers of two of a nanosecond: 2^42 ns are 73 minutes. What is longer counts as that long.
const POWERS: u32 = 42;
/// 32 values below 32 ns, and 32 for each power of two from there: 1216 buckets of 8 bytes, 9.5 KiB.
const BUCKETS: usize = ((POWERS - PART_BITS + 1) as u64 * PARTS) as usize;

/// A histogram of latencies. Threads record without a lock; memory is fixed.
///
/// A quantile is the upper bound of the bucket that holds it: never below the true value, and at most 3.2 % above (exact
/// below 32 ns). Count and maximum are exact.
pub struct LatencyHistogram {
    buckets: Box<[AtomicU64]>,
    max: AtomicU64,
}

/// The usual figures of a histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencySummary {
    /// Latencies recorded.
    pub count: u64,
    /// Half of them were at most this long.
    pub p50: Duration,
    /// 99 of 100 were at most this long.
    pub p99: Duration,
    /// 999 of 1000 were at most this long.
    pub p999: Duration,
    /// The longest.
    pub max: Duration,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self::new()
    }
}

impl LatencyHistogram {
    /// Nothing recorded.
    pub fn new() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), max: AtomicU64::new(0) }
    }

    /// Counts one latency. Cost: two atomic operations.
    pub fn record(&self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanoseconds)].fetch_add(1, Ordering::Relaxed);
        self.max.fetch_max(nanoseconds, Ordering::Relaxed);
    }

    /// The figures so far. Latencies that are recorded meanwhile may be in or not.
    pub fn summary(&self) -> LatencySummary {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let max = self.max.load(Ordering::Relaxed);
        let quantile = |part: u64, of: u64| Duration::from_nanos(quantile(&counts, part, of).min(max));
        LatencySummary {
            count: counts.iter().sum(),
            p50: quantile(1, 2),
            p99: quantile(99, 100),
            p999: quantile(999, 1000),
            max: Duration::from_nanos(max),
        }
    }
}

impl fmt::Debug for LatencyHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.summary().fmt(f)
    }
}

/// Upper bound of the bucket in which the value is that `part` of `of` values do not exceed.
fn quantile(counts: &[u64], part: u64, of: u64) -> u64 {
    let total: u64 = counts.iter().sum();
    let rank = (u128::from(total) * u128::from(part)).div_ceil(u128::from(of)) as u64;
    let mut seen = 0;
    for (bucket, count) in counts.iter().enumerate() {
        seen += count;
        if *count > 0 && seen >= rank {
            return upper_bound(bucket);
        }
    }
    0
}

/// The bucket of a value.
fn bucket(nanoseconds: u64) -> usize {
    let value = nanoseconds.min((1 << POWERS) - 1);
    if value < PARTS {
        return value as usize;
    }
    let power = value.ilog2();
    let part = (value >> (power - PART_BITS)) - PARTS;
    (u64::from(power - PART_BITS + 1) * PARTS + part) as usize
}

/// The largest value of a bucket.
fn upper_bound(bucket: usize) -> u64 {
    let (row, part) = (bucket as u64 / PARTS, bucket as u64 % PARTS);
    if row == 0 {
        return part;
    }
    ((PARTS + part + 1) << (row - 1)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_are_in_order_without_a_gap() {
        for bucket_index in 0..BUCKETS - 1 {
            assert_eq!(bucket(upper_bound(bucket_index)), bucket_index);
            assert_eq!(bucket(upper_bound(bucket_index) + 1), bucket_index + 1);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn an_empty_histogram_says_zero() {
        assert_eq!(LatencyHistogram::new().summary(), LatencySummary::default());
    }

    proptest! {
        #[test]
        fn quantiles_are_never_too_small_and_at_most_a_bucket_too_large(
            mut values in prop::collection::vec(0..10_000_000_000_u64, 1..400)
        ) {
            let histogram = LatencyHistogram::new();
            values.iter().for_each(|value| histogram.record(Duration::from_nanos(*value)));
            values.sort_unstable();
            let summary = histogram.summary();
            prop_assert_eq!(summary.count, values.len() as u64);
            prop_assert_eq!(summary.max.as_nanos() as u64, *values.last().unwrap());
            for (got, part, of) in [(summary.p50, 1, 2), (summary.p99, 99, 100), (summary.p999, 999, 1000)] {
                let exact = values[(values.len() * part).div_ceil(of) - 1];
                let got = got.as_nanos() as u64;
                prop_assert!(got >= exact && got <= exact + exact / PARTS, "{} for {}", got, exact);
            }
        }
    }
}

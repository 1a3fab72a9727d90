//! Rates as a type.

use limosa_pages::ByteCount;
use std::fmt;
use std::time::Duration;

const NANOSECONDS_PER_SECOND: u128 = 1_000_000_000;

/// A rate in bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BytesPerSecond(pub u64);

impl BytesPerSecond {
    /// The mean rate of `bytes` moved in `time`; `None` when no time has passed.
    pub fn of(bytes: ByteCount, time: Duration) -> Option<Self> {
        let rate = (u128::from(bytes.0) * NANOSECONDS_PER_SECOND).checked_div(time.as_nanos())?;
        Some(Self(u64::try_from(rate).unwrap_or(u64::MAX)))
    }

    /// The bytes that flow in `time`, rounded down.
    pub fn bytes_in(self, time: Duration) -> ByteCount {
        let bytes = u128::from(self.0).saturating_mul(time.as_nanos()) / NANOSECONDS_PER_SECOND;
        ByteCount(u64::try_from(bytes).unwrap_or(u64::MAX))
    }

    /// The time that `bytes` take, rounded up; [`Duration::MAX`] for something at rate zero.
    pub fn time_for(self, bytes: ByteCount) -> Duration {
        if bytes.0 == 0 {
            return Duration::ZERO;
        }
        if self.0 == 0 {
            return Duration::MAX;
        }
        let nanoseconds = (u128::from(bytes.0) * NANOSECONDS_PER_SECOND).div_ceil(u128::from(self.0));
        let seconds = u64::try_from(nanoseconds / NANOSECONDS_PER_SECOND).unwrap_or(u64::MAX);
        Duration::new(seconds, (nanoseconds % NANOSECONDS_PER_SECOND) as u32)
    }
}

impl fmt::Display for BytesPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B/s", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_of_zero_never_finishes_but_nothing_takes_no_time() {
        assert_eq!(BytesPerSecond(0).time_for(ByteCount(1)), Duration::MAX);
        assert_eq!(BytesPerSecond(0).time_for(ByteCount(0)), Duration::ZERO);
        assert_eq!(BytesPerSecond::of(ByteCount(1), Duration::ZERO), None);
    }

    #[test]
    fn time_and_bytes_are_inverse_to_one_another() {
        let rate = BytesPerSecond(1_000_000_000);
        assert_eq!(rate.time_for(ByteCount(250_000_000)), Duration::from_millis(250));
        assert_eq!(rate.bytes_in(Duration::from_millis(250)), ByteCount(250_000_000));
        assert_eq!(BytesPerSecond::of(ByteCount(250_000_000), Duration::from_millis(250)), Some(rate));
    }
}

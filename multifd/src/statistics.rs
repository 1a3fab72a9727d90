//! What each channel has done, readable by any thread at any time.

use crossbeam_utils::CachePadded;
use limosa_pages::{ByteCount, PageCount};
use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What one channel has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelStatistics {
    /// Bytes on its link, headers included.
    pub bytes: ByteCount,
    /// Packets, SYNC packets included; the init packet is none.
    pub packets: u64,
    /// Pages with their bytes.
    pub normal: PageCount,
    /// Pages that are only named as zero.
    pub zero: PageCount,
    /// Time inside sends or receives; a receiver spends it also waiting for its peer.
    pub transferring: Duration,
    /// Time without work: a sender's for a batch, a receiver's at synchronisation points.
    pub waiting: Duration,
    /// Time that it waited for the codec pool: more workers, or a cheaper codec, would help.
    pub waiting_for_codec: Duration,
    /// Synchronisation points before which the kernel copied every page that was to leave without a copy.
    pub missed_zero_copy: u64,
}

impl AddAssign for ChannelStatistics {
    fn add_assign(&mut self, more: Self) {
        self.bytes += more.bytes;
        self.packets += more.packets;
        self.normal += more.normal;
        self.zero += more.zero;
        self.transferring += more.transferring;
        self.waiting += more.waiting;
        self.waiting_for_codec += more.waiting_for_codec;
        self.missed_zero_copy += more.missed_zero_copy;
    }
}

/// The batches between the coordinator and the sending channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStatistics {
    /// Batches that wait for a channel now.
    pub depth: usize,
    /// Most that ever waited. A queue that is never full has channels that wait for the coordinator.
    pub depth_max: usize,
    /// Where the coordinator has to wait.
    pub capacity: usize,
}

/// The live form of all channels. Each has cache lines of its own: it is written for every packet.
pub(crate) type AllCounters = Arc<[CachePadded<ChannelCounters>]>;

/// The live form.
#[derive(Debug, Default)]
pub(crate) struct ChannelCounters {
    bytes: AtomicU64,
    packets: AtomicU64,
    normal: AtomicU64,
    zero: AtomicU64,
    transferring_nanoseconds: AtomicU64,
    waiting_nanoseconds: AtomicU64,
    waiting_for_codec_nanoseconds: AtomicU64,
    missed_zero_copy: AtomicU64,
}

impl ChannelCounters {
    /// The values now. They are read one after the other: sums may be off by what happens meanwhile.
    pub(crate) fn snapshot(&self) -> ChannelStatistics {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ChannelStatistics {
            bytes: ByteCount(value(&self.bytes)),
            packets: value(&self.packets),
            normal: PageCount(value(&self.normal)),
            zero: PageCount(value(&self.zero)),
            transferring: Duration::from_nanos(value(&self.transferring_nanoseconds)),
            waiting: Duration::from_nanos(value(&self.waiting_nanoseconds)),
            waiting_for_codec: Duration::from_nanos(value(&self.waiting_for_codec_nanoseconds)),
            missed_zero_copy: value(&self.missed_zero_copy),
        }
    }

    /// Packets so far.
    pub(crate) fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn count_bytes(&self, bytes: usize) {
        add(&self.bytes, bytes as u64);
    }

    pub(crate) fn count_packet(&self, normal: usize, zero: usize) {
        add(&self.normal, normal as u64);
        add(&self.zero, zero as u64);
        add(&self.packets, 1);
    }

    pub(crate) fn count_missed_zero_copy(&self) {
        add(&self.missed_zero_copy, 1);
    }

    /// Makes `call` and counts its time as transferring.
    pub(crate) fn transferring<T>(&self, call: impl FnOnce() -> T) -> T {
        self.transferring_for(call).0
    }

    /// As [`Self::transferring`]; also returns the time.
    pub(crate) fn transferring_for<T>(&self, call: impl FnOnce() -> T) -> (T, Duration) {
        timed(&self.transferring_nanoseconds, call)
    }

    /// Makes `call` and counts its time as waiting.
    pub(crate) fn waiting<T>(&self, call: impl FnOnce() -> T) -> T {
        self.waiting_for(call).0
    }

    /// As [`Self::waiting`]; also returns the time.
    pub(crate) fn waiting_for<T>(&self, call: impl FnOnce() -> T) -> (T, Duration) {
        timed(&self.waiting_nanoseconds, call)
    }

    /// Makes `call` and counts its time as waiting for the codec pool.
    pub(crate) fn waiting_for_codec<T>(&self, call: impl FnOnce() -> T) -> T {
        timed(&self.waiting_for_codec_nanoseconds, call).0
    }
}

fn timed<T>(counter: &AtomicU64, call: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = call();
    let time = start.elapsed();
    // 2^64 nanoseconds are 584 years.
    add(counter, time.as_nanos() as u64);
    (result, time)
}

/// Adds without ordering: counters are read for display and estimates only.
fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

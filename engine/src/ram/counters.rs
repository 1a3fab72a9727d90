//! What the RAM handler has done, readable by any thread at any time.

use limosa_pages::{ByteCount, PageCount};
use std::sync::atomic::{AtomicU64, Ordering};

/// Live counters of one RAM handler; zeroed when a migration begins.
#[derive(Debug, Default)]
pub struct RamCounters {
    pub(super) normal: AtomicU64,
    pub(super) zero: AtomicU64,
    pub(super) untouched: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) owed: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) dirtied: AtomicU64,
    pub(super) xbzrle_pages: AtomicU64,
    pub(super) xbzrle_bytes: AtomicU64,
    pub(super) xbzrle_same: AtomicU64,
    pub(super) xbzrle_miss: AtomicU64,
    pub(super) xbzrle_overflow: AtomicU64,
}

/// A copy of [`RamCounters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RamStatistics {
    /// Pages sent or received with their bytes.
    pub normal: PageCount,
    /// Pages sent or received as zero.
    pub zero: PageCount,
    /// Of `zero`: pages that the guest never touched, told by the backing without a look at them.
    pub untouched: PageCount,
    /// Bytes of all RAM records, headers included.
    pub bytes: ByteCount,
    /// Pages still owed to the destination.
    pub owed: PageCount,
    /// Times the dirty log was read.
    pub syncs: u64,
    /// Pages found dirty by the latest of them.
    pub dirtied: PageCount,
    /// Pages sent as deltas.
    pub xbzrle_pages: PageCount,
    /// Bytes of those deltas.
    pub xbzrle_bytes: ByteCount,
    /// Pages that had not changed at all: nothing was sent.
    pub xbzrle_same: PageCount,
    /// Pages without a previous version in the cache.
    pub xbzrle_miss: PageCount,
    /// Pages that changed too much for a delta.
    pub xbzrle_overflow: PageCount,
}

impl RamCounters {
    /// The values now. They are read one after the other: sums may be off by what happens meanwhile.
    pub fn snapshot(&self) -> RamStatistics {
        let pages = |counter: &AtomicU64| PageCount(counter.load(Ordering::Relaxed));
        let bytes = |counter: &AtomicU64| ByteCount(counter.load(Ordering::Relaxed));
        RamStatistics {
            normal: pages(&self.normal),
            zero: pages(&self.zero),
            untouched: pages(&self.untouched),
            bytes: bytes(&self.bytes),
            owed: pages(&self.owed),
            syncs: self.syncs.load(Ordering::Relaxed),
            dirtied: pages(&self.dirtied),
            xbzrle_pages: pages(&self.xbzrle_pages),
            xbzrle_bytes: bytes(&self.xbzrle_bytes),
            xbzrle_same: pages(&self.xbzrle_same),
            xbzrle_miss: pages(&self.xbzrle_miss),
            xbzrle_overflow: pages(&self.xbzrle_overflow),
        }
    }

    pub(super) fn reset(&self) {
        let Self {
            normal,
            zero,
            untouched,
            bytes,
            owed,
            syncs,
            dirtied,
            xbzrle_pages,
            xbzrle_bytes,
            xbzrle_same,
            xbzrle_miss,
            xbzrle_overflow,
        } = self;
        for counter in [
            normal,
            zero,
            untouched,
            bytes,
            owed,
            syncs,
            dirtied,
            xbzrle_pages,
            xbzrle_bytes,
            xbzrle_same,
            xbzrle_miss,
            xbzrle_overflow,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

/// Adds without ordering: counters are read for display and estimates only.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

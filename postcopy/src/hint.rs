//! Where the guest faulted last: the push begins there.

use limosa_pages::{BlockId, PageIndex};
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages of a block that a hint can name: 2^40 are 4 PiB.
const PAGE_BITS: u32 = 40;
/// No page: a block of that number does not exist, because the wire has at most 4096.
const NONE: u64 = u64::MAX;

/// The last page that somebody asked for, told from the thread that hears requests to the one that pushes.
#[derive(Debug)]
pub struct FaultHint {
    last: AtomicU64,
}

impl Default for FaultHint {
    fn default() -> Self {
        Self { last: AtomicU64::new(NONE) }
    }
}

impl FaultHint {
    /// Nobody has asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Somebody asked for `page`.
    pub fn publish(&self, block: BlockId, page: PageIndex) {
        self.last.store(u64::from(block.0) << PAGE_BITS | page.0, Ordering::Relaxed);
    }

    /// The last page that was asked for since the last call.
    pub fn take(&self) -> Option<(BlockId, PageIndex)> {
        // Looking first keeps the cache line shared while nobody asks.
        if self.last.load(Ordering::Relaxed) == NONE {
            return None;
        }
        match self.last.swap(NONE, Ordering::Relaxed) {
            NONE => None,
            last => Some((BlockId((last >> PAGE_BITS) as u32), PageIndex(last & ((1 << PAGE_BITS) - 1)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_request_is_told_once() {
        let hint = FaultHint::new();
        assert_eq!(hint.take(), None);
        hint.publish(BlockId(0), PageIndex(0));
        hint.publish(BlockId(4095), PageIndex((1 << PAGE_BITS) - 1));
        assert_eq!(hint.take(), Some((BlockId(4095), PageIndex((1 << PAGE_BITS) - 1))));
        assert_eq!(hint.take(), None);
    }
}

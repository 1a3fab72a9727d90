//! The versions of pages that the other side has, for all workers at once.

use crossbeam_utils::CachePadded;
use limosa_compress::PageVersions;
use limosa_compress::versions::PageKey;
use limosa_pages::ByteCount;
use limosa_wire::multifd::PACKET_PAGES;
use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, Ordering};

/// Most shards: workers meet at a lock with one in 64 of their packets.
const SHARDS_MAX: u64 = 64;

/// Least bytes of a shard.
const SHARD_BYTES_MIN: u64 = 1 << 20;

/// The delta cache of one migration, in shards with a lock each. Neighbouring pages, as a packet has them, are
/// in one shard, so that a lock is taken for each stretch of them, not for each page.
#[derive(Debug)]
pub(super) struct SharedVersions {
    shards: Box<[CachePadded<Mutex<PageVersions>>]>,
    /// A version may have been kept: until then nothing need be forgotten.
    used: AtomicBool,
}

/// A way along the pages of a packet, with the lock of one shard at a time.
pub(super) struct Walk<'a> {
    versions: &'a SharedVersions,
    shard: Option<(usize, MutexGuard<'a, PageVersions>)>,
}

impl SharedVersions {
    /// A cache of at most `budget` bytes.
    pub(super) fn new(budget: ByteCount) -> Self {
        let count = (budget.0 / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX);
        let shard = || CachePadded::new(Mutex::new(PageVersions::new(ByteCount(budget.0 / count))));
        Self { shards: (0..count).map(|_| shard()).collect(), used: AtomicBool::new(false) }
    }

    /// For pages of which versions are looked up and kept.
    pub(super) fn walk(&self) -> Walk<'_> {
        // Relaxed: what one packet keeps, another one meets behind a synchronisation point at the earliest.
        self.used.store(true, Ordering::Relaxed);
        Walk { versions: self, shard: None }
    }

    /// Forgets the versions of `pages`, which are sent so that no copy is left here.
    pub(super) fn forget(&self, pages: impl Iterator<Item = PageKey>) {
        if self.used.load(Ordering::Relaxed) {
            let mut walk = self.walk();
            pages.for_each(|page| walk.to(page).forget(page));
        }
    }
}

impl Walk<'_> {
    /// The cache that `page` belongs to.
    pub(super) fn to(&mut self, page: PageKey) -> &mut PageVersions {
        let chunk = page.page.0 / PACKET_PAGES as u64 + u64::from(page.block.0);
        let index = (chunk % self.versions.shards.len() as u64) as usize;
        if self.shard.as_ref().is_none_or(|(held, _)| *held != index) {
            // One lock at a time: two walks could wait for each other.
            self.shard = None;
            self.shard = Some((index, self.versions.shards[index].lock()));
        }
        let (_, versions) = self.shard.as_mut().expect("locked above");
        versions
    }
}

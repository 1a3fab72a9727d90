//! Copies of pages as the destination holds them, to encode deltas against (wire 3.4).

use limosa_pages::{BlockId, ByteCount, PAGE_BYTES, PageIndex};

/// A direct-mapped cache: page `n` of a block has one place, and the latest page wins it.
///
/// Hot pages of one working set are neighbours and do not collide; a cache smaller than the working set would
/// not help with any policy. No allocation after the start but for the pages themselves.
pub(super) struct XbzrleCache {
    slots: Vec<Slot>,
}

struct Slot {
    key: Option<(BlockId, PageIndex)>,
    page: Option<Box<[u8; PAGE_BYTES]>>,
}

impl XbzrleCache {
    /// A cache of at most `size` bytes of page copies.
    pub(super) fn new(size: ByteCount) -> Self {
        let slots = (size.0 / PAGE_BYTES as u64).max(1);
        Self { slots: (0..slots).map(|_| Slot { key: None, page: None }).collect() }
    }

    /// The page's copy, or `None` if it is not cached.
    pub(super) fn get(&mut self, block: BlockId, page: PageIndex) -> Option<&mut [u8; PAGE_BYTES]> {
        let slot = self.slot(block, page);
        if slot.key == Some((block, page)) { slot.page.as_deref_mut() } else { None }
    }

    /// Remembers `bytes` as what the destination holds of the page.
    pub(super) fn insert(&mut self, block: BlockId, page: PageIndex, bytes: &[u8; PAGE_BYTES]) {
        let slot = self.slot(block, page);
        slot.key = Some((block, page));
        match &mut slot.page {
            Some(copy) => copy.copy_from_slice(bytes),
            None => slot.page = Some(Box::new(*bytes)),
        }
    }

    fn slot(&mut self, block: BlockId, page: PageIndex) -> &mut Slot {
        // Blocks start at different places, so that the first pages of two blocks do not collide.
        let spread = page.0.wrapping_add(u64::from(block.0).wrapping_mul(0x9e37_79b9));
        let index = spread % self.slots.len() as u64;
        &mut self.slots[index as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_found_until_another_takes_its_place() {
        let mut cache = XbzrleCache::new(ByteCount(2 * PAGE_BYTES as u64));
        cache.insert(BlockId(0), PageIndex(0), &[1; PAGE_BYTES]);
        cache.insert(BlockId(0), PageIndex(1), &[2; PAGE_BYTES]);
        assert_eq!(cache.get(BlockId(0), PageIndex(0)), Some(&mut [1; PAGE_BYTES]));
        cache.insert(BlockId(0), PageIndex(2), &[3; PAGE_BYTES]);
        assert_eq!(cache.get(BlockId(0), PageIndex(0)), None);
        assert_eq!(cache.get(BlockId(0), PageIndex(1)), Some(&mut [2; PAGE_BYTES]));
        assert_eq!(cache.get(BlockId(0), PageIndex(2)), Some(&mut [3; PAGE_BYTES]));
    }
}

//! Memory for a destination in large pieces, just ahead of the pages that need it.

use limosa_pages::{BlockId, PageCount, PageIndex, PageRun};
use limosa_ram::GuestRam;

/// Pages that get their memory at once: 2 MiB, a huge page of x86.
const REGION: PageCount = PageCount(512);

/// Pages of content that a region must have seen before it gets memory as a whole. A source with one page in
/// each region must not make the destination 512 times as large: 512 / 16 = 32 is the worst that can happen, and
/// 16 of 512 pages, 3 %, pay for it with a page fault of their own.
const CONTENT_MIN: u16 = 16;

/// What a region says when it has memory, or is not ours to give any.
const SETTLED: u16 = u16::MAX;

/// Gives regions of untouched memory huge pages when content begins to arrive in them.
///
/// A page that the kernel has to allocate one by one, at the first byte received into it, costs two to three
/// microseconds: more than receiving it. In a huge page it costs a quarter of a microsecond.
#[derive(Debug)]
pub(super) struct Preallocation {
    /// For each block, pages of content seen by each region.
    regions: Vec<Box<[u16]>>,
}

impl Preallocation {
    /// For memory as it is now. Regions that have any memory are left alone.
    pub(super) fn of(ram: &GuestRam) -> Self {
        let regions = ram
            .iter()
            .map(|(_, block)| {
                let mut regions = vec![0; block.pages().0.div_ceil(REGION.0) as usize].into_boxed_slice();
                for run in block.populated().runs() {
                    let last = (run.end().0 - 1) / REGION.0;
                    regions[(run.start.0 / REGION.0) as usize..=last as usize].fill(SETTLED);
                }
                regions
            })
            .collect();
        Self { regions }
    }

    /// Tells that content is about to be written into `page`.
    #[inline]
    pub(super) fn before_content(&mut self, ram: &GuestRam, block: BlockId, page: PageIndex) {
        let region = page.0 / REGION.0;
        let seen = &mut self.regions[block.0 as usize][region as usize];
        if *seen == SETTLED {
            return;
        }
        *seen += 1;
        if *seen == CONTENT_MIN {
            *seen = SETTLED;
            let block = ram.block(block);
            let start = PageIndex(region * REGION.0);
            let count = PageCount(REGION.0.min(block.pages().0 - start.0));
            // Only a help: without it each page gets its memory when its content is written, or fails there.
            let _ = block.preallocate(PageRun::new(start, count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use limosa_pages::{BlockName, ByteCount};
    use limosa_ram::RamBlock;

    const BLOCK: BlockId = BlockId(0);

    /// Two regions and a half.
    fn ram() -> GuestRam {
        let name = BlockName::new("ram").unwrap();
        GuestRam::new(vec![RamBlock::memfd(name, ByteCount(5 << 20)).unwrap()]).unwrap()
    }

    fn announce(preallocation: &mut Preallocation, ram: &GuestRam, pages: std::ops::Range<u64>) {
        pages.for_each(|page| preallocation.before_content(ram, BLOCK, PageIndex(page)));
    }

    fn populated(ram: &GuestRam) -> Vec<PageRun> {
        ram.block(BLOCK).populated().runs().to_vec()
    }

    #[test]
    fn a_region_gets_memory_as_a_whole_when_it_has_seen_enough_content() {
        let ram = ram();
        let mut preallocation = Preallocation::of(&ram);
        announce(&mut preallocation, &ram, 512..512 + u64::from(CONTENT_MIN) - 1);
        announce(&mut preallocation, &ram, 0..1);
        assert_eq!(populated(&ram), []);
        announce(&mut preallocation, &ram, 1023..1024);
        assert_eq!(populated(&ram), [PageRun::new(PageIndex(512), REGION)]);
    }

    #[test]
    fn the_last_region_ends_with_the_block() {
        let ram = ram();
        announce(&mut Preallocation::of(&ram), &ram, 1024..1280);
        assert_eq!(populated(&ram), [PageRun::new(PageIndex(1024), PageCount(256))]);
    }

    #[test]
    fn a_region_that_had_memory_before_is_left_alone() {
        let ram = ram();
        ram.block(BLOCK).copy_in(700 * 4096, &[1]);
        announce(&mut Preallocation::of(&ram), &ram, 512..1024);
        assert_eq!(populated(&ram), [PageRun::new(PageIndex(700), PageCount(1))]);
    }
}

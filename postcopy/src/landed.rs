//! What has come of host pages that are larger than the target's.

use limosa_pages::{PageCount, PageIndex, PageRun, PageSize, ReceivedBitmap};
use limosa_ram::RamBlock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The parts of a block's huge pages that have come, from whichever channels: of those that bring the last parts at the same time
/// exactly one hears that the page is complete.
pub(crate) struct Landed {
    pages: ReceivedBitmap,
    /// How many target pages of each host page have come.
    counts: Box<[AtomicU32]>,
    unit: PageCount,
}

/// What a part has made of its host page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Landing {
    /// More of it is to come.
    Partial,
    /// All of it is here. Said once.
    Complete,
    /// A target page of it had come before.
    Twice,
}

impl Landed {
    /// Nothing has come; `None` for a block whose host pages are the target's.
    pub(crate) fn of(block: &RamBlock) -> Option<Self> {
        let size = block.layout().page_size;
        let unit = size.target_pages();
        let counts = (0..block.pages().0 / unit.0).map(|_| AtomicU32::new(0)).collect();
        (size != PageSize::FOUR_KIB).then(|| Self {
            pages: ReceivedBitmap::empty(block.pages()),
            counts,
            unit,
        })
    }

    /// The bytes of `part`, of one host page, are in landing memory.
    pub(crate) fn add(&self, part: PageRun) -> Landing {
        if self.pages.mark(part) != part.count {
            return Landing::Twice;
        }
        // Release, for the bytes of this part; acquire, for those of all others.
        let count = &self.counts[(part.start.0 / self.unit.0) as usize];
        let before = count.fetch_add(part.count.0 as u32, Ordering::AcqRel);
        match u64::from(before) + part.count.0 == self.unit.0 {
            true => Landing::Complete,
            false => Landing::Partial,
        }
    }

    /// Forgets the parts of pages that are not complete: nobody brings the rest. No thread may add meanwhile.
    pub(crate) fn forget(&self) {
        for (index, count) in (0..).zip(&self.counts) {
            self.pages.forget(PageRun::new(PageIndex(index * self.unit.0), self.unit));
            count.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: PageCount = PageCount(512);

    fn two_host_pages() -> Landed {
        let counts = (0..2).map(|_| AtomicU32::new(0)).collect();
        Landed { pages: ReceivedBitmap::empty(PageCount(1024)), counts, unit: UNIT }
    }

    fn run(start: u64, count: u64) -> PageRun {
        PageRun::new(PageIndex(start), PageCount(count))
    }

    #[test]
    fn a_host_page_is_complete_with_its_last_part_whatever_the_order() {
        let landed = two_host_pages();
        assert_eq!(landed.add(run(640, 384)), Landing::Partial);
        assert_eq!(landed.add(run(0, 128)), Landing::Partial);
        assert_eq!(landed.add(run(512, 128)), Landing::Complete);
    }

    #[test]
    fn a_part_that_comes_twice_is_noticed() {
        let landed = two_host_pages();
        assert_eq!(landed.add(run(0, 128)), Landing::Partial);
        assert_eq!(landed.add(run(127, 2)), Landing::Twice);
    }

    #[test]
    fn parts_that_are_forgotten_may_come_again() {
        let landed = two_host_pages();
        assert_eq!(landed.add(run(0, 511)), Landing::Partial);
        landed.forget();
        assert_eq!(landed.add(run(0, 511)), Landing::Partial);
        assert_eq!(landed.add(run(511, 1)), Landing::Complete);
    }

    #[test]
    fn of_several_channels_one_hears_that_the_page_is_complete() {
        for _ in 0..100 {
            let landed = two_host_pages();
            let heard: usize = std::thread::scope(|scope| {
                let add = |part: u64| {
                    let landed = &landed;
                    scope.spawn(move || landed.add(run(part * 128, 128)) == Landing::Complete)
                };
                let channels: Vec<_> = (0..4).map(add).collect();
                channels.into_iter().map(|end| usize::from(end.join().unwrap())).sum()
            });
            assert_eq!(heard, 1);
        }
    }
}

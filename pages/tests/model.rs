//! The bitmaps and the scheduler against a `BTreeSet`, and against threads that race.

use limosa_pages::{
    BlockId, BlockLayout, BlockName, ByteCount, DirtyBitmap, DirtyMap, PAGE_BYTES, PageBatch, PageCount,
    PageIndex, PageRun, PageScheduler, PageSize, RamLayout, ReceivedBitmap, Urgency,
};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Neither a multiple of 64 nor of 128: the last word and the last batch are partial.
const PAGES: u64 = 300;

#[derive(Clone, Debug)]
enum Operation {
    Mark(u64, u64),
    Merge(u64, Vec<u64>),
    Claim(u64),
    ClaimNext(u64, u64),
    OweAll,
    Clear,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        (0..PAGES, 0..PAGES).prop_map(|(a, b)| Operation::Mark(a.min(b), a.max(b))),
        (0..PAGES / 64, prop::collection::vec(any::<u64>(), 0..6))
            .prop_map(|(w, v)| Operation::Merge(w * 64, v)),
        (0..PAGES).prop_map(Operation::Claim),
        (0..PAGES + 10, 1..200u64).prop_map(|(from, max)| Operation::ClaimNext(from, max)),
        Just(Operation::OweAll),
        Just(Operation::Clear),
    ]
}

fn run(start: u64, end: u64) -> PageRun {
    PageRun::new(PageIndex(start), PageCount(end - start))
}

fn apply(operation: Operation, bitmap: &DirtyBitmap, model: &mut BTreeSet<u64>) {
    match operation {
        Operation::Mark(start, end) => {
            let fresh = (start..end).filter(|page| model.insert(*page)).count() as u64;
            assert_eq!(bitmap.mark(run(start, end)), PageCount(fresh));
        }
        Operation::Merge(first, words) => {
            let pages =
                (0..words.len() as u64 * 64).filter(|bit| words[(bit / 64) as usize] >> (bit % 64) & 1 == 1);
            let fresh =
                pages.map(|bit| first + bit).filter(|page| *page < PAGES && model.insert(*page)).count();
            assert_eq!(bitmap.merge(PageIndex(first), &words), PageCount(fresh as u64));
        }
        Operation::Claim(page) => assert_eq!(bitmap.claim(PageIndex(page)), model.remove(&page)),
        Operation::ClaimNext(from, max) => {
            let expected = model.range(from..).next().copied().map(|start| {
                let end =
                    (start..).take(max as usize).take_while(|page| model.contains(page)).last().unwrap() + 1;
                run(start, end)
            });
            assert_eq!(bitmap.claim_next(PageIndex(from), PageCount(max)), expected);
            if let Some(claimed) = expected {
                claimed.pages().for_each(|page| assert!(model.remove(&page.0)));
            }
        }
        Operation::OweAll => {
            bitmap.owe_all();
            model.extend(0..PAGES);
        }
        Operation::Clear => {
            bitmap.clear();
            model.clear();
        }
    }
}

proptest! {
    #[test]
    fn dirty_bitmap_behaves_like_a_set(operations in prop::collection::vec(operation(), 1..60)) {
        let bitmap = DirtyBitmap::clean(PageCount(PAGES));
        let mut model = BTreeSet::new();
        for operation in operations {
            apply(operation, &bitmap, &mut model);
            prop_assert_eq!(bitmap.count(), PageCount(model.len() as u64));
            let owed: BTreeSet<u64> = (0..PAGES).filter(|page| bitmap.is_owed(PageIndex(*page))).collect();
            prop_assert_eq!(&owed, &model);
        }
    }

    #[test]
    fn missing_pages_are_exactly_what_was_not_received(held in prop::collection::btree_set(0..PAGES, 0..300)) {
        let received = ReceivedBitmap::empty(PageCount(PAGES));
        for page in &held {
            received.mark(run(*page, page + 1));
        }
        let owed = DirtyBitmap::clean(PageCount(PAGES));
        owed.replace_with_missing(&received);
        for page in 0..PAGES {
            prop_assert_eq!(owed.is_owed(PageIndex(page)), !held.contains(&page));
        }
        prop_assert_eq!(owed.count() + received.count(), PageCount(PAGES));
    }

    #[test]
    fn scheduler_hands_out_every_owed_page_once(
        dirty in prop::collection::btree_set((0..2u32, 0..PAGES), 0..200),
        requests in prop::collection::vec((0..2u32, 0..PAGES - 8, 1..8u64), 0..5),
        max in 1..130u64,
    ) {
        let map = DirtyMap::clean(&two_blocks());
        for (block, page) in &dirty {
            map.block(BlockId(*block)).mark(run(*page, page + 1));
        }
        let mut scheduler = PageScheduler::new();
        for (block, start, count) in requests {
            scheduler.request(BlockId(block), run(start, start + count));
        }
        let mut seen = BTreeSet::new();
        let mut batch = PageBatch::default();
        while scheduler.next_batch(&map, PageCount(max), &mut batch) {
            prop_assert!((1..=max).contains(&batch.pages().0));
            prop_assert!(batch.runs.windows(2).all(|pair| pair[0].end() <= pair[1].start));
            for page in batch.runs.iter().flat_map(|run| run.pages()) {
                prop_assert!(seen.insert((batch.block.0, page.0)));
            }
        }
        prop_assert_eq!(seen, dirty);
        prop_assert_eq!(map.count(), PageCount(0));
    }
}

fn two_blocks() -> RamLayout {
    let block = |name: &str| BlockLayout {
        name: BlockName::new(name).unwrap(),
        length: ByteCount(PAGES * PAGE_BYTES as u64),
        page_size: PageSize::FOUR_KIB,
    };
    RamLayout::new(vec![block("a"), block("b")]).unwrap()
}

#[test]
fn a_requested_page_leaves_before_the_cursor_and_pulls_it_along() {
    let map = DirtyMap::clean(&two_blocks());
    map.owe_all();
    let mut scheduler = PageScheduler::new();
    scheduler.request(BlockId(1), run(40, 41));
    let mut batch = PageBatch::default();
    assert!(scheduler.next_batch(&map, PageCount(4), &mut batch));
    assert_eq!(batch, PageBatch { block: BlockId(1), runs: vec![run(40, 41)], urgency: Urgency::Urgent });
    assert!(scheduler.next_batch(&map, PageCount(4), &mut batch));
    assert_eq!(batch, PageBatch { block: BlockId(1), runs: vec![run(41, 45)], urgency: Urgency::Background });
}

#[test]
fn racing_claimers_share_the_pages_without_loss_or_double() {
    let pages = 64 * 1024;
    let bitmap = DirtyBitmap::clean(PageCount(pages));
    for round in 0..20 {
        bitmap.owe_all();
        let claim_runs = |max: u64| {
            let mut won = Vec::new();
            let mut from = PageIndex(0);
            while let Some(run) = bitmap.claim_next(from, PageCount(max)) {
                from = run.end();
                won.push(run);
            }
            won
        };
        let (mut runs, singles) = std::thread::scope(|scope| {
            let scans: Vec<_> = (0..3).map(|lane| scope.spawn(move || claim_runs(7 + lane * 50))).collect();
            let urgent =
                scope.spawn(|| (0..pages).rev().filter(|page| bitmap.claim(PageIndex(*page))).count());
            let runs: Vec<PageRun> = scans.into_iter().flat_map(|lane| lane.join().unwrap()).collect();
            (runs, urgent.join().unwrap() as u64)
        });
        runs.sort();
        assert!(
            runs.windows(2).all(|pair| pair[0].end() <= pair[1].start),
            "round {round}: a page was claimed twice"
        );
        let claimed: u64 = runs.iter().map(|run| run.count.0).sum();
        assert_eq!(claimed + singles + bitmap.count().0, pages, "round {round}");
    }
}

#[test]
#[should_panic(expected = "leaves a block")]
fn a_run_outside_the_block_is_our_own_mistake() {
    DirtyBitmap::clean(PageCount(10)).mark(run(8, 11));
}

#[test]
fn a_host_page_is_owed_and_claimed_as_a_whole() {
    let huge = PageSize::new(16 * PAGE_BYTES as u64).unwrap();
    let host_page = |index: u64| PageRun::new(PageIndex(16 * index), PageCount(16));
    let owed = DirtyBitmap::clean(PageCount(64));
    [3, 20, 31].into_iter().for_each(|page| {
        owed.mark(PageRun::new(PageIndex(page), PageCount(1)));
    });
    owed.owe_whole(huge);
    assert_eq!(owed.count(), PageCount(32));
    assert!(owed.claim_host_page(host_page(1)));
    assert!(!owed.claim_host_page(host_page(1)), "claimed before");
    assert!(!owed.claim_host_page(host_page(2)), "not owed");
    assert_eq!(owed.next_owed(PageIndex(0), PageCount(64)), Some(host_page(0)));
    assert_eq!(owed.count(), PageCount(16));
}

#[test]
fn racing_claimers_never_share_a_host_page() {
    const HOST_PAGES: u64 = 4096;
    let owed = DirtyBitmap::clean(PageCount(8 * HOST_PAGES));
    owed.owe_all();
    let claim_all = || {
        (0..HOST_PAGES)
            .filter(|index| owed.claim_host_page(PageRun::new(PageIndex(8 * index), PageCount(8))))
            .count() as u64
    };
    let won = std::thread::scope(|scope| {
        let claimers = [scope.spawn(claim_all), scope.spawn(claim_all)];
        claimers.into_iter().map(|claimer| claimer.join().unwrap()).sum::<u64>()
    });
    assert_eq!((won, owed.count()), (HOST_PAGES, PageCount(0)));
}

/// A block of four host pages of 16 target pages, and one of ten target pages.
fn layout_with_huge_pages() -> RamLayout {
    let block = |name: &str, pages: u64, size: u64| BlockLayout {
        name: BlockName::new(name).unwrap(),
        length: ByteCount(pages * PAGE_BYTES as u64),
        page_size: PageSize::new(size * PAGE_BYTES as u64).unwrap(),
    };
    RamLayout::new(vec![block("huge", 64, 16), block("small", 10, 1)]).unwrap()
}

#[test]
fn a_batch_has_whole_host_pages_and_is_no_larger_for_others() {
    let layout = layout_with_huge_pages();
    let dirty = DirtyMap::clean(&layout);
    dirty.owe_all();
    let (mut scheduler, mut batch) = (PageScheduler::new(), PageBatch::default());
    scheduler.claim_whole_host_pages(&layout);
    scheduler.request(BlockId(0), run(32, 48));
    // Somebody faults in the middle of a host page, and its start is behind the cursor.
    scheduler.seek(BlockId(0), PageIndex(20));
    let mut next = |max| {
        scheduler.next_batch(&dirty, PageCount(max), &mut batch).then(|| (batch.block.0, batch.runs.clone()))
    };
    assert_eq!(next(4), Some((0, vec![run(32, 48)])));
    assert_eq!(next(4), Some((0, vec![run(48, 64)])), "behind the request");
    assert_eq!(next(4), Some((1, vec![run(0, 4)])));
    assert_eq!(next(100), Some((1, vec![run(4, 10)])));
    assert_eq!(next(40), Some((0, vec![run(0, 16), run(16, 32)])));
    assert_eq!(next(4), None);
}

#[test]
fn a_cursor_inside_of_a_host_page_claims_it_from_its_start() {
    let layout = layout_with_huge_pages();
    let dirty = DirtyMap::clean(&layout);
    dirty.owe_all();
    let (mut scheduler, mut batch) = (PageScheduler::new(), PageBatch::default());
    scheduler.claim_whole_host_pages(&layout);
    scheduler.seek(BlockId(0), PageIndex(20));
    assert!(scheduler.next_batch(&dirty, PageCount(1), &mut batch));
    assert_eq!(batch.runs, [run(16, 32)]);
}

#[test]
fn a_host_page_that_is_given_back_is_never_lost_to_a_racing_claimer() {
    const UNIT: PageCount = PageCount(256);
    let host_page = run(0, UNIT.0);
    let owed = DirtyBitmap::clean(UNIT);
    owed.owe_all();
    let shipped = std::sync::atomic::AtomicBool::new(false);
    // One claims and gives back, as a full queue makes it do; the other claims and ships.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..10_000 {
                if owed.claim_host_page(host_page) {
                    owed.owe_host_page(host_page);
                }
            }
        });
        scope.spawn(|| {
            while owed.claim_next_host_page(PageIndex(0), UNIT).is_none() {
                std::hint::spin_loop();
            }
            shipped.store(true, std::sync::atomic::Ordering::SeqCst);
        });
    });
    assert!(shipped.into_inner());
    assert_eq!(owed.count(), PageCount(0));
}

#[test]
fn after_a_seek_the_cursor_goes_on_there_and_comes_back_for_the_rest() {
    let layout = RamLayout::new(vec![BlockLayout {
        name: BlockName::new("ram").unwrap(),
        length: ByteCount(100 * PAGE_BYTES as u64),
        page_size: PageSize::FOUR_KIB,
    }])
    .unwrap();
    let dirty = DirtyMap::clean(&layout);
    dirty.owe_all();
    let (mut scheduler, mut batch) = (PageScheduler::new(), PageBatch::default());
    scheduler.seek(BlockId(0), PageIndex(70));
    assert!(scheduler.next_batch(&dirty, PageCount(100), &mut batch));
    assert_eq!(batch.runs, [PageRun::new(PageIndex(70), PageCount(30))]);
    assert!(scheduler.next_batch(&dirty, PageCount(100), &mut batch));
    assert_eq!(batch.runs, [PageRun::new(PageIndex(0), PageCount(70))]);
}

//! What the sender pays per round before a byte is read: the dirty log merged, the pages counted and claimed.
#![allow(missing_docs, reason = "criterion's macro makes an undocumented function")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use limosa_pages::{
    BlockLayout, BlockName, ByteCount, DirtyBitmap, DirtyMap, PageBatch, PageCount, PageIndex, PageScheduler,
    PageSize, RamLayout,
};
use std::hint::black_box;

/// 1 GiB of guest RAM.
const PAGES: PageCount = PageCount(262_144);
const WORDS: usize = (PAGES.0 / 64) as usize;
/// As the sender asks.
const BATCH: PageCount = PageCount(256);

/// A dirty log: name, words, set bits.
type Log = (&'static str, Vec<u64>, u64);

/// Every page; one page in 64; one page in ten, anywhere.
fn logs() -> [Log; 3] {
    let mut random = 1_u64;
    let mut next = || {
        // Numerical Recipes' generator; its high bits are good enough to place pages.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        random >> 33
    };
    let random_words =
        (0..WORDS).map(|_| (0..64).fold(0, |word, bit| word | u64::from(next() % 10 == 0) << bit));
    let logs = [
        ("dense", vec![u64::MAX; WORDS]),
        ("sparse", vec![1; WORDS]),
        ("random", random_words.collect::<Vec<u64>>()),
    ];
    logs.map(|(name, words)| {
        let set = words.iter().map(|word| u64::from(word.count_ones())).sum();
        (name, words, set)
    })
}

fn marked(words: &[u64]) -> DirtyBitmap {
    let bitmap = DirtyBitmap::clean(PAGES);
    bitmap.merge(PageIndex(0), words);
    bitmap
}

fn merge(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bitmap/merge");
    for (name, words, set) in logs() {
        assert_eq!(DirtyBitmap::clean(PAGES).merge(PageIndex(0), &words), PageCount(set));
        group.throughput(Throughput::Elements(PAGES.0));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            let clean = || DirtyBitmap::clean(PAGES);
            bencher.iter_batched_ref(
                clean,
                |bitmap| bitmap.merge(PageIndex(0), black_box(&words)),
                BatchSize::LargeInput,
            );
        });
    }
}

fn count(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bitmap/count");
    for (name, words, set) in logs() {
        let bitmap = marked(&words);
        assert_eq!(bitmap.count(), PageCount(set));
        group.throughput(Throughput::Elements(PAGES.0));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| black_box(&bitmap).count());
        });
    }
}

/// Claims everything, run by run; returns the pages won.
fn claim_all(bitmap: &DirtyBitmap) -> PageCount {
    let (mut from, mut won) = (PageIndex(0), PageCount(0));
    while let Some(run) = bitmap.claim_next(from, BATCH) {
        (from, won) = (run.end(), won + run.count);
    }
    won
}

fn claim(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bitmap/claim");
    for (name, words, set) in logs() {
        assert_eq!(claim_all(&marked(&words)), PageCount(set));
        group.throughput(Throughput::Elements(set));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_batched_ref(|| marked(&words), |bitmap| claim_all(bitmap), BatchSize::LargeInput);
        });
    }
}

/// Takes every batch; returns the pages in them.
fn drain(map: &DirtyMap, batch: &mut PageBatch) -> PageCount {
    let mut scheduler = PageScheduler::new();
    let mut pages = PageCount(0);
    while scheduler.next_batch(map, BATCH, batch) {
        pages += batch.pages();
    }
    pages
}

fn next_batch(criterion: &mut Criterion) {
    let name = BlockName::new("pc.ram").expect("a short name");
    let length = ByteCount(PAGES.bytes().0);
    let block = BlockLayout { name, length, page_size: PageSize::FOUR_KIB };
    let layout = RamLayout::new(vec![block]).expect("one block");
    let mut group = criterion.benchmark_group("scheduler/next_batch");
    for (name, words, set) in logs() {
        let owed = || {
            let map = DirtyMap::clean(&layout);
            for (_, bitmap) in map.iter() {
                bitmap.merge(PageIndex(0), &words);
            }
            map
        };
        let mut batch = PageBatch::default();
        assert_eq!(drain(&owed(), &mut batch), PageCount(set));
        group.throughput(Throughput::Elements(set));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_batched_ref(owed, |map| drain(map, &mut batch), BatchSize::LargeInput);
        });
    }
}

criterion_group!(benches, merge, count, claim, next_batch);
criterion_main!(benches);

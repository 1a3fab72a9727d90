//! Is a page zero? In cache and from memory; a page of zeros, and one whose first byte tells.
#![allow(missing_docs, reason = "criterion's macro makes an undocumented function")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use limosa_pages::{BlockName, ByteCount, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_ram::{RamBlock, is_zero};
use std::hint::black_box;

/// 64 pages stay in any second-level cache; 256 MiB stay in none.
const SIZES: [(&str, u64); 2] = [("cached", 64), ("from-memory", 65_536)];

/// A block of `pages` pages, all populated, each beginning with `first`.
fn block(pages: u64, first: u8) -> RamBlock {
    let name = BlockName::new("ram").expect("a short name");
    let block = RamBlock::memfd(name, ByteCount(pages * PAGE_BYTES as u64)).expect("memory for the bench");
    block.preallocate(block.whole()).expect("memory for the bench");
    (0..pages).for_each(|page| block.copy_in(page * PAGE_BYTES as u64, &[first]));
    block
}

fn zero_pages(block: &RamBlock) -> usize {
    block.whole().pages().filter(|page| block.is_zero(*page)).count()
}

fn masked_zero_pages(block: &RamBlock) -> u32 {
    let masks = (0..block.pages().0).step_by(64);
    masks.map(|page| block.zero_mask(PageRun::new(PageIndex(page), PageCount(64))).count_ones()).sum()
}

fn zero_test(criterion: &mut Criterion) {
    for (place, pages) in SIZES {
        for (content, first) in [("zero", 0), ("data", 1)] {
            let block = block(pages, first);
            let zeros = if first == 0 { pages } else { 0 };
            assert_eq!(zero_pages(&block) as u64, zeros);
            assert_eq!(u64::from(masked_zero_pages(&block)), zeros);
            let mut group = criterion.benchmark_group(format!("zero-test/{place}"));
            group.throughput(Throughput::Elements(pages));
            group.bench_function(BenchmarkId::new("is_zero", content), |bencher| {
                bencher.iter(|| zero_pages(black_box(&block)));
            });
            group.bench_function(BenchmarkId::new("zero_mask", content), |bencher| {
                bencher.iter(|| masked_zero_pages(black_box(&block)));
            });
        }
    }
}

fn zero_test_of_a_copy(criterion: &mut Criterion) {
    let zero = [0; PAGE_BYTES];
    assert!(is_zero(&zero));
    let mut group = criterion.benchmark_group("zero-test/copy");
    group.throughput(Throughput::Elements(1));
    group.bench_function("zero", |bencher| bencher.iter(|| is_zero(black_box(&zero))));
}

criterion_group!(benches, zero_test, zero_test_of_a_copy);
criterion_main!(benches);

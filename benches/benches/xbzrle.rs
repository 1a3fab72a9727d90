//! XBZRLE by the number of words that changed: what a delta costs, and what undoing it costs.
#![allow(missing_docs, reason = "criterion's macro makes an undocumented function")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use limosa_compress::xbzrle::{Encoded, decode, encode};
use limosa_pages::PAGE_BYTES;
use std::hint::black_box;

type Page = [u8; PAGE_BYTES];

const WORD: usize = size_of::<u64>();
const CHANGED_WORDS: [usize; 5] = [0, 1, 8, 64, 256];

/// A page without structure, and the same with `words` words changed, spread evenly.
fn pages(words: usize) -> (Page, Page) {
    let mut state = 1_u32;
    let old = std::array::from_fn(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    let mut new = old;
    for word in 0..words {
        let at = word * (PAGE_BYTES / WORD / words) * WORD;
        new[at..at + WORD].iter_mut().for_each(|byte| *byte ^= 0xff);
    }
    (old, new)
}

fn xbzrle(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("xbzrle");
    group.throughput(Throughput::Bytes(PAGE_BYTES as u64));
    for words in CHANGED_WORDS {
        let (old, new) = pages(words);
        let mut delta = Vec::new();
        let encoded = encode(&old, &new, &mut delta);
        group.bench_function(BenchmarkId::new("encode", words), |bencher| {
            let mut out = Vec::with_capacity(PAGE_BYTES);
            bencher.iter(|| {
                out.clear();
                encode(black_box(&old), black_box(&new), &mut out)
            });
        });
        if !matches!(encoded, Encoded::Delta(_)) {
            assert_eq!(words, 0, "every change here is worth a delta: {encoded:?}");
            continue;
        }
        let mut page = old;
        decode(&delta, &mut page).expect("a delta of our own");
        assert_eq!(page, new);
        group.bench_function(BenchmarkId::new("decode", words), |bencher| {
            bencher.iter(|| decode(black_box(&delta), &mut page));
        });
    }
}

criterion_group!(benches, xbzrle);
criterion_main!(benches);

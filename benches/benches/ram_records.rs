//! RAM records (wire 3.3): headers of pages and of zero pages, all but the first with CONTINUE.
#![allow(missing_docs, reason = "criterion's macro makes an undocumented function")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use limosa_pages::{BlockId, BlockName, PAGE_BYTES};
use limosa_wire::{RamContext, RamDecoder, RamEncoder, RamItem, Step};
use std::hint::black_box;

/// A batch of the sender.
const RECORDS: u64 = 256;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Page,
    Zero,
}

const KINDS: [(&str, Kind); 2] = [("page", Kind::Page), ("zero", Kind::Zero)];

fn name() -> BlockName {
    BlockName::new("pc.ram").expect("a short name")
}

/// Appends the records. `bytes` of content follow each header of a page: none to measure the encoder, which writes
/// headers only.
fn encode(kind: Kind, name: &BlockName, content: &[u8], out: &mut Vec<u8>) {
    let mut encoder = RamEncoder::new();
    for page in 0..RECORDS {
        let offset = page * PAGE_BYTES as u64;
        match kind {
            Kind::Page => {
                encoder.page(BlockId(0), name, offset, out);
                out.extend_from_slice(content);
            }
            Kind::Zero => encoder.zero(BlockId(0), name, offset, out),
        }
    }
}

/// Reads all records of `input`; returns how many there were of `kind`.
fn decode(kind: Kind, mut input: &[u8]) -> u64 {
    let mut decoder = RamDecoder::new(RamContext::new());
    let mut found = 0;
    while !input.is_empty() {
        let Ok(Step::Item { used, item }) = decoder.next(input) else { return 0 };
        input = &input[used..];
        match item {
            RamItem::Page(_) => {
                input = &input[PAGE_BYTES..];
                found += u64::from(kind == Kind::Page);
            }
            RamItem::Zero(_) => found += u64::from(kind == Kind::Zero),
            _ => return 0,
        }
    }
    found
}

fn encoder(criterion: &mut Criterion) {
    let name = name();
    let mut group = criterion.benchmark_group("ram-records/encode");
    group.throughput(Throughput::Elements(RECORDS));
    for (label, kind) in KINDS {
        let mut out = Vec::new();
        encode(kind, &name, &[7; PAGE_BYTES], &mut out);
        assert_eq!(decode(kind, &out), RECORDS);
        group.bench_function(BenchmarkId::from_parameter(label), |bencher| {
            bencher.iter(|| {
                out.clear();
                encode(kind, black_box(&name), &[], &mut out);
                out.len()
            });
        });
    }
}

fn decoder(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ram-records/decode");
    group.throughput(Throughput::Elements(RECORDS));
    for (label, kind) in KINDS {
        let mut input = Vec::new();
        encode(kind, &name(), &[7; PAGE_BYTES], &mut input);
        assert_eq!(decode(kind, &input), RECORDS);
        group.bench_function(BenchmarkId::from_parameter(label), |bencher| {
            bencher.iter(|| decode(kind, black_box(&input)));
        });
    }
}

criterion_group!(benches, encoder, decoder);
criterion_main!(benches);

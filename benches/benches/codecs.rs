//! Every codec on every content class, by the page and by the packet, and deltas by the number of changed words.
//!
//! Throughput is in bytes of pages, on either side. What a codec makes of a class is printed first.
#![allow(missing_docs, reason = "criterion's macro makes an undocumented function")]

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use limosa_compress::delta::{self, DeltaRecords};
use limosa_compress::{
    Method, PacketDecoder, PacketEncoder, PacketPages, Page, PerPacketDecoder, PerPacketEncoder, Sampler,
};
use limosa_pages::{ByteCount, PAGE_BYTES};
use limosa_vmm::{Content, write_memory_file};
use limosa_wire::multifd::{PACKET_PAGES, PerPacketHead};
use std::hint::black_box;
use std::time::Duration;

const CONTENTS: [(&str, Content); 4] = [
    ("random", Content::Random),
    ("zero", Content::Zero),
    ("text", Content::Text),
    ("mixed", Content::Mixed),
];
const SIZES: [(&str, usize); 2] = [("page", 1), ("packet", PACKET_PAGES)];
const CHANGED_WORDS: [usize; 3] = [1, 8, 64];

/// Memory that is made, of which the end is used: its beginning is the guest's own.
const MEMORY: ByteCount = ByteCount(64 << 20);

/// Packets that are encoded in turn: 8 MiB of pages, so that they come from outside of the core.
const PACKETS: usize = 16;

/// What encodes a packet, and decodes what it has made.
trait Codec {
    /// Replaces `payload` by the form of `pages`.
    fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>);
    /// Bytes on the wire of what was encoded last.
    fn sent(&self, payload: &[u8]) -> usize;
    fn decode(&mut self, payload: &[u8], pages: &mut [u8]);
}

struct Copy;

struct Stream {
    encoder: PacketEncoder,
    decoder: PacketDecoder,
}

struct PerPacket {
    method: Method,
    encoder: PerPacketEncoder,
    decoder: PerPacketDecoder,
    packet: PacketPages,
    sampler: Sampler,
    head: PerPacketHead,
}

impl Codec for Copy {
    fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) {
        payload.clear();
        payload.extend_from_slice(pages);
    }

    fn sent(&self, payload: &[u8]) -> usize {
        payload.len()
    }

    fn decode(&mut self, payload: &[u8], pages: &mut [u8]) {
        pages.copy_from_slice(payload);
    }
}

impl Codec for Stream {
    fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) {
        self.encoder.encode(pages, payload).expect("encodes");
    }

    fn sent(&self, payload: &[u8]) -> usize {
        payload.len()
    }

    fn decode(&mut self, payload: &[u8], pages: &mut [u8]) {
        self.decoder.decode(payload, pages).expect("decodes");
    }
}

/// As a sender does it: a private copy of each page that is not skipped, a look at it, one block. Raw pages are
/// left to be gathered, and are not copied back.
impl Codec for PerPacket {
    fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) {
        self.packet.clear();
        for page in pages.as_chunks().0 {
            if self.sampler.skips() {
                self.packet.raw();
                continue;
            }
            *self.packet.candidate() = *page;
            match self.sampler.is_incompressible(self.packet.candidate()) {
                true => self.packet.raw(),
                false => self.packet.compress(),
            }
        }
        self.head = self.encoder.encode(self.method, &self.packet, payload).expect("encodes");
    }

    fn sent(&self, _payload: &[u8]) -> usize {
        self.head.payload_bytes()
    }

    fn decode(&mut self, payload: &[u8], pages: &mut [u8]) {
        let compressed = self.head.compressed(pages.len() / PAGE_BYTES).count();
        if compressed > 0 {
            let block = &payload[PerPacketHead::BYTES..][..self.head.compressed_bytes as usize];
            let pages = &mut pages[..compressed * PAGE_BYTES];
            self.decoder.decode(self.head.method, block, pages).expect("decodes");
        }
    }
}

fn per_packet(method: Method) -> Box<dyn Codec> {
    Box::new(PerPacket {
        method,
        encoder: PerPacketEncoder::new().expect("memory"),
        decoder: PerPacketDecoder::new().expect("memory"),
        packet: PacketPages::new(),
        sampler: Sampler::new(),
        head: PerPacketHead::all_raw(0),
    })
}

fn zstd_stream(level: u8) -> Box<dyn Codec> {
    let (encoder, decoder) = (PacketEncoder::zstd(level), PacketDecoder::zstd());
    Box::new(Stream { encoder: encoder.expect("memory"), decoder: decoder.expect("memory") })
}

/// Makes a codec: the decoder of a stream wants all of it, from its beginning.
type Make = fn() -> Box<dyn Codec>;

const CODECS: [(&str, Make); 9] = [
    ("copy", || Box::new(Copy)),
    ("none", || per_packet(Method::None)),
    ("zlib-1-stream", || {
        Box::new(Stream { encoder: PacketEncoder::zlib(1), decoder: PacketDecoder::zlib() })
    }),
    ("zstd-1-stream", || zstd_stream(1)),
    ("zstd-3-stream", || zstd_stream(3)),
    ("lz4", || per_packet(Method::Lz4)),
    ("zstd-1", || per_packet(Method::Zstd { level: 1 })),
    ("zstd-3", || per_packet(Method::Zstd { level: 3 })),
    ("zstd-9", || per_packet(Method::Zstd { level: 9 })),
];

fn memory(content: Content) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    write_memory_file(file.path(), MEMORY, content, 1).expect("a file of memory");
    let mut bytes = std::fs::read(file.path()).expect("what was written");
    bytes.split_off(bytes.len() - PACKETS * PACKET_PAGES * PAGE_BYTES)
}

fn codec(criterion: &mut Criterion) {
    for (class, content) in CONTENTS {
        let memory = memory(content);
        for (unit, pages) in SIZES {
            let mut group = criterion.benchmark_group(format!("codec/{class}/{unit}"));
            group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(300));
            group.sample_size(10).throughput(Throughput::Bytes((pages * PAGE_BYTES) as u64));
            for (name, make) in CODECS {
                encode_and_decode(&mut group, name, make, &memory, pages * PAGE_BYTES);
            }
        }
    }
}

fn encode_and_decode(
    group: &mut BenchmarkGroup<'_, criterion::measurement::WallTime>,
    name: &str,
    make: Make,
    memory: &[u8],
    bytes: usize,
) {
    let (mut codec, mut payload) = (make(), Vec::new());
    let (mut all, mut sent) = (0, 0);
    for pages in memory.chunks_exact(bytes) {
        codec.encode(pages, &mut payload);
        all += pages.len();
        sent += codec.sent(&payload);
    }
    println!("{name}: {:.3} of the bytes", sent as f64 / all as f64);
    let mut packets = memory.chunks_exact(bytes).cycle();
    group.bench_function(BenchmarkId::new("encode", name), |bencher| {
        bencher.iter(|| codec.encode(black_box(packets.next().expect("a cycle")), &mut payload));
    });
    // A stream decodes what it has not decoded yet, so that each iteration has to encode first.
    let mut pages = vec![0; bytes];
    codec = make();
    group.bench_function(BenchmarkId::new("decode", name), |bencher| {
        bencher.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                codec.encode(packets.next().expect("a cycle"), &mut payload);
                let start = std::time::Instant::now();
                codec.decode(black_box(&payload), &mut pages);
                spent += start.elapsed();
            }
            spent
        });
    });
}

fn deltas(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec/delta");
    group.throughput(Throughput::Bytes(PAGE_BYTES as u64));
    let memory = memory(Content::Random);
    let old: Page = memory[..PAGE_BYTES].try_into().expect("a page");
    for words in CHANGED_WORDS {
        let mut new = old;
        // Spread evenly, as XBZRLE's bench has them.
        (0..words).for_each(|word| new[word * (PAGE_BYTES / words)] ^= 0xff);
        let mut record = Vec::new();
        assert!(delta::encode(&old, &new, &mut record));
        println!("delta of {words} words: {} bytes", record.len());
        group.bench_function(BenchmarkId::new("encode", words), |bencher| {
            bencher.iter(|| {
                record.clear();
                delta::encode(black_box(&old), black_box(&new), &mut record)
            });
        });
        let mut page = old;
        DeltaRecords::new(&record, 1).expect("our own").for_each(|record| record.apply(&mut page));
        assert_eq!(page, new);
        group.bench_function(BenchmarkId::new("decode", words), |bencher| {
            bencher.iter(|| {
                let records = DeltaRecords::new(black_box(&record), 1).expect("our own");
                records.for_each(|record| record.apply(&mut page));
            });
        });
    }
}

fn sampler(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec/sampler");
    group.throughput(Throughput::Bytes(PAGE_BYTES as u64));
    for (class, content) in CONTENTS {
        let memory = memory(content);
        let mut pages = memory.as_chunks().0.iter().cycle();
        group.bench_function(BenchmarkId::new("one page", class), |bencher| {
            bencher.iter(|| Sampler::new().is_incompressible(black_box(pages.next().expect("a cycle"))));
        });
        let mut sampler = Sampler::new();
        group.bench_function(BenchmarkId::new("in a row", class), |bencher| {
            bencher.iter(|| {
                let page = black_box(pages.next().expect("a cycle"));
                sampler.skips() || sampler.is_incompressible(page)
            });
        });
    }
}

criterion_group!(benches, codec, deltas, sampler);
criterion_main!(benches);

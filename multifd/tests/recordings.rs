//! Channels that QEMU has recorded, received as they stand.

#[path = "../../wire/tests/recording/mod.rs"]
#[allow(dead_code, reason = "only the file is read by it")]
mod recording;
mod support;

use flate2::{Decompress, FlushDecompress};
use limosa_multifd::{PageSink, RamSink, ReceiveChannels, ReceiveConfig, ReceiveLink};
use limosa_pages::{BlockName, ByteCount, PAGE_BYTES, PageCount, PageIndex};
use limosa_ram::{GuestRam, RamBlock};
use limosa_transport::Link;
use limosa_wire::Step;
use limosa_wire::multifd::{self, Compression, InitPacket, Packet};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use support::page;

/// One channel of a recording of our own.
fn load(name: &str, channel: u8) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../stress/corpora")
        .join(format!("multifd2-{name}-microvm.{channel}.zst"));
    let compressed = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    zstd::decode_all(compressed.as_slice()).expect("zstd")
}

/// What a packet says, without its payload.
struct Record {
    sync: bool,
    block: Option<String>,
    normal: Vec<u64>,
    zero: Vec<u64>,
}

/// The records of a channel, and the bytes of all its pages one after the other: decompressed as one stream,
/// without a thought of packets.
fn read(stream: &[u8], compression: Compression) -> (Vec<Record>, Vec<u8>) {
    let mut rest = &stream[InitPacket::BYTES..];
    let (mut records, mut payload) = (Vec::new(), Vec::new());
    while !rest.is_empty() {
        let Step::Item { used, item: Packet::Pages(header) } = multifd::decode(rest).expect("a packet")
        else {
            panic!("a whole packet of pages");
        };
        let bytes = header.payload_bytes();
        payload.extend_from_slice(&rest[used..used + bytes]);
        records.push(Record {
            sync: header.sync,
            block: header.block().map(str::to_owned),
            normal: header.normal().collect(),
            zero: header.zero().collect(),
        });
        rest = &rest[used + bytes..];
    }
    let length = records.iter().map(|record| record.normal.len() * PAGE_BYTES).sum();
    let mut pages = vec![0; length];
    match compression {
        Compression::None => pages = payload,
        Compression::Zlib if payload.is_empty() => {}
        Compression::Zlib => {
            let mut stream = Decompress::new(true);
            stream.decompress(&payload, &mut pages, FlushDecompress::Sync).expect("zlib");
            assert_eq!(stream.total_out(), length as u64);
        }
        _ => zstd::stream::read::Decoder::new(payload.as_slice())
            .expect("zstd")
            .read_exact(&mut pages)
            .expect("zstd"),
    }
    (records, pages)
}

/// What the recording leaves in each page that it names, round by round.
fn expected(channels: &[(Vec<Record>, Vec<u8>)]) -> BTreeMap<(String, u64), Vec<u8>> {
    let mut memory = BTreeMap::new();
    let mut places: Vec<_> =
        channels.iter().map(|(records, pages)| (records.iter(), pages.as_slice())).collect();
    // Between two points no page is on both channels, so their order there does not matter.
    loop {
        let mut any = false;
        for (records, pages) in &mut places {
            for record in records {
                any = true;
                for &offset in &record.normal {
                    let (page, behind) = pages.split_at(PAGE_BYTES);
                    memory.insert((record.block.clone().expect("a block"), offset), page.to_vec());
                    *pages = behind;
                }
                for &offset in &record.zero {
                    memory.insert((record.block.clone().expect("a block"), offset), vec![0; PAGE_BYTES]);
                }
                if record.sync {
                    break;
                }
            }
        }
        if !any {
            return memory;
        }
    }
}

/// RAM that has a place for every page of a recording.
fn ram_for(memory: &BTreeMap<(String, u64), Vec<u8>>) -> GuestRam {
    let mut lengths = BTreeMap::new();
    for (name, offset) in memory.keys() {
        let length = lengths.entry(name.clone()).or_insert(0);
        *length = (*length).max(offset + PAGE_BYTES as u64);
    }
    let block = |(name, length): (String, u64)| {
        RamBlock::memfd(BlockName::new(name).expect("a name"), ByteCount(length)).expect("memory")
    };
    GuestRam::new(lengths.into_iter().map(block).collect()).expect("names differ")
}

/// Receives `streams` and holds every page that they name against what their records say.
fn assert_every_page(name: &str, streams: Vec<Vec<u8>>, compression: Compression) {
    let read: Vec<_> = streams.iter().map(|stream| read(stream, compression)).collect();
    let points = |(records, _): &(Vec<Record>, Vec<u8>)| records.iter().filter(|record| record.sync).count();
    assert!(points(&read[0]) >= 3, "{name}");
    assert!(read.iter().all(|channel| points(channel) == points(&read[0])), "{name}");
    let memory = expected(&read);
    assert!(memory.values().any(|page| page.iter().any(|&byte| byte != 0)), "{name}: nothing but zeros");
    let ram = ram_for(&memory);
    let sink = Arc::new(RamSink::new(ram.clone()));
    let statistics = play(streams, points(&read[0]), Arc::clone(&sink), compression);
    for ((block, offset), bytes) in &memory {
        let id = ram.layout().find(block).expect("made for it");
        let index = PageIndex::containing(*offset);
        assert!(page(&ram, id, index.0) == *bytes, "{name}: {block} at {offset:#x}");
        assert!(sink.received().block(id).is_received(index), "{name}: {block} at {offset:#x}");
    }
    assert_eq!(sink.received().count(), PageCount(memory.len() as u64), "{name}");
    let normal: usize =
        read.iter().map(|(records, _)| records.iter().map(|record| record.normal.len()).sum::<usize>()).sum();
    assert_eq!(statistics, PageCount(normal as u64), "{name}");
}

#[test]
fn channels_that_we_recorded_of_qemu_leave_every_page_as_their_records_say() {
    for (name, compression) in
        [("none", Compression::None), ("zlib", Compression::Zlib), ("zstd", Compression::Zstd)]
    {
        let streams = [1, 2].map(|channel| load(name, channel)).to_vec();
        assert_every_page(name, streams, compression);
    }
}

#[test]
fn channels_of_a_guest_with_firmware_leave_every_page_as_their_records_say() {
    for (name, compression) in [
        ("multifd3-none", Compression::None),
        ("multifd3-none-legacy-zero", Compression::None),
        ("multifd3-zlib", Compression::Zlib),
        ("multifd3-zstd", Compression::Zstd),
    ] {
        let streams = (1..=3).map(|channel| recording::load(&format!("{name}.{channel}"))).collect();
        let Some(streams) = streams else { return };
        assert_every_page(name, streams, compression);
    }
}

/// Receives all channels; returns the pages that came with their bytes.
fn play(streams: Vec<Vec<u8>>, points: usize, sink: Arc<RamSink>, compression: Compression) -> PageCount {
    let (links, sources): (Vec<_>, Vec<_>) = streams
        .into_iter()
        .map(|stream| {
            let (mut near, far) = Link::pair().expect("a pair");
            let source = thread::spawn(move || near.write_all(&stream).expect("read to its end"));
            (ReceiveLink::new(far.split().0), source)
        })
        .unzip();
    let sink: Arc<dyn PageSink> = sink;
    let config = ReceiveConfig { compression, ..ReceiveConfig::default() };
    let receive = ReceiveChannels::new(links, sink, config).expect("threads");
    for point in 0..points {
        receive.wait_sync().unwrap_or_else(|error| panic!("point {point}: {error}: {}", error.failure));
    }
    for source in sources {
        source.join().expect("no panic");
    }
    let statistics = receive.close().expect("no failure");
    statistics.iter().map(|channel| channel.normal).sum()
}

//! The recordings in `corpora/`: every byte decodes, the guest in them is whole, and nobody else's code is inside.

use limosa::CapturedGuest;
use limosa::pages::{PAGE_BYTES, PageCount};
use limosa::ram::RamBlock;
use limosa::transport::Link;
use limosa_stress::qemu::{Accelerator, Payload, TICK_ADDRESS, WORKING_SET_START};
use limosa_wire::multifd::{self, InitPacket, Packet};
use limosa_wire::{Command, RamContext, RamDecoder, RamItem, Step, StreamDecoder, StreamItem};
use std::fs;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::thread;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora")
}

fn load(name: &str) -> Vec<u8> {
    let path = folder().join(format!("{name}.zst"));
    let compressed = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    zstd::decode_all(compressed.as_slice()).expect("zstd")
}

/// The guest that all recordings have, as `record_corpora` makes it.
fn payload(accelerator: Accelerator) -> Payload {
    Payload { working_set: PageCount(32), ..Payload::paced(accelerator) }
}

/// Plays a recording to the engine: the guest, and what the engine answered.
fn play(name: &str) -> (CapturedGuest, Vec<u8>) {
    let (near, far) = Link::pair().expect("a pair");
    let recording = load(&format!("{name}.0"));
    let source = thread::spawn(move || {
        let (mut reader, mut writer) = far.split();
        writer.write_all(&recording).expect("the engine reads all of it");
        let (mut answers, mut chunk) = (Vec::new(), [0; 64]);
        while let count @ 1.. = reader.read_some(&mut chunk).expect("answers") {
            answers.extend_from_slice(&chunk[..count]);
        }
        answers
    });
    let guest = CapturedGuest::receive(near).unwrap_or_else(|error| panic!("{name}: {error}"));
    (guest, source.join().expect("no panic"))
}

/// A RAM block's name and content.
struct Block {
    name: String,
    bytes: Vec<u8>,
}

fn blocks_of_capture(guest: &CapturedGuest) -> Vec<Block> {
    let block = |block: &RamBlock| {
        let mut bytes = vec![0; block.length().0 as usize];
        block.copy_out(0, &mut bytes);
        Block { name: block.name().to_string(), bytes }
    };
    guest.ram.iter().map(|(_, ram)| block(ram)).collect()
}

/// Main RAM has the payload's pages and nothing else; flash has the payload; every other block is empty.
fn assert_only_ours(name: &str, blocks: &[Block], payload: Payload) {
    for block in blocks {
        let bytes = &block.bytes;
        match block.name.as_str() {
            "microvm.ram" | "pc.ram" => {
                let working_set = WORKING_SET_START as usize..;
                let own = TICK_ADDRESS as usize..TICK_ADDRESS as usize + PAGE_BYTES;
                assert!(bytes[..own.start].iter().all(|&byte| byte == 0), "{name}");
                assert!(bytes[own.end..working_set.start].iter().all(|&byte| byte == 0), "{name}");
                assert!(payload.verify(bytes).unwrap_or_else(|error| panic!("{name}: {error}")) > 0);
                let end = working_set.start + payload.working_set.0 as usize * PAGE_BYTES;
                assert!(bytes[end..].iter().all(|&byte| byte == 0), "{name}");
            }
            "pc.bios" => assert!(*bytes == payload.flash(), "{name}: flash is not the payload"),
            other => assert!(bytes.iter().all(|&byte| byte == 0), "{name}: {other} is not empty"),
        }
    }
}

#[test]
fn precopy_recordings_hold_our_guest_and_are_answered_as_qemu_answered_them() {
    for (name, accelerator) in [
        ("precopy-microvm-tcg", Accelerator::Tcg),
        ("precopy-microvm-kvm", Accelerator::Kvm),
        ("precopy-pc-tcg", Accelerator::Tcg),
        ("xbzrle-microvm", Accelerator::Tcg),
    ] {
        let (guest, answers) = play(name);
        assert_eq!(answers, load(&format!("{name}.return")), "{name}");
        assert_only_ours(name, &blocks_of_capture(&guest), payload(accelerator));
        let deltas = guest.statistics.xbzrle_pages;
        assert_eq!(deltas.0 > 0, name.starts_with("xbzrle"), "{name}: {deltas}");
    }
}

/// One packet of a channel with pages.
struct PagePacket {
    number: u64,
    block: String,
    zero: Vec<u64>,
    normal: Vec<u64>,
    pages: Vec<u8>,
}

/// The packets of a channel; `pages` turns the payloads of all of them, one after the other, into pages.
fn packets(name: &str, pages: impl FnOnce(Vec<u8>) -> Box<dyn Read>) -> Vec<PagePacket> {
    let bytes = load(name);
    let Ok(Step::Item { used: mut at, .. }) = InitPacket::decode(&bytes) else { panic!("{name}: no init") };
    let (mut found, mut payloads) = (Vec::new(), Vec::new());
    while at < bytes.len() {
        let Ok(Step::Item { used, item: packet }) = multifd::decode(&bytes[at..]) else {
            panic!("{name}: no packet at byte {at}")
        };
        let end = at + used + packet.payload_bytes();
        payloads.extend_from_slice(&bytes[at + used..end]);
        if let Packet::Pages(header) = packet
            && let Some(block) = header.block()
        {
            let (zero, normal) = (header.zero().collect(), header.normal().collect());
            let block = block.to_owned();
            found.push(PagePacket { number: header.packet_number, block, zero, normal, pages: Vec::new() });
        }
        at = end;
    }
    let mut pages = pages(payloads);
    for packet in &mut found {
        packet.pages = vec![0; packet.normal.len() * PAGE_BYTES];
        pages.read_exact(&mut packet.pages).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    found
}

#[test]
fn multifd_recordings_hold_our_guest_in_two_channels() {
    type Decode = fn(Vec<u8>) -> Box<dyn Read>;
    let ways: [(&str, Decode); 2] = [
        ("multifd2-none-microvm", |bytes| Box::new(Cursor::new(bytes))),
        // A stream that is never ended: its end is where no more is asked for.
        ("multifd2-zstd-microvm", |bytes| Box::new(zstd::Decoder::new(Cursor::new(bytes)).expect("zstd"))),
    ];
    for (name, decode) in ways {
        let mut all = packets(&format!("{name}.1"), decode);
        all.extend(packets(&format!("{name}.2"), decode));
        // One counter for both channels: its order is the order in which the pages were taken.
        all.sort_by_key(|packet| packet.number);
        let mut blocks = blocks_of(&load(&format!("{name}.0")));
        for packet in all {
            let bytes = bytes_of(&mut blocks, &packet.block);
            for offset in packet.zero {
                bytes[offset as usize..][..PAGE_BYTES].fill(0);
            }
            for (offset, page) in packet.normal.iter().zip(packet.pages.chunks(PAGE_BYTES)) {
                bytes[*offset as usize..][..PAGE_BYTES].copy_from_slice(page);
            }
        }
        assert_only_ours(name, &blocks, payload(Accelerator::Tcg));
    }
}

#[test]
fn the_multifd_recording_with_zlib_has_one_deflate_stream_per_channel() {
    for channel in 1..=2 {
        let bytes = load(&format!("multifd2-zlib-microvm.{channel}"));
        let Ok(Step::Item { used: mut at, .. }) = InitPacket::decode(&bytes) else { panic!("no init") };
        let mut heads = 0;
        while at < bytes.len() {
            let Ok(Step::Item { used, item: packet }) = multifd::decode(&bytes[at..]) else {
                panic!("no packet at byte {at}")
            };
            let payload = &bytes[at + used..at + used + packet.payload_bytes()];
            heads += usize::from(payload.starts_with(&[0x78, 0x01]));
            // Every packet is flushed to a byte boundary and the stream goes on in the next.
            assert!(payload.is_empty() || payload.ends_with(&[0, 0, 0xff, 0xff]));
            at += used + payload.len();
        }
        assert_eq!(heads, 1, "channel {channel}");
    }
}

#[test]
fn the_postcopy_recording_holds_our_guest_after_its_last_page() {
    let bytes = load("postcopy-microvm.0");
    assert!(bytes.ends_with(&[0x7e, 0, 0, 0, 1, 0]), "the footer of ram, and the end mark");
    assert_only_ours("postcopy-microvm", &blocks_of(&bytes), payload(Accelerator::Tcg));
}

fn bytes_of<'a>(blocks: &'a mut [Block], name: &str) -> &'a mut [u8] {
    let block = blocks.iter_mut().find(|block| block.name == name);
    &mut block.unwrap_or_else(|| panic!("no block {name}")).bytes
}

/// RAM as the records of a main channel leave it, up to the first device section; packages are passed over.
fn blocks_of(bytes: &[u8]) -> Vec<Block> {
    let mut stream = StreamDecoder::new();
    let mut ram = RamDecoder::new(RamContext::new());
    let (mut at, mut blocks) = (0, Vec::new());
    while at < bytes.len() {
        let Step::Item { used, item } = stream.next(&bytes[at..]).expect("a stream") else {
            panic!("cut at byte {at}")
        };
        at += used;
        match item {
            StreamItem::SectionStart(section) if section.idstr != limosa_wire::RAM_IDSTR => break,
            StreamItem::SectionStart(_) | StreamItem::SectionContinue { .. } => {
                at += ram_body(&bytes[at..], &mut ram, &mut blocks);
                stream.end_of_body();
            }
            StreamItem::Command(Command::Packaged { length }) => at += length as usize,
            StreamItem::EndOfStream => assert_eq!(at, bytes.len(), "postcopy ends without a description"),
            _ => {}
        }
    }
    blocks
}

/// Applies one body; returns its length.
fn ram_body(bytes: &[u8], ram: &mut RamDecoder, blocks: &mut Vec<Block>) -> usize {
    let mut at = 0;
    loop {
        let Step::Item { used, item } = ram.next(&bytes[at..]).expect("records") else { panic!("cut") };
        at += used;
        let name = ram.block_name().unwrap_or_default();
        match item {
            RamItem::Setup(setup) => blocks.extend(setup.blocks.into_iter().map(|block| Block {
                bytes: vec![0; block.length.0 as usize],
                name: block.name.to_string(),
            })),
            RamItem::Zero(page) => bytes_of(blocks, name)[page.offset as usize..][..PAGE_BYTES].fill(0),
            RamItem::Page(page) => {
                bytes_of(blocks, name)[page.offset as usize..][..PAGE_BYTES]
                    .copy_from_slice(&bytes[at..at + PAGE_BYTES]);
                at += PAGE_BYTES;
            }
            RamItem::MultifdFlush => {}
            RamItem::EndOfSection => return at,
            other => panic!("{other:?}"),
        }
    }
}

//! Memory follows the number of channels and workers, never what a channel announces or unpacks to.
//!
//! A binary of its own with one test: the allocator counts for the whole process. What zstd itself takes is not
//! counted; it is bounded by the window that the decoder accepts.

mod support;

use flate2::write::ZlibEncoder;
use limosa_compress::{Method, PacketEncoder};
use limosa_multifd::{ReceiveConfig, ReceiveError};
use limosa_pages::PAGE_BYTES;
use limosa_wire::multifd::{
    BlockMethod, Compression, MAX_COMPRESSED_BYTES, PACKET_PAGES, PageMap, PerPacketHead,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::io::Write;
use std::num::NonZeroU8;
use support::*;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Two packets for the channel and two for the worker, each with its payload and its pages; and 1 MiB for all the rest:
/// threads, maps, buffers, errors.
const LIMIT: usize = 4 * (MAX_COMPRESSED_BYTES as usize + PACKET_PAGES * PAGE_BYTES) + (1 << 20);

/// Proper packets before the one that is none: 32 MiB of pages.
const PROPER: usize = 64;

/// A bomb unpacks to this.
const BOMB_BYTES: usize = 32 << 20;

/// Bytes that were allocated while `stream` was received behind a proper opening, counted without what was freed: the peak is at most this.
fn allocated(compression: Compression, stream: &[u8]) -> (usize, ReceiveError) {
    let region = Region::new(ALLOCATOR);
    let config = ReceiveConfig { compression, codec_workers: NonZeroU8::new(1), ..ReceiveConfig::default() };
    let mut receiver = receiver(1, config);
    receiver.peers[0].write_all(&[init_packet(0), sync_packet()].concat()).expect("read");
    receiver.channels.wait_sync().expect("a proper opening");
    // Fails when the receiver has had enough.
    let _ = receiver.peers[0].write_all(stream);
    let error = receiver.channels.wait_sync().expect_err("no channel");
    drop(receiver);
    let change = region.change();
    (change.bytes_allocated + usize::try_from(change.bytes_reallocated.max(0)).expect("not negative"), error)
}

/// A head that says that every page of a full packet is in one block, and that block.
fn one_block(method: BlockMethod, block: &[u8]) -> Vec<u8> {
    let head = PerPacketHead { method, compressed_bytes: block.len() as u32, ..PerPacketHead::all_raw(0) };
    let mut payload = Vec::new();
    head.encode(PACKET_PAGES, &mut payload);
    payload.extend_from_slice(block);
    payload
}

/// A head that says that every page of a full packet is a delta, and records that are none.
fn no_deltas() -> Vec<u8> {
    let records = [0xff; 64 << 10];
    let delta = PageMap::first(PACKET_PAGES);
    let head = PerPacketHead { delta, delta_bytes: records.len() as u32, ..PerPacketHead::all_raw(0) };
    let mut payload = Vec::new();
    head.encode(PACKET_PAGES, &mut payload);
    payload.extend_from_slice(&records);
    payload
}

/// One byte, and a match of almost all of the bomb.
fn lz4_bomb() -> Vec<u8> {
    [&b"\x1f\0\x01\0"[..], &vec![0xff; BOMB_BYTES / 255], b"\0\x50godwi"].concat()
}

fn zlib_bomb() -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), flate2::Compression::new(1));
    encoder.write_all(&vec![0; BOMB_BYTES]).expect("into memory");
    encoder.finish().expect("into memory")
}

fn zstd_bomb() -> Vec<u8> {
    zstd::stream::encode_all(&vec![0; BOMB_BYTES][..], 19).expect("into memory")
}

/// Payloads of full packets as they should be.
fn proper(compression: Compression) -> Vec<Vec<u8>> {
    let pages: Vec<u8> = (0..PACKET_PAGES as u64).flat_map(|page| content(1, page % 40)).collect();
    let streamed = |mut encoder: PacketEncoder| {
        let packet = |_| {
            let mut payload = Vec::new();
            encoder.encode(&pages, &mut payload).expect("fits");
            payload
        };
        (0..PROPER).map(packet).collect()
    };
    match compression {
        Compression::Zlib => streamed(PacketEncoder::zlib(1)),
        Compression::Zstd => streamed(PacketEncoder::zstd(1).expect("memory")),
        _ => {
            let pages: Vec<_> =
                pages.chunks(PAGE_BYTES).map(|page| (Form::Compressed, page.to_vec())).collect();
            vec![per_packet_payload(Method::Lz4, &pages); PROPER]
        }
    }
}

#[test]
fn what_a_channel_announces_or_unpacks_to_takes_no_memory() {
    use Compression::{PerPacket, Zlib, Zstd};
    let offsets: Vec<u64> = (0..PACKET_PAGES as u64).map(|page| page * PAGE_BYTES as u64).collect();
    let garbage = vec![0xa5; 64 << 10];
    for (what, compression, payload) in [
        ("a zlib bomb", Zlib, zlib_bomb()),
        ("a zstd bomb", Zstd, zstd_bomb()),
        ("an LZ4 bomb in a packet", PerPacket, one_block(BlockMethod::Lz4, &lz4_bomb())),
        ("a zstd bomb in a packet", PerPacket, one_block(BlockMethod::Zstd, &zstd_bomb())),
        ("garbage for zlib", Zlib, garbage.clone()),
        ("garbage for zstd", Zstd, garbage.clone()),
        ("garbage for LZ4 in a packet", PerPacket, one_block(BlockMethod::Lz4, &garbage)),
        ("garbage for zstd in a packet", PerPacket, one_block(BlockMethod::Zstd, &garbage)),
        ("garbage for deltas", PerPacket, no_deltas()),
    ] {
        let mut stream = Vec::new();
        for payload in proper(compression).iter().chain([&payload]) {
            stream.extend_from_slice(&pages_packet(&offsets, &[], compression, payload));
        }
        let (bytes, error) = allocated(compression, &stream);
        assert!(bytes <= LIMIT, "{what}: {bytes} bytes");
        assert_eq!(error.connection.channel, Some(0), "{what}");
    }
}

//! A channel says what is not so.

use super::proxy::{Edit, Mischief};
use super::{Bench, CODECS, SHORT, assert_migrates_now};
use limosa_engine::Codec;
use limosa_wire::multifd::{BlockMethod, PageMap, PagesHeader, PerPacketHead};
use std::sync::Arc;

/// A change of one packet of channel 0, and what the destination says of it.
struct Lie {
    packet: usize,
    change: fn(&mut Vec<u8>),
    refusal: &'static str,
}

const INIT: usize = 0;
const FIRST_SYNC: usize = 1;
const FIRST_PAGES: usize = 2;
/// Behind the pages of both blocks.
const SECOND_SYNC: usize = 4;

/// Offsets in a header (wire 4.4).
const FLAGS: usize = 8;
const ALLOCATED: usize = 12;
const NORMAL: usize = 16;
const PAYLOAD: usize = 20;
const ZERO: usize = 32;
const BLOCK: usize = 64;
const OFFSETS: usize = 320;

const fn lie(packet: usize, change: fn(&mut Vec<u8>), refusal: &'static str) -> Lie {
    Lie { packet, change, refusal }
}

/// What no channel may say, whatever its codec.
const LIES: [Lie; 12] = [
    lie(INIT, |packet| packet[7] = 2, "version"),
    lie(INIT, |packet| packet[8] = 1, "the channel belongs to machine 01000000-"),
    lie(INIT, |packet| packet[24] = 9, "channel number 9; expected less than 2"),
    lie(INIT, |packet| packet[24] = 1, "a second connection says that it is channel 1"),
    lie(FIRST_SYNC, |packet| packet[0] = 0, "magic"),
    lie(FIRST_SYNC, |packet| name_a_zero_page(packet), "pages before the first synchronisation point"),
    lie(FIRST_PAGES, |packet| packet[4] = 9, "version"),
    lie(FIRST_PAGES, |packet| packet[NORMAL + 3] = 129, "129"),
    lie(FIRST_PAGES, |packet| packet[FLAGS + 3] = 0x10, "a packet compressed with"),
    lie(FIRST_PAGES, |packet| packet[BLOCK] = b'x', "unknown RAM block"),
    lie(FIRST_PAGES, |packet| packet[OFFSETS] = 0x7f, "of RAM block"),
    lie(SECOND_SYNC, |packet| packet[FLAGS + 3] = 0x40 | 1, "flags"),
];

/// What a compressed channel may not say.
const CODEC_LIES: [Lie; 4] = [
    lie(FIRST_PAGES, |packet| packet[PagesHeader::BYTES] ^= 0xff, "cannot be decompressed"),
    lie(FIRST_PAGES, cut_payload, "cannot be decompressed"),
    lie(FIRST_PAGES, |packet| packet[PAYLOAD] = 0x7f, "payload"),
    lie(FIRST_PAGES, |packet| packet[NORMAL + 3] = 0, "bytes that are no packet"),
];

/// What a channel of packets that stand for themselves may not say, whatever the codec. The first packet has one page.
const PACKET_LIES: [Lie; 5] = [
    lie(FIRST_PAGES, cut_payload, "bytes that are no packet"),
    lie(FIRST_PAGES, |packet| packet[PagesHeader::BYTES + 5] = 0x7f, "bytes that are no packet"),
    lie(FIRST_PAGES, |packet| packet[PAYLOAD] = 0x7f, "bytes that are no packet"),
    // A map of changed lines without the lines, and a second record for one page.
    lie(FIRST_PAGES, |packet| set_deltas(packet, &[0xff; 8]), "delta records of 8 bytes cannot be read"),
    lie(FIRST_PAGES, |packet| set_deltas(packet, &[0; 16]), "delta records of 16 bytes cannot be read"),
];

/// What no LZ4 block of one page is: garbage, five bytes, and a match as long as its lengths can say.
const LZ4_LIES: [Lie; 3] = [
    lie(FIRST_PAGES, |packet| set_block(packet, BlockMethod::Lz4, &[0xff; 64]), NO_BLOCK),
    lie(FIRST_PAGES, |packet| set_block(packet, BlockMethod::Lz4, b"\x50godwi"), NO_BLOCK),
    lie(FIRST_PAGES, |packet| set_block(packet, BlockMethod::Lz4, &lz4_bomb()), NO_BLOCK),
];

/// What no zstd frame of one page is: garbage, half a page, and 125 MiB.
const ZSTD_LIES: [Lie; 3] = [
    lie(FIRST_PAGES, |packet| set_block(packet, BlockMethod::Zstd, &[0xff; 64]), NO_BLOCK),
    lie(FIRST_PAGES, |packet| set_block(packet, BlockMethod::Zstd, &zstd_repeating(1, 2048)), NO_BLOCK),
    lie(
        FIRST_PAGES,
        |packet| set_block(packet, BlockMethod::Zstd, &zstd_repeating(1000, 128 << 10)),
        NO_BLOCK,
    ),
];

const NO_BLOCK: &str = "cannot be decompressed";

/// Makes a SYNC packet one that has the first page of the guest.
fn name_a_zero_page(packet: &mut [u8]) {
    packet[FLAGS + 3] = 0;
    packet[ALLOCATED + 3] = 128;
    packet[ZERO + 3] = 1;
    packet[BLOCK..BLOCK + 8].copy_from_slice(b"main.ram");
}

/// Leaves out the last eight bytes of the payload, and says so.
fn cut_payload(packet: &mut Vec<u8>) {
    packet.truncate(packet.len() - 8);
    let payload = (packet.len() - PagesHeader::BYTES) as u32;
    packet[PAYLOAD..PAYLOAD + 4].copy_from_slice(&payload.to_be_bytes());
}

/// Gives the packet of one page this payload.
fn set_payload(packet: &mut Vec<u8>, head: PerPacketHead, behind: &[u8]) {
    packet.truncate(PagesHeader::BYTES);
    head.encode(1, packet);
    packet.extend_from_slice(behind);
    let payload = (packet.len() - PagesHeader::BYTES) as u32;
    packet[PAYLOAD..PAYLOAD + 4].copy_from_slice(&payload.to_be_bytes());
}

/// Makes its page one of a compressed block.
fn set_block(packet: &mut Vec<u8>, method: BlockMethod, block: &[u8]) {
    let compressed_bytes = block.len() as u32;
    set_payload(packet, PerPacketHead { method, compressed_bytes, ..PerPacketHead::all_raw(0) }, block);
}

/// Makes its page a delta.
fn set_deltas(packet: &mut Vec<u8>, records: &[u8]) {
    let (delta, delta_bytes) = (PageMap::first(1), records.len() as u32);
    set_payload(packet, PerPacketHead { delta, delta_bytes, ..PerPacketHead::all_raw(0) }, records);
}

/// A byte, repeated by one match of almost 1 MB.
fn lz4_bomb() -> Vec<u8> {
    [&b"\x1f\0\x01\0"[..], &[0xff; 4000], b"\0\x50godwi"].concat()
}

/// A frame that repeats one byte, `length` times in each of `blocks` blocks of four bytes.
fn zstd_repeating(blocks: u32, length: u32) -> Vec<u8> {
    // A single segment with four bytes of content size.
    let mut frame = b"\x28\xb5\x2f\xfd\xa0".to_vec();
    frame.extend_from_slice(&(blocks * length).to_le_bytes());
    for block in 1..=blocks {
        let head = length << 3 | 1 << 1 | u32::from(block == blocks);
        frame.extend_from_slice(&head.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

impl Lie {
    fn mischief(&self) -> Mischief {
        let (number, change) = (self.packet, self.change);
        edit(move |at, mut packet| {
            if at == number {
                change(&mut packet);
            }
            packet
        })
    }

    fn assert_refused(&self, bench: &mut Bench) {
        let ended = bench.run(0, self.mischief());
        let error = ended.incoming.statistics.error.clone().unwrap_or_default();
        let what = format!("{:?}, packet {}, expected {:?}", bench.codec, self.packet, self.refusal);
        bench.assert_stays(&ended, &what);
        assert!(error.contains(self.refusal) && error.contains("multifd c"), "{what}: {error}");
        bench.put_back();
    }
}

fn edit(change: impl Fn(usize, Vec<u8>) -> Vec<u8> + Send + Sync + 'static) -> Mischief {
    Mischief::Edit(Arc::new(change) as Edit)
}

#[test]
fn what_no_channel_may_say_is_refused_and_the_guest_stays() {
    for codec in CODECS {
        for lie in &LIES {
            // With two channels, so that there is a number to take; the other has nothing but SYNC packets, or all.
            let mut bench = Bench::new(if lie.packet == INIT { 2 } else { 1 }, codec);
            lie.assert_refused(&mut bench);
        }
        assert_migrates_now(Bench::new(1, codec));
    }
}

#[test]
fn a_payload_that_is_none_is_refused_and_the_guest_stays() {
    for codec in [Codec::Zlib { level: 1 }, Codec::Zstd { level: 1 }] {
        let mut bench = Bench::new(1, codec);
        CODEC_LIES.iter().for_each(|lie| lie.assert_refused(&mut bench));
        assert_migrates_now(bench);
    }
}

#[test]
fn a_packet_for_itself_that_is_none_is_refused_and_the_guest_stays() {
    let (lz4, zstd) = (Codec::Lz4, Codec::ZstdPacket { level: 1 });
    for (codec, lies) in [(lz4, &LZ4_LIES), (zstd, &ZSTD_LIES)] {
        let mut bench = Bench::new(1, codec);
        PACKET_LIES.iter().chain(lies).for_each(|lie| lie.assert_refused(&mut bench));
        assert_migrates_now(bench);
    }
}

#[test]
fn a_synchronisation_point_that_is_lost_is_missed() {
    let mut bench = Bench::new(1, Codec::None);
    bench.patience = SHORT;
    let last = bench.record().remove(0).packets.len() - 1;
    for packet in [SECOND_SYNC, last] {
        let lost = Lie { packet, change: |packet| packet.clear(), refusal: "synchronisation point" };
        lost.assert_refused(&mut bench);
    }
}

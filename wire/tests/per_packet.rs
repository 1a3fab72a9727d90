//! The head of a packet that stands for itself.

use limosa_pages::{BlockName, PAGE_BYTES};
use limosa_wire::multifd::{
    self, BlockMethod, Compression, MAX_DELTA_BYTES, PACKET_PAGES, PageMap, PagesHeader, PagesPacket,
    PerPacketHead, max_per_packet_bytes,
};
use limosa_wire::{Field, Step, WireError};
use proptest::prelude::*;

/// Three pages: compressed, raw, delta.
const HEAD: PerPacketHead = PerPacketHead {
    method: BlockMethod::Lz4,
    compressed_bytes: 0x123,
    delta_bytes: 17,
    raw: PageMap(0b010),
    delta: PageMap(0b100),
};
const PAGES: usize = 3;
const PAYLOAD: usize = 44 + 0x123 + 17 + 4096;

fn encoded(head: &PerPacketHead, pages: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    head.encode(pages, &mut bytes);
    bytes
}

/// What is wrong with a head of [`HEAD`]'s bytes after a change.
fn refused(change: impl FnOnce(&mut [u8]), payload: usize) -> WireError {
    let mut bytes = encoded(&HEAD, PAGES);
    change(&mut bytes);
    PerPacketHead::decode(&bytes, PAGES, payload).expect_err("a wrong head")
}

#[test]
fn the_head_has_forty_four_bytes_in_this_order() {
    let mut expected = vec![1, 0, 0, 0, 0, 0, 1, 0x23, 0, 0, 0, 17];
    expected.extend_from_slice(&[&[0; 15][..], &[2], &[0; 15], &[4]].concat());
    assert_eq!(encoded(&HEAD, PAGES), expected);
    assert_eq!(expected.len(), PerPacketHead::BYTES);
    assert_eq!(
        PerPacketHead::decode(&expected, PAGES, PAYLOAD),
        Ok(Step::Item { used: PerPacketHead::BYTES, item: HEAD })
    );
}

#[test]
fn a_packet_of_raw_pages_costs_a_head() {
    let head = PerPacketHead::all_raw(PACKET_PAGES);
    assert_eq!(head.payload_bytes(), 44 + 128 * 4096);
    assert_eq!(head.payload_bytes(), max_per_packet_bytes(PACKET_PAGES));
    assert_eq!(encoded(&head, PACKET_PAGES)[12..28], [0xff; 16]);
}

#[test]
fn an_unknown_method_is_refused() {
    let expected = WireError::Unknown { at: 0, field: Field::BlockMethod, got: 3 };
    assert_eq!(refused(|bytes| bytes[0] = 3, PAYLOAD), expected);
}

#[test]
fn pages_without_a_method_and_a_method_without_pages_are_refused() {
    let misplaced = |got| WireError::Misplaced { at: 0, field: Field::BlockMethod, got };
    assert_eq!(refused(|bytes| bytes[0] = 0, PAYLOAD), misplaced(0));
    assert_eq!(refused(|bytes| bytes[27] = 0b011, PAYLOAD), misplaced(1));
}

#[test]
fn a_reserved_byte_that_is_not_zero_is_refused() {
    for at in 1..4 {
        let expected = WireError::Mismatch { at, field: Field::PerPacketReserved, expected: 0, got: 9 };
        assert_eq!(refused(|bytes| bytes[at] = 9, PAYLOAD), expected);
    }
}

#[test]
fn a_page_outside_of_the_packet_is_refused() {
    let outside = |at, field| WireError::Misplaced { at, field, got: 127 };
    assert_eq!(refused(|bytes| bytes[12] = 0x80, PAYLOAD), outside(12, Field::RawMap));
    assert_eq!(refused(|bytes| bytes[28] = 0x80, PAYLOAD), outside(28, Field::DeltaMap));
}

#[test]
fn a_page_that_is_raw_and_a_delta_is_refused() {
    let expected = WireError::Misplaced { at: 28, field: Field::DeltaMap, got: 1 };
    assert_eq!(refused(|bytes| bytes[43] = 0b110, PAYLOAD), expected);
}

#[test]
fn a_block_as_long_as_its_pages_is_refused() {
    let length = PAGE_BYTES as u32;
    let expected = WireError::TooLarge { at: 4, field: Field::CompressedLength, got: 4096, limit: 4095 };
    assert_eq!(refused(|bytes| bytes[4..8].copy_from_slice(&length.to_be_bytes()), PAYLOAD), expected);
    let expected = WireError::Empty { at: 4, field: Field::CompressedLength };
    assert_eq!(refused(|bytes| bytes[4..8].fill(0), PAYLOAD), expected);
}

#[test]
fn delta_records_longer_or_shorter_than_any_are_refused() {
    let length = MAX_DELTA_BYTES as u32 + 1;
    let expected = WireError::TooLarge { at: 8, field: Field::DeltaLength, got: 1025, limit: 1024 };
    assert_eq!(refused(|bytes| bytes[8..12].copy_from_slice(&length.to_be_bytes()), PAYLOAD), expected);
    let expected = WireError::Misplaced { at: 8, field: Field::DeltaLength, got: 7 };
    assert_eq!(refused(|bytes| bytes[11] = 7, PAYLOAD), expected);
}

#[test]
fn parts_that_are_not_the_payload_are_refused() {
    for payload in [PAYLOAD - 1, PAYLOAD + 1, 0] {
        let expected = WireError::Mismatch {
            at: 4,
            field: Field::PayloadLength,
            expected: payload as u64,
            got: PAYLOAD as u64,
        };
        assert_eq!(refused(|_| {}, payload), expected);
    }
}

#[test]
#[should_panic = "is wrong"]
fn a_head_that_would_be_refused_is_not_encoded() {
    PerPacketHead { raw: PageMap(0b110), ..HEAD }.encode(PAGES, &mut Vec::new());
}

fn packet(payload_bytes: u32) -> Vec<u8> {
    let block = BlockName::new("pc.ram").expect("a name");
    let mut bytes = Vec::new();
    PagesPacket {
        block: &block,
        normal: &[0, 4096],
        zero: &[],
        compression: Compression::PerPacket,
        payload_bytes,
        packet_number: 0,
    }
    .encode(&mut bytes);
    bytes
}

#[test]
fn a_packet_says_per_packet_by_all_bits_of_the_method() {
    let bytes = packet(44 + 16);
    assert_eq!(bytes[8..12], [0, 0, 0, 0x3e]);
    let Ok(Step::Item { item: multifd::Packet::Pages(header), used }) = multifd::decode(&bytes) else {
        panic!("our own packet")
    };
    assert_eq!((header.compression, used), (Compression::PerPacket, PagesHeader::BYTES));
}

#[test]
fn a_payload_that_no_head_could_announce_is_refused_with_the_packet() {
    let mut bytes = packet(44);
    bytes[20..24].copy_from_slice(&43_u32.to_be_bytes());
    let expected = WireError::Misplaced { at: 20, field: Field::PayloadLength, got: 43 };
    assert_eq!(multifd::decode(&bytes), Err(expected));
    let (limit, got) = (44 + 2 * 4096, 44 + 2 * 4096 + 1);
    bytes[20..24].copy_from_slice(&(got as u32).to_be_bytes());
    let expected = WireError::TooLarge { at: 20, field: Field::PayloadLength, got, limit };
    assert_eq!(multifd::decode(&bytes), Err(expected));
}

#[test]
fn pages_of_a_map_come_in_order() {
    let mut map = PageMap::default();
    [127, 0, 64, 63].into_iter().for_each(|page| map.insert(page));
    assert_eq!(map.pages().collect::<Vec<_>>(), [0, 63, 64, 127]);
    assert!(map.contains(64) && !map.contains(65));
    assert_eq!((map.count(), map.without(PageMap::first(64)).count()), (4, 2));
    assert_eq!(map.union(PageMap::first(2)), PageMap(map.0 | 0b11));
    assert_eq!(PageMap::first(PACKET_PAGES).pages().count(), PACKET_PAGES);
}

/// A head and the pages of its packet.
fn head() -> impl Strategy<Value = (PerPacketHead, usize)> {
    let method = prop::sample::select(vec![BlockMethod::Lz4, BlockMethod::Zstd]);
    (1..=PACKET_PAGES, any::<u128>(), any::<u128>(), method, any::<u32>(), any::<u32>()).prop_map(
        |(pages, raw, delta, method, compressed_bytes, delta_bytes)| {
            let raw = PageMap(raw & PageMap::first(pages).0);
            let delta = PageMap(delta & PageMap::first(pages).0).without(raw);
            let head = PerPacketHead { method, compressed_bytes: 0, delta_bytes: 0, raw, delta };
            let (method, compressed_bytes) = match head.compressed(pages).count() * PAGE_BYTES {
                0 => (BlockMethod::None, 0),
                bytes => (method, 1 + compressed_bytes % (bytes as u32 - 1)),
            };
            // A record has 8 to 1024 bytes.
            let delta_bytes = delta.count() as u32 * (8 + delta_bytes % 1017);
            (PerPacketHead { method, compressed_bytes, delta_bytes, ..head }, pages)
        },
    )
}

proptest! {
    #[test]
    fn a_head_decodes_to_itself((head, pages) in head()) {
        let bytes = encoded(&head, pages);
        let payload = head.payload_bytes();
        prop_assert!(payload <= max_per_packet_bytes(pages));
        let expected = Ok(Step::Item { used: PerPacketHead::BYTES, item: head });
        prop_assert_eq!(PerPacketHead::decode(&bytes, pages, payload), expected);
        for end in 0..bytes.len() {
            let Ok(Step::Need(total)) = PerPacketHead::decode(&bytes[..end], pages, payload) else {
                panic!("{end} bytes suffice")
            };
            prop_assert!(total > end && total <= PerPacketHead::BYTES);
        }
    }

    #[test]
    fn damage_is_refused_or_announces_the_same_payload(
        (head, pages) in head(),
        damage in prop::collection::vec((0..PerPacketHead::BYTES, any::<u8>()), 1..4),
    ) {
        let mut bytes = encoded(&head, pages);
        let payload = head.payload_bytes();
        damage.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        match PerPacketHead::decode(&bytes, pages, payload) {
            Ok(Step::Item { item, .. }) => prop_assert_eq!(item.payload_bytes(), payload),
            Ok(Step::Need(_)) => panic!("a whole head"),
            Err(error) => prop_assert!(error.at() < PerPacketHead::BYTES),
        }
    }
}

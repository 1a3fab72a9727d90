use super::*;
use crate::Page;
use crate::delta::DeltaRecords;
use crate::packet::tests::{noise, text};
use limosa_pages::PAGE_BYTES;
use limosa_wire::Step;
use limosa_wire::multifd::{PACKET_PAGES, PageMap, PerPacketHead, max_per_packet_bytes};
use proptest::prelude::*;

const METHODS: [Method; 5] = [
    Method::None,
    Method::Lz4,
    Method::Zstd { level: 1 },
    Method::Zstd { level: 3 },
    Method::Zstd { level: 19 },
];

/// How a page is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Raw,
    Compress,
    Delta,
}

const OLD: Page = [9; PAGE_BYTES];

fn encoder() -> PerPacketEncoder {
    PerPacketEncoder::new().expect("memory")
}

fn decoder() -> PerPacketDecoder {
    PerPacketDecoder::new().expect("memory")
}

/// A packet of these pages. A page that makes no delta is compressed.
fn packet(pages: &[(Form, Page)]) -> PacketPages {
    let mut packet = PacketPages::new();
    for (form, page) in pages {
        *packet.candidate() = *page;
        match form {
            Form::Raw => packet.raw(),
            Form::Delta if packet.delta(&OLD) => {}
            _ => packet.compress(),
        }
    }
    packet
}

fn all(form: Form, bytes: &[u8]) -> Vec<(Form, Page)> {
    bytes.as_chunks().0.iter().map(|page| (form, *page)).collect()
}

/// What a receiver makes of a payload with this head, given the pages that its sender gathers.
fn received(
    decoder: &mut PerPacketDecoder,
    head: PerPacketHead,
    payload: &[u8],
    sent: &[(Form, Page)],
) -> Vec<Page> {
    let count = sent.len();
    let decoded = PerPacketHead::decode(payload, count, payload.len() + head.raw.count() * PAGE_BYTES);
    assert_eq!(decoded, Ok(Step::Item { used: PerPacketHead::BYTES, item: head }));
    let (block, deltas) = payload[PerPacketHead::BYTES..].split_at(head.compressed_bytes as usize);
    let mut pages = vec![OLD; count];
    head.raw.pages().for_each(|page| pages[page] = sent[page].1);
    let compressed = head.compressed(count);
    if compressed.count() > 0 {
        let mut bytes = vec![0; compressed.count() * PAGE_BYTES];
        decoder.decode(head.method, block, &mut bytes).expect("our own");
        let made = bytes.as_chunks().0;
        compressed.pages().zip(made).for_each(|(page, bytes)| pages[page] = *bytes);
    }
    let records = DeltaRecords::new(deltas, head.delta.count()).expect("our own");
    head.delta.pages().zip(records).for_each(|(page, record)| record.apply(&mut pages[page]));
    pages
}

fn touched(byte: u8) -> Page {
    let mut page = OLD;
    page[100] = byte;
    page
}

#[test]
fn a_packet_of_all_forms_comes_back_by_every_method() {
    let text = all(Form::Compress, &text(3));
    let noise = all(Form::Raw, &noise(2, 1));
    let pages = [&text[..], &noise, &[(Form::Delta, touched(1))], &text, &[(Form::Delta, OLD)]].concat();
    let (mut encoder, mut decoder, mut payload) = (encoder(), decoder(), Vec::new());
    for method in METHODS.into_iter().chain(METHODS.into_iter().rev()) {
        let head = encoder.encode(method, &packet(&pages), &mut payload).expect("encodes");
        assert_eq!(head.method, method.block_method());
        let raw = if method == Method::None { 0b0_1_1_1_0_1_1_1_1_1 } else { 0b11 << 3 };
        assert_eq!((head.raw, head.delta), (PageMap(raw), PageMap(1 << 5 | 1 << 9)), "{method}");
        let sent: Vec<Page> = pages.iter().map(|(_, page)| *page).collect();
        assert!(received(&mut decoder, head, &payload, &pages) == sent, "{method}");
    }
}

#[test]
fn a_packet_of_raw_pages_is_a_head_alone() {
    let mut payload = vec![1];
    for method in METHODS {
        let head = encoder().encode(method, &packet(&all(Form::Raw, &noise(128, 1))), &mut payload);
        assert_eq!(head, Ok(PerPacketHead::all_raw(PACKET_PAGES)));
        assert_eq!(payload.len(), PerPacketHead::BYTES);
    }
}

#[test]
fn pages_that_do_not_shrink_go_raw_after_all() {
    let pages = [all(Form::Compress, &noise(5, 1)), vec![(Form::Delta, touched(1))]].concat();
    let mut payload = Vec::new();
    for method in METHODS {
        let head = encoder().encode(method, &packet(&pages), &mut payload).expect("encodes");
        assert_eq!((head.raw, head.delta), (PageMap(0b11111), PageMap(1 << 5)));
        assert_eq!(payload.len(), PerPacketHead::BYTES + 17);
    }
}

#[test]
fn a_packet_that_did_not_shrink_leaves_the_encoder_as_it_was() {
    let (mut encoder, mut fresh, mut payload) = (encoder(), Vec::new(), Vec::new());
    for method in METHODS {
        encoder.encode(method, &packet(&all(Form::Compress, &noise(64, 1))), &mut payload).expect("encodes");
        encoder.encode(method, &packet(&all(Form::Compress, &text(64))), &mut payload).expect("encodes");
        let mut other = PerPacketEncoder::new().expect("memory");
        other.encode(method, &packet(&all(Form::Compress, &text(64))), &mut fresh).expect("encodes");
        assert!(payload == fresh, "{method}");
    }
}

#[test]
fn a_full_packet_of_text_shrinks_to_a_tenth() {
    let mut payload = Vec::new();
    for method in &METHODS[1..] {
        let head = encoder().encode(*method, &packet(&all(Form::Compress, &text(128))), &mut payload);
        assert_eq!(head.map(|head| head.raw), Ok(PageMap(0)));
        assert!(payload.len() < PACKET_PAGES * PAGE_BYTES / 10, "{} bytes by {method}", payload.len());
    }
}

#[test]
fn a_cleared_packet_is_an_empty_one() {
    let mut packet = packet(&[(Form::Delta, OLD), (Form::Raw, OLD), (Form::Compress, OLD)]);
    packet.clear();
    assert_eq!((packet.count(), packet.raw_pages(), packet.delta_pages()), (0, PageMap(0), PageMap(0)));
    assert_eq!((packet.compressed(), packet.delta_records()), (&[][..], &[][..]));
}

#[test]
fn a_delta_that_is_too_long_adds_nothing() {
    let mut packet = PacketPages::new();
    *packet.candidate() = [1; PAGE_BYTES];
    assert!(!packet.delta(&OLD));
    assert_eq!((packet.count(), packet.delta_records().len()), (0, 0));
    assert_eq!(*packet.candidate(), [1; PAGE_BYTES], "it is still there to be compressed");
}

#[test]
#[should_panic = "the packet is full"]
fn one_page_more_than_a_packet_has_is_a_bug() {
    packet(&all(Form::Raw, &noise(128, 1))).raw();
}

#[test]
#[should_panic = "without pages"]
fn a_packet_without_pages_is_a_bug() {
    let _ = encoder().encode(Method::Lz4, &PacketPages::new(), &mut Vec::new());
}

/// The compressed block of `bytes`.
fn block(method: Method, bytes: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    encoder().encode(method, &packet(&all(Form::Compress, bytes)), &mut payload).expect("encodes");
    payload.split_off(PerPacketHead::BYTES)
}

#[test]
fn a_block_for_fewer_pages_than_the_head_says_is_refused() {
    for method in &METHODS[1..] {
        let mut pages = vec![0; 3 * PAGE_BYTES];
        let refused = decoder().decode(method.block_method(), &block(*method, &text(2)), &mut pages);
        let (expected, got) = (3 * PAGE_BYTES, 2 * PAGE_BYTES);
        assert_eq!(refused, Err(PerPacketError::TooFewBytes { expected, got }), "{method}");
    }
}

#[test]
fn a_block_for_more_pages_than_the_head_says_is_refused() {
    for method in &METHODS[1..] {
        let refused =
            decoder().decode(method.block_method(), &block(*method, &text(2)), &mut [0; PAGE_BYTES]);
        assert!(matches!(refused, Err(PerPacketError::Lz4 { .. } | PerPacketError::Zstd(_))), "{refused:?}");
    }
}

#[test]
fn a_bomb_makes_no_more_than_its_pages() {
    let zeros = vec![0; 64 << 20];
    let mut zstd = vec![0; 1 << 20];
    let written = zstd_safe::compress(&mut zstd[..], &zeros, 1).expect("compresses");
    let lz4 = lz4_flex::block::compress(&zeros);
    for (method, bomb) in [(BlockMethod::Zstd, &zstd[..written]), (BlockMethod::Lz4, &lz4)] {
        let refused = decoder().decode(method, bomb, &mut vec![0; PACKET_PAGES * PAGE_BYTES]);
        assert!(matches!(refused, Err(PerPacketError::Lz4 { .. } | PerPacketError::Zstd(_))), "{refused:?}");
    }
}

#[test]
fn bytes_behind_a_zstd_frame_are_refused() {
    let block = block(Method::Zstd { level: 1 }, &text(1));
    // A frame that zstd skips, of no bytes, and a frame of no bytes.
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    let mut empty = [0; 32];
    let written = zstd_safe::compress(&mut empty[..], &[], 1).expect("compresses");
    for behind in [&skippable[..], &empty[..written], &[0]] {
        let bytes = [&block[..], behind].concat();
        let refused = decoder().decode(BlockMethod::Zstd, &bytes, &mut [0; PAGE_BYTES]);
        assert_eq!(refused, Err(PerPacketError::Trailing { unread: behind.len() }));
    }
}

#[test]
fn a_block_without_a_method_is_refused() {
    let refused = decoder().decode(BlockMethod::None, &[0; 7], &mut [0; PAGE_BYTES]);
    assert_eq!(refused, Err(PerPacketError::NoMethod { block: 7 }));
}

#[test]
fn a_refused_block_leaves_the_decoder_as_it_was() {
    for method in &METHODS[1..] {
        let (mut decoder, good) = (decoder(), block(*method, &text(2)));
        let mut pages = vec![0; 2 * PAGE_BYTES];
        assert!(decoder.decode(method.block_method(), &good[..good.len() / 2], &mut pages).is_err());
        assert_eq!(decoder.decode(method.block_method(), &good, &mut pages), Ok(()));
        assert!(pages == text(2), "{method}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_the_pages_are_they_come_back(
        method in prop::sample::select(METHODS.to_vec()),
        pages in prop::collection::vec(
            (prop::sample::select(vec![Form::Raw, Form::Compress, Form::Delta]), any::<u64>(), 0..PAGE_BYTES), 1..40)
    ) {
        let pages: Vec<(Form, Page)> = pages.into_iter().map(|(form, seed, quiet)| {
            let mut page: Page = noise(1, seed).try_into().expect("one page");
            // Every page begins with something that repeats; some are but for a few bytes the old page.
            page[..quiet].fill(seed as u8);
            if form == Form::Delta && seed % 4 > 0 {
                page = OLD;
                page[quiet] = seed as u8;
            }
            (form, page)
        }).collect();
        let mut payload = Vec::new();
        let head = encoder().encode(method, &packet(&pages), &mut payload).expect("encodes");
        prop_assert!(head.payload_bytes() <= max_per_packet_bytes(pages.len()));
        let back = received(&mut decoder(), head, &payload, &pages);
        prop_assert!(pages.iter().map(|(_, page)| page).eq(&back));
    }

    #[test]
    fn no_bytes_panic_a_decoder(block in prop::collection::vec(any::<u8>(), 0..2000), zstd in any::<bool>()) {
        let magic = [0x28, 0xb5, 0x2f, 0xfd];
        let mut pages = vec![0; PACKET_PAGES * PAGE_BYTES];
        let _ = decoder().decode(BlockMethod::Lz4, &block, &mut pages);
        let bytes = if zstd { [&magic[..], &block].concat() } else { block };
        prop_assert!(decoder().decode(BlockMethod::Zstd, &bytes, &mut pages).is_err());
    }
}

use super::*;
use proptest::prelude::*;

const MODEST: u8 = 1;

/// Every method with its levels.
fn encoders() -> Vec<(PacketEncoder, PacketDecoder)> {
    let zlib = (0..=ZLIB_LEVEL_MAX).map(|level| (PacketEncoder::zlib(level), PacketDecoder::zlib()));
    let zstd = [0, 1, 3, 9, ZSTD_LEVEL_MAX]
        .map(|level| (PacketEncoder::zstd(level).expect("memory"), PacketDecoder::zstd().expect("memory")));
    zlib.chain(zstd).collect()
}

/// The methods, each at a low level.
fn modest() -> [(PacketEncoder, PacketDecoder); 2] {
    [
        (PacketEncoder::zlib(MODEST), PacketDecoder::zlib()),
        (PacketEncoder::zstd(MODEST).expect("memory"), PacketDecoder::zstd().expect("memory")),
    ]
}

/// Bytes that no method shrinks.
pub(crate) fn noise(pages: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; pages * PAGE_BYTES];
    for word in bytes.as_chunks_mut::<8>().0 {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        *word = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb).to_le_bytes();
    }
    bytes
}

pub(crate) fn text(pages: usize) -> Vec<u8> {
    b"The bar-tailed godwit flies eleven days without a rest. ".repeat(pages * 80)[..pages * PAGE_BYTES]
        .to_vec()
}

fn encoded(encoder: &mut PacketEncoder, pages: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    encoder.encode(pages, &mut payload).expect("fits");
    payload
}

#[test]
fn packets_of_a_channel_come_back_in_order_at_every_level() {
    let packets = [noise(128, 1), text(128), noise(1, 2), vec![0; 128 * PAGE_BYTES], text(3), noise(128, 1)];
    for (mut encoder, mut decoder) in encoders() {
        for pages in &packets {
            let payload = encoded(&mut encoder, pages);
            let mut back = vec![1; pages.len()];
            assert_eq!(decoder.decode(&payload, &mut back), Ok(()), "{encoder:?}");
            assert_eq!(back, *pages);
        }
    }
}

#[test]
fn incompressible_pages_grow_by_less_than_one_per_cent() {
    for (mut encoder, _) in encoders() {
        // Also between pages that do shrink.
        let mixed: Vec<u8> = (0..64).flat_map(|page| [noise(1, page), text(1)].concat()).collect();
        let text_alone = encoded(&mut encoder, &text(1)).len() * 64;
        for (pages, others) in [(noise(PACKET_PAGES_MAX, 7), 0), (mixed, text_alone)] {
            let payload = encoded(&mut encoder, &pages);
            let raw = if others > 0 { pages.len() / 2 } else { pages.len() };
            assert!(payload.len() < raw + raw / 100 + others, "{} bytes of {encoder:?}", payload.len());
        }
    }
}

#[test]
fn stored_pages_between_compressed_ones_leave_no_trace() {
    let packets =
        [text(2), noise(3, 1), text(1), [noise(1, 2), text(1), noise(2, 3), text(5)].concat(), text(2)];
    for (mut encoder, mut decoder) in encoders() {
        for pages in packets.iter().chain(packets.iter().rev()).cycle().take(40) {
            let payload = encoded(&mut encoder, pages);
            let mut back = vec![1; pages.len()];
            assert_eq!(decoder.decode(&payload, &mut back), Ok(()), "{encoder:?}");
            assert!(back == *pages, "{encoder:?}");
        }
    }
}

#[test]
fn payloads_begin_and_end_as_qemu_writes_them() {
    let [(mut zlib, _), (mut zstd, _)] = modest();
    for first in [true, false] {
        let payload = encoded(&mut zlib, &text(2));
        assert_eq!(payload.starts_with(&[0x78, 0x01]), first, "one stream per channel");
        assert!(payload.ends_with(&[0, 0, 0xff, 0xff]), "flushed");
        assert!(encoded(&mut zlib, &noise(1, 1)).len() > PAGE_BYTES, "stored, and the stream goes on");
        let payload = encoded(&mut zstd, &text(2));
        assert_eq!(payload.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), first, "one frame per channel");
    }
}

#[test]
fn a_payload_for_more_pages_than_announced_is_refused() {
    for (mut encoder, mut decoder) in modest() {
        for (is, said) in [(2, 1), (128, 127), (128, 1)] {
            let payload = encoded(&mut encoder, &text(is));
            let mut pages = vec![0; said * PAGE_BYTES];
            let expected = pages.len();
            assert_eq!(decoder.decode(&payload, &mut pages), Err(PacketError::TooManyBytes { expected }));
            (encoder, decoder) = match encoder.method {
                Encoding::Zlib(_) => (PacketEncoder::zlib(MODEST), PacketDecoder::zlib()),
                Encoding::Zstd(_) => {
                    (PacketEncoder::zstd(MODEST).expect("memory"), PacketDecoder::zstd().expect("memory"))
                }
            };
        }
    }
}

#[test]
fn a_payload_for_fewer_pages_than_announced_is_refused() {
    for (mut encoder, mut decoder) in modest() {
        let payload = encoded(&mut encoder, &text(2));
        let mut pages = vec![0; 3 * PAGE_BYTES];
        let expected = pages.len();
        let refused = PacketError::TooFewBytes { expected, got: 2 * PAGE_BYTES };
        assert_eq!(decoder.decode(&payload, &mut pages), Err(refused));
    }
}

#[test]
fn a_bomb_makes_no_more_than_its_pages() {
    // A megabyte of input would make a gigabyte.
    let zeros = vec![0; 64 << 20];
    let zlib = {
        let mut out = Vec::with_capacity(PAYLOAD_BYTES_MAX);
        flate2::Compress::new(flate2::Compression::best(), true)
            .compress_vec(&zeros, &mut out, flate2::FlushCompress::Sync)
            .expect("compresses");
        out
    };
    let mut zstd = vec![0; PAYLOAD_BYTES_MAX];
    let written = zstd_safe::compress(&mut zstd[..], &zeros, 1).expect("compresses");
    zstd.truncate(written);
    let mut pages = vec![0; PACKET_PAGES_MAX * PAGE_BYTES];
    let refused = Err(PacketError::TooManyBytes { expected: pages.len() });
    assert_eq!(PacketDecoder::zlib().decode(&zlib, &mut pages), refused);
    assert_eq!(PacketDecoder::zstd().expect("memory").decode(&zstd, &mut pages), refused);
}

#[test]
fn a_frame_that_wants_a_larger_window_than_qemu_has_is_refused() {
    // Magic, a descriptor without content size, and a window of 2^27 bytes.
    let header = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (27 - 10) << 3];
    let refused = PacketDecoder::zstd().expect("memory").decode(&header, &mut [0; PAGE_BYTES]);
    assert!(matches!(refused, Err(PacketError::Zstd(_))), "{refused:?}");
}

#[test]
fn a_stream_that_ends_is_refused() {
    let page = text(1);
    let mut zlib = Vec::with_capacity(PAYLOAD_BYTES_MAX);
    flate2::Compress::new(flate2::Compression::fast(), true)
        .compress_vec(&page, &mut zlib, flate2::FlushCompress::Finish)
        .expect("compresses");
    let mut zstd = vec![0; PAYLOAD_BYTES_MAX];
    let written = zstd_safe::compress(&mut zstd[..], &page, 1).expect("compresses");
    zstd.truncate(written);
    let refused = Err(PacketError::StreamEnded { unread: 0 });
    assert_eq!(PacketDecoder::zlib().decode(&zlib, &mut [0; PAGE_BYTES]), refused);
    assert_eq!(PacketDecoder::zstd().expect("memory").decode(&zstd, &mut [0; PAGE_BYTES]), refused);
}

#[test]
fn a_payload_longer_than_any_is_refused_unread() {
    let [(_, zlib), (_, zstd)] = modest();
    for mut decoder in [zlib, zstd] {
        let refused = decoder.decode(&vec![0; PAYLOAD_BYTES_MAX + 1], &mut [0; PAGE_BYTES]);
        assert_eq!(refused, Err(PacketError::TooLong { got: PAYLOAD_BYTES_MAX + 1 }));
    }
}

#[test]
#[should_panic = "no packet of pages"]
fn half_a_page_is_a_bug() {
    let _ = PacketEncoder::zlib(1).encode(&[0; PAGE_BYTES / 2], &mut Vec::new());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_the_pages_are_they_come_back(
        packets in prop::collection::vec((1_usize..6, any::<u64>(), 0_usize..PAGE_BYTES), 1..5)
    ) {
        for (mut encoder, mut decoder) in modest() {
            for &(count, seed, quiet) in &packets {
                let mut pages = noise(count, seed);
                // Every page begins with something that repeats.
                pages.chunks_mut(PAGE_BYTES).for_each(|page| page[..quiet].fill(seed as u8));
                let payload = encoded(&mut encoder, &pages);
                let mut back = vec![0; pages.len()];
                prop_assert_eq!(decoder.decode(&payload, &mut back), Ok(()));
                prop_assert!(back == pages);
            }
        }
    }

    #[test]
    fn bytes_that_are_no_payload_are_refused(payload in prop::collection::vec(any::<u8>(), 0..2000)) {
        let [(_, zlib), (_, zstd)] = modest();
        for mut decoder in [zlib, zstd] {
            // No two thousand bytes of either method are 128 pages of anything but repetition.
            prop_assert!(decoder.decode(&payload, &mut vec![0; PACKET_PAGES_MAX * PAGE_BYTES]).is_err());
        }
    }

    #[test]
    fn a_payload_cut_anywhere_is_refused(cut in any::<prop::sample::Index>()) {
        for (mut encoder, mut decoder) in modest() {
            let payload = encoded(&mut encoder, &noise(2, 3));
            // The marker of the flush carries no bytes of pages.
            let cut = cut.index(payload.len() - 8);
            prop_assert!(decoder.decode(&payload[..cut], &mut [0; 2 * PAGE_BYTES]).is_err());
        }
    }

    #[test]
    fn a_flipped_bit_never_makes_more_or_fewer_bytes(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        for (mut encoder, mut decoder) in modest() {
            let mut payload = encoded(&mut encoder, &text(4));
            *at.get_mut(&mut payload) ^= 1_u8 << bit;
            let mut guarded = vec![0xee; 6 * PAGE_BYTES];
            let _ = decoder.decode(&payload, &mut guarded[PAGE_BYTES..5 * PAGE_BYTES]);
            prop_assert!(guarded[..PAGE_BYTES].iter().chain(&guarded[5 * PAGE_BYTES..]).all(|&byte| byte == 0xee));
        }
    }
}

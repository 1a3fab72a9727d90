//! Memory follows the bytes that have arrived, never the bytes that a peer announces.
//!
//! A binary of its own with one test: the allocator counts for the whole process.

mod messages;

use limosa_wire::devices::{VmDescription, split_by_footers};
use limosa_wire::dirty_bitmap::DirtyBitmapChunk;
use limosa_wire::{
    RamContext, RamDecoder, RamEncoder, ReturnDecoder, Step, StreamDecoder, StreamItem, encode, multifd,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The one list whose length is announced and reserved: 4095 discard ranges x 16 bytes.
const RESERVED_BYTES: usize = 4095 * 16;

/// Bytes allocated per byte of input, all reallocations counted: a block of a list has 10 bytes or more on the
/// wire and 100 in memory, an empty device of a description has 3 bytes of text and 80 in memory, and a growing
/// list is counted up to three times.
const FACTOR: usize = 3 * 80;

fn allocated(run: impl FnOnce()) -> usize {
    let region = Region::new(ALLOCATOR);
    run();
    let change = region.change();
    change.bytes_allocated + usize::try_from(change.bytes_reallocated.max(0)).unwrap()
}

fn assert_bounded(input: &[u8], what: &str, decode: impl FnOnce(&[u8])) {
    let bytes = allocated(|| decode(input));
    let limit = RESERVED_BYTES + 4096 + FACTOR * input.len();
    assert!(bytes <= limit, "{what}: {bytes} bytes for an input of {}", input.len());
}

/// Gives `input` to every decoder, from its start to its first refusal.
fn decode_all(input: &[u8]) {
    for mut decoder in [StreamDecoder::new(), StreamDecoder::without_header()] {
        assert_bounded(input, "stream", |mut input| {
            while let Ok(Step::Item { used, item }) = decoder.next(input) {
                if matches!(item, StreamItem::SectionStart(_) | StreamItem::SectionContinue { .. }) {
                    decoder.end_of_body();
                }
                input = &input[used..];
            }
        });
    }
    for context in
        [RamContext::new(), RamContext::new().with_guest_addresses(), RamContext::new().with_mapped_ram()]
    {
        let mut decoder = RamDecoder::new(context);
        assert_bounded(input, "ram", |mut input| {
            while let Ok(Step::Item { used, .. }) = decoder.next(input) {
                input = &input[used..];
            }
        });
    }
    assert_bounded(input, "return path", |input| {
        let _ = ReturnDecoder::new().next(input);
    });
    assert_bounded(input, "multifd", |input| {
        let _ = multifd::decode(input);
    });
    assert_bounded(input, "dirty bitmap", |input| {
        let _ = DirtyBitmapChunk::decode(input);
    });
    assert_bounded(input, "vmdescription", |input| {
        let _ = VmDescription::parse(input);
    });
    assert_bounded(input, "footers", |input| {
        let _ = split_by_footers(input);
    });
}

/// Heads that announce as much as they can, with nothing behind.
fn announcements() -> Vec<Vec<u8>> {
    let after_header = |more: &[u8]| {
        encoded(|out| {
            encode::header(out);
            out.extend_from_slice(more);
        })
    };
    vec![
        after_header(b"\x07\xff\xff\xff\xff"),
        after_header(b"\x07\0\0\0\0\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x40"),
        after_header(b"\x00\x06\x04\0\0\0{"),
        b"\x08\0\x06\xff\xf4\0\x01a\0".to_vec(),
        b"\x08\0\x07\0\x04\x10\0\0\0".to_vec(),
        b"\xff\xff\xff\xff\xff\xff\xf0\x04\x01a".to_vec(),
        b"\0\x05\0\x02\x01a\0\0\0\0\x04\0\0\0".to_vec(),
        b"\x48\x01d\x01b\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x28\0".to_vec(),
    ]
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes);
    bytes
}

/// Real messages, which damage turns into nearly real ones, and plain noise.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let configuration = messages::configuration().prop_map(|message| {
        encoded(|out| {
            encode::header(out);
            message.encode(out);
        })
    });
    let valid = prop_oneof![
        configuration,
        messages::command().prop_map(|message| encoded(|out| message.encode(out))),
        messages::return_message().prop_map(|message| encoded(|out| message.encode(out))),
        messages::dirty_bitmap_chunk().prop_map(|message| encoded(|out| message.encode(out))),
        messages::ram_setup().prop_map(|(setup, _)| encoded(|out| RamEncoder::new().setup(&setup, out))),
        vec(any::<u8>(), 1..2000),
        Just(format!("{{\"devices\": [{{}}{}]}}", ", {}".repeat(500)).into_bytes()),
    ];
    let damage = vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4);
    (valid, damage).prop_map(|(mut bytes, damage)| {
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes
    })
}

#[test]
fn no_input_makes_a_decoder_allocate_more_than_it_has_been_given() {
    announcements().iter().for_each(|input| decode_all(input));
    let run = TestRunner::default().run(&input(), |input| {
        decode_all(&input);
        Ok(())
    });
    run.unwrap();
}

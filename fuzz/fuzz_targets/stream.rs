//! The main channel: no bytes panic, every answer is within the input, and what decodes encodes back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use limosa_wire::dirty_bitmap::DirtyBitmapChunk;
use limosa_wire::{MAX_VM_DESCRIPTION_BYTES, Step, StreamDecoder, StreamItem, encode};

fuzz_target!(|input: (bool, &[u8])| {
    let (with_header, bytes) = input;
    let mut decoder = if with_header { StreamDecoder::new() } else { StreamDecoder::without_header() };
    let mut at = 0;
    loop {
        let rest = &bytes[at..];
        match decoder.next(rest) {
            Ok(Step::Need(total)) => {
                assert!(total > rest.len() && total <= MAX_VM_DESCRIPTION_BYTES + 5);
                break;
            }
            Ok(Step::Item { used, item }) => {
                assert!(used > 0);
                assert_encodes_back(&item, &rest[..used]);
                if matches!(item, StreamItem::SectionStart(_) | StreamItem::SectionContinue { .. }) {
                    decoder.end_of_body();
                }
                at += used;
            }
            Err(error) => {
                assert!(error.at() < rest.len());
                break;
            }
        }
    }
    if let Ok(Step::Item { used, item }) = DirtyBitmapChunk::decode(bytes) {
        let mut out = Vec::new();
        item.encode(&mut out);
        assert_eq!(out.len(), used);
    }
});

fn assert_encodes_back(item: &StreamItem, bytes: &[u8]) {
    let mut out = Vec::new();
    match item {
        StreamItem::Header => encode::header(&mut out),
        StreamItem::Configuration(configuration) => configuration.encode(&mut out),
        StreamItem::SectionStart(header) => encode::section_start(header, &mut out),
        StreamItem::SectionContinue { kind, id } => encode::section_continue(*kind, *id, &mut out),
        StreamItem::Footer(id) => encode::footer(*id, &mut out),
        StreamItem::Command(command) => command.encode(&mut out),
        StreamItem::EndOfStream => encode::end_of_stream(&mut out),
        StreamItem::VmDescription(json) => encode::vm_description(json, &mut out),
    }
    assert_eq!(out, bytes);
}

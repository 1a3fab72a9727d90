//! The return path: no bytes panic, and what decodes encodes back to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use limosa_pages::ByteCount;
use limosa_wire::{ReturnDecoder, Step, received_bitmap_bytes};

fuzz_target!(|bytes: &[u8]| {
    let longest = ByteCount(1 << 30);
    let mut decoder = ReturnDecoder::for_blocks_up_to(longest);
    let mut at = 0;
    loop {
        let rest = &bytes[at..];
        match decoder.next(rest) {
            Ok(Step::Need(total)) => {
                // Head, name, bitmap length and end mark around the bitmap.
                assert!(
                    total > rest.len() && total <= 4 + 256 + 16 + received_bitmap_bytes(longest).0 as usize
                );
                break;
            }
            Ok(Step::Item { used, item }) => {
                let mut out = Vec::new();
                item.encode(&mut out);
                assert_eq!(out, &rest[..used]);
                at += used;
            }
            Err(error) => {
                assert!(error.at() < rest.len());
                break;
            }
        }
    }
});

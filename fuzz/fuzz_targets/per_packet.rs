//! A payload of a packet that stands for itself: no bytes panic, and what is accepted fills exactly its pages.
#![no_main]

use libfuzzer_sys::fuzz_target;
use limosa_compress::PerPacketDecoder;
use limosa_compress::delta::DeltaRecords;
use limosa_pages::PAGE_BYTES;
use limosa_wire::Step;
use limosa_wire::multifd::{PACKET_PAGES, PerPacketHead, max_per_packet_bytes};

/// The first byte says how many pages the packet has; the payload follows.
fuzz_target!(|bytes: &[u8]| {
    let Some((&pages, payload)) = bytes.split_first() else { return };
    let pages = usize::from(pages) % PACKET_PAGES + 1;
    // The raw pages are not part of the input: whatever the head says of them is there.
    let raw = payload.get(12..28).map_or(0, |map| map.iter().map(|byte| byte.count_ones()).sum::<u32>());
    let announced = payload.len() + raw as usize * PAGE_BYTES;
    match PerPacketHead::decode(payload, pages, announced) {
        Ok(Step::Need(total)) => assert!(total > payload.len() && total <= PerPacketHead::BYTES),
        Ok(Step::Item { used, item: head }) => {
            assert_eq!(head.payload_bytes(), announced);
            assert!(announced <= max_per_packet_bytes(pages));
            decode(&head, pages, &payload[used..]);
        }
        Err(error) => assert!(error.at() < PerPacketHead::BYTES),
    }
});

fn decode(head: &PerPacketHead, pages: usize, payload: &[u8]) {
    let (block, records) = payload.split_at(head.compressed_bytes as usize);
    let compressed = head.compressed(pages).count();
    if compressed > 0 {
        let mut decoder = PerPacketDecoder::new().expect("memory");
        let _ = decoder.decode(head.method, block, &mut vec![0; compressed * PAGE_BYTES]);
    }
    if let Ok(records) = DeltaRecords::new(records, head.delta.count()) {
        let mut page = [0; PAGE_BYTES];
        assert_eq!(records.inspect(|record| record.apply(&mut page)).count(), head.delta.count());
    }
}

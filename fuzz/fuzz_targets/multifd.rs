//! A multifd channel: no bytes panic, and what a packet announces is within its limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use limosa_wire::Step;
use limosa_wire::multifd::{
    self, InitPacket, MAX_COMPRESSED_BYTES, MAX_DEVICE_STATE_BYTES, PACKET_PAGES, Packet, PagesHeader,
};

fuzz_target!(|bytes: &[u8]| {
    let _ = InitPacket::decode(bytes);
    let mut at = 0;
    while at <= bytes.len() {
        let rest = &bytes[at..];
        match multifd::decode(rest) {
            Ok(Step::Need(total)) => {
                assert!(total > rest.len() && total <= PagesHeader::BYTES);
                break;
            }
            Ok(Step::Item { used, item }) => {
                check(&item);
                at += used + item.payload_bytes();
            }
            Err(error) => {
                assert!(error.at() < rest.len());
                break;
            }
        }
    }
});

fn check(packet: &Packet<'_>) {
    match packet {
        Packet::Pages(header) => {
            let pages = header.normal().len() + header.zero().len();
            assert!(pages <= PACKET_PAGES && header.block().is_some() == (pages > 0));
            assert!(header.payload_bytes() <= MAX_COMPRESSED_BYTES as usize);
            assert!(header.normal().chain(header.zero()).all(|offset| offset.is_multiple_of(4096)));
        }
        Packet::DeviceState(header) => {
            assert!((1..=MAX_DEVICE_STATE_BYTES).contains(&header.payload_bytes));
            assert!((1..=255).contains(&header.idstr.len()));
        }
    }
}

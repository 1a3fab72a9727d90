//! Kernel ring: what a source may put on the preempt channel, and what not.
#![allow(unsafe_code, reason = "the ring reads guest memory as a guest does")]

mod ring;

use limosa_pages::{BlockName, PAGE_BYTES, PageCount};
use limosa_postcopy::{PreemptError, PreemptReceiver};
use limosa_transport::Link;
use limosa_wire::RamEncoder;
use ring::{BLOCK, Destination, Kind, content, page, ram, ready};
use std::sync::Arc;
use std::sync::mpsc;

const PAGE: u64 = PAGE_BYTES as u64;

/// Sends `bytes` in pieces of `piece` bytes to a destination of eight pages; returns it and how its receiver ended.
fn receive(bytes: &[u8], piece: usize) -> (Destination, Result<(), PreemptError>) {
    let destination = Destination::listening(ram(Kind::Memfd, 8));
    let (near, mut far) = Link::pair().unwrap();
    let (sender, ended) = mpsc::channel();
    let receiver = PreemptReceiver::start(near.split().0, Arc::clone(&destination.sink), move |outcome| {
        sender.send(outcome).unwrap();
    });
    let receiver = receiver.unwrap();
    for piece in bytes.chunks(piece) {
        // A receiver that has refused what came before is gone.
        if far.write_all(piece).is_err() {
            break;
        }
    }
    drop(far);
    let outcome = ended.recv().unwrap();
    receiver.stop();
    (destination, outcome)
}

fn encoded(write: impl FnOnce(&mut RamEncoder, &BlockName, &mut Vec<u8>)) -> Vec<u8> {
    let (mut encoder, name, mut out) = (RamEncoder::new(), BlockName::new("pc.ram").unwrap(), Vec::new());
    write(&mut encoder, &name, &mut out);
    out
}

#[test]
fn records_are_placed_however_the_stream_is_cut() {
    if !ready() {
        return;
    }
    let bytes = encoded(|encoder, name, out| {
        for index in [5, 1, 2] {
            encoder.page(BLOCK, name, index * PAGE, out);
            out.extend_from_slice(&content(index));
        }
        encoder.zero(BLOCK, name, 3 * PAGE, out);
        encoder.end_of_section(out);
    });
    for piece in [1, 7, 4096, bytes.len()] {
        let (destination, outcome) = receive(&bytes, piece);
        outcome.unwrap();
        assert_eq!(destination.sink.received().count(), PageCount(4));
        for index in [5, 1, 2] {
            assert_eq!(ring::guest_reads(&destination.ram, index), content(index));
        }
    }
}

#[test]
fn what_is_no_page_of_the_guest_ends_the_channel_and_places_nothing() {
    if !ready() {
        return;
    }
    let outside = encoded(|encoder, name, out| encoder.page(BLOCK, name, 8 * PAGE, out));
    let (destination, outcome) = receive(&outside, 4096);
    assert!(matches!(outcome, Err(PreemptError::Outside { offset, .. }) if offset == 8 * PAGE));
    assert_eq!(destination.sink.received().count(), PageCount(0));

    let stranger = BlockName::new("vga").unwrap();
    let unknown = encoded(|encoder, _, out| encoder.zero(BLOCK, &stranger, 0, out));
    assert!(matches!(receive(&unknown, 4096).1, Err(PreemptError::UnknownBlock { name }) if name == "vga"));

    let delta = encoded(|encoder, name, out| encoder.xbzrle(BLOCK, name, 0, &[0, 1, 9], out));
    assert!(matches!(receive(&delta, 4096).1, Err(PreemptError::Record { .. })));

    assert!(matches!(receive(&[0xff; 64], 64).1, Err(PreemptError::Wire { offset: 0, .. })));
}

#[test]
fn a_channel_that_is_cut_in_a_page_is_lost_and_the_page_still_missing() {
    if !ready() {
        return;
    }
    let mut bytes = encoded(|encoder, name, out| encoder.page(BLOCK, name, PAGE, out));
    bytes.extend_from_slice(&content(1)[..100]);
    let (destination, outcome) = receive(&bytes, 4096);
    assert!(matches!(outcome, Err(PreemptError::Transport(error)) if error.is_loss()));
    assert!(!destination.sink.received().block(BLOCK).is_received(page(1)));
}

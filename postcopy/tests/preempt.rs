//! Kernel ring: what a source may put on the preempt channel, and what not.
#![allow(unsafe_code, reason = "the ring reads guest memory as a guest does")]

mod ring;

use limosa_pages::{BlockName, PAGE_BYTES, PageCount};
use limosa_postcopy::{FaultReport, PreemptError};
use limosa_transport::{Failure, Link, Role};
use limosa_wire::{RamEncoder, ReceivedPages, ReturnMessage};
use ring::{BLOCK, Destination, Kind, content, for_each_message, guest_reads, page, ram, ready};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

const PAGE: u64 = PAGE_BYTES as u64;

/// Sends `bytes` in pieces of `piece` bytes to a destination of eight pages; returns it and how its channel ended.
fn receive(bytes: &[u8], piece: usize) -> (Destination, Result<(), PreemptError>) {
    let destination = Destination::listening(ram(Kind::Memfd, 8));
    let (near, mut far) = Link::pair().unwrap();
    destination.faults.receive(near.split().0).unwrap();
    for piece in bytes.chunks(piece) {
        // A destination that has refused what came before has closed the channel.
        if far.write_all(piece).is_err() {
            break;
        }
    }
    drop(far);
    let FaultReport::PreemptEnded(outcome) = destination.reports.recv().unwrap() else { panic!("lost?") };
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
            assert_eq!(guest_reads(&destination.ram, index), content(index));
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

/// A destination of eight pages, and what its source has: the return path and the preempt channel.
fn connected() -> (Destination, Link, Link) {
    let destination = Destination::listening(ram(Kind::Memfd, 8));
    let (back, requests) = Link::pair().unwrap();
    let (near, preempt) = Link::pair().unwrap();
    destination.faults.connect(back.split().1).unwrap();
    destination.faults.receive(near.split().0).unwrap();
    destination.faults.ask().unwrap();
    (destination, requests, preempt)
}

/// The record of a page and its bytes.
fn answer(index: u64) -> Vec<u8> {
    let mut bytes = encoded(|encoder, name, out| encoder.page(BLOCK, name, index * PAGE, out));
    bytes.extend_from_slice(&content(index));
    bytes
}

/// A guest that reads a page.
fn reader(destination: &Destination, index: u64) -> JoinHandle<[u8; PAGE_BYTES]> {
    let ram = destination.ram.clone();
    std::thread::spawn(move || guest_reads(&ram, index))
}

/// The page that is asked for next.
fn next_request(messages: &mpsc::Receiver<ReturnMessage>) -> u64 {
    match messages.recv().unwrap() {
        ReturnMessage::RequestPages { pages, .. } => pages.start / PAGE,
        other => panic!("{other:?}"),
    }
}

/// What comes on the return path, as it comes.
fn heard(requests: Link) -> mpsc::Receiver<ReturnMessage> {
    let (say, messages) = mpsc::channel();
    std::thread::spawn(move || for_each_message(requests.split().0, |message| say.send(message).is_ok()));
    messages
}

#[test]
fn a_page_that_comes_in_part_keeps_no_other_fault_waiting() {
    if !ready() {
        return;
    }
    let (destination, requests, mut preempt) = connected();
    let messages = heard(requests);
    let first = reader(&destination, 1);
    assert_eq!(next_request(&messages), 1);
    let bytes = answer(1);
    let (half, rest) = bytes.split_at(bytes.len() / 2);
    preempt.write_all(half).unwrap();
    // The thread has begun with the page, or is about to: either way it hears the next fault.
    let second = reader(&destination, 2);
    assert_eq!(next_request(&messages), 2);
    for byte in rest {
        preempt.write_all(&[*byte]).unwrap();
    }
    assert_eq!(first.join().unwrap(), content(1));
    preempt.write_all(&answer(2)).unwrap();
    assert_eq!(second.join().unwrap(), content(2));
}

#[test]
fn a_peer_that_reads_no_requests_keeps_no_page_from_its_place() {
    if !ready() {
        return;
    }
    let (destination, requests, mut preempt) = connected();
    let waiting = reader(&destination, 1);
    // More than both kernels hold of a message that nobody reads.
    let block = BlockName::new("pc.ram").unwrap();
    let bitmap: Vec<u8> = (0..8 << 20).map(|at: u32| at as u8).collect();
    let long = ReturnMessage::RecvBitmap(ReceivedPages { block, bitmap });
    destination.faults.send(long.clone()).unwrap();
    destination.faults.send(ReturnMessage::Pong(7)).unwrap();
    preempt.write_all(&answer(1)).unwrap();
    assert_eq!(waiting.join().unwrap(), content(1));
    // Everything is heard in the end, whole and in order; the fault may have come before or after its neighbours.
    let late = reader(&destination, 2);
    let messages = heard(requests);
    let mut said: Vec<ReturnMessage> = messages.iter().take(3).collect();
    said.retain(|message| !matches!(message, ReturnMessage::RequestPages { .. }));
    if said.len() == 1 {
        said.extend(messages.iter().find(|message| !matches!(message, ReturnMessage::RequestPages { .. })));
    }
    assert!(said == [long, ReturnMessage::Pong(7)], "cut, or out of order");
    preempt.write_all(&answer(2)).unwrap();
    assert_eq!(late.join().unwrap(), content(2));
}

#[test]
fn a_peer_that_reads_nothing_until_the_deadline_is_lost() {
    if !ready() {
        return;
    }
    let destination = Destination::listening(ram(Kind::Memfd, 8));
    let (back, _requests) = Link::pair().unwrap();
    let (_, mut writer) = back.split();
    writer.set_deadline(Some(Duration::from_millis(1))).unwrap();
    destination.faults.connect(writer).unwrap();
    let block = BlockName::new("pc.ram").unwrap();
    let long = ReturnMessage::RecvBitmap(ReceivedPages { block, bitmap: vec![1; 8 << 20] });
    destination.faults.send(long).unwrap();
    let FaultReport::Lost(error) = destination.reports.recv().unwrap() else { panic!("not lost") };
    assert!(matches!(error.failure, Failure::TimedOut { .. }), "{error:?}");
    drop(destination.faults.stop().unwrap());
}

#[test]
fn a_peer_that_reads_nothing_is_lost_at_the_deadline_however_busy_it_is_otherwise() {
    if !ready() {
        return;
    }
    let destination = Destination::listening(ram(Kind::Memfd, 8));
    let (back, _requests) = Link::pair().unwrap();
    let (_, mut writer) = back.split();
    // Longer than it takes to send a byte, so that no wait of the thread ends for want of something to do.
    writer.set_deadline(Some(Duration::from_millis(200))).unwrap();
    destination.faults.connect(writer).unwrap();
    let (near, mut preempt) = Link::pair().unwrap();
    destination.faults.receive(near.split().0).unwrap();
    let block = BlockName::new("pc.ram").unwrap();
    let long = ReturnMessage::RecvBitmap(ReceivedPages { block, bitmap: vec![1; 8 << 20] });
    destination.faults.send(long).unwrap();
    // Zeros that are here already are taken and change nothing: the stream need never end.
    let zeros = encoded(|encoder, name, out| encoder.zero(BLOCK, name, PAGE, out));
    let told = loop {
        preempt.write_all(&zeros).unwrap();
        if let Ok(told) = destination.reports.try_recv() {
            break told;
        }
    };
    let FaultReport::Lost(error) = told else { panic!("{told:?}") };
    assert!(matches!(error.failure, Failure::TimedOut { .. }), "{error:?}");
}

#[test]
fn a_return_path_that_is_a_full_pipe_can_be_given_up() {
    if !ready() {
        return;
    }
    let destination = Destination::listening(ram(Kind::Memfd, 8));
    let (_unread, pipe) = std::io::pipe().unwrap();
    destination.faults.connect(Link::from_fd(pipe.into(), Role::Main).unwrap().split().1).unwrap();
    let block = BlockName::new("pc.ram").unwrap();
    let long = ReturnMessage::RecvBitmap(ReceivedPages { block, bitmap: vec![1; 8 << 20] });
    destination.faults.send(long).unwrap();
    destination.faults.disconnect().unwrap();
    let FaultReport::Lost(error) = destination.reports.recv().unwrap() else { panic!("not lost") };
    assert!(matches!(error.failure, Failure::ShutDown), "{error:?}");
}

#[test]
fn a_channel_that_is_cut_in_an_answer_is_replaced_and_the_page_comes_on_the_other() {
    if !ready() {
        return;
    }
    let (destination, requests, mut preempt) = connected();
    let messages = heard(requests);
    let waiting = reader(&destination, 1);
    assert_eq!(next_request(&messages), 1);
    preempt.write_all(&answer(1)[..PAGE_BYTES]).unwrap();
    drop(preempt);
    let FaultReport::PreemptEnded(Err(PreemptError::Transport(error))) = destination.reports.recv().unwrap()
    else {
        panic!("the end of the channel is not told")
    };
    assert!(error.is_loss());
    let (near, mut other) = Link::pair().unwrap();
    destination.faults.receive(near.split().0).unwrap();
    other.write_all(&answer(1)).unwrap();
    assert_eq!(waiting.join().unwrap(), content(1));
}

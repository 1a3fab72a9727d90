//! Kernel ring: guests that fault on memory which is still at the source.
#![allow(unsafe_code, reason = "reads and writes guest memory as a guest does")]

mod ring;

use limosa_pages::{DirtyMap, PAGE_BYTES, PageCount, PageRun, ReceivedMap};
use limosa_postcopy::{FaultThread, UffdError, UffdSink, discard};
use limosa_protocol::KernelThread;
use limosa_ram::Gather;
use limosa_transport::Link;
use limosa_wire::{RequestedPages, ReturnMessage};
use ring::{
    BLOCK, Destination, KINDS, Kind, content, filled_source, for_each_message, guest_reads, guest_writes,
    owing_all, page, ram, ready,
};
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::Duration;

const PAGES: u64 = 256;

fn one(index: u64) -> PageRun {
    PageRun::new(page(index), PageCount(1))
}

/// Starts `count` readers of a page that nobody serves yet, and returns when all of them wait for it in the kernel.
///
/// Their blocktime tells: it grows from the moment their fault was noted, and the fault thread must run to note it.
fn blocked_readers(destination: &Destination, index: u64, count: usize) -> Vec<JoinHandle<[u8; PAGE_BYTES]>> {
    let (sender, numbers) = mpsc::channel();
    let gate = Arc::new(Barrier::new(count + 1));
    let readers = (0..count)
        .map(|_| {
            let (ram, sender, gate) = (destination.ram.clone(), sender.clone(), Arc::clone(&gate));
            std::thread::spawn(move || {
                sender.send(KernelThread(nix::unistd::gettid().as_raw() as u32)).unwrap();
                gate.wait();
                guest_reads(&ram, index)
            })
        })
        .collect();
    let threads: Vec<_> = numbers.iter().take(count).collect();
    destination.sink.watch_threads(&threads);
    gate.wait();
    let waits = |time: &Duration| *time > Duration::ZERO;
    while !destination.sink.statistics().blocktime.threads.iter().all(waits) {
        std::thread::yield_now();
    }
    readers
}

#[test]
fn a_guest_reads_memory_that_is_still_at_the_source() {
    if !ready() {
        return;
    }
    for kind in KINDS {
        let source = filled_source(PAGES);
        let mut destination = Destination::listening(ram(kind, PAGES));
        destination.connect(&source, &owing_all(&source));
        for index in (0..PAGES).map(|at| at * 37 % PAGES) {
            assert_eq!(guest_reads(&destination.ram, index), content(index), "{kind:?}, page {index}");
        }
        let served = destination.cut(); // The guest sees a page before it is counted.
        destination.sink.end().unwrap();
        let statistics = destination.sink.statistics();
        assert_eq!(statistics.pages_by_fault, PageCount(PAGES));
        assert_eq!(statistics.latency.count, PAGES);
        assert!(statistics.latency.p50 <= statistics.latency.p99);
        assert!(statistics.latency.p99 <= statistics.latency.max);
        assert_eq!((served.requests, served.repeated), (PAGES, 0));
    }
}

#[test]
fn many_threads_that_miss_one_page_ask_for_it_once() {
    if !ready() {
        return;
    }
    for kind in KINDS {
        let destination = Destination::listening(ram(kind, 8));
        let (back, requests) = Link::pair().unwrap();
        destination.faults.connect(back.split().1).unwrap();
        destination.faults.ask().unwrap();
        let readers = blocked_readers(&destination, 3, 8);
        destination.sink.put(BLOCK, page(3), &content(3)).unwrap();
        for reader in readers {
            assert_eq!(reader.join().unwrap(), content(3));
        }
        let statistics = destination.sink.statistics();
        assert!(statistics.blocktime.overall > Duration::ZERO, "all of them waited at once");
        assert_eq!(statistics.pages_by_fault, PageCount(1));
        drop(destination.faults.stop().unwrap());
        let mut asked = Vec::new();
        for_each_message(requests.split().0, |message| {
            asked.push(message);
            true
        });
        let name = destination.ram.block(BLOCK).name().clone();
        let pages = RequestedPages { start: 3 * PAGE_BYTES as u64, length: PAGE_BYTES as u32 };
        assert_eq!(asked, [ReturnMessage::RequestPages { block: Some(name), pages }], "{kind:?}");
    }
}

#[test]
fn what_was_discarded_is_asked_for_and_the_rest_is_not() {
    if !ready() {
        return;
    }
    for kind in KINDS {
        let source = filled_source(PAGES);
        let guest = ram(kind, PAGES);
        let received = Arc::new(ReceivedMap::empty(guest.layout()));
        // Precopy delivered everything; odd pages are stale.
        for index in 0..PAGES {
            let bytes = if index % 2 == 1 { [0xee; PAGE_BYTES] } else { content(index) };
            guest.block(BLOCK).copy_in(index * PAGE_BYTES as u64, &bytes);
        }
        received.block(BLOCK).mark(guest.block(BLOCK).whole());
        let stale: Vec<_> = (0..PAGES).filter(|index| index % 2 == 1).map(one).collect();
        discard(&guest, &received, BLOCK, &stale).unwrap();
        let dirty = Arc::new(DirtyMap::clean(source.layout()));
        stale.iter().for_each(|run| {
            dirty.block(BLOCK).mark(*run);
        });

        let mut destination = Destination::listening_with(guest, received);
        destination.connect(&source, &dirty);
        for index in 0..PAGES {
            assert_eq!(guest_reads(&destination.ram, index), content(index), "{kind:?}, page {index}");
        }
        let served = destination.cut();
        destination.sink.end().unwrap();
        assert_eq!((served.requests, served.pages), (PAGES / 2, PageCount(PAGES / 2)));
    }
}

#[test]
fn a_discard_outside_of_its_block_is_refused() {
    let guest = ram(Kind::Memfd, 4);
    let received = ReceivedMap::empty(guest.layout());
    for run in [PageRun::new(page(3), PageCount(2)), PageRun::new(page(u64::MAX), PageCount(2))] {
        discard(&guest, &received, BLOCK, &[run]).unwrap_err();
    }
}

#[test]
fn a_stale_or_half_received_page_is_never_seen_through_the_guests_mapping() {
    if !ready() {
        return;
    }
    let guest = ram(Kind::Memfd, 4);
    let received = Arc::new(ReceivedMap::empty(guest.layout()));
    guest.block(BLOCK).copy_in(PAGE_BYTES as u64, &[0xee; PAGE_BYTES]);
    assert_eq!(guest_reads(&guest, 1), [0xee; PAGE_BYTES], "mapped by the guest, and then found stale");
    discard(&guest, &received, BLOCK, &[one(1)]).unwrap();

    let destination = Destination::listening_with(guest, received);
    let readers = blocked_readers(&destination, 1, 2);
    let (sink, bytes) = (&destination.sink, content(1));
    sink.begin(BLOCK, one(1)).unwrap();
    sink.begin(BLOCK, one(1)).unwrap_err();
    let (half, rest) = bytes.split_at(PAGE_BYTES / 2);
    sink.ram().block(BLOCK).copy_in(PAGE_BYTES as u64, half);
    // A reader that comes now finds the page in the cache, half new and half stale.
    let ram = destination.ram.clone();
    let late = std::thread::spawn(move || guest_reads(&ram, 1));
    sink.ram().block(BLOCK).copy_in((PAGE_BYTES + PAGE_BYTES / 2) as u64, rest);
    sink.place(BLOCK, one(1)).unwrap();
    for reader in readers.into_iter().chain([late]) {
        assert_eq!(reader.join().unwrap(), bytes);
    }
}

#[test]
fn a_page_that_comes_again_does_not_undo_what_the_guest_has_written() {
    if !ready() {
        return;
    }
    for kind in KINDS {
        let destination = Destination::listening(ram(kind, 8));
        destination.sink.put(BLOCK, page(1), &content(1)).unwrap();
        guest_writes(&destination.ram, 1, 0x77);
        destination.sink.put(BLOCK, page(1), &content(1)).unwrap();
        destination.sink.zero(BLOCK, PageRun::new(page(0), PageCount(3))).unwrap();
        assert_eq!(guest_reads(&destination.ram, 1)[0], 0x77, "{kind:?}");
        assert_eq!(guest_reads(&destination.ram, 2), [0; PAGE_BYTES]);
        assert_eq!(destination.sink.statistics().pages_twice, PageCount(2));
    }
}

#[test]
fn received_zeros_take_no_memory_before_they_are_touched() {
    if !ready() {
        return;
    }
    for kind in KINDS {
        let destination = Destination::listening(ram(kind, PAGES));
        let block = destination.ram.block(BLOCK);
        destination.sink.zero(BLOCK, block.whole()).unwrap();
        if kind == Kind::Memfd {
            assert_eq!(block.populated().pages(), PageCount(0));
        }
        assert_eq!(guest_reads(&destination.ram, 5), [0; PAGE_BYTES]);
        guest_writes(&destination.ram, 6, 1);
        assert_eq!(guest_reads(&destination.ram, 6)[0], 1);
        destination.sink.end().unwrap();
        assert_eq!(guest_reads(&destination.ram, 7), [0; PAGE_BYTES], "{kind:?}, no longer watched");
    }
}

#[test]
fn zeros_wake_those_who_wait_for_them() {
    if !ready() {
        return;
    }
    for kind in KINDS {
        let guest = ram(kind, 8);
        let received = Arc::new(ReceivedMap::empty(guest.layout()));
        guest.block(BLOCK).copy_in(2 * PAGE_BYTES as u64, &[0xee; PAGE_BYTES]);
        discard(&guest, &received, BLOCK, &[guest.block(BLOCK).whole()]).unwrap();
        let destination = Destination::listening_with(guest, received);
        for stale_or_empty in [2, 3] {
            let readers = blocked_readers(&destination, stale_or_empty, 2);
            destination.sink.zero(BLOCK, one(stale_or_empty)).unwrap();
            for reader in readers {
                assert_eq!(reader.join().unwrap(), [0; PAGE_BYTES], "{kind:?}");
            }
        }
        assert_eq!(destination.sink.statistics().pages_by_fault, PageCount(2));
    }
}

#[test]
fn pages_received_in_place_by_runs_are_placed_as_a_whole() {
    if !ready() {
        return;
    }
    for kind in KINDS {
        let destination = Destination::listening(ram(kind, 64));
        let sink = &destination.sink;
        sink.put(BLOCK, page(20), &content(20)).unwrap();
        guest_writes(&destination.ram, 20, 0x55);
        for run in [PageRun::new(page(0), PageCount(20)), PageRun::new(page(21), PageCount(43))] {
            run.pages().for_each(|page| {
                sink.ram().block(BLOCK).copy_in(page.byte_offset(), &content(page.0));
            });
            sink.place(BLOCK, run).unwrap();
        }
        sink.place(BLOCK, one(20)).unwrap_err();
        (0..64).filter(|index| *index != 20).for_each(|index| {
            assert_eq!(guest_reads(&destination.ram, index), content(index), "{kind:?}");
        });
        assert_eq!(guest_reads(&destination.ram, 20)[0], 0x55);
        sink.end().unwrap();
    }
}

#[test]
fn the_kernel_may_fault_for_the_guest_too() {
    if !ready() {
        return;
    }
    // Private memory has one mapping: what is gathered from it is read by the kernel through the guest's.
    let source = filled_source(8);
    let mut destination = Destination::listening(ram(Kind::Anonymous, 8));
    destination.connect(&source, &owing_all(&source));
    let (mut reading, writing) = std::io::pipe().unwrap();
    let mut gather = Gather::new();
    gather.pages(destination.ram.block(BLOCK), PageRun::new(page(3), PageCount(2)));
    while !gather.is_empty() {
        gather.write_to(writing.as_fd()).unwrap();
    }
    let mut bytes = [0; 2 * PAGE_BYTES];
    reading.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes[..PAGE_BYTES], content(3));
    assert_eq!(bytes[PAGE_BYTES..], content(4));
}

#[test]
fn the_fault_thread_ends_while_a_guest_waits_and_the_guest_is_served_all_the_same() {
    if !ready() {
        return;
    }
    let destination = Destination::listening(ram(Kind::Memfd, 8));
    let readers = blocked_readers(&destination, 5, 2);
    assert!(destination.faults.stop().unwrap().is_none(), "it had no connection");
    let missing = destination.sink.end().unwrap_err();
    assert!(matches!(missing, UffdError::Missing { count: PageCount(8), first, .. } if first == one(0)));
    destination.sink.put(BLOCK, page(5), &content(5)).unwrap();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), content(5));
    }
}

#[test]
fn whoever_waits_is_released_when_the_watch_is_dropped() {
    if !ready() {
        return;
    }
    let destination = Destination::listening(ram(Kind::Memfd, 8));
    let readers = blocked_readers(&destination, 5, 2);
    let Destination { faults, sink, .. } = destination;
    drop(faults);
    drop(sink);
    for reader in readers {
        reader.join().unwrap();
    }
}

#[test]
fn messages_leave_in_order_and_none_without_a_connection() {
    if !ready() {
        return;
    }
    let destination = Destination::listening(ram(Kind::Memfd, 1));
    let faults = destination.faults;
    faults.send(ReturnMessage::Pong(1)).unwrap(); // Nobody is there.
    let (near, far) = Link::pair().unwrap();
    faults.connect(near.split().1).unwrap();
    faults.send(ReturnMessage::ResumeAck).unwrap();
    faults.send(ReturnMessage::Shut(0)).unwrap();
    drop(faults.stop().unwrap().expect("the link comes back"));
    let mut heard = Vec::new();
    for_each_message(far.split().0, |message| {
        heard.push(message);
        true
    });
    assert_eq!(heard, [ReturnMessage::ResumeAck, ReturnMessage::Shut(0)]);
}

#[test]
fn a_guest_survives_lost_connections_in_the_middle_of_its_faults() {
    if !ready() {
        return;
    }
    for kind in KINDS {
        let source = filled_source(PAGES);
        let mut destination = Destination::listening(ram(kind, PAGES));
        // The first connection answers nothing: somebody waits when it is cut.
        let (back, requests) = Link::pair().unwrap();
        destination.faults.connect(back.split().1).unwrap();
        destination.faults.ask().unwrap();
        let mut readers = blocked_readers(&destination, 9, 2);
        drop(requests);
        destination.faults.disconnect().unwrap();

        let dirty = owing_all(&source);
        for turn in 1..=5 {
            destination.sink.forget_unfinished();
            dirty.replace_with_missing(destination.sink.received());
            destination.connect(&source, &dirty);
            readers.extend((0..3).map(|reader| {
                let ram = destination.ram.clone();
                std::thread::spawn(move || {
                    (0..PAGES).map(|at| (at * 11 + reader * 80 + turn) % PAGES).for_each(|index| {
                        assert_eq!(guest_reads(&ram, index), content(index));
                    });
                    content(9)
                })
            }));
            // Cut at some page in the middle: as soon as a few more have come.
            let enough = (destination.sink.received().count().0 + 7 * turn).min(PAGES);
            while destination.sink.received().count().0 < enough {
                std::thread::yield_now();
            }
            destination.cut();
        }
        destination.sink.forget_unfinished();
        dirty.replace_with_missing(destination.sink.received());
        destination.connect(&source, &dirty);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), content(9), "{kind:?}");
        }
        destination.cut();
        destination.sink.end().unwrap();
        assert_eq!(destination.sink.statistics().pages_twice, PageCount(0));
    }
}

#[test]
fn mapping_what_was_received_spares_the_guest_its_local_faults() {
    if !ready() {
        return;
    }
    let guest = ram(Kind::Memfd, PAGES);
    let received = Arc::new(ReceivedMap::empty(guest.layout()));
    // Every third page is missing, every fifth of the others is a hole of zeros.
    for index in (0..PAGES).filter(|index| index % 3 != 0) {
        if index % 5 != 0 {
            guest.block(BLOCK).copy_in(index * PAGE_BYTES as u64, &content(index));
        }
        received.block(BLOCK).mark(one(index));
    }
    let destination = Destination::listening_with(guest, received);
    let mapped = destination.sink.map_received().unwrap();
    assert!(mapped > PageCount(0));
    for index in (0..PAGES).filter(|index| index % 3 != 0 && index % 5 != 0) {
        assert_eq!(guest_reads(&destination.ram, index), content(index));
    }
    assert_eq!(destination.sink.statistics().local.count, 0);
    assert_eq!(
        guest_reads(&destination.ram, 10),
        [0; PAGE_BYTES],
        "a hole has nothing to map before it is touched"
    );
    drop(destination.faults.stop().unwrap()); // The guest sees a page before it is counted.
    assert_eq!(destination.sink.statistics().local.count, 1);
}

#[test]
fn a_huge_page_is_seen_when_its_last_target_page_has_come() {
    const HUGE: u64 = 512;
    if !ready() {
        return;
    }
    let guest = match ring::huge_ram(2) {
        Ok(guest) => guest,
        // Not a lack of the machine: its owner has reserved none.
        Err(why) => return eprintln!("LEFT OUT: two free huge pages (vm.nr_hugepages): {why}"),
    };
    let destination = Destination::listening(guest);
    let (back, requests) = Link::pair().unwrap();
    destination.faults.connect(back.split().1).unwrap();
    destination.faults.ask().unwrap();
    let readers = blocked_readers(&destination, HUGE + 77, 2);
    let sink = &destination.sink;
    for index in (HUGE..2 * HUGE).filter(|index| *index != HUGE + 100) {
        sink.put(BLOCK, page(index), &content(index)).unwrap();
    }
    assert!(!sink.received().block(BLOCK).is_received(page(HUGE + 77)));
    sink.zero(BLOCK, one(HUGE + 100)).unwrap();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), content(HUGE + 77));
    }
    sink.zero(BLOCK, PageRun::new(page(0), PageCount(HUGE))).unwrap();
    assert_eq!(guest_reads(&destination.ram, 3), [0; PAGE_BYTES]);
    sink.end().unwrap();
    drop(destination.faults.stop().unwrap());
    let mut starts = Vec::new();
    for_each_message(requests.split().0, |message| {
        if let ReturnMessage::RequestPages { pages, .. } = message {
            starts.push((pages.start, pages.length));
        }
        true
    });
    assert_eq!(starts, [(2 << 20, 2 << 20)]);
}

#[test]
fn nothing_is_reported_of_a_connection_that_was_given_up() {
    if !ready() {
        return;
    }
    let guest = ram(KINDS[0], PAGES);
    let received = Arc::new(ReceivedMap::empty(guest.layout()));
    let sink = Arc::new(UffdSink::listen(guest, received).unwrap());
    let reports = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&reports);
    let count = move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
    };
    let faults = FaultThread::start(sink, count).unwrap();
    for _ in 0..500 {
        let (near, far) = Link::pair().unwrap();
        faults.connect(near.split().1).unwrap();
        drop(far);
        // Its write fails about when the connection is given up.
        faults.send(ReturnMessage::Pong(1)).unwrap();
        faults.disconnect().unwrap();
        let reported = reports.load(Ordering::SeqCst);
        // The next order is followed after everything before it.
        faults.disconnect().unwrap();
        assert_eq!(reports.load(Ordering::SeqCst), reported);
    }
}

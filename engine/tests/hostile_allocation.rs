//! Memory follows the bytes that have arrived, never the bytes that a peer announces.
//!
//! A binary of its own with one test: the allocator counts for the whole process.

mod guest;

use guest::{Guest, configuration};
use limosa_engine::{Incoming, IncomingConfig, NoObserver, RunState};
use limosa_transport::{Link, Role};
use limosa_wire::encode;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The reader's buffer of 2 MiB, and as much again for all the rest: threads, maps, errors.
const LIMIT: usize = 4 << 20;

/// Zero records that are sent: 36 MiB of stream.
const FLOOD: usize = 4 << 20;

/// Bytes that were allocated while `stream` was offered, counted without what was freed: the peak is at most this.
fn allocated(guest: &mut Guest, stream: impl FnOnce(&UnixStream) + Send + 'static) -> usize {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (savevm, vm) = (guest.take_savevm(), guest.vm());
    let region = Region::new(ALLOCATOR);
    let link = Link::from_fd(ours.into(), Role::Main).unwrap();
    let config = IncomingConfig::default();
    let incoming = Incoming::over(link, config, savevm, vm, Arc::new(NoObserver)).unwrap();
    let attacker = std::thread::spawn(move || {
        stream(&theirs);
        // Fails if the victim has hung up already.
        drop(theirs.shutdown(Shutdown::Write));
    });
    let (report, savevm) = incoming.wait();
    attacker.join().unwrap();
    let change = region.change();
    guest.give_back(savevm);
    assert!(!report.is_completed());
    assert_eq!(guest.run_state(), RunState::InMigrate);
    change.bytes_allocated + usize::try_from(change.bytes_reallocated.max(0)).unwrap()
}

fn opened() -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::header(&mut bytes);
    configuration().encode(&mut bytes);
    bytes
}

/// A START section of `ram` with the guest's blocks, and the head of a PART.
fn in_part() -> Vec<u8> {
    let mut bytes = opened();
    bytes.extend_from_slice(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    bytes.extend_from_slice(&(4_u64 * 4096 + 4).to_be_bytes());
    bytes.extend_from_slice(b"\x08main.ram\0\0\0\0\0\0\x30\0\x09small.ram\0\0\0\0\0\0\x10\0");
    bytes.extend_from_slice(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\x02\0\0\0\x02");
    bytes
}

#[test]
fn what_a_peer_announces_takes_no_memory() {
    let mut guest = Guest::tiny_incoming();
    let announced: [(&str, &[u8]); 9] = [
        ("a name of 4 GiB", b"QEVM\0\0\0\x03\x07\xff\xff\xff\xff"),
        ("capabilities", b"QEVM\0\0\0\x03\x07\0\0\0\0\x05\x1aconfiguration/capabilities\0\0\0\x01\xff\xff\xff\xff"),
        ("a package of 4 GiB", b"\x08\0\x07\0\x04\xff\xff\xff\xff"),
        ("a package of 256 MiB", b"\x08\0\x07\0\x04\x10\0\0\0"),
        ("discards", b"\x08\0\x06\xff\xff\0\x08main.ram\0"),
        ("blocks of 16 EiB", b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04\xff\xff\xff\xff\xff\xff\xf0\x04\x08main.ram\xff\xff\xff\xff\xff\xff\xf0\0"),
        ("a text of 4 GiB", b"\0\x06\xff\xff\xff\xff"),
        ("a text of 64 MiB", b"\0\x06\x04\0\0\0{"),
        ("a device", b"\x04\0\0\0\x03\x07counter\0\0\0\0\0\0\0\x02"),
    ];
    for (what, bytes) in announced {
        let stream = if bytes.starts_with(b"QEVM") { bytes.to_vec() } else { [&opened(), bytes].concat() };
        let bytes = allocated(&mut guest, move |mut link| drop(link.write_all(&stream)));
        assert!(bytes <= LIMIT, "{what}: {bytes} bytes");
    }

    // A page that is zero again and again: 36 MiB of stream, and not a byte for them.
    let zero = *b"\0\0\0\0\0\0\0\x22\0";
    let zeros = zero.repeat(1 << 14);
    let bytes = allocated(&mut guest, move |mut link| {
        link.write_all(&in_part()).unwrap();
        link.write_all(b"\0\0\0\0\0\0\0\x02\x08main.ram\0").unwrap();
        for _ in 0..FLOOD / (1 << 14) {
            link.write_all(&zeros).unwrap();
        }
    });
    assert!(bytes <= LIMIT, "endless zero pages: {bytes} bytes");

    // Pings, each with an answer that nobody reads.
    let pings = b"\x08\0\x02\0\x04\0\0\0\x01".repeat(1 << 10);
    let bytes = allocated(&mut guest, move |mut link| {
        link.write_all(&opened()).unwrap();
        link.write_all(b"\x08\0\x01\0\0").unwrap();
        link.write_all(&pings).unwrap();
    });
    assert!(bytes <= LIMIT, "pings: {bytes} bytes");
}

//! Plain precopy with an unmodified QEMU as the source, then as the destination. Only `limosa-wire` is between:
//! what fails here is the wire, what fails with the engine alone is the engine.

use limosa_stress::qemu::{
    Accelerator, Backing, Binary, Boot, CapturedGuest, Endpoint, Line, Machine, Payload, PeerError, Qemu,
    Release, Replay, Setup, Transport, WORKING_SET_START, compare_pages, lines_across, receive,
};
use serde_json::json;
use std::thread;

/// How QEMU sends.
#[derive(Clone, Copy)]
struct Way {
    transport: Transport,
    return_path: bool,
    xbzrle: bool,
}

const PLAIN: Way = Way { transport: Transport::Unix, return_path: true, xbzrle: false };

/// Rounds before the switchover where XBZRLE is to have something to do: it begins with the second.
const XBZRLE_PASSES: u64 = 4;

/// Lets `source` migrate to us.
fn capture(source: &mut Qemu, way: Way) -> CapturedGuest {
    source
        .set_capabilities(&[("return-path", way.return_path), ("xbzrle", way.xbzrle)])
        .expect("capabilities");
    if way.xbzrle {
        // No switchover before we say so: more than a page is dirty after every round. (With a limit of 0 it does
        // not look whether any is.)
        source.set_parameters(json!({ "downtime-limit": 1, "max-bandwidth": 4 << 20 })).expect("parameters");
    }
    let endpoint = Endpoint::listen(way.transport, source.folder()).expect("listen");
    source.migrate(&endpoint.uri()).expect("migrate");
    let connection = endpoint.accept().expect("QEMU connects");
    let receiver = thread::spawn(move || receive(connection));
    if way.xbzrle {
        source.wait_pass(XBZRLE_PASSES).expect("passes");
        source.set_parameters(json!({ "downtime-limit": 2000, "max-bandwidth": 0 })).expect("parameters");
    }
    let guest = receiver.join().expect("no panic").expect("a whole guest");
    source.wait_migrated().expect("source");
    guest
}

/// Holds every page of `guest` that QEMU can show against what it shows; all of main RAM among them.
fn assert_same_memory(guest: &CapturedGuest, qemu: &mut Qemu, setup: &Setup) {
    for saved in qemu.save_memory().expect("pmemsave") {
        let name = &saved.window.block;
        let block = guest.block(name).unwrap_or_else(|| panic!("block {name} was not in the stream"));
        assert_eq!(saved.compare(&block.bytes), None, "{}", setup.machine);
    }
    if setup.backing == Backing::SharedFile {
        let name = setup.machine.ram_block();
        let file = std::fs::read(qemu.ram_file()).expect("RAM");
        assert_eq!(compare_pages(name, 0, &file, &guest.block(name).expect("RAM").bytes), None);
    }
}

/// Starts a destination like `setup` and sends it `guest`.
fn replay(guest: &CapturedGuest, setup: &Setup, binary: &Binary, way: Transport, replay: Replay) -> Qemu {
    let mut destination = setup.destination().start(binary).expect("destination");
    let uri = match way {
        Transport::Unix => format!("unix:{}", destination.folder().join("migration").display()),
        Transport::Tcp => "tcp:127.0.0.1:0".to_owned(),
    };
    destination.migrate_incoming(&uri).expect("listen");
    let uri = match way {
        Transport::Unix => uri,
        Transport::Tcp => format!("tcp:{}", destination.incoming_address().expect("address")),
    };
    let connection = Endpoint::connect(&uri).expect("connect");
    guest.send(connection, replay).unwrap_or_else(|error| panic!("{error}: {}", destination.stderr()));
    destination.wait_migrated().expect("destination");
    destination
}

/// The guest goes on where it was, checks every page once more, and no line of its output is lost or doubled.
fn assert_goes_on(source: &Qemu, destination: &mut Qemu) {
    let last = match source.serial().last() {
        Some(Line::Tick(tick)) => tick,
        other => panic!("the source's guest ended with {other:?}"),
    };
    let payload = Payload::default();
    let ticks_of_a_pass = payload.working_set.0 as u32 / payload.pages_per_tick;
    destination.wait_tick_past(last + 2 * ticks_of_a_pass).expect("a guest that goes on");
    destination.stop().expect("stop");
    for (expected, line) in (1..).zip(lines_across(&[source.serial(), destination.serial()])) {
        assert_eq!(line, Line::Tick(expected));
    }
}

fn running(setup: &Setup, binary: &Binary) -> Qemu {
    let source = setup.start(binary).expect("source");
    source.wait_tick_past(20).expect("a running guest");
    source
}

#[test]
fn every_page_of_a_running_guest_arrives_over_tcp_and_unix_with_and_without_return_path() {
    let Some(binary) = Release::Current.require() else { return };
    for transport in [Transport::Tcp, Transport::Unix] {
        for return_path in [false, true] {
            let setup = Setup {
                backing: Backing::SharedFile,
                ..Setup::new(Machine::Microvm, Accelerator::of_this_machine())
            };
            let mut source = running(&setup, &binary);
            let guest = capture(&mut source, Way { transport, return_path, xbzrle: false });
            assert_same_memory(&guest, &mut source, &setup);
            assert_eq!(guest.configuration.machine, "microvm");
            assert!(guest.counts.page >= 256, "the working set is not zero: {:?}", guest.counts);
        }
    }
}

#[test]
fn a_captured_guest_goes_on_in_a_fresh_qemu_of_the_same_machine() {
    let Some(binary) = Release::Current.require() else { return };
    for (machine, transport) in
        [(Machine::Microvm, Transport::Unix), (Machine::Pc, Transport::Tcp), (Machine::Q35, Transport::Unix)]
    {
        let setup = Setup::new(machine, Accelerator::of_this_machine());
        let mut source = running(&setup, &binary);
        let guest = capture(&mut source, PLAIN);
        assert_same_memory(&guest, &mut source, &setup);
        let mut destination = replay(&guest, &setup, &binary, transport, Replay::Once);
        assert_goes_on(&source, &mut destination);
    }
}

#[test]
fn xbzrle_from_qemu_is_patched_to_the_same_pages() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup {
        boot: Boot::Flash(Payload { pause: 1, ..Payload::default() }),
        ..Setup::new(Machine::Microvm, Accelerator::of_this_machine())
    };
    let mut source = running(&setup, &binary);
    let guest = capture(&mut source, Way { xbzrle: true, ..PLAIN });
    assert!(guest.counts.xbzrle > 0, "{:?}", guest.counts);
    assert_same_memory(&guest, &mut source, &setup);
    let mut destination = replay(&guest, &setup, &binary, Transport::Unix, Replay::Once);
    assert_goes_on(&source, &mut destination);
}

#[test]
fn xbzrle_to_qemu_makes_the_same_pages() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup::new(Machine::Microvm, Accelerator::of_this_machine());
    let mut source = running(&setup, &binary);
    let guest = capture(&mut source, PLAIN);
    let mut destination = replay(&guest, &setup, &binary, Transport::Unix, Replay::StaleThenDelta);
    assert_goes_on(&source, &mut destination);
}

#[test]
fn a_guest_of_7_2_arrives_and_goes_on_in_7_2_and_in_the_current_release() {
    let Some(old) = Release::V7_2.require() else { return };
    let Some(current) = Release::Current.require() else { return };
    let setup = Setup::new(Machine::Pc7_2, Accelerator::of_this_machine());
    let mut source = running(&setup, &old);
    let guest = capture(&mut source, PLAIN);
    assert_eq!(guest.configuration.machine, "pc-i440fx-7.2");
    assert_same_memory(&guest, &mut source, &setup);
    for binary in [old, current] {
        let mut destination = replay(&guest, &setup, &binary, Transport::Tcp, Replay::Once);
        assert_goes_on(&source, &mut destination);
    }
}

#[test]
fn one_wrong_byte_in_the_working_set_is_found_by_the_guest_itself() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup::new(Machine::Microvm, Accelerator::of_this_machine());
    let mut source = running(&setup, &binary);
    let mut guest = capture(&mut source, PLAIN);
    let ram = guest.blocks.iter_mut().find(|block| block.name.as_str() == "microvm.ram").expect("RAM");
    ram.bytes[WORKING_SET_START as usize] ^= 0x40;
    let destination = replay(&guest, &setup, &binary, Transport::Unix, Replay::Once);
    let fault = destination.wait_fault().expect("a fault");
    assert_eq!(u64::from(fault), WORKING_SET_START);
}

#[test]
fn a_source_whose_destination_says_no_keeps_its_guest() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup::new(Machine::Microvm, Accelerator::of_this_machine());
    let mut source = running(&setup, &binary);
    source.set_capabilities(&[("return-path", true)]).expect("capabilities");
    let endpoint = Endpoint::listen(Transport::Unix, source.folder()).expect("listen");
    source.migrate(&endpoint.uri()).expect("migrate");
    drop(endpoint.accept().expect("QEMU connects"));
    source.wait_migration("failed").expect("a failure");
    let tick = source.wait_tick_past(0).expect("a tick");
    source.wait_tick_past(tick + 20).expect("a guest that goes on");
}

#[test]
fn a_damaged_device_section_is_refused_by_qemu_and_told_to_us() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup::new(Machine::Microvm, Accelerator::of_this_machine());
    let mut source = running(&setup, &binary);
    let mut guest = capture(&mut source, PLAIN);
    let last = guest.devices.len() - 1;
    guest.devices[last] ^= 1; // The id in the last footer.
    let mut destination = setup.destination().start(&binary).expect("destination");
    let uri = format!("unix:{}", destination.folder().join("migration").display());
    destination.migrate_incoming(&uri).expect("listen");
    let connection = Endpoint::connect(&uri).expect("connect");
    match guest.send(connection, Replay::Once) {
        Err(PeerError::Refused(_) | PeerError::Io(_)) => {}
        other => panic!("{other:?}"),
    }
    destination.wait_migration("failed").expect("a failure");
}

//! Guests of an unmodified QEMU that the engine captures, and sends on to a fresh QEMU, which must let them go on.

use limosa::pages::{ByteCount, PageCount};
use limosa::{
    Capabilities, CapturedGuest, GuestFate, NoObserver, OutgoingConfig, OutgoingReport, Parameters, SaveVm,
};
use limosa_stress::qemu::{
    Accelerator, Backing, Binary, Boot, ForeignGuest, Machine, Payload, Qemu, Release, Retouched, Setup,
    Still, Transport, WORKING_SET_START, assert_goes_on, send,
};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Rounds before the switchover where XBZRLE is to have something to do: it begins with the second.
const XBZRLE_PASSES: u64 = 4;

fn running(setup: &Setup, binary: &Binary) -> Qemu {
    let source = setup.start(binary).expect("source");
    source.wait_tick_past(20).expect("a running guest");
    source
}

fn capture(source: &mut Qemu, transport: Transport, return_path: bool) -> CapturedGuest {
    source.set_capabilities(&[("return-path", return_path)]).expect("capabilities");
    let link = source.migrate_to_us(transport).expect("a migration");
    let guest = CapturedGuest::receive(link).expect("a whole guest");
    source.wait_migrated().expect("source");
    guest
}

/// As [`capture`], with the working set sent again and again as XBZRLE.
fn capture_xbzrle(source: &mut Qemu) -> CapturedGuest {
    source.set_capabilities(&[("return-path", true), ("xbzrle", true)]).expect("capabilities");
    source.hold_back(ByteCount(4 << 20)).expect("parameters");
    let link = source.migrate_to_us(Transport::Unix).expect("a migration");
    let receiver = thread::spawn(move || CapturedGuest::receive(link));
    source.wait_pass(XBZRLE_PASSES).expect("passes");
    source.let_go().expect("parameters");
    let guest = receiver.join().expect("no panic").expect("a whole guest");
    source.wait_migrated().expect("source");
    guest
}

fn config(setup: &Setup) -> OutgoingConfig {
    OutgoingConfig { announce_switchover: setup.machine != Machine::Pc7_2, ..OutgoingConfig::default() }
}

fn assert_completed(report: &OutgoingReport, destination: &mut Qemu) {
    let error = &report.statistics.error;
    assert!(report.is_completed(), "{error:?}; QEMU said: {}", destination.stderr());
    destination.wait_migrated().expect("destination");
}

/// Starts a destination like `setup` and sends it a guest.
fn replay(savevm: SaveVm, setup: &Setup, binary: &Binary, transport: Transport) -> Qemu {
    let mut destination = setup.destination().start(binary).expect("destination");
    let address = destination.listen(transport).expect("listen");
    let report =
        send(savevm, address, config(setup), Arc::new(Still), Arc::new(NoObserver)).expect("a start");
    assert_completed(&report, &mut destination);
    destination
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
            let guest = capture(&mut source, transport, return_path);
            let compared = source.assert_same_memory(&guest.ram).expect("pmemsave");
            assert!(compared > ByteCount(31 << 20), "RAM by pmemsave and by its file: {compared}");
            assert_eq!(guest.configuration.machine, "microvm");
            let counts = guest.statistics;
            assert!(counts.normal >= setup.boot.payload().working_set, "its pages are not zero: {counts:?}");
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
        let guest = capture(&mut source, transport, true);
        source.assert_same_memory(&guest.ram).expect("pmemsave");
        let mut destination = replay(guest.into_savevm(), &setup, &binary, transport);
        assert_goes_on(&source, &mut destination).expect("a guest that goes on");
    }
}

#[test]
fn a_guest_goes_on_without_a_return_path_on_either_side() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup::new(Machine::Microvm, Accelerator::of_this_machine());
    let mut source = running(&setup, &binary);
    let guest = capture(&mut source, Transport::Unix, false);
    let mut destination = setup.destination().start(&binary).expect("destination");
    let address = destination.listen(Transport::Unix).expect("listen");
    let capabilities = Capabilities { return_path: false, ..Capabilities::default() };
    let config = OutgoingConfig { capabilities, ..config(&setup) };
    let report =
        send(guest.into_savevm(), address, config, Arc::new(Still), Arc::new(NoObserver)).expect("a start");
    assert_completed(&report, &mut destination);
    assert_goes_on(&source, &mut destination).expect("a guest that goes on");
}

#[test]
fn a_guest_of_7_2_arrives_and_goes_on_in_7_2_and_in_the_current_release() {
    let Some(old) = Release::V7_2.require() else { return };
    let Some(current) = Release::Current.require() else { return };
    for binary in [&old, &current] {
        let setup = Setup::new(Machine::Pc7_2, Accelerator::of_this_machine());
        let mut source = running(&setup, &old);
        let guest = capture(&mut source, Transport::Tcp, true);
        assert_eq!(guest.configuration.machine, "pc-i440fx-7.2");
        source.assert_same_memory(&guest.ram).expect("pmemsave");
        let mut destination = replay(guest.into_savevm(), &setup, binary, Transport::Tcp);
        assert_goes_on(&source, &mut destination).expect("a guest that goes on");
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
    let guest = capture_xbzrle(&mut source);
    assert!(guest.statistics.xbzrle_pages > PageCount(0), "{:?}", guest.statistics);
    source.assert_same_memory(&guest.ram).expect("pmemsave");
    let mut destination = replay(guest.into_savevm(), &setup, &binary, Transport::Unix);
    assert_goes_on(&source, &mut destination).expect("a guest that goes on");
}

#[test]
fn xbzrle_to_qemu_makes_the_same_pages() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup::new(Machine::Microvm, Accelerator::of_this_machine());
    let mut source = running(&setup, &binary);
    let guest = ForeignGuest::holding(capture(&mut source, Transport::Unix, true));
    let retouched = Arc::new(Retouched::new(&guest, &setup, XBZRLE_PASSES));

    let mut destination = setup.destination().start(&binary).expect("destination");
    let address = destination.listen(Transport::Unix).expect("listen");
    let capabilities = Capabilities { return_path: true, xbzrle: true, ..Capabilities::default() };
    // Nothing may be left at the switchover but what the stop itself writes.
    let parameters = Parameters { downtime_limit: Duration::ZERO, ..Parameters::default() };
    let config = OutgoingConfig { capabilities, parameters, ..config(&setup) };
    let report = send(guest.savevm, address, config, retouched.clone(), retouched.clone()).expect("a start");
    assert_completed(&report, &mut destination);
    let counts = report.statistics.ram;
    assert!(counts.xbzrle_pages >= retouched.pages(), "the last round at least: {counts:?}");
    assert_goes_on(&source, &mut destination).expect("a guest that goes on");
}

#[test]
fn one_wrong_byte_in_the_working_set_is_found_by_the_guest_itself() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup::new(Machine::Microvm, Accelerator::of_this_machine());
    let mut source = running(&setup, &binary);
    let guest = capture(&mut source, Transport::Unix, true);
    let id = guest.ram.layout().find(setup.machine.ram_block()).expect("RAM");
    guest.ram.block(id).copy_in(WORKING_SET_START, &[0xff; 4]);
    let destination = replay(guest.into_savevm(), &setup, &binary, Transport::Unix);
    let fault = destination.wait_fault().expect("a fault");
    assert_eq!(u64::from(fault), WORKING_SET_START);
}

#[test]
fn a_source_whose_destination_hangs_up_keeps_its_guest() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup::new(Machine::Microvm, Accelerator::of_this_machine());
    let mut source = running(&setup, &binary);
    source.set_capabilities(&[("return-path", true)]).expect("capabilities");
    drop(source.migrate_to_us(Transport::Unix).expect("a migration"));
    source.wait_migration("failed").expect("a failure");
    let tick = source.wait_tick_past(0).expect("a tick");
    source.wait_tick_past(tick + 20).expect("a guest that goes on");
}

#[test]
fn a_guest_that_qemu_refuses_stays_with_us() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup::new(Machine::Microvm, Accelerator::of_this_machine());
    let mut source = running(&setup, &binary);
    let mut guest = capture(&mut source, Transport::Unix, true);
    // The last device, behind all of RAM, is of a version that no QEMU has.
    guest.devices.last_mut().expect("globalstate").section.version = 99;
    let mut destination = setup.destination().start(&binary).expect("destination");
    let address = destination.listen(Transport::Unix).expect("listen");
    let report = send(guest.into_savevm(), address, config(&setup), Arc::new(Still), Arc::new(NoObserver))
        .expect("a start");
    assert_eq!(report.guest(), GuestFate::OnSource, "{:?}", report.outcome);
    destination.wait_migration("failed").expect("destination");
}

//! The engine's own loader with an unmodified QEMU as the source: the one that a VMM's guests come through.

use limosa::{Incoming, IncomingConfig, IncomingReport, MigrationStatus, NoObserver, OutgoingConfig, SaveVm};
use limosa_stress::qemu::{
    Accelerator, Binary, ForeignGuest, Machine, PATIENCE, Qemu, Release, Setup, Still, Transport,
    assert_goes_on, send,
};
use std::sync::Arc;

fn running(setup: &Setup, binary: &Binary) -> Qemu {
    let source = setup.start(binary).expect("source");
    source.wait_tick_past(20).expect("a running guest");
    source
}

/// An empty guest of the kind that QEMU makes of `setup`, learnt from another one.
fn likeness(setup: &Setup, binary: &Binary) -> ForeignGuest {
    let mut model = running(setup, binary);
    let link = model.migrate_to_us(Transport::Unix).expect("a migration");
    let captured = limosa::CapturedGuest::receive(link).expect("a whole guest");
    ForeignGuest::like(&captured).expect("memory")
}

fn receive(source: &mut Qemu, savevm: SaveVm, transport: Transport) -> (IncomingReport, SaveVm) {
    let config = IncomingConfig { read_deadline: Some(PATIENCE), ..IncomingConfig::default() };
    let address = transport.address(source.folder());
    let incoming =
        Incoming::listen(&address, config, savevm, Arc::new(Still), Arc::new(NoObserver)).expect("a start");
    source.migrate(&incoming.address().expect("it listens").to_string()).expect("migrate");
    incoming.wait()
}

#[test]
fn a_running_guest_is_loaded_whole_and_goes_on_in_the_next_qemu() {
    let Some(binary) = Release::Current.require() else { return };
    for (machine, transport, return_path) in [
        (Machine::Microvm, Transport::Tcp, true),
        (Machine::Microvm, Transport::Unix, false),
        (Machine::Pc, Transport::Unix, true),
    ] {
        let setup = Setup::new(machine, Accelerator::of_this_machine());
        let ForeignGuest { ram, savevm, .. } = likeness(&setup, &binary);
        let mut source = running(&setup, &binary);
        source.set_capabilities(&[("return-path", return_path)]).expect("capabilities");
        let (report, savevm) = receive(&mut source, savevm, transport);
        assert!(report.is_completed(), "{machine}: {:?}", report.statistics.error);
        source.wait_migrated().expect("source");
        source.assert_same_memory(&ram).expect("pmemsave");

        let mut destination = setup.destination().start(&binary).expect("destination");
        let address = destination.listen(transport).expect("listen");
        let report = send(savevm, address, OutgoingConfig::default(), Arc::new(Still), Arc::new(NoObserver))
            .expect("a start");
        assert!(report.is_completed(), "{:?}; {}", report.statistics.error, destination.stderr());
        destination.wait_migrated().expect("destination");
        assert_goes_on(&source, &mut destination).expect("a guest that goes on");
    }
}

#[test]
fn a_guest_of_another_machine_is_refused_before_its_ram_and_goes_on() {
    let Some(binary) = Release::Current.require() else { return };
    let accelerator = Accelerator::of_this_machine();
    let ForeignGuest { savevm, .. } = likeness(&Setup::new(Machine::Microvm, accelerator), &binary);
    let mut source = running(&Setup::new(Machine::Pc, accelerator), &binary);
    source.set_capabilities(&[("return-path", true)]).expect("capabilities");
    let (report, _) = receive(&mut source, savevm, Transport::Unix);
    assert_eq!(report.outcome.status(), MigrationStatus::Failed);
    let error = report.statistics.error.expect("a reason");
    assert!(error.contains("pc-i440fx") && error.contains("microvm"), "{error}");
    assert_eq!(report.statistics.ram.normal.0 + report.statistics.ram.zero.0, 0, "no page was taken");
    source.wait_migration("failed").expect("source");
    let tick = source.wait_tick_past(0).expect("a tick");
    source.wait_tick_past(tick + 20).expect("a guest that goes on");
}

#[test]
fn a_guest_with_more_ram_is_refused_by_the_name_of_the_block() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup::new(Machine::Microvm, Accelerator::of_this_machine());
    let ForeignGuest { savevm, .. } = likeness(&setup, &binary);
    let mut source = running(&Setup { memory_mib: 32, ..setup }, &binary);
    source.set_capabilities(&[("return-path", true)]).expect("capabilities");
    let (report, _) = receive(&mut source, savevm, Transport::Tcp);
    assert_eq!(report.outcome.status(), MigrationStatus::Failed);
    let error = report.statistics.error.expect("a reason");
    assert!(error.contains("microvm.ram"), "{error}");
    source.wait_migration("failed").expect("source");
}

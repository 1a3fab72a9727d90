//! Postcopy with an unmodified QEMU as the other side: with and without a channel for urgent pages, paused and recovered.

use limosa::pages::{ByteCount, PAGE_BYTES, PageCount};
use limosa::ram::GuestRam;
use limosa::transport::{Address, Listener};
use limosa::{
    AutoPostcopy, Capabilities, CapturedGuest, GuestFate, Incoming, IncomingConfig, IncomingPostcopy,
    NoObserver, Outgoing, OutgoingConfig, Parameters,
};
use limosa_stress::qemu::{
    Accelerator, Binary, Boot, ForeignGuest, Machine, PATIENCE, Payload, Qemu, Release, Setup, Still,
    Transport, assert_goes_on,
};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use serde_json::json;
use std::io::IoSliceMut;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes per second of the push where a test wants to find postcopy unfinished: the working set takes sixteen seconds.
const SLOW: u64 = 256 << 10;

/// Pages of content. The guest goes through them in a quarter of a second or more, and faults all the while.
const WORKING_SET: PageCount = PageCount(1024);
const PAGES_PER_TICK: u32 = 4;
/// All pages have content then.
const FIRST_PASS_TICKS: u32 = WORKING_SET.0 as u32 / PAGES_PER_TICK;

fn setup() -> Setup {
    let accelerator = Accelerator::of_this_machine();
    let paced = Payload::paced(accelerator);
    let payload = Payload { working_set: WORKING_SET, pages_per_tick: PAGES_PER_TICK, ..paced };
    Setup { boot: Boot::Flash(payload), ..Setup::new(Machine::Microvm, accelerator) }
}

fn running(binary: &Binary) -> Qemu {
    let source = setup().start(binary).expect("source");
    source.wait_tick_past(FIRST_PASS_TICKS).expect("a running guest");
    source
}

fn capture(binary: &Binary) -> (Qemu, CapturedGuest) {
    let mut source = running(binary);
    source.set_capabilities(&[("return-path", true)]).expect("capabilities");
    let link = source.migrate_to_us(Transport::Unix).expect("a migration");
    let guest = CapturedGuest::receive(link).expect("a whole guest");
    source.wait_migrated().expect("source");
    (source, guest)
}

fn enable(qemu: &mut Qemu, preempt: bool) {
    qemu.set_capabilities(&[("postcopy-ram", true), ("postcopy-preempt", preempt)]).expect("capabilities");
}

/// Moves at once, and pushes slowly if `slow`.
fn outgoing(preempt: bool, slow: bool) -> OutgoingConfig {
    OutgoingConfig {
        capabilities: Capabilities {
            postcopy_ram: true,
            postcopy_preempt: preempt,
            ..OutgoingConfig::default().capabilities
        },
        parameters: Parameters {
            postcopy_auto: Some(AutoPostcopy { rounds_max: None, time_max: Some(Duration::ZERO) }),
            max_postcopy_bandwidth: slow.then_some(ByteCount(SLOW)),
            ..Parameters::default()
        },
        ..OutgoingConfig::default()
    }
}

/// Reads every page as the guest would, last page first; the kernel waits for those that are missing.
fn touch_all(ram: &GuestRam) {
    for (_, block) in ram.iter() {
        for page in (0..block.pages().0).rev() {
            let base = block.guest_address().addr().get() + page as usize * PAGE_BYTES;
            let mut word = [0; 8];
            let remote = [RemoteIoVec { base, len: word.len() }];
            let read = process_vm_readv(Pid::this(), &mut [IoSliceMut::new(&mut word)], &remote);
            assert_eq!(read, Ok(8), "page {page} of {}", block.name());
        }
    }
}

fn wait_until(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Waits until the guest, which has one vCPU, has asked again after an answer that left now: so the first answer was
/// placed, and QEMU reads its preempt channel. Paused before its thread does, QEMU 10.0 dies of it (wire 5.8).
fn await_urgent_reader(migration: &Outgoing) {
    let answered = || migration.statistics().urgent.map_or(0, |urgent| urgent.pages.0);
    let before = answered();
    wait_until("two answers", || answered() >= before + 2);
}

#[test]
fn a_guest_runs_in_qemu_before_its_memory_is_there() {
    let Some(binary) = Release::Current.require() else { return };
    for (preempt, transport) in [(false, Transport::Unix), (true, Transport::Tcp)] {
        let (source, guest) = capture(&binary);
        let mut destination = setup().destination().start(&binary).expect("destination");
        enable(&mut destination, preempt);
        let address = destination.listen(transport).expect("listen");
        let (vm, observer) = (Arc::new(Still), Arc::new(NoObserver));
        let config = outgoing(preempt, true);
        let migration = Outgoing::start(address, config, guest.into_savevm(), vm, observer).expect("a start");
        let (report, _) = migration.wait();
        let error = &report.statistics.error;
        assert!(report.is_completed(), "preempt {preempt}: {error:?}; QEMU said: {}", destination.stderr());
        destination.wait_migrated().expect("destination");
        let asked = report.statistics.urgent.expect("postcopy");
        assert!(asked.pages.0 > 0, "the guest faulted: {asked:?}");
        assert_goes_on(&source, &mut destination).expect("a guest that goes on");
    }
}

#[test]
fn a_guest_of_qemu_comes_page_by_page_as_it_is_asked_for() {
    let Some(binary) = Release::Current.require() else { return };
    let (_, model) = capture(&binary);
    for (preempt, transport) in [(false, Transport::Unix), (true, Transport::Tcp)] {
        let ForeignGuest { ram, savevm, .. } = ForeignGuest::like(&model).expect("memory");
        let mut source = running(&binary);
        enable(&mut source, preempt);
        source.hold_back(ByteCount(SLOW)).expect("parameters");
        source.set_parameters(json!({ "max-postcopy-bandwidth": SLOW })).expect("parameters");
        let incoming = receive(savevm, transport, &source, preempt);
        source.migrate(&incoming.address().expect("it listens").to_string()).expect("migrate");
        source.wait_migration("active").expect("a beginning");
        source.start_postcopy().expect("postcopy");
        wait_until("postcopy", || incoming.statistics().status.as_str() == "postcopy-active");
        touch_all(&ram);
        let (report, savevm) = incoming.wait();
        let error = &report.statistics.error;
        assert!(report.is_completed(), "preempt {preempt}: {error:?}; QEMU said: {}", source.stderr());
        source.wait_migrated().expect("source");
        source.assert_same_memory(&ram).expect("pmemsave");
        let came = report.statistics.postcopy.expect("postcopy");
        // Which of them are asked for depends on who is faster.
        assert!((came.pages_by_fault + came.pages_by_push).0 > 0 && came.pages_twice.0 == 0, "{came:?}");

        let mut destination = setup().destination().start(&binary).expect("destination");
        let address = destination.listen(Transport::Unix).expect("listen");
        let (vm, observer) = (Arc::new(Still), Arc::new(NoObserver));
        let onward =
            Outgoing::start(address, OutgoingConfig::default(), savevm, vm, observer).expect("a start");
        assert!(onward.wait().0.is_completed(), "{}", destination.stderr());
        destination.wait_migrated().expect("destination");
        assert_goes_on(&source, &mut destination).expect("a guest that goes on");
    }
}

fn receive(savevm: limosa::SaveVm, transport: Transport, source: &Qemu, preempt: bool) -> Incoming {
    let config = IncomingConfig {
        postcopy: Some(IncomingPostcopy { preempt }),
        read_deadline: Some(PATIENCE),
        ..IncomingConfig::default()
    };
    let address = transport.address(source.folder());
    Incoming::listen(&address, config, savevm, Arc::new(Still), Arc::new(NoObserver)).expect("a start")
}

#[test]
fn a_postcopy_to_qemu_goes_on_after_it_was_paused() {
    let Some(binary) = Release::Current.require() else { return };
    for preempt in [false, true] {
        let (source, guest) = capture(&binary);
        let mut destination = setup().destination().start(&binary).expect("destination");
        enable(&mut destination, preempt);
        let address = destination.listen(Transport::Unix).expect("listen");
        let (vm, observer) = (Arc::new(Still), Arc::new(NoObserver));
        let migration = Outgoing::start(address, outgoing(preempt, true), guest.into_savevm(), vm, observer)
            .expect("a start");
        for recovery in 0..2 {
            destination.wait_migration("postcopy-active").expect("postcopy");
            wait_until("proof", || migration.statistics().downtime.is_some());
            wait_until("activity", || migration.statistics().status.as_str() == "postcopy-active");
            await_urgent_reader(&migration);
            migration.pause_postcopy().expect("a pause");
            destination.wait_migration("postcopy-paused").expect("a pause there");
            wait_until("a pause", || migration.statistics().status.as_str() == "postcopy-paused");
            let uri = format!("unix:{}", destination.folder().join(format!("again-{recovery}")).display());
            destination.recover_postcopy(&uri).expect("a listener");
            migration.resume_postcopy(uri.parse().expect("a plain address")).expect("a recovery");
        }
        let (report, _) = migration.wait();
        let error = &report.statistics.error;
        assert!(report.is_completed(), "preempt {preempt}: {error:?}; QEMU said: {}", destination.stderr());
        assert_eq!(report.statistics.pauses, 2);
        assert_eq!(report.guest(), GuestFate::OnDestination);
        destination.wait_migrated().expect("destination");
        assert_goes_on(&source, &mut destination).expect("a guest that goes on");
    }
}

#[test]
fn a_postcopy_from_qemu_goes_on_after_it_was_paused() {
    let Some(binary) = Release::Current.require() else { return };
    let (_, model) = capture(&binary);
    for preempt in [false, true] {
        let ForeignGuest { ram, savevm, .. } = ForeignGuest::like(&model).expect("memory");
        let mut source = running(&binary);
        enable(&mut source, preempt);
        source.hold_back(ByteCount(SLOW)).expect("parameters");
        source.set_parameters(json!({ "max-postcopy-bandwidth": SLOW })).expect("parameters");
        let incoming = receive(savevm, Transport::Tcp, &source, preempt);
        source.migrate(&incoming.address().expect("it listens").to_string()).expect("migrate");
        source.wait_migration("active").expect("a beginning");
        source.start_postcopy().expect("postcopy");
        for _ in 0..2 {
            source.wait_migration("postcopy-active").expect("postcopy");
            wait_until("postcopy", || incoming.statistics().status.as_str() == "postcopy-active");
            source.pause_postcopy().expect("a pause");
            source.wait_migration("postcopy-paused").expect("a pause there");
            wait_until("a pause", || incoming.statistics().status.as_str() == "postcopy-paused");
            let anywhere: Address = "tcp:127.0.0.1:0".parse().expect("an address");
            let address = incoming.recover_postcopy(&anywhere).expect("a listener");
            source.resume_postcopy(&address.to_string()).expect("a recovery");
        }
        touch_all(&ram);
        let (report, _) = incoming.wait();
        let error = &report.statistics.error;
        assert!(report.is_completed(), "preempt {preempt}: {error:?}; QEMU said: {}", source.stderr());
        source.wait_migrated().expect("source");
        source.assert_same_memory(&ram).expect("pmemsave");
    }
}

#[test]
fn a_destination_that_refuses_postcopy_is_heard_by_qemu() {
    let Some(binary) = Release::Current.require() else { return };
    let (_, model) = capture(&binary);
    let ForeignGuest { savevm, .. } = ForeignGuest::like(&model).expect("memory");
    let mut source = running(&binary);
    enable(&mut source, false);
    let listener = Listener::bind(&Transport::Unix.address(source.folder())).expect("a listener");
    source.migrate(&listener.local_address().to_string()).expect("migrate");
    let link = listener.accept(Some(Instant::now() + PATIENCE)).expect("a link");
    let (vm, observer) = (Arc::new(Still), Arc::new(NoObserver));
    let incoming = Incoming::over(link, IncomingConfig::default(), savevm, vm, observer).expect("a start");
    let (report, _) = incoming.wait();
    assert!(report.statistics.error.expect("a reason").contains("POSTCOPY_ADVISE"));
    source.wait_migration("failed").expect("source");
    let tick = source.wait_tick_past(0).expect("a tick");
    source.wait_tick_past(tick + 20).expect("a guest that goes on");
}

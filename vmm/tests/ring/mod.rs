//! What the tests of this ring need of the machine, and how they wait.
#![allow(dead_code, reason = "each test binary uses a part")]

use limosa_pages::{BlockId, ByteCount, PageCount};
use limosa_vmm::{Dirtier, GuestConfig, GuestKind, Machine, Program, Rate, kvm_usable};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Set where no test may be left out.
const REQUIRE_ALL_RINGS: &str = "LIMOSA_REQUIRE_ALL_RINGS";

/// RAM of the guests under test: 2048 pages, of which 1792 are content.
pub(crate) const MEMORY: ByteCount = ByteCount(8 << 20);
/// A working set that is written several times in a few milliseconds. A prime, so that slices differ in length.
pub(crate) const WORKING_SET: PageCount = PageCount(613);

/// A guest that makes no progress in this time hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Says loudly that `test` is left out because `need` is missing; fails where nothing may be.
pub(crate) fn leave_out(test: &str, need: &dyn std::fmt::Display) {
    let message = format!("LEFT OUT: {test}: {need}");
    assert!(std::env::var_os(REQUIRE_ALL_RINGS).is_none_or(|value| value != "1"), "{message}");
    eprintln!("{message}");
}

/// Whether KVM can be used; if not, `test` is left out.
pub(crate) fn kvm(test: &str) -> bool {
    match kvm_usable() {
        Ok(()) => true,
        Err(reason) => {
            leave_out(test, &reason);
            false
        }
    }
}

/// Runs `test` for every kind of guest that this machine can have.
pub(crate) fn for_each_kind(name: &str, test: impl Fn(GuestKind)) {
    test(GuestKind::Process);
    if kvm(name) {
        test(GuestKind::Kvm);
    }
}

/// An unlimited dirtier over [`WORKING_SET`].
pub(crate) fn busy() -> Dirtier {
    Dirtier { seed: 42, working_set: Some(WORKING_SET), rate: Rate::Unlimited, ..Dirtier::default() }
}

/// A machine of this kind that executes `dirtier`.
pub(crate) fn machine(kind: GuestKind, vcpus: u32, dirtier: Dirtier) -> Machine {
    let program = Program::Dirtier(dirtier);
    let config = GuestConfig { kind, memory: MEMORY, vcpus, program, ..GuestConfig::default() };
    Machine::new(&config).expect("the machine can be made")
}

/// A machine of this kind that waits for a guest to arrive.
pub(crate) fn incoming(kind: GuestKind, vcpus: u32) -> Machine {
    let program = Program::Incoming;
    let config = GuestConfig { kind, memory: MEMORY, vcpus, program, ..GuestConfig::default() };
    Machine::new(&config).expect("the machine can be made")
}

/// Steps done by all workers.
pub(crate) fn total_steps(machine: &Machine) -> u64 {
    machine.progress().iter().map(|worker| worker.steps).sum()
}

/// Waits until every worker has done `more` steps more.
pub(crate) fn let_work(machine: &Machine, more: u64) {
    let before = machine.progress();
    wait_until("every worker makes progress", || {
        machine.progress().iter().zip(&before).all(|(now, before)| now.steps >= before.steps + more)
    });
}

/// Gives the processor away until `done`.
pub(crate) fn wait_until(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "gave up waiting until {what}");
        std::thread::yield_now();
    }
}

/// Fails if `work` does not come back: a kick that is lost would make a pause wait forever.
pub(crate) fn within_patience(what: &str, work: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        work();
        // Nobody listens any more if this came too late.
        let _ = done.send(());
    });
    match is_done.recv_timeout(PATIENCE) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("gave up waiting until {what}"),
        Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {}
    }
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Pauses and checks everything.
#[track_caller]
pub(crate) fn pause_and_verify(machine: &Machine) {
    machine.pause();
    let report = machine.verify().expect("it is the built-in guest");
    assert!(report.is_clean(), "{report:#?}");
    let pages = report.pages_checked + report.pages_in_flight;
    assert_eq!(pages, machine.ram().block(BlockId(0)).pages(), "every page was looked at");
}

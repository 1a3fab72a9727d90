//! Whole migrations between two engines in one process, over a socket pair.

mod guest;

use guest::{Guest, Recorder, assert_completed};
use limosa_engine::{
    Capabilities, GuestFate, Incoming, IncomingConfig, IncomingReport, NoObserver, Outgoing, OutgoingConfig,
    OutgoingReport, Parameters, RunState,
};
use limosa_pages::ByteCount;
use limosa_transport::Link;
use std::sync::Arc;
use std::time::Duration;

fn migrate(
    source: &mut Guest,
    destination: &mut Guest,
    config: OutgoingConfig,
) -> (OutgoingReport, IncomingReport) {
    let (there, here) = Link::pair().unwrap();
    let observer = Arc::new(NoObserver);
    let incoming = Incoming::over(
        there,
        IncomingConfig::default(),
        destination.take_savevm(),
        destination.vm(),
        observer.clone(),
    )
    .unwrap();
    let outgoing = Outgoing::over(here, config, source.take_savevm(), source.vm(), observer).unwrap();
    let (outgoing, savevm) = outgoing.wait();
    source.give_back(savevm);
    let (incoming, savevm) = incoming.wait();
    destination.give_back(savevm);
    (outgoing, incoming)
}

#[test]
fn a_guest_that_stands_still_arrives_whole() {
    let (mut source, mut destination) = (Guest::running(0), Guest::incoming(0));
    let (outgoing, incoming) = migrate(&mut source, &mut destination, OutgoingConfig::default());
    assert_completed(&outgoing, &incoming);
    assert_eq!(outgoing.guest(), GuestFate::OnDestination);
    assert!(source.memory() == destination.memory());
    assert_eq!((source.run_state(), destination.run_state()), (RunState::Paused, RunState::Running));
    assert_eq!(outgoing.statistics.ram.owed.0, 0);
    assert_eq!(outgoing.statistics.transferred, incoming.statistics.received);
}

#[test]
fn a_writing_guest_arrives_with_every_byte_and_goes_on() {
    let (mut source, mut destination) = (Guest::running(900), Guest::incoming(900));
    source.let_write(1000);
    let (outgoing, incoming) = migrate(&mut source, &mut destination, OutgoingConfig::default());
    assert_completed(&outgoing, &incoming);
    let sent = source.counter.lock().clone();
    destination.let_write(1000);
    destination.stop();
    // What the guest wrote there is its own; everything else is what it left here.
    assert!(destination.counter.lock().writes >= sent.writes + 1000);
    let changed =
        source.memory().iter().zip(destination.memory()).filter(|(here, there)| **here != *there).count();
    let written = (destination.counter.lock().writes - sent.writes) as usize;
    assert!(changed <= written * 8, "{changed} bytes differ after {written} writes of 8");
}

#[test]
fn a_paused_guest_arrives_paused_with_identical_memory() {
    let (mut source, mut destination) = (Guest::running(900), Guest::incoming(900));
    source.let_write(1000);
    source.stop();
    let (outgoing, incoming) = migrate(&mut source, &mut destination, OutgoingConfig::default());
    assert_completed(&outgoing, &incoming);
    assert!(source.memory() == destination.memory());
    assert_eq!(*source.counter.lock(), *destination.counter.lock());
    assert_eq!(destination.run_state(), RunState::InMigrate);
}

#[test]
fn without_autostart_the_memory_is_identical_to_what_was_left_behind() {
    for xbzrle in [false, true] {
        let (mut source, mut destination) = (Guest::running(900), Guest::incoming(900));
        source.let_write(1000);
        let (there, here) = Link::pair().unwrap();
        let config = IncomingConfig { autostart: false, ..IncomingConfig::default() };
        let observer = Arc::new(NoObserver);
        let incoming =
            Incoming::over(there, config, destination.take_savevm(), destination.vm(), observer.clone())
                .unwrap();
        // Slow enough for many rounds, so that deltas have something to do.
        let config = OutgoingConfig {
            capabilities: Capabilities { xbzrle, return_path: true, ..Capabilities::default() },
            parameters: Parameters {
                max_bandwidth: Some(ByteCount(40 << 20)),
                downtime_limit: Duration::from_millis(20),
                ..Parameters::default()
            },
            ..OutgoingConfig::default()
        };
        let outgoing = Outgoing::over(here, config, source.take_savevm(), source.vm(), observer).unwrap();
        // The guest never converges at this rate; after some rounds it is allowed to.
        while outgoing.statistics().rounds.len() < 5 {
            std::thread::yield_now();
        }
        outgoing.set_parameters(Parameters { max_bandwidth: None, ..Parameters::default() }).unwrap();
        let (outgoing, _) = outgoing.wait();
        let (incoming, _) = incoming.wait();
        assert_completed(&outgoing, &incoming);
        assert!(source.memory() == destination.memory(), "xbzrle {xbzrle}");
        assert_eq!(*source.counter.lock(), *destination.counter.lock());
        let ram = outgoing.statistics.ram;
        assert_eq!(ram.xbzrle_pages.0 > 0, xbzrle, "{ram:?}");
    }
}

#[test]
fn statuses_and_passes_come_in_qemus_order() {
    let (mut source, mut destination) = (Guest::running(10), Guest::incoming(10));
    let (there, here) = Link::pair().unwrap();
    let (seen_here, seen_there) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
    let (savevm, vm) = (destination.take_savevm(), destination.vm());
    let incoming = Incoming::over(there, IncomingConfig::default(), savevm, vm, seen_there.clone()).unwrap();
    let (savevm, vm) = (source.take_savevm(), source.vm());
    let outgoing = Outgoing::over(here, OutgoingConfig::default(), savevm, vm, seen_here.clone()).unwrap();
    let (outgoing, _) = outgoing.wait();
    assert_completed(&outgoing, &incoming.wait().0);
    assert_eq!(seen_here.statuses(), ["setup", "active", "device", "completed"]);
    assert_eq!(seen_there.statuses(), ["setup", "active", "completed"]);
    let passes = seen_here.passes();
    assert!(passes.len() >= 2 && passes.iter().copied().eq(1..=passes.len() as u64), "{passes:?}");
}

#[test]
fn pause_before_switchover_waits_for_the_word_with_the_guest_stopped() {
    let (mut source, mut destination) = (Guest::running(10), Guest::incoming(10));
    let (there, here) = Link::pair().unwrap();
    let (savevm, vm) = (destination.take_savevm(), destination.vm());
    let incoming =
        Incoming::over(there, IncomingConfig::default(), savevm, vm, Arc::new(NoObserver)).unwrap();
    let capabilities =
        Capabilities { return_path: true, pause_before_switchover: true, ..Capabilities::default() };
    let config = OutgoingConfig { capabilities, ..OutgoingConfig::default() };
    let (savevm, vm) = (source.take_savevm(), source.vm());
    let outgoing = Outgoing::over(here, config, savevm, vm, Arc::new(NoObserver)).unwrap();
    while outgoing.statistics().status.as_str() != "pre-switchover" {
        std::thread::yield_now();
    }
    assert_eq!(source.run_state(), RunState::Paused);
    assert_eq!(destination.run_state(), RunState::InMigrate);
    outgoing.continue_switchover();
    assert_completed(&outgoing.wait().0, &incoming.wait().0);
    assert_eq!(destination.run_state(), RunState::Running);
}

#[test]
fn a_cancelled_guest_goes_on_here_and_never_runs_there() {
    let (mut source, mut destination) = (Guest::running(900), Guest::incoming(900));
    let (there, here) = Link::pair().unwrap();
    let (savevm, vm) = (destination.take_savevm(), destination.vm());
    let incoming =
        Incoming::over(there, IncomingConfig::default(), savevm, vm, Arc::new(NoObserver)).unwrap();
    let parameters = Parameters { max_bandwidth: Some(ByteCount(1 << 20)), ..Parameters::default() };
    let config = OutgoingConfig { parameters, ..OutgoingConfig::default() };
    let (savevm, vm) = (source.take_savevm(), source.vm());
    let outgoing = Outgoing::over(here, config, savevm, vm, Arc::new(NoObserver)).unwrap();
    while outgoing.statistics().ram.normal.0 == 0 {
        std::thread::yield_now();
    }
    outgoing.cancel();
    let (report, savevm) = outgoing.wait();
    source.give_back(savevm);
    assert_eq!(report.outcome.status().as_str(), "cancelled");
    assert_eq!(report.guest(), GuestFate::OnSource);
    let (report, _) = incoming.wait();
    assert_eq!(report.outcome.status().as_str(), "failed");
    assert_eq!((source.run_state(), destination.run_state()), (RunState::Running, RunState::InMigrate));
    source.let_write(100);

    let mut second = Guest::incoming(900);
    let (outgoing, incoming) = migrate(&mut source, &mut second, OutgoingConfig::default());
    assert_completed(&outgoing, &incoming);
}

#[test]
fn a_guest_that_cannot_be_stopped_runs_on_here() {
    let (mut source, mut destination) = (Guest::running(10), Guest::incoming(10));
    let (there, here) = Link::pair().unwrap();
    let (savevm, vm) = (destination.take_savevm(), destination.vm());
    let incoming =
        Incoming::over(there, IncomingConfig::default(), savevm, vm, Arc::new(NoObserver)).unwrap();
    let (savevm, vm) = (source.take_savevm(), source.unstoppable());
    let outgoing = Outgoing::over(here, OutgoingConfig::default(), savevm, vm, Arc::new(NoObserver)).unwrap();
    let (report, _) = outgoing.wait();
    assert_eq!(report.guest(), GuestFate::OnSource);
    let error = report.statistics.error.unwrap();
    assert!(error.contains("stopping the guest") && error.contains("does not obey"), "{error}");
    assert!(!incoming.wait().0.is_completed());
    assert_eq!((source.run_state(), destination.run_state()), (RunState::Running, RunState::InMigrate));
}

#[test]
fn a_guest_can_go_there_and_back_many_times() {
    let (mut here, mut there) = (Guest::running(900), Guest::incoming(900));
    for turn in 0..20 {
        let (outgoing, incoming) = migrate(&mut here, &mut there, OutgoingConfig::default());
        assert!(outgoing.is_completed() && incoming.is_completed(), "turn {turn}: {outgoing:?} {incoming:?}");
        there.let_write(10);
        std::mem::swap(&mut here, &mut there);
    }
}

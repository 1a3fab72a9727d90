//! Tables of transitions: an event, and the whole list of actions that follows.
#![allow(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]

mod commit;
mod greeting;
mod postcopy;
mod recovery;
mod replacement;
mod rounds;

use super::SourceAction::*;
use super::*;
use crate::convergence::{AutoPostcopy, ConvergenceConfig};
use crate::error::{LinkRole, Loss, LossReason, ProtocolError, Unexpected};
use crate::ping::PingPurpose;
use crate::status::GuestFate;
use limosa_pages::ByteCount;
use limosa_wire::{Command, Features, ReturnMessage};

/// A machine and its clock.
struct Run {
    source: Source,
    now: Instant,
}

const MIB: u64 = 1 << 20;

impl Run {
    fn new(config: SourceConfig) -> Self {
        let now = Instant::now();
        Self { source: Source::new(config, now), now }
    }

    /// What the machine wants now.
    fn actions(&mut self) -> Vec<SourceAction> {
        std::iter::from_fn(|| self.source.poll_action()).collect()
    }

    /// What it wants after `event`, a millisecond later.
    fn after(&mut self, event: SourceEvent) -> Vec<SourceAction> {
        self.now += Duration::from_millis(1);
        self.source.handle(event, self.now);
        self.actions()
    }

    fn all_after(&mut self, events: impl IntoIterator<Item = SourceEvent>) -> Vec<SourceAction> {
        events.into_iter().flat_map(|event| self.after(event)).collect()
    }

    /// What it wants when its own time has come.
    fn after_timeout(&mut self) -> Vec<SourceAction> {
        self.now = self.source.poll_timeout().expect("something is waited for");
        self.source.handle(SourceEvent::Timeout, self.now);
        self.actions()
    }

    fn outcome(&self) -> &SourceOutcome {
        self.source.outcome().expect("it has ended")
    }

    /// A machine that has just been told to do the step in which this phase begins.
    fn in_phase(config: SourceConfig, phase: Phase) -> Self {
        let mut run = Self::new(config);
        run.actions();
        let events = [
            (Phase::Setup, vec![pong(PingPurpose::Greeting)]),
            (Phase::Round, vec![setup_saved(), pong(PingPurpose::Setup), synced(8 * MIB)]),
            (Phase::Barrier, vec![iterated(8 * MIB, 0)]),
            (Phase::Stopping, vec![pong(PingPurpose::Round(1)), synced(0)]),
            (Phase::Devices, vec![SourceEvent::VmStopped, synced(0), precopy_completed()]),
            (Phase::End, vec![devices_saved(), pong(PingPurpose::Switchover)]),
            (Phase::Shut, vec![end_sent()]),
        ];
        for (reached, events) in events {
            if reached <= phase {
                run.all_after(events);
            }
        }
        run
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Greeting,
    Setup,
    Round,
    Barrier,
    Stopping,
    Devices,
    End,
    Shut,
}

fn setup_saved() -> SourceEvent {
    SourceEvent::SetupSaved { sent: ByteCount(100) }
}

fn pending(owed: u64) -> Pending {
    Pending { owed: ByteCount(owed), device: ByteCount(1000), queued: ByteCount(0) }
}

fn synced(owed: u64) -> SourceEvent {
    SourceEvent::Synced { pending: pending(owed) }
}

fn iterated(sent: u64, owed: u64) -> SourceEvent {
    SourceEvent::Iterated { sent: ByteCount(sent), pending: pending(owed) }
}

fn precopy_completed() -> SourceEvent {
    SourceEvent::PrecopyCompleted { sent: ByteCount(50) }
}

fn devices_saved() -> SourceEvent {
    SourceEvent::DevicesSaved { sent: ByteCount(1000) }
}

fn end_sent() -> SourceEvent {
    SourceEvent::EndSent { sent: ByteCount(10) }
}

fn pong(purpose: PingPurpose) -> SourceEvent {
    SourceEvent::Return(ReturnMessage::Pong(purpose.value()))
}

fn shut(code: u32) -> SourceEvent {
    SourceEvent::Return(ReturnMessage::Shut(code))
}

const fn loss(role: LinkRole) -> Loss {
    Loss { role, reason: LossReason::Closed }
}

const fn lost(role: LinkRole) -> SourceEvent {
    SourceEvent::Lost(loss(role))
}

fn ping(purpose: PingPurpose) -> SourceAction {
    SendCommand(Command::Ping(purpose.value()))
}

const SAVE_SETUP: SourceAction = SaveSetup { features: Features::NONE };

const SLICE: SourceAction = Iterate { max_bytes: SLICE_BYTES_MAX, max_time: SLICE_TIME_MAX };

fn without_return_path() -> SourceConfig {
    SourceConfig { return_path: false, ..SourceConfig::default() }
}

fn failed(failure: SourceFailure, fate: GuestFate) -> SourceOutcome {
    let ending = SourceEnding::Failed(failure);
    SourceOutcome { ending, fate, resume_failed: false, cancel_refused: false }
}

#[test]
fn a_migration_with_a_return_path_proves_every_phase_before_the_next() {
    let mut run = Run::new(SourceConfig::default());
    let (open, greeting) = (ping(PingPurpose::Open), ping(PingPurpose::Greeting));
    assert_eq!(run.actions(), [SendCommand(Command::OpenReturnPath), open, greeting]);
    let table = [
        (pong(PingPurpose::Open), vec![]),
        (pong(PingPurpose::Greeting), vec![SAVE_SETUP]),
        (setup_saved(), vec![ping(PingPurpose::Setup)]),
        (pong(PingPurpose::Setup), vec![SyncDirty]),
        (synced(8 * MIB), vec![SLICE]),
        (iterated(4 * MIB, 4 * MIB), vec![SLICE]),
        (iterated(4 * MIB, 0), vec![ping(PingPurpose::Round(1))]),
        (pong(PingPurpose::Round(1)), vec![SyncDirty]),
        (synced(0), vec![StopVm]),
        (SourceEvent::VmStopped, vec![SyncDirty]),
        (synced(4096), vec![CompletePrecopy]),
        (precopy_completed(), vec![SaveDevices]),
        (devices_saved(), vec![ping(PingPurpose::Switchover)]),
        (pong(PingPurpose::Switchover), vec![SendEnd]),
        (end_sent(), vec![]),
        (shut(0), vec![Finish]),
    ];
    for (event, expected) in table {
        assert_eq!(run.after(event.clone()), expected, "after {event:?}");
    }
    let ending = SourceEnding::Completed { confirmed: true };
    let fate = GuestFate::OnDestination;
    assert_eq!(run.outcome(), &SourceOutcome { ending, fate, resume_failed: false, cancel_refused: false });
    let counters = run.source.counters();
    assert_eq!((counters.sync_count, counters.rounds, counters.slices), (3, 1, 2));
    assert_eq!((counters.bytes_sent, counters.downtime_bytes), (ByteCount(8 * MIB + 1160), ByteCount(1060)));
}

#[test]
fn a_migration_without_a_return_path_asks_nothing_and_believes_the_kernel() {
    let mut run = Run::new(without_return_path());
    assert_eq!(run.actions(), [SAVE_SETUP]);
    let table = [
        (setup_saved(), vec![SyncDirty]),
        (synced(8 * MIB), vec![SLICE]),
        (iterated(8 * MIB, 0), vec![SyncDirty]),
        (synced(0), vec![StopVm]),
        (SourceEvent::VmStopped, vec![SyncDirty]),
        (synced(0), vec![CompletePrecopy]),
        (precopy_completed(), vec![SaveDevices]),
        (devices_saved(), vec![SendEnd]),
        (end_sent(), vec![Finish]),
    ];
    for (event, expected) in table {
        assert_eq!(run.after(event.clone()), expected, "after {event:?}");
    }
    assert_eq!(run.outcome().ending, SourceEnding::Completed { confirmed: false });
}

#[test]
fn statuses_follow_the_phases() {
    let phases = [
        (Phase::Greeting, MigrationStatus::Setup),
        (Phase::Setup, MigrationStatus::Setup),
        (Phase::Round, MigrationStatus::Active),
        (Phase::Barrier, MigrationStatus::Active),
        (Phase::Stopping, MigrationStatus::Active),
        (Phase::Devices, MigrationStatus::Device),
        (Phase::End, MigrationStatus::Device),
        (Phase::Shut, MigrationStatus::Device),
    ];
    for (phase, status) in phases {
        assert_eq!(Run::in_phase(SourceConfig::default(), phase).source.status(), status, "{phase:?}");
    }
}

#[test]
fn a_pause_before_the_switchover_stops_the_guest_and_waits_for_the_user() {
    let config = SourceConfig { pause_before_switchover: true, ..SourceConfig::default() };
    let mut run = Run::in_phase(config, Phase::Stopping);
    assert_eq!(run.after(SourceEvent::Continue), [], "too early to mean anything");
    assert_eq!(run.after(SourceEvent::VmStopped), []);
    assert_eq!(run.source.status(), MigrationStatus::PreSwitchover);
    assert_eq!(run.source.poll_timeout(), None, "the user has all the time there is");
    assert_eq!(run.after(SourceEvent::Continue), [SyncDirty]);
    assert_eq!(run.source.status(), MigrationStatus::Device);
}

#[test]
fn loss_before_the_commit_point_leaves_the_guest_on_the_source() {
    let phases =
        [Phase::Greeting, Phase::Setup, Phase::Round, Phase::Barrier, Phase::Stopping, Phase::Devices];
    for phase in phases {
        let mut run = Run::in_phase(SourceConfig::default(), phase);
        let mut seen = run.after(lost(LinkRole::Main));
        if phase >= Phase::Stopping {
            assert_eq!(seen, [CloseLink, ResumeVm], "{phase:?}");
            assert_eq!(run.source.status(), MigrationStatus::Failed);
            seen = run.after(SourceEvent::VmResumed);
            assert_eq!(seen, [Finish]);
        } else {
            assert_eq!(seen, [CloseLink, Finish], "{phase:?}");
        }
        let failure = SourceFailure::Lost(loss(LinkRole::Main));
        assert_eq!(run.outcome(), &failed(failure, GuestFate::OnSource));
    }
}

#[test]
fn a_cancel_before_the_commit_point_is_obeyed_and_says_cancelling_first() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Devices);
    assert!(run.source.may_cancel());
    assert_eq!(run.after(SourceEvent::Cancel), [CloseLink, ResumeVm]);
    assert_eq!(run.source.status(), MigrationStatus::Cancelling);
    // The answer to what was under way comes late, and the link makes its noise.
    assert_eq!(run.all_after([devices_saved(), lost(LinkRole::ReturnPath), SourceEvent::Cancel]), []);
    assert_eq!(run.after(SourceEvent::VmResumed), [Finish]);
    assert_eq!(run.source.status(), MigrationStatus::Cancelled);
    assert_eq!(run.outcome().fate, GuestFate::OnSource);
}

#[test]
fn a_stop_that_the_shell_has_not_taken_needs_no_resume() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Barrier);
    run.after(pong(PingPurpose::Round(1)));
    run.source.handle(synced(0), run.now);
    assert_eq!(run.after(SourceEvent::Cancel), [CloseLink, Finish]);
}

#[test]
fn an_answer_to_nothing_is_a_broken_rule() {
    // Zero, QEMU's other pings, our own for later, a round that has not been.
    let values = [0, 2, 3, 4, 0x42, PingPurpose::Switchover.value(), PingPurpose::Round(2).value()];
    for value in values {
        let mut run = Run::in_phase(SourceConfig::default(), Phase::Barrier);
        let event = SourceEvent::Return(ReturnMessage::Pong(value));
        assert_eq!(run.after(event), [CloseLink, Finish], "{value:#x}");
        let failure = &run.outcome().ending;
        let SourceEnding::Failed(SourceFailure::Protocol(error)) = failure else { panic!("{failure:?}") };
        assert_eq!(error.got, Unexpected { name: "PONG", value: Some(value) });
    }
}

#[test]
fn an_answer_to_an_earlier_question_changes_nothing() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Barrier);
    assert_eq!(run.all_after([pong(PingPurpose::Open), pong(PingPurpose::Setup)]), []);
    assert_eq!(run.source.state_name(), "barrier");
}

#[test]
fn any_answer_without_a_return_path_is_a_broken_rule() {
    let mut run = Run::new(without_return_path());
    run.actions();
    assert_eq!(run.after(pong(PingPurpose::Open)), [CloseLink, Finish]);
}

#[test]
fn messages_of_postcopy_are_a_broken_rule() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Round);
    assert_eq!(run.after(SourceEvent::Return(ReturnMessage::ResumeAck)), [CloseLink, Finish]);
}

#[test]
fn a_handler_that_fails_ends_the_migration_where_it_stands() {
    let steps = [
        (Phase::Setup, SourceStep::SaveSetup, vec![CloseLink, Finish]),
        (Phase::Round, SourceStep::Iterate, vec![CloseLink, Finish]),
        (Phase::Stopping, SourceStep::StopVm, vec![CloseLink, ResumeVm]),
        (Phase::Devices, SourceStep::SaveDevices, vec![CloseLink, ResumeVm]),
    ];
    for (phase, step, expected) in steps {
        let mut run = Run::in_phase(SourceConfig::default(), phase);
        assert_eq!(run.after(SourceEvent::HandlerFailed { step }), expected, "{step}");
    }
}

#[test]
fn a_guest_that_cannot_be_resumed_is_reported() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Devices);
    run.after(SourceEvent::Cancel);
    let event = SourceEvent::HandlerFailed { step: SourceStep::ResumeVm };
    assert_eq!(run.after(event), [Finish]);
    assert!(run.outcome().resume_failed);
    assert_eq!(run.outcome().fate, GuestFate::OnSource);
}

#[test]
fn an_answer_of_the_shell_to_another_question_names_both() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Round);
    assert_eq!(run.after(devices_saved()), [CloseLink, Finish]);
    let got = Unexpected { name: "DevicesSaved", value: None };
    let error = ProtocolError { state: "iterating", expected: "Iterated", got };
    assert_eq!(run.outcome(), &failed(SourceFailure::Protocol(error), GuestFate::OnSource));
    assert_eq!(error.to_string(), "DevicesSaved in state iterating, where Iterated was expected");
}

#[test]
fn silence_of_the_destination_ends_each_wait() {
    let limits = SourceTimeouts::default();
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Greeting);
    assert_eq!(run.after_timeout(), [CloseLink, Finish]);
    let failure = SourceFailure::TimedOut { wait: Wait::Greeting, limit: limits.setup };
    assert_eq!(run.outcome(), &failed(failure, GuestFate::OnSource));

    let mut run = Run::in_phase(SourceConfig::default(), Phase::Setup);
    run.after(setup_saved());
    assert_eq!(run.after_timeout(), [CloseLink, Finish]);
    let failure = SourceFailure::TimedOut { wait: Wait::Setup, limit: limits.setup };
    assert_eq!(run.outcome(), &failed(failure, GuestFate::OnSource));

    let mut run = Run::in_phase(SourceConfig::default(), Phase::Barrier);
    assert_eq!(run.after_timeout(), [CloseLink, Finish]);
    let failure = SourceFailure::TimedOut { wait: Wait::Round(1), limit: limits.round };
    assert_eq!(run.outcome(), &failed(failure, GuestFate::OnSource));

    let mut run = Run::in_phase(SourceConfig::default(), Phase::Devices);
    run.after(devices_saved());
    assert_eq!(run.after_timeout(), [CloseLink, ResumeVm]);

    let mut run = Run::in_phase(SourceConfig::default(), Phase::Shut);
    assert_eq!(run.after_timeout(), [CloseLink, Finish]);
    let failure = SourceFailure::TimedOut { wait: Wait::Shut, limit: limits.shut };
    assert_eq!(run.outcome(), &failed(failure, GuestFate::InDoubt));
}

#[test]
fn a_timeout_before_its_time_changes_nothing() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Barrier);
    assert_eq!(run.after(SourceEvent::Timeout), []);
    assert_eq!(run.source.state_name(), "barrier");
}

#[test]
fn a_timeout_of_for_ever_never_comes() {
    let timeouts = SourceTimeouts { shut: Duration::MAX, ..SourceTimeouts::default() };
    let run = Run::in_phase(SourceConfig { timeouts, ..SourceConfig::default() }, Phase::Shut);
    assert_eq!(run.source.poll_timeout(), None);
}

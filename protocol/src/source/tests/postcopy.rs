//! The switch to postcopy, and what it means for the guest.

use super::*;
use crate::source::postcopy::WHILE_IT_STANDS;
use limosa_pages::{PAGE_BYTES, PageCount};
use limosa_wire::{Hello, PostcopyAdvice};

pub(super) const ADVICE: PostcopyAdvice =
    PostcopyAdvice { page_size_summary: PAGE_BYTES as u64, target_page_size: PAGE_BYTES as u64 };

pub(super) const PUSH: SourceAction = Push { max_bytes: SLICE_BYTES_MAX, max_time: SLICE_TIME_MAX };

const FIRST_PUSH: SourceAction = Push { max_bytes: WHILE_IT_STANDS.0, max_time: WHILE_IT_STANDS.1 };

pub(super) const PACKAGE_PING: u32 = 3;

const SENT: ByteCount = ByteCount(100);

/// How far a migration with postcopy has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Round,
    Ahead,
    Stopping,
    Completing,
    Discarding,
    Packaging,
    Package,
    AwaitRunning,
    Pushing,
    Completion,
    LastWord,
}

pub(super) const STEPS_AFTER_THE_COMMIT_POINT: [Step; 5] =
    [Step::Package, Step::AwaitRunning, Step::Pushing, Step::Completion, Step::LastWord];

pub(super) fn config(preempt: bool) -> SourceConfig {
    let features = FeatureWishes { wanted: Features::RUNNING_ANSWERS, required: Features::NONE };
    let postcopy = Some(SourcePostcopy { advice: ADVICE, preempt, max_bandwidth: None });
    SourceConfig { postcopy, features, ..SourceConfig::default() }
}

pub(super) fn pushed(sent: u64, owed: u64) -> SourceEvent {
    SourceEvent::Pushed { sent: ByteCount(sent), pending: pending(owed) }
}

/// The destination has been told of `pages` more stale pages while the guest runs.
pub(super) const fn discarded_ahead(pages: u64) -> SourceEvent {
    SourceEvent::DiscardedAhead { sent: SENT, pages: PageCount(pages) }
}

pub(super) const RUNNING: SourceEvent = SourceEvent::Return(ReturnMessage::Running);
pub(super) const NEVER_RAN: SourceEvent = SourceEvent::Return(ReturnMessage::NeverRan);

/// A migration to a Limosa (`answers`) or to a QEMU, without a preempt channel, that has just been told to do `step`.
pub(super) fn at(step: Step, answers: bool) -> Run {
    reach(step, config(false), answers.then_some(Features::RUNNING_ANSWERS))
}

/// The same of any migration, to a destination that offers these features, or to a QEMU.
pub(super) fn reach(step: Step, config: SourceConfig, offered: Option<Features>) -> Run {
    let preempt = config.postcopy.is_some_and(|postcopy| postcopy.preempt);
    let mut run = Run::in_phase(config, Phase::Greeting);
    if let Some(features) = offered {
        let hello = Hello { version: 1, features };
        run.after(SourceEvent::Return(ReturnMessage::Hello(hello)));
    }
    let proof =
        if offered.is_some() { RUNNING } else { SourceEvent::Return(ReturnMessage::Pong(PACKAGE_PING)) };
    let to_round = [pong(PingPurpose::Greeting), setup_saved(), pong(PingPurpose::Setup), synced(8 * MIB)];
    run.all_after(to_round);
    let mut ahead = vec![SourceEvent::StartPostcopy, iterated(2 * MIB, 6 * MIB)];
    ahead.extend(preempt.then_some(SourceEvent::PreemptOpened));
    let events = [
        (Step::Ahead, ahead),
        (Step::Stopping, vec![discarded_ahead(100), pong(PingPurpose::Discards)]),
        (Step::Completing, vec![SourceEvent::VmStopped, synced(7 * MIB)]),
        (Step::Discarding, vec![SourceEvent::CompletedForPostcopy { sent: SENT }]),
        (Step::Packaging, vec![SourceEvent::DiscardsSent { sent: SENT }]),
        (Step::Package, vec![SourceEvent::DevicesPackaged { size: SENT }]),
        (Step::AwaitRunning, vec![SourceEvent::PackageSent { sent: SENT }]),
        (Step::Pushing, vec![proof]),
        (Step::Completion, vec![pushed(7 * MIB, 0)]),
        (Step::LastWord, vec![SourceEvent::PostcopyCompleted { sent: SENT }]),
    ];
    for (reached, events) in events {
        if reached <= step {
            run.all_after(events);
        }
    }
    assert_eq!(run.source.outcome(), None);
    run
}

#[test]
fn a_switch_in_the_middle_of_a_round_follows_the_order_of_qemu() {
    let mut run = Run::in_phase(config(true), Phase::Greeting);
    let advise = SendCommand(Command::PostcopyAdvise(Some(ADVICE)));
    assert_eq!(run.after(pong(PingPurpose::Greeting)), [advise, SAVE_SETUP]);
    run.all_after([setup_saved(), pong(PingPurpose::Setup), synced(8 * MIB)]);
    let drained = vec![Drain, ping(PingPurpose::PostcopyEnd)];
    let table = [
        (SourceEvent::StartPostcopy, vec![]),
        (iterated(2 * MIB, 6 * MIB), vec![OpenPreempt]),
        (SourceEvent::PreemptOpened, vec![DiscardAhead]),
        (discarded_ahead(100), vec![ping(PingPurpose::Discards)]),
        (pong(PingPurpose::Discards), vec![StopVm]),
        (SourceEvent::VmStopped, vec![SyncDirty]),
        (synced(7 * MIB), vec![CompleteForPostcopy]),
        (SourceEvent::CompletedForPostcopy { sent: SENT }, vec![SendDiscards]),
        (SourceEvent::DiscardsSent { sent: SENT }, vec![PackageDevices { ping: PACKAGE_PING }]),
        (SourceEvent::DevicesPackaged { size: SENT }, vec![SendPackage]),
        (SourceEvent::PackageSent { sent: SENT }, vec![FIRST_PUSH]),
        (SourceEvent::Return(ReturnMessage::Pong(PACKAGE_PING)), vec![]),
        (pushed(MIB, 6 * MIB), vec![PUSH]),
        (pushed(6 * MIB, 0), drained),
        (pong(PingPurpose::PostcopyEnd), vec![CompletePostcopy]),
        (SourceEvent::PostcopyCompleted { sent: SENT }, vec![]),
        (shut(0), vec![Finish]),
    ];
    for (event, expected) in table {
        assert_eq!(run.after(event.clone()), expected, "after {event:?}");
    }
    let ending = SourceEnding::Completed { confirmed: true };
    assert_eq!((&run.outcome().ending, run.outcome().fate), (&ending, GuestFate::OnDestination));
    let counters = run.source.counters();
    assert_eq!(
        (counters.downtime_bytes, counters.postcopy_bytes),
        (ByteCount(300), ByteCount(7 * MIB + 100))
    );
    assert!(run.source.timeline().runs_there > run.source.timeline().package_sent);
}

#[test]
fn statuses_of_postcopy_are_those_of_qemu() {
    let statuses = [
        (Step::Round, MigrationStatus::Active),
        (Step::Ahead, MigrationStatus::Active),
        (Step::Stopping, MigrationStatus::Active),
        (Step::Completing, MigrationStatus::Device),
        (Step::Package, MigrationStatus::Device),
        (Step::AwaitRunning, MigrationStatus::PostcopyActive),
        (Step::Pushing, MigrationStatus::PostcopyActive),
        (Step::LastWord, MigrationStatus::PostcopyActive),
    ];
    for (step, status) in statuses {
        assert_eq!(at(step, true).source.status(), status, "{step:?}");
    }
}

#[test]
fn without_the_capability_a_wish_for_postcopy_means_nothing() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Round);
    assert!(!run.source.may_start_postcopy());
    assert_eq!(run.all_after([SourceEvent::StartPostcopy, iterated(MIB, 7 * MIB)]), [SLICE]);
}

#[test]
fn a_guest_that_owes_nothing_when_it_stops_goes_the_way_of_precopy() {
    let mut run = at(Step::Stopping, true);
    assert_eq!(run.all_after([SourceEvent::VmStopped, synced(0)]), [SyncDirty, CompletePrecopy]);
}

#[test]
fn a_wish_for_postcopy_wakes_who_waits_for_the_bandwidth_limit() {
    let mut config = config(false);
    config.max_bandwidth = Some(BytesPerSecond(1_000_000));
    let mut run = Run::in_phase(config, Phase::Setup);
    run.all_after([setup_saved(), pong(PingPurpose::Setup), synced(8 * MIB), iterated(MIB, 7 * MIB)]);
    assert_eq!(run.source.state_name(), "throttled");
    assert_eq!(run.after(SourceEvent::StartPostcopy), [DiscardAhead]);
}

#[test]
fn a_destination_that_has_not_acknowledged_is_not_switched_to() {
    let config = SourceConfig { switchover_ack: true, ..config(false) };
    let mut run = Run::in_phase(config, Phase::Round);
    assert_eq!(run.all_after([SourceEvent::StartPostcopy, iterated(MIB, 7 * MIB)]), [SLICE]);
    run.after(SourceEvent::Return(ReturnMessage::SwitchoverAck));
    assert_eq!(run.after(iterated(MIB, 6 * MIB)), [DiscardAhead]);
}

#[test]
fn policy_goes_over_when_its_time_is_up_in_the_middle_of_a_round() {
    let mut config = config(false);
    let limit = Duration::from_millis(10);
    config.convergence.auto_postcopy = Some(AutoPostcopy { rounds_max: None, time_max: Some(limit) });
    let mut run = Run::in_phase(config, Phase::Round);
    assert_eq!(run.after(iterated(MIB, 7 * MIB)), [SLICE]);
    run.now += limit;
    assert_eq!(run.after(iterated(MIB, 6 * MIB)), [DiscardAhead]);
}

#[test]
fn what_is_stale_is_discarded_ahead_as_long_as_the_lists_grow_shorter() {
    let again = vec![DiscardAhead];
    let table = [(100_000, again.clone()), (40_000, again.clone()), (10_000, again), (6_000, vec![StopVm])];
    let mut run = at(Step::Ahead, true);
    for (pages, expected) in table {
        assert_eq!(run.after(discarded_ahead(pages)), [ping(PingPurpose::Discards)]);
        assert_eq!(run.after(pong(PingPurpose::Discards)), expected, "after {pages} pages");
    }
}

#[test]
fn a_list_that_is_never_dropped_ends_the_migration_with_the_guest_here() {
    let mut run = at(Step::Ahead, true);
    run.after(discarded_ahead(100_000));
    assert_eq!(run.after_timeout(), [CloseLink, Finish]);
    let limit = SourceTimeouts::default().round;
    let failure = SourceFailure::TimedOut { wait: Wait::Discards, limit };
    assert_eq!(run.outcome(), &failed(failure, GuestFate::OnSource));
}

#[test]
fn a_policy_without_the_capability_means_nothing() {
    let mut config = SourceConfig::default();
    let time_max = Some(Duration::ZERO);
    config.convergence.auto_postcopy = Some(AutoPostcopy { rounds_max: Some(0), time_max });
    let mut run = Run::in_phase(config, Phase::Round);
    assert_eq!(run.after(iterated(MIB, 7 * MIB)), [SLICE]);
}

#[test]
fn anything_before_the_package_is_taken_leaves_the_guest_here() {
    for step in
        [Step::Round, Step::Ahead, Step::Stopping, Step::Completing, Step::Discarding, Step::Packaging]
    {
        for event in [lost(LinkRole::Main), lost(LinkRole::Preempt), shut(1), SourceEvent::Cancel] {
            let mut run = at(step, true);
            let actions = run.after(event);
            if step > Step::Ahead {
                assert_eq!(actions, [CloseLink, ResumeVm], "{step:?}");
                assert_eq!(run.after(SourceEvent::VmResumed), [Finish]);
            }
            assert_eq!(run.outcome().fate, GuestFate::OnSource, "{step:?}");
        }
    }
    let mut untaken = at(Step::Packaging, true);
    untaken.source.handle(SourceEvent::DevicesPackaged { size: SENT }, untaken.now);
    assert_eq!(untaken.after(lost(LinkRole::Main)), [CloseLink, ResumeVm]);
}

#[test]
fn a_cancel_from_the_package_on_is_refused_and_noted() {
    for step in STEPS_AFTER_THE_COMMIT_POINT {
        let mut run = at(step, true);
        assert!(!run.source.may_cancel());
        assert_eq!(run.after(SourceEvent::Cancel), [], "{step:?}");
        assert_eq!(run.source.outcome(), None, "{step:?}");
    }
    let mut run = at(Step::LastWord, true);
    run.all_after([SourceEvent::Cancel, shut(0)]);
    assert!(run.outcome().cancel_refused);
}

#[test]
fn pages_are_pushed_in_small_slices_before_it_is_known_that_the_guest_runs() {
    let mut run = at(Step::AwaitRunning, true);
    assert_eq!(run.after(pushed(4 * MIB, 3 * MIB)), [FIRST_PUSH]);
    assert_eq!(run.after(pushed(3 * MIB, 0)), [], "the end waits for the proof");
    assert_eq!(run.after(RUNNING), [CompletePostcopy]);
    let mut run = at(Step::AwaitRunning, true);
    assert_eq!(run.after(RUNNING), []);
    assert_eq!(run.after(pushed(MIB, 3 * MIB)), [PUSH]);
}

#[test]
fn a_limosa_says_itself_that_the_guest_runs_and_its_pong_is_no_proof() {
    let mut run = at(Step::AwaitRunning, true);
    assert_eq!(run.after(SourceEvent::Return(ReturnMessage::Pong(PACKAGE_PING))), []);
    assert_eq!(run.source.state_name(), "awaiting running");
    run.after(RUNNING);
    assert_eq!(run.source.state_name(), "pushing");
}

#[test]
fn a_destination_that_never_ran_it_gives_the_guest_back() {
    let mut run = at(Step::AwaitRunning, true);
    assert_eq!(run.after(NEVER_RAN), [CloseLink, ResumeVm]);
    assert_eq!(run.after(SourceEvent::VmResumed), [Finish]);
    assert_eq!(run.outcome(), &failed(SourceFailure::NeverRan, GuestFate::OnSource));

    let mut refused = at(Step::AwaitRunning, true);
    assert_eq!(refused.after(shut(1)), [CloseLink, ResumeVm]);
}

#[test]
fn a_shut_of_qemu_in_postcopy_proves_nothing_about_the_guest() {
    for step in [Step::AwaitRunning, Step::Pushing] {
        for code in [0, 1] {
            assert_eq!(at(step, false).after(shut(code)), [Pause], "{step:?} {code}");
        }
    }
}

#[test]
fn success_before_the_end_is_sent_is_no_success() {
    let mut run = at(Step::Pushing, true);
    assert_eq!(run.after(shut(0)), [Pause]);
}

#[test]
fn word_of_the_guest_from_a_destination_that_has_not_agreed_to_it_is_a_broken_rule() {
    assert_eq!(at(Step::AwaitRunning, false).after(NEVER_RAN), [Pause]);
    assert_eq!(at(Step::Round, true).after(RUNNING), [CloseLink, Finish]);
}

#[test]
fn the_limit_of_precopy_ends_with_it_and_postcopy_has_its_own() {
    let mut config = config(false);
    config.postcopy = config
        .postcopy
        .map(|postcopy| SourcePostcopy { max_bandwidth: Some(BytesPerSecond(100_000_000)), ..postcopy });
    let mut run = Run::in_phase(config, Phase::Round);
    run.all_after([SourceEvent::StartPostcopy, iterated(MIB, 7 * MIB)]);
    run.all_after([discarded_ahead(100), pong(PingPurpose::Discards), SourceEvent::VmStopped]);
    run.all_after([synced(7 * MIB), SourceEvent::CompletedForPostcopy { sent: SENT }]);
    run.all_after([SourceEvent::DiscardsSent { sent: SENT }, SourceEvent::DevicesPackaged { size: SENT }]);
    assert_eq!(run.after(SourceEvent::PackageSent { sent: SENT }), [FIRST_PUSH]);
    assert_eq!(run.after(pushed(4_000_000, 3 * MIB)), [], "throttled");
    let lifted = ParameterChange { max_postcopy_bandwidth: Some(None), ..ParameterChange::default() };
    assert_eq!(run.after(SourceEvent::SetParameters(lifted)), [FIRST_PUSH]);
}

#[test]
fn pushes_that_send_nothing_end_in_a_pause() {
    let mut run = at(Step::Pushing, true);
    for _ in 1..EMPTY_SLICES_MAX {
        assert_eq!(run.after(pushed(0, 7 * MIB)), [PUSH]);
    }
    assert_eq!(run.after(pushed(0, 7 * MIB)), [Pause]);
}

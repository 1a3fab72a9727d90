//! Pause, recovery, and the words that end a pause.

use super::postcopy::{
    NEVER_RAN, PUSH, RUNNING, STEPS_AFTER_THE_COMMIT_POINT, Step, at, config, pushed, reach,
};
use super::*;
use limosa_wire::MultifdSettings;

const RESUME_ACK: SourceEvent = SourceEvent::Return(ReturnMessage::ResumeAck);

fn merged(owed: u64) -> SourceEvent {
    SourceEvent::BitmapsMerged { pending: pending(owed) }
}

/// A migration that was lost at `step` and is paused.
fn paused(step: Step, answers: bool) -> Run {
    let mut run = at(step, answers);
    assert_eq!(run.after(lost(LinkRole::Main)), [Pause], "{step:?}");
    assert_eq!(run.source.paused(), None, "not before the old connection is silent");
    assert_eq!(run.after(SourceEvent::Paused), []);
    assert_eq!(run.source.status(), MigrationStatus::PostcopyPaused);
    run
}

#[test]
fn loss_from_the_package_on_pauses_and_a_recovery_goes_on() {
    for step in STEPS_AFTER_THE_COMMIT_POINT {
        let mut run = paused(step, true);
        assert_eq!(run.source.paused(), Some(&SourceFailure::Lost(loss(LinkRole::Main))));
        assert_eq!(run.after(SourceEvent::ResumePostcopy), [Reconnect]);
        assert_eq!(run.source.status(), MigrationStatus::PostcopyRecoverSetup);
        assert_eq!(run.after(SourceEvent::Reconnected), [FetchBitmaps]);
        assert_eq!(run.source.status(), MigrationStatus::PostcopyRecover);
        assert_eq!(run.after(merged(2 * MIB)), [SendCommand(Command::PostcopyResume)]);
        assert_eq!(run.after(RESUME_ACK), [PUSH], "{step:?}");
        assert_eq!(run.source.status(), MigrationStatus::PostcopyActive);
        assert_eq!(run.after(pushed(2 * MIB, 0)), [CompletePostcopy]);
        assert_eq!(run.all_after([SourceEvent::PostcopyCompleted { sent: ByteCount(1) }, shut(0)]), [Finish]);
        assert_eq!(run.outcome().fate, GuestFate::OnDestination, "{step:?}");
        assert_eq!(run.source.counters().pauses, 1);
    }
}

#[test]
fn a_recovery_that_fails_at_any_step_is_paused_again() {
    let words = [SourceEvent::ResumePostcopy, SourceEvent::Reconnected, merged(MIB)];
    let failures = [
        lost(LinkRole::Main),
        lost(LinkRole::ReturnPath),
        SourceEvent::HandlerFailed { step: SourceStep::FetchBitmaps },
        SourceEvent::PausePostcopy,
        shut(1),
    ];
    for steps in 1..=words.len() {
        for failure in failures.clone() {
            let mut run = paused(Step::Pushing, true);
            run.all_after(words[..steps].to_vec());
            assert_eq!(run.after(failure.clone()), [Pause], "{failure:?} after {steps}");
            run.after(SourceEvent::Paused);
            assert_eq!(run.after(SourceEvent::ResumePostcopy), [Reconnect], "any number of times");
        }
    }
}

#[test]
fn a_silent_recovery_is_given_up_and_paused() {
    let mut run = paused(Step::Pushing, false);
    run.all_after([SourceEvent::ResumePostcopy, SourceEvent::Reconnected]);
    assert_eq!(run.after_timeout(), [Pause]);
    run.all_after([SourceEvent::Paused, SourceEvent::ResumePostcopy, SourceEvent::Reconnected, merged(MIB)]);
    assert_eq!(run.after_timeout(), [Pause]);
}

#[test]
fn a_proof_that_does_not_come_pauses() {
    let mut run = at(Step::AwaitRunning, false);
    run.after(pushed(7 * MIB, 0));
    assert_eq!(run.after_timeout(), [Pause]);
    run.after(SourceEvent::Paused);
    let limit = SourceTimeouts::default().running;
    assert_eq!(run.source.paused(), Some(&SourceFailure::TimedOut { wait: Wait::Running, limit }));
}

#[test]
fn the_preempt_link_is_made_again_before_postcopy_goes_on() {
    let mut run = reach(Step::AwaitRunning, config(true), None);
    assert_eq!(run.after(lost(LinkRole::Preempt)), [Pause]);
    run.all_after([SourceEvent::Paused, SourceEvent::ResumePostcopy, SourceEvent::Reconnected]);
    assert_eq!(run.after(merged(MIB)), [OpenPreempt]);
    assert_eq!(run.after(SourceEvent::PreemptOpened), [SendCommand(Command::PostcopyResume)]);
}

#[test]
fn the_channels_that_carry_the_push_are_made_again_before_the_preempt_link() {
    let channels = MultifdSettings { channels: 2, ..MultifdSettings::default() };
    let wanted = Features::RUNNING_ANSWERS | Features::POSTCOPY_CHANNELS;
    for (preempt, offered) in [(false, wanted), (true, wanted), (true, Features::RUNNING_ANSWERS)] {
        let features = FeatureWishes { wanted, required: Features::NONE };
        let config = SourceConfig { multifd: channels, features, ..config(preempt) };
        let mut run = reach(Step::Pushing, config, Some(offered));
        run.all_after([lost(LinkRole::Channel(1)), SourceEvent::Paused]);
        run.all_after([SourceEvent::ResumePostcopy, SourceEvent::Reconnected]);
        let mut links = run.after(merged(MIB));
        if links == [OpenChannels] {
            assert_eq!(offered, wanted);
            links = run.after(SourceEvent::ChannelsOpened);
        }
        if preempt {
            assert_eq!(links, [OpenPreempt]);
            links = run.after(SourceEvent::PreemptOpened);
        }
        assert_eq!(links, [SendCommand(Command::PostcopyResume)]);
    }
}

#[test]
fn what_a_dead_connection_still_says_means_nothing() {
    let mut run = at(Step::Pushing, true);
    run.after(lost(LinkRole::Main));
    let late = [pushed(MIB, 6 * MIB), shut(0), lost(LinkRole::ReturnPath), RESUME_ACK, NEVER_RAN, RUNNING];
    assert_eq!(run.all_after(late.clone()), []);
    assert_eq!(run.source.state_name(), "pausing");
    run.after(SourceEvent::Paused);
    assert_eq!(run.all_after(late), []);
    assert_eq!(run.source.state_name(), "paused");
}

#[test]
fn a_pong_that_the_old_connection_owed_does_not_answer_on_the_new_one() {
    let mut run = paused(Step::AwaitRunning, false);
    run.all_after([SourceEvent::ResumePostcopy, SourceEvent::Reconnected]);
    assert_eq!(run.after(SourceEvent::Return(ReturnMessage::Pong(super::postcopy::PACKAGE_PING))), [Pause]);
}

#[test]
fn who_is_asked_in_a_recovery_may_say_that_the_guest_never_ran() {
    let mut run = paused(Step::Package, true);
    run.all_after([SourceEvent::ResumePostcopy, SourceEvent::Reconnected]);
    assert_eq!(run.after(NEVER_RAN), [CloseLink, ResumeVm]);
    run.after(SourceEvent::VmResumed);
    assert_eq!(run.outcome(), &failed(SourceFailure::NeverRan, GuestFate::OnSource));
}

#[test]
fn a_guest_that_is_known_to_have_run_there_never_runs_here_again() {
    let mut run = paused(Step::Pushing, true);
    assert_eq!(run.after(SourceEvent::Operator(OperatorWord::NeverRan)), []);
    run.all_after([SourceEvent::ResumePostcopy, SourceEvent::Reconnected]);
    assert_eq!(run.after(NEVER_RAN), [Pause], "it contradicts itself");
}

#[test]
fn a_destination_that_has_ended_with_the_whole_guest_says_so() {
    let mut run = paused(Step::LastWord, true);
    run.all_after([SourceEvent::ResumePostcopy, SourceEvent::Reconnected]);
    assert_eq!(run.after(shut(0)), [Finish]);
    assert_eq!(run.outcome().ending, SourceEnding::Completed { confirmed: true });

    let mut of_qemu = paused(Step::LastWord, false);
    of_qemu.all_after([SourceEvent::ResumePostcopy, SourceEvent::Reconnected]);
    assert_eq!(of_qemu.after(shut(0)), [Pause]);
}

#[test]
fn the_operators_word_ends_a_pause_and_nothing_else() {
    let words = [OperatorWord::NeverRan, OperatorWord::HasGuest, OperatorWord::GiveUp];
    for word in words {
        assert_eq!(at(Step::Pushing, true).after(SourceEvent::Operator(word)), [], "{word:?}");
    }
    let mut never = paused(Step::AwaitRunning, false);
    assert_eq!(never.after(SourceEvent::Operator(OperatorWord::NeverRan)), [CloseLink, ResumeVm]);
    let mut has = paused(Step::Pushing, true);
    assert_eq!(has.after(SourceEvent::Operator(OperatorWord::HasGuest)), [Finish]);
    assert_eq!(has.outcome().ending, SourceEnding::Completed { confirmed: false });
    let fates = [(Step::AwaitRunning, GuestFate::InDoubt), (Step::Pushing, GuestFate::Paused)];
    for (step, fate) in fates {
        let mut run = paused(step, true);
        assert_eq!(run.after(SourceEvent::Operator(OperatorWord::GiveUp)), [Finish]);
        assert_eq!(run.outcome(), &failed(SourceFailure::Lost(loss(LinkRole::Main)), fate));
    }
}

#[test]
fn a_pause_by_the_user_is_one_and_says_so() {
    let mut run = at(Step::Pushing, true);
    assert!(run.source.may_pause());
    assert_eq!(run.after(SourceEvent::PausePostcopy), [Pause]);
    run.after(SourceEvent::Paused);
    assert_eq!(run.source.paused(), Some(&SourceFailure::PausedByUser));
    assert!(!run.source.may_pause());
    let mut early = at(Step::Round, true);
    assert_eq!(early.after(SourceEvent::PausePostcopy), []);
}

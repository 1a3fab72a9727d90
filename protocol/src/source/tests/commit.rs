//! What the commit point changes.

use super::*;

#[test]
fn an_end_that_the_shell_has_not_taken_commits_to_nothing() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Devices);
    run.after(devices_saved());
    run.source.handle(pong(PingPurpose::Switchover), run.now);
    assert_eq!(run.after(SourceEvent::Cancel), [CloseLink, ResumeVm]);
}

#[test]
fn a_cancel_after_the_commit_point_is_refused_and_noted() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Shut);
    assert!(!run.source.may_cancel());
    assert_eq!(run.after(SourceEvent::Cancel), []);
    assert_eq!(run.after(shut(0)), [Finish]);
    assert!(run.outcome().cancel_refused);
    assert_eq!(run.outcome().fate, GuestFate::OnDestination);
}

#[test]
fn loss_of_the_answer_after_the_commit_point_is_doubt() {
    for phase in [Phase::End, Phase::Shut] {
        let mut run = Run::in_phase(SourceConfig::default(), phase);
        assert_eq!(run.after(lost(LinkRole::ReturnPath)), [CloseLink, Finish], "{phase:?}");
        let failure = SourceFailure::Lost(loss(LinkRole::ReturnPath));
        assert_eq!(run.outcome(), &failed(failure, GuestFate::InDoubt));
    }
}

#[test]
fn loss_of_the_stream_after_the_commit_point_still_waits_for_the_answer() {
    for phase in [Phase::End, Phase::Shut] {
        let mut run = Run::in_phase(SourceConfig::default(), phase);
        assert_eq!(run.after(lost(LinkRole::Main)), []);
        assert_eq!(run.after(shut(0)), [Finish]);
        assert_eq!(run.outcome().fate, GuestFate::OnDestination, "{phase:?}");
    }
}

#[test]
fn without_a_return_path_loss_while_the_end_is_sent_is_doubt() {
    let mut run = Run::new(without_return_path());
    run.actions();
    run.all_after([setup_saved(), synced(0), SourceEvent::VmStopped, synced(0), precopy_completed()]);
    assert_eq!(run.after(devices_saved()), [SendEnd]);
    assert_eq!(run.after(lost(LinkRole::Main)), [CloseLink, Finish]);
    assert_eq!(run.outcome().fate, GuestFate::InDoubt);
}

#[test]
fn a_refusal_after_the_commit_point_brings_the_guest_back() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Shut);
    assert_eq!(run.after(shut(1)), [CloseLink, ResumeVm]);
    assert_eq!(run.after(SourceEvent::VmResumed), [Finish]);
    assert_eq!(run.outcome(), &failed(SourceFailure::Refused { code: 1, reason: None }, GuestFate::OnSource));
}

#[test]
fn a_refusal_while_the_end_is_sent_counts_when_all_of_it_has_left() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::End);
    assert_eq!(run.all_after([shut(1), lost(LinkRole::ReturnPath)]), []);
    assert_eq!(run.after(end_sent()), [CloseLink, ResumeVm]);
}

#[test]
fn a_refusal_over_a_broken_link_is_doubt() {
    // QEMU runs the guest and says SHUT(1) when it has read EOF and misses the vmdescription.
    for events in [[lost(LinkRole::Main), shut(1)], [shut(1), lost(LinkRole::Main)]] {
        let mut run = Run::in_phase(SourceConfig::default(), Phase::End);
        assert_eq!(run.all_after(events), [CloseLink, Finish]);
        assert_eq!(run.outcome().fate, GuestFate::InDoubt);
    }
}

#[test]
fn an_end_that_fails_half_way_is_doubt() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::End);
    let event = SourceEvent::HandlerFailed { step: SourceStep::SendEnd };
    assert_eq!(run.after(event), [CloseLink, Finish]);
    assert_eq!(run.outcome(), &failed(SourceFailure::Handler(SourceStep::SendEnd), GuestFate::InDoubt));
}

#[test]
fn success_is_believed_even_before_the_shell_knows_that_the_end_was_sent() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::End);
    assert_eq!(run.after(shut(0)), [Finish]);
    assert_eq!(run.after(end_sent()), []);
    assert_eq!(run.outcome().fate, GuestFate::OnDestination);
}

#[test]
fn success_before_the_commit_point_is_a_broken_rule() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Devices);
    assert_eq!(run.after(shut(0)), [CloseLink, ResumeVm]);
    run.after(SourceEvent::VmResumed);
    let error = ProtocolError {
        state: "saving devices",
        expected: "no success before the end of the stream",
        got: Unexpected { name: "SHUT", value: Some(0) },
    };
    assert_eq!(run.outcome(), &failed(SourceFailure::Protocol(error), GuestFate::OnSource));
}

//! Links beside the main one that are lost in postcopy, and others in their place.

use super::postcopy::{PUSH, Step, config, pushed, reach};
use super::*;
use limosa_wire::MultifdSettings;

const LINK_LOST: SourceEvent = SourceEvent::Return(ReturnMessage::LinkLost);
const RESUME_ACK: SourceEvent = SourceEvent::Return(ReturnMessage::ResumeAck);

fn merged(owed: u64) -> SourceEvent {
    SourceEvent::BitmapsMerged { pending: pending(owed) }
}

/// With a preempt link and channels, to a destination that can replace them.
fn at(step: Step) -> Run {
    let all = Features::RUNNING_ANSWERS | Features::POSTCOPY_CHANNELS | Features::LINK_REPLACEMENT;
    let features = FeatureWishes { wanted: all, required: Features::NONE };
    let multifd = MultifdSettings { channels: 2, ..MultifdSettings::default() };
    reach(step, SourceConfig { multifd, features, ..config(true) }, Some(all))
}

fn lost_beside() -> [SourceEvent; 3] {
    [lost(LinkRole::Preempt), lost(LinkRole::Channel(1)), LINK_LOST]
}

/// From the word that links are gone to the push over others.
fn replace(run: &mut Run, owed: u64) {
    assert_eq!(run.after(SourceEvent::LinksDropped), [FetchBitmaps]);
    assert_eq!(run.source.status(), MigrationStatus::PostcopyActive, "to the user it goes on");
    assert_eq!(run.after(merged(owed)), [OpenChannels]);
    assert_eq!(run.after(SourceEvent::ChannelsOpened), [OpenPreempt]);
    assert_eq!(run.after(SourceEvent::PreemptOpened), [SendCommand(Command::PostcopyResume)]);
    assert_eq!(run.source.status(), MigrationStatus::PostcopyActive);
}

#[test]
fn a_lost_link_beside_the_main_one_is_replaced_and_the_push_goes_on() {
    for loss in lost_beside() {
        let mut run = at(Step::Pushing);
        assert_eq!(run.after(loss.clone()), [ReplaceLinks], "{loss:?}");
        // What was under way, and the other links, which close.
        let late = [pushed(MIB, 5 * MIB), lost(LinkRole::Channel(0)), lost(LinkRole::Preempt), LINK_LOST];
        assert_eq!(run.all_after(late.clone()), []);
        assert_eq!(run.after(SourceEvent::LinksDropped), [FetchBitmaps]);
        assert_eq!(run.all_after([lost(LinkRole::Preempt), LINK_LOST]), [], "heard late");
        assert_eq!(run.after(merged(2 * MIB)), [OpenChannels]);
        run.all_after([SourceEvent::ChannelsOpened, SourceEvent::PreemptOpened]);
        assert_eq!(run.after(RESUME_ACK), [PUSH]);
        let counters = run.source.counters();
        assert_eq!((counters.pauses, counters.replacements), (0, 1), "{loss:?}");
    }
}

#[test]
fn a_loss_that_the_barrier_finds_is_mended_before_the_end() {
    let mut run = at(Step::Pushing);
    let barrier = PingPurpose::PostcopyEnd;
    let ping = SendCommand(Command::Ping(barrier.value()));
    assert_eq!(run.after(pushed(6 * MIB, 0)), [Drain, ping.clone()]);
    assert_eq!(run.after(LINK_LOST), [ReplaceLinks]);
    assert_eq!(run.after(pong(barrier)), [], "it proves nothing any more");
    replace(&mut run, MIB);
    assert_eq!(run.after(RESUME_ACK), [PUSH]);
    assert_eq!(run.after(pushed(MIB, 0)), [Drain, ping]);
    assert_eq!(run.after(pong(barrier)), [CompletePostcopy]);
    assert_eq!(run.after(LINK_LOST), [], "nothing more leaves on it");
    assert_eq!(
        run.all_after([SourceEvent::PostcopyCompleted { sent: ByteCount(1) }, LINK_LOST, shut(0)]),
        [Finish]
    );
}

#[test]
fn links_that_break_again_before_anything_more_has_arrived_pause_in_the_end() {
    let mut run = at(Step::Pushing);
    for owed in [6, 5, 5, 5] {
        assert_eq!(run.after(lost(LinkRole::Preempt)), [ReplaceLinks]);
        replace(&mut run, owed * MIB);
        run.after(RESUME_ACK);
    }
    // The last two were in vain; with the next it is three times.
    assert_eq!(run.after(lost(LinkRole::Preempt)), [ReplaceLinks]);
    replace(&mut run, 5 * MIB);
    run.after(RESUME_ACK);
    assert_eq!(run.after(lost(LinkRole::Preempt)), [Pause]);
    run.after(SourceEvent::Paused);
    assert_eq!(run.source.paused(), Some(&SourceFailure::Lost(loss(LinkRole::Preempt))));
    assert_eq!(run.source.counters().replacements, 5);
}

#[test]
fn a_replacement_that_fails_pauses() {
    let words = [SourceEvent::LinksDropped, merged(MIB), SourceEvent::ChannelsOpened];
    for steps in 0..=words.len() {
        for failure in [lost(LinkRole::Main), lost(LinkRole::ReturnPath), SourceEvent::PausePostcopy] {
            let mut run = at(Step::Pushing);
            run.after(lost(LinkRole::Preempt));
            run.all_after(words[..steps].to_vec());
            assert_eq!(run.after(failure.clone()), [Pause], "{failure:?} after {steps}");
        }
    }
    let mut silent = at(Step::Pushing);
    silent.all_after([LINK_LOST, SourceEvent::LinksDropped]);
    assert_eq!(silent.after_timeout(), [Pause]);
}

#[test]
fn before_the_guest_runs_there_and_behind_the_end_a_loss_pauses() {
    assert_eq!(at(Step::AwaitRunning).after(lost(LinkRole::Preempt)), [Pause]);
    let mut run = at(Step::Pushing);
    run.all_after([pushed(6 * MIB, 0), pong(PingPurpose::PostcopyEnd)]);
    assert_eq!(run.after(SourceEvent::PostcopyCompleted { sent: ByteCount(1) }), []);
    assert_eq!(run.after(lost(LinkRole::Preempt)), [Pause]);
    let unreadable = Loss { role: LinkRole::Preempt, reason: LossReason::Unreadable };
    assert_eq!(at(Step::Pushing).after(SourceEvent::Lost(unreadable)), [Pause]);
}

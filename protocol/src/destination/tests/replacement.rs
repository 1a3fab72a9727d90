//! Links beside the main one that are lost while the guest runs here, and others in their place.

use super::postcopy::{command, ram, running_with};
use super::*;

const LINK_LOST: DestinationAction = Send(ReturnMessage::LinkLost);

fn lost(role: LinkRole) -> DestinationEvent {
    E::Lost(Loss { role, reason: LossReason::Closed })
}

fn running() -> Destination {
    running_with(Features::RUNNING_ANSWERS | Features::LINK_REPLACEMENT)
}

#[test]
fn a_lost_link_is_told_once_and_the_source_replaces_all_of_them() {
    for loss in [lost(LinkRole::Preempt), lost(LinkRole::Channel(3)), E::PreemptEnded] {
        let mut destination = running();
        assert_eq!(after(&mut destination, loss.clone()), [LINK_LOST], "{loss:?}");
        let again = [lost(LinkRole::Channel(0)), lost(LinkRole::Preempt), E::PreemptEnded];
        assert_eq!(all_after(&mut destination, again), []);
        assert_eq!(after(&mut destination, command(Command::Ping(4))), [pong(4)], "the main link goes on");
        assert_eq!(after(&mut destination, command(Command::ReplaceLinks)), [DestinationAction::DropLinks]);
        assert_eq!(destination.status(), MigrationStatus::PostcopyActive);
        let asked = after(&mut destination, command(Command::RecvBitmap { block: ram() }));
        assert_eq!(asked, [DestinationAction::SendBitmap { block: ram() }]);
        let resumed = after(&mut destination, command(Command::PostcopyResume));
        let order =
            [DestinationAction::TakeLinks, Send(ReturnMessage::ResumeAck), DestinationAction::ResumeFaults];
        assert_eq!(resumed, order);
        // Those that came instead can be lost like the first.
        assert_eq!(after(&mut destination, lost(LinkRole::Preempt)), [LINK_LOST]);
    }
}

#[test]
fn the_source_may_know_first() {
    let mut destination = running();
    assert_eq!(after(&mut destination, command(Command::ReplaceLinks)), [DestinationAction::DropLinks]);
}

#[test]
fn without_the_extension_a_lost_link_pauses_and_replacing_is_refused() {
    for event in [lost(LinkRole::Preempt), lost(LinkRole::Channel(0)), command(Command::ReplaceLinks)] {
        let mut destination = running_with(Features::RUNNING_ANSWERS);
        assert_eq!(after(&mut destination, event), [DestinationAction::Pause]);
    }
    let mut destination = running_with(Features::RUNNING_ANSWERS);
    assert_eq!(after(&mut destination, E::PreemptEnded), [], "a QEMU ends it when it has sent all");
}

#[test]
fn what_cannot_be_mended_so_pauses() {
    let unreadable = E::Lost(Loss { role: LinkRole::Preempt, reason: LossReason::Unreadable });
    for event in [lost(LinkRole::Main), lost(LinkRole::ReturnPath), unreadable] {
        let mut destination = running();
        assert_eq!(after(&mut destination, event.clone()), [DestinationAction::Pause], "{event:?}");
    }
    let mut replacing = running();
    after(&mut replacing, command(Command::ReplaceLinks));
    assert_eq!(after(&mut replacing, lost(LinkRole::Main)), [DestinationAction::Pause]);
    let mut ending = running();
    assert_eq!(
        all_after(&mut ending, [E::EndOfStream, lost(LinkRole::Preempt)]),
        [DestinationAction::AwaitPages, DestinationAction::Pause]
    );
}

//! After EOF: the last of the stream, the start of the guest, and the last word to the source.

use super::context::Context;
use super::interface::{DestinationAction, DestinationEvent};
use super::outcome::{DestinationEnding, DestinationFailure, DestinationOutcome};
use super::state::{State, Transition, unexpected};
use crate::status::GuestFate;
use limosa_wire::ReturnMessage;

/// What SHUT carries when it is not success. QEMU says 1 too (wire 2.3).
const SHUT_FAILED: u32 = 1;

/// All sections are loaded; the text that describes them follows.
#[derive(Debug)]
pub(super) struct AwaitingDescription;

/// Everything is read. The guest is being started; from the moment the shell has taken that up there is no way back.
#[derive(Debug)]
pub(super) struct StartingGuest {
    late_failure: Option<DestinationFailure>,
}

impl AwaitingDescription {
    pub(super) const NAME: &'static str = "awaiting vmdescription";

    pub(super) fn on(self, event: DestinationEvent, context: &mut Context) -> Transition {
        match event {
            DestinationEvent::VmDescriptionRead => Ok(StartingGuest::enter(context)),
            event => Err(unexpected(Self::NAME, "vmdescription", &event)),
        }
    }
}

impl StartingGuest {
    pub(super) const NAME: &'static str = "starting the guest";

    pub(super) fn enter(context: &mut Context) -> State {
        context.act(DestinationAction::StartGuest);
        State::StartingGuest(Self { late_failure: None })
    }

    pub(super) fn on(self, event: DestinationEvent, context: &mut Context) -> Transition {
        match event {
            DestinationEvent::GuestStarted => Ok(complete(self.late_failure, context)),
            DestinationEvent::StartFailed => Err(DestinationFailure::Start),
            // The guest may run already: what the link does now cannot take it back (I6).
            DestinationEvent::Lost(loss) => Ok(self.note(DestinationFailure::Lost(loss), context)),
            event => Ok(self.note(unexpected(Self::NAME, "GuestStarted", &event), context)),
        }
    }

    fn note(self, failure: DestinationFailure, context: &mut Context) -> State {
        if matches!(failure, DestinationFailure::Lost(_)) {
            // I8: nothing more goes out on a lost connection.
            context.return_path_open = false;
        }
        State::StartingGuest(Self { late_failure: self.late_failure.or(Some(failure)) })
    }
}

/// The guest is here: tell the source, which may forget its own then (wire 7.3).
pub(super) fn complete(late_failure: Option<DestinationFailure>, context: &mut Context) -> State {
    let told_source = context.return_path_open;
    if told_source {
        context.act(DestinationAction::Send(ReturnMessage::Shut(0)));
    }
    let ending = DestinationEnding::Completed { told_source, late_failure };
    finish(ending, GuestFate::OnDestination, context)
}

/// The guest will never run here: say so where that is possible, and close.
pub(super) fn give_up(ending: DestinationEnding, context: &mut Context) -> State {
    // What was not sent yet would only be answers to a source that need not wait for them any more.
    context.drop_actions();
    if context.return_path_open {
        if context.greeted {
            context.act(DestinationAction::SendReason);
        }
        context.act(DestinationAction::Send(ReturnMessage::Shut(SHUT_FAILED)));
    }
    finish(ending, GuestFate::OnSource, context)
}

pub(super) fn finish(ending: DestinationEnding, fate: GuestFate, context: &mut Context) -> State {
    context.act(DestinationAction::Finish);
    State::Finished(DestinationOutcome { ending, fate })
}

//! The commit point and what follows it: from here only the destination's word can bring the guest back.
//!
//! [`SourceAction::SendEnd`] is the last thing that the destination waits for. Once the shell has taken it, the
//! guest may run there, whatever happens here (I6).

use super::context::Context;
use super::interface::{SourceAction, SourceEvent};
use super::outcome::{SourceEnding, SourceFailure, Wait};
use super::state::{State, Transition, unexpected};
use super::unwind;
use crate::error::{LinkRole, Loss};
use crate::status::GuestFate;
use limosa_wire::ReturnMessage;
use std::time::Instant;

/// The end of the stream is being written.
#[derive(Debug)]
pub(super) struct SendingEnd {
    /// The destination has refused already; it counts when the whole end is known to have left.
    refused: Option<u32>,
    pub(super) deadline: Option<Instant>,
}

/// Everything is written; the destination has the last word.
#[derive(Debug)]
pub(super) struct AwaitingShut {
    /// The main link broke after the commit point; an answer may still be on its way.
    broken: Option<Loss>,
    pub(super) deadline: Option<Instant>,
}

impl SendingEnd {
    pub(super) const NAME: &'static str = "sending end";

    pub(super) fn enter(context: &mut Context, now: Instant) -> State {
        context.act(SourceAction::SendEnd);
        State::SendingEnd(Self { refused: None, deadline: now.checked_add(context.config.timeouts.shut) })
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        let Self { refused, deadline } = self;
        match (event, refused) {
            (SourceEvent::EndSent { sent }, refused) => {
                context.sent_in_downtime(sent);
                context.timeline.end_sent = Some(now);
                match refused {
                    Some(code) => Ok(take_back(code, context)),
                    None if context.config.return_path => {
                        Ok(State::AwaitingShut(AwaitingShut { broken: None, deadline }))
                    }
                    None => Ok(complete(false, context)),
                }
            }
            (SourceEvent::Return(ReturnMessage::Shut(0)), None) => Ok(complete(true, context)),
            (SourceEvent::Return(ReturnMessage::Shut(code)), None) => {
                Ok(State::SendingEnd(Self { refused: Some(code), deadline }))
            }
            // Its last word is said; that it hangs up then is no news.
            (SourceEvent::Lost(Loss { role: LinkRole::ReturnPath, .. }), Some(_)) => {
                Ok(State::SendingEnd(self))
            }
            // The answer to what did arrive may still come.
            (SourceEvent::Lost(loss @ Loss { role: LinkRole::Main, .. }), None)
                if context.config.return_path =>
            {
                Ok(State::AwaitingShut(AwaitingShut { broken: Some(loss), deadline }))
            }
            (SourceEvent::Lost(loss), _) => Err(SourceFailure::Lost(loss)),
            (SourceEvent::Timeout, _) => Err(shut_timed_out(context)),
            (event, _) => Err(unexpected(Self::NAME, "EndSent", &event)),
        }
    }
}

impl AwaitingShut {
    pub(super) const NAME: &'static str = "awaiting shut";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, _now: Instant) -> Transition {
        let Self { broken, deadline } = self;
        match (event, broken) {
            (SourceEvent::Return(ReturnMessage::Shut(0)), _) => Ok(complete(true, context)),
            (SourceEvent::Return(ReturnMessage::Shut(code)), None) => Ok(take_back(code, context)),
            // A QEMU that has read EOF but not the vmdescription runs the guest *and* says SHUT(1) (wire 1.9).
            // So a refusal is only believed over a link that was whole.
            (SourceEvent::Return(ReturnMessage::Shut(_)), Some(loss)) => Err(SourceFailure::Lost(loss)),
            (SourceEvent::Lost(loss @ Loss { role: LinkRole::Main, .. }), None) => {
                Ok(State::AwaitingShut(Self { broken: Some(loss), deadline }))
            }
            (SourceEvent::Lost(Loss { role: LinkRole::Main, .. }), Some(_)) => Ok(State::AwaitingShut(self)),
            (SourceEvent::Lost(loss), broken) => Err(SourceFailure::Lost(broken.unwrap_or(loss))),
            (SourceEvent::Timeout, Some(loss)) => Err(SourceFailure::Lost(loss)),
            (SourceEvent::Timeout, None) => Err(shut_timed_out(context)),
            (event, _) => Err(unexpected(Self::NAME, "SHUT", &event)),
        }
    }
}

/// The destination has the guest.
fn complete(confirmed: bool, context: &mut Context) -> State {
    unwind::finish(SourceEnding::Completed { confirmed }, GuestFate::OnDestination, false, context)
}

/// The destination does not run the guest, so it is ours again.
fn take_back(code: u32, context: &mut Context) -> State {
    let ending = SourceEnding::Failed(context.refused(code));
    unwind::resume(ending, context)
}

fn shut_timed_out(context: &Context) -> SourceFailure {
    SourceFailure::TimedOut { wait: Wait::Shut, limit: context.config.timeouts.shut }
}

//! Pause and recovery, seen from the side on which the guest runs.

use super::context::Context;
use super::ending::finish;
use super::interface::{DestinationAction, DestinationEvent};
use super::outcome::{DestinationEnding, DestinationFailure};
use super::running::Running;
use super::state::{State, Transition, unexpected};
use crate::status::GuestFate;
use limosa_wire::{Command, ReturnMessage};

/// The old connection is being silenced.
#[derive(Debug)]
pub(super) struct Pausing {
    reason: DestinationFailure,
}

/// There is no connection. The guest runs on the pages that it has; who touches another waits.
#[derive(Debug)]
pub(super) struct Paused {
    reason: DestinationFailure,
}

/// The source asks what is here, and says when it goes on.
#[derive(Debug)]
pub(super) struct Recovering {
    /// Over a new main link, after a pause. Otherwise only the links beside it are replaced.
    pub(super) main_lost: bool,
}

/// The failure path of every state in which the guest runs here.
pub(super) fn pause(reason: DestinationFailure, context: &mut Context) -> State {
    // I8: what was meant for this connection dies with it.
    context.drop_actions();
    context.return_path_open = false;
    context.act(DestinationAction::Pause);
    State::Pausing(Pausing { reason })
}

impl Pausing {
    pub(super) const NAME: &'static str = "pausing";

    pub(super) fn on(self, event: DestinationEvent, _context: &mut Context) -> Transition {
        match event {
            DestinationEvent::Paused => Ok(State::Paused(Paused { reason: self.reason })),
            // Answers to what was under way, and the sounds of the links closing.
            _ => Ok(State::Pausing(self)),
        }
    }
}

impl Paused {
    pub(super) const NAME: &'static str = "paused";

    /// Why it is paused.
    pub(super) const fn reason(&self) -> &DestinationFailure {
        &self.reason
    }

    pub(super) fn on(self, event: DestinationEvent, context: &mut Context) -> Transition {
        match event {
            DestinationEvent::Reconnected => {
                context.return_path_open = true;
                Ok(State::Recovering(Recovering { main_lost: true }))
            }
            DestinationEvent::GiveUp => {
                Ok(finish(DestinationEnding::Failed(self.reason), GuestFate::Lost, context))
            }
            _ => Ok(State::Paused(self)),
        }
    }
}

impl Recovering {
    pub(super) const NAME: &'static str = "recovering";

    pub(super) fn on(self, event: DestinationEvent, context: &mut Context) -> Transition {
        let action = match event {
            DestinationEvent::CommandRead(Command::RecvBitmap { block }) => {
                DestinationAction::SendBitmap { block }
            }
            DestinationEvent::CommandRead(Command::Ping(value)) => {
                DestinationAction::Send(ReturnMessage::Pong(value))
            }
            DestinationEvent::CommandRead(Command::PostcopyResume) => {
                // From its answer on the source sends pages on all of them.
                context.act(DestinationAction::TakeLinks);
                // The source takes requests only behind its answer (wire 5.9).
                context.act(DestinationAction::Send(ReturnMessage::ResumeAck));
                context.act(DestinationAction::ResumeFaults);
                return Ok(Running::enter(false, context));
            }
            event => return Err(unexpected(Self::NAME, "RECV_BITMAP or POSTCOPY_RESUME", &event)),
        };
        context.act(action);
        Ok(State::Recovering(self))
    }
}

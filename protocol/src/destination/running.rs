//! The guest runs here, and pages follow. What goes wrong pauses the migration and never the guest.

use super::context::Context;
use super::ending::complete;
use super::interface::{DestinationAction, DestinationEvent};
use super::outcome::DestinationFailure;
use super::state::{State, Transition, unexpected};
use limosa_wire::{Command, ReturnMessage};

/// Pages come on their links; the machine hears of the rest.
#[derive(Debug)]
pub(super) struct Running;

/// The end has been read; the last pages may still be on another link.
#[derive(Debug)]
pub(super) struct AwaitingPages;

impl Running {
    pub(super) const NAME: &'static str = "running";

    pub(super) fn enter(ended: bool, context: &mut Context) -> State {
        if !ended {
            return State::Running(Self);
        }
        context.act(DestinationAction::AwaitPages);
        State::AwaitingPages(AwaitingPages)
    }

    pub(super) fn on(self, event: DestinationEvent, context: &mut Context) -> Transition {
        match event {
            DestinationEvent::CommandRead(Command::Ping(value)) => {
                context.act(DestinationAction::Send(ReturnMessage::Pong(value)));
                Ok(State::Running(self))
            }
            DestinationEvent::EndOfStream => Ok(Self::enter(true, context)),
            event => Err(unexpected(Self::NAME, "PING or EOF", &event)),
        }
    }
}

impl AwaitingPages {
    pub(super) const NAME: &'static str = "awaiting pages";

    pub(super) fn on(self, event: DestinationEvent, context: &mut Context) -> Transition {
        match event {
            DestinationEvent::AllReceived => Ok(complete(None, context)),
            // A QEMU would let them read as zero (wire 5.5).
            DestinationEvent::PagesMissing { pages } => Err(DestinationFailure::PagesMissing { pages }),
            event => Err(unexpected(Self::NAME, "AllReceived", &event)),
        }
    }
}

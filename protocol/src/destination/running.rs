//! The guest runs here, and pages follow. What goes wrong pauses the migration and never the guest.

use super::context::Context;
use super::ending::complete;
use super::interface::{DestinationAction, DestinationEvent};
use super::outcome::DestinationFailure;
use super::recovery::Recovering;
use super::state::{State, Transition, unexpected};
use limosa_wire::{Command, ReturnMessage};

/// Pages come on their links; the machine hears of the rest.
#[derive(Debug, Default)]
pub(super) struct Running {
    /// A link beside the main one is lost, and the source was told: it replaces them all.
    link_lost: bool,
}

/// The end has been read; the last pages may still be on another link.
#[derive(Debug)]
pub(super) struct AwaitingPages;

impl Running {
    pub(super) const NAME: &'static str = "running";

    pub(super) fn enter(ended: bool, context: &mut Context) -> State {
        if !ended {
            return State::Running(Self::default());
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
            DestinationEvent::Lost(_) | DestinationEvent::PreemptEnded => {
                if !self.link_lost {
                    context.act(DestinationAction::Send(ReturnMessage::LinkLost));
                }
                Ok(State::Running(Self { link_lost: true }))
            }
            DestinationEvent::CommandRead(Command::ReplaceLinks) if context.replaces_links() => {
                context.act(DestinationAction::DropLinks);
                Ok(State::Recovering(Recovering { main_lost: false }))
            }
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

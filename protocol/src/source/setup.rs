//! Setup: the destination sees what will come, and may refuse it before any RAM moves.

use super::context::Context;
use super::interface::{SourceAction, SourceEvent};
use super::outcome::{SourceFailure, Wait};
use super::precopy::Syncing;
use super::state::{State, Transition, unexpected};
use crate::ping::PingPurpose;
use limosa_wire::{Command, Features, ReturnMessage};
use std::time::Instant;

/// The live handlers write their START sections.
#[derive(Debug)]
pub(super) struct SavingSetup;

/// The START sections are out; the PONG will say that the destination accepted them.
#[derive(Debug)]
pub(super) struct ProvingSetup {
    asked: Instant,
    pub(super) deadline: Option<Instant>,
}

impl SavingSetup {
    pub(super) const NAME: &'static str = "saving setup";

    pub(super) fn enter(features: Features, context: &mut Context) -> State {
        if let Some(postcopy) = context.config.postcopy {
            context.act(SourceAction::SendCommand(Command::PostcopyAdvise(Some(postcopy.advice))));
        }
        context.act(SourceAction::SaveSetup { features });
        State::SavingSetup(Self)
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::SetupSaved { sent } => {
                context.counters.bytes_sent += sent;
                if context.config.return_path {
                    context.ping_and_wait(PingPurpose::Setup);
                    let deadline = now.checked_add(context.config.timeouts.setup);
                    Ok(State::ProvingSetup(ProvingSetup { asked: now, deadline }))
                } else {
                    Ok(Syncing::begin(context, now))
                }
            }
            event => Err(unexpected(Self::NAME, "SetupSaved", &event)),
        }
    }
}

impl ProvingSetup {
    pub(super) const NAME: &'static str = "proving setup";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::Return(ReturnMessage::Pong(_)) => {
                context.convergence.note_round_trip(now - self.asked);
                Ok(Syncing::begin(context, now))
            }
            SourceEvent::Timeout => {
                Err(SourceFailure::TimedOut { wait: Wait::Setup, limit: context.config.timeouts.setup })
            }
            event => Err(unexpected(Self::NAME, "the PONG of setup", &event)),
        }
    }
}

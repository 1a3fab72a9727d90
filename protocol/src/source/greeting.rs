//! The first words: who is there, and what can be done that QEMU's protocol does not have (wire 14.1).

use super::context::Context;
use super::interface::{SourceAction, SourceEvent};
use super::outcome::{SourceFailure, Wait};
use super::setup::SavingSetup;
use super::state::{State, Transition, unexpected};
use crate::ping::PingPurpose;
use limosa_wire::{Agreement, Command, Features, Hello, ReturnMessage};
use std::time::Instant;

/// The return path is open and the greeting is out. A destination that knows extensions says HELLO before it answers,
/// any other one only answers.
#[derive(Debug)]
pub(super) struct Greeting {
    heard: Option<Hello>,
    pub(super) deadline: Option<Instant>,
}

impl Greeting {
    pub(super) const NAME: &'static str = "greeting";

    pub(super) fn enter(context: &mut Context, now: Instant) -> State {
        context.act(SourceAction::SendCommand(Command::OpenReturnPath));
        context.ping(PingPurpose::Open);
        context.ping_and_wait(PingPurpose::Greeting);
        State::Greeting(Self { heard: None, deadline: now.checked_add(context.config.timeouts.setup) })
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, _now: Instant) -> Transition {
        match (event, self.heard) {
            (SourceEvent::Return(ReturnMessage::Hello(hello)), None) => {
                context.greeted = true;
                Ok(State::Greeting(Self { heard: Some(hello), ..self }))
            }
            (SourceEvent::Return(ReturnMessage::Pong(_)), heard) => agree(heard, context),
            (SourceEvent::Timeout, _) => {
                Err(SourceFailure::TimedOut { wait: Wait::Greeting, limit: context.config.timeouts.setup })
            }
            (event, _) => {
                Err(unexpected(Self::NAME, "one HELLO at most, and the PONG of the greeting", &event))
            }
        }
    }
}

/// Chooses among what the destination offers, and begins.
fn agree(heard: Option<Hello>, context: &mut Context) -> Transition {
    let wishes = context.config.features;
    let offered = heard.map_or(Features::NONE, |hello| hello.features);
    let missing = wishes.required.without(offered);
    if !missing.is_empty() {
        return Err(SourceFailure::MissingFeatures { missing, extended: heard.is_some() });
    }
    let features = (wishes.wanted | wishes.required) & offered;
    context.agreed = features;
    if heard.is_some() {
        // Even when nothing is chosen: the destination compares the settings of both sides.
        let agreement = Agreement { features, multifd: context.config.multifd };
        context.act(SourceAction::SendCommand(Command::Features(agreement)));
    }
    Ok(SavingSetup::enter(features, context))
}

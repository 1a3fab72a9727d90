//! The states of a source, and what they have in common.

use super::commit::{AwaitingShut, SendingEnd};
use super::context::Context;
use super::interface::SourceEvent;
use super::outcome::{SourceFailure, SourceOutcome};
use super::precopy::{Barrier, Iterating, Resting, Syncing, Throttled};
use super::setup::{ProvingSetup, SavingSetup};
use super::switchover::{
    CompletingPrecopy, FinalSyncing, PreSwitchover, ProvingDevices, SavingDevices, StoppingVm,
};
use super::unwind::Resuming;
use crate::error::{ProtocolError, Unexpected};
use crate::status::MigrationStatus;
use std::time::Instant;

/// Where a state leads: to the next one, or to the failure path of its phase.
pub(super) type Transition = Result<State, SourceFailure>;

/// What the source waits for. Each holds what only it needs.
#[derive(Debug)]
pub(super) enum State {
    SavingSetup(SavingSetup),
    ProvingSetup(ProvingSetup),
    Syncing(Syncing),
    Iterating(Iterating),
    Throttled(Throttled),
    Barrier(Barrier),
    Resting(Resting),
    StoppingVm(StoppingVm),
    PreSwitchover(PreSwitchover),
    FinalSyncing(FinalSyncing),
    CompletingPrecopy(CompletingPrecopy),
    SavingDevices(SavingDevices),
    ProvingDevices(ProvingDevices),
    SendingEnd(SendingEnd),
    AwaitingShut(AwaitingShut),
    Resuming(Resuming),
    Finished(SourceOutcome),
}

impl State {
    /// Hands `event` to the state. It has passed the rules that hold everywhere
    /// ([`Context::screen`](super::context::Context)), so a PONG is the awaited one and a timeout is due.
    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match self {
            Self::SavingSetup(state) => state.on(event, context, now),
            Self::ProvingSetup(state) => state.on(event, context, now),
            Self::Syncing(state) => state.on(event, context, now),
            Self::Iterating(state) => state.on(event, context, now),
            Self::Throttled(state) => state.on(event, context, now),
            Self::Barrier(state) => state.on(event, context, now),
            Self::Resting(state) => state.on(event, context, now),
            Self::StoppingVm(state) => state.on(event, context, now),
            Self::PreSwitchover(state) => state.on(event, context, now),
            Self::FinalSyncing(state) => state.on(event, context, now),
            Self::CompletingPrecopy(state) => state.on(event, context, now),
            Self::SavingDevices(state) => state.on(event, context, now),
            Self::ProvingDevices(state) => state.on(event, context, now),
            Self::SendingEnd(state) => state.on(event, context, now),
            Self::AwaitingShut(state) => state.on(event, context, now),
            Self::Resuming(state) => state.on(event, context, now),
            Self::Finished(_) => Ok(self),
        }
    }

    /// Its name in errors and tests.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::SavingSetup(_) => SavingSetup::NAME,
            Self::ProvingSetup(_) => ProvingSetup::NAME,
            Self::Syncing(_) => Syncing::NAME,
            Self::Iterating(_) => Iterating::NAME,
            Self::Throttled(_) => Throttled::NAME,
            Self::Barrier(_) => Barrier::NAME,
            Self::Resting(_) => Resting::NAME,
            Self::StoppingVm(_) => StoppingVm::NAME,
            Self::PreSwitchover(_) => PreSwitchover::NAME,
            Self::FinalSyncing(_) => FinalSyncing::NAME,
            Self::CompletingPrecopy(_) => CompletingPrecopy::NAME,
            Self::SavingDevices(_) => SavingDevices::NAME,
            Self::ProvingDevices(_) => ProvingDevices::NAME,
            Self::SendingEnd(_) => SendingEnd::NAME,
            Self::AwaitingShut(_) => AwaitingShut::NAME,
            Self::Resuming(_) => Resuming::NAME,
            Self::Finished(_) => "finished",
        }
    }

    /// What the user sees.
    pub(super) fn status(&self) -> MigrationStatus {
        match self {
            Self::SavingSetup(_) | Self::ProvingSetup(_) => MigrationStatus::Setup,
            Self::Syncing(_) | Self::Iterating(_) | Self::Throttled(_) => MigrationStatus::Active,
            Self::Barrier(_) | Self::Resting(_) | Self::StoppingVm(_) => MigrationStatus::Active,
            Self::PreSwitchover(_) => MigrationStatus::PreSwitchover,
            Self::FinalSyncing(_) | Self::CompletingPrecopy(_) => MigrationStatus::Device,
            Self::SavingDevices(_) | Self::ProvingDevices(_) => MigrationStatus::Device,
            Self::SendingEnd(_) | Self::AwaitingShut(_) => MigrationStatus::Device,
            Self::Resuming(state) => state.status(),
            Self::Finished(outcome) => outcome.status(),
        }
    }

    /// When it stops waiting.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::ProvingSetup(state) => state.deadline,
            Self::Throttled(state) => state.until,
            Self::Barrier(state) => state.deadline,
            Self::Resting(state) => state.until,
            Self::ProvingDevices(state) => state.deadline,
            Self::SendingEnd(state) => state.deadline,
            Self::AwaitingShut(state) => state.deadline,
            _ => None,
        }
    }
}

/// The error of an event that `state` does not know.
pub(super) fn unexpected(state: &'static str, expected: &'static str, event: &SourceEvent) -> SourceFailure {
    refused(state, expected, event.as_unexpected())
}

/// The error of `got` in `state`.
pub(super) fn refused(state: &'static str, expected: &'static str, got: Unexpected) -> SourceFailure {
    SourceFailure::Protocol(ProtocolError { state, expected, got })
}

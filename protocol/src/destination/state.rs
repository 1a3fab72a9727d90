//! The states of a destination, and what they have in common.

use super::context::Context;
use super::ending::{AwaitingDescription, StartingGuest};
use super::interface::DestinationEvent;
use super::loading::{AwaitingConfiguration, AwaitingHeader, BetweenSections, InSection};
use super::outcome::{DestinationFailure, DestinationOutcome};
use crate::error::ProtocolError;
use crate::status::MigrationStatus;

/// Where a state leads: to the next one, or to the end without a guest.
pub(super) type Transition = Result<State, DestinationFailure>;

/// What the destination waits for. Each holds what only it needs.
#[derive(Debug)]
pub(super) enum State {
    AwaitingHeader(AwaitingHeader),
    AwaitingConfiguration(AwaitingConfiguration),
    BetweenSections(BetweenSections),
    InSection(InSection),
    AwaitingDescription(AwaitingDescription),
    StartingGuest(StartingGuest),
    Finished(DestinationOutcome),
}

impl State {
    pub(super) fn on(self, event: DestinationEvent, context: &mut Context) -> Transition {
        match self {
            Self::AwaitingHeader(state) => state.on(event, context),
            Self::AwaitingConfiguration(state) => state.on(event, context),
            Self::BetweenSections(state) => state.on(event, context),
            Self::InSection(state) => state.on(event, context),
            Self::AwaitingDescription(state) => state.on(event, context),
            Self::StartingGuest(state) => state.on(event, context),
            Self::Finished(_) => Ok(self),
        }
    }

    /// Its name in errors and tests.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::AwaitingHeader(_) => AwaitingHeader::NAME,
            Self::AwaitingConfiguration(_) => AwaitingConfiguration::NAME,
            Self::BetweenSections(_) => BetweenSections::NAME,
            Self::InSection(_) => InSection::NAME,
            Self::AwaitingDescription(_) => AwaitingDescription::NAME,
            Self::StartingGuest(_) => StartingGuest::NAME,
            Self::Finished(_) => "finished",
        }
    }

    /// What the user sees.
    pub(super) const fn status(&self) -> MigrationStatus {
        match self {
            Self::AwaitingHeader(_) => MigrationStatus::Setup,
            Self::Finished(outcome) => outcome.status(),
            _ => MigrationStatus::Active,
        }
    }
}

/// The error of an event that `state` does not know.
pub(super) fn unexpected(
    state: &'static str,
    expected: &'static str,
    event: &DestinationEvent,
) -> DestinationFailure {
    DestinationFailure::Protocol(ProtocolError { state, expected, got: event.as_unexpected() })
}

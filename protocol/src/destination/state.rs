//! The states of a destination, and what they have in common.

use super::context::Context;
use super::ending::{AwaitingDescription, StartingGuest};
use super::interface::DestinationEvent;
use super::listening::{AwaitingListen, LoadingPackage, StartingInPostcopy};
use super::loading::{AwaitingConfiguration, AwaitingHeader, BetweenSections, InSection};
use super::outcome::{DestinationFailure, DestinationOutcome};
use super::recovery::{Paused, Pausing, Recovering};
use super::running::{AwaitingPages, Running};
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
    AwaitingListen(AwaitingListen),
    LoadingPackage(LoadingPackage),
    StartingInPostcopy(StartingInPostcopy),
    Running(Running),
    AwaitingPages(AwaitingPages),
    Pausing(Pausing),
    Paused(Paused),
    Recovering(Recovering),
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
            Self::AwaitingListen(state) => state.on(event, context),
            Self::LoadingPackage(state) => state.on(event, context),
            Self::StartingInPostcopy(state) => state.on(event, context),
            Self::Running(state) => state.on(event, context),
            Self::AwaitingPages(state) => state.on(event, context),
            Self::Pausing(state) => state.on(event, context),
            Self::Paused(state) => state.on(event, context),
            Self::Recovering(state) => state.on(event, context),
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
            Self::AwaitingListen(_) => AwaitingListen::NAME,
            Self::LoadingPackage(_) => LoadingPackage::NAME,
            Self::StartingInPostcopy(_) => StartingInPostcopy::NAME,
            Self::Running(_) => Running::NAME,
            Self::AwaitingPages(_) => AwaitingPages::NAME,
            Self::Pausing(_) => Pausing::NAME,
            Self::Paused(_) => Paused::NAME,
            Self::Recovering(_) => Recovering::NAME,
            Self::Finished(_) => "finished",
        }
    }

    /// What the user sees.
    pub(super) const fn status(&self) -> MigrationStatus {
        match self {
            Self::AwaitingHeader(_) => MigrationStatus::Setup,
            Self::Finished(outcome) => outcome.status(),
            // "Paused" would promise that a recovery can begin.
            Self::Running(_) | Self::AwaitingPages(_) | Self::Pausing(_) => MigrationStatus::PostcopyActive,
            Self::Paused(_) => MigrationStatus::PostcopyPaused,
            Self::Recovering(Recovering { main_lost: false }) => MigrationStatus::PostcopyActive,
            Self::Recovering(_) => MigrationStatus::PostcopyRecover,
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

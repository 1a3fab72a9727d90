//! The states of a source, and what they have in common.

use super::commit::{AwaitingShut, SendingEnd};
use super::context::Context;
use super::greeting::Greeting;
use super::handover::{
    CompletingForPostcopy, Discarding, DiscardingAhead, OpeningPreempt, PackagingDevices, SendingPackage,
};
use super::interface::SourceEvent;
use super::outcome::{SourceFailure, SourceOutcome};
use super::postcopy::{AwaitingCompletion, AwaitingRunning, CompletingPostcopy, Draining, Pushing};
use super::precopy::{Barrier, Iterating, Resting, Syncing, Throttled};
use super::recovery::{
    Aim, AwaitingResume, FetchingBitmaps, Paused, Pausing, Reconnecting, ReopeningChannels, ReopeningPreempt,
};
use super::replacement::ReplacingLinks;
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
    Greeting(Greeting),
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
    OpeningPreempt(OpeningPreempt),
    DiscardingAhead(DiscardingAhead),
    CompletingForPostcopy(CompletingForPostcopy),
    Discarding(Discarding),
    PackagingDevices(PackagingDevices),
    SendingPackage(SendingPackage),
    AwaitingRunning(AwaitingRunning),
    Pushing(Pushing),
    Draining(Draining),
    CompletingPostcopy(CompletingPostcopy),
    AwaitingCompletion(AwaitingCompletion),
    Pausing(Pausing),
    Paused(Paused),
    Reconnecting(Reconnecting),
    ReplacingLinks(ReplacingLinks),
    FetchingBitmaps(FetchingBitmaps),
    ReopeningChannels(ReopeningChannels),
    ReopeningPreempt(ReopeningPreempt),
    AwaitingResume(AwaitingResume),
    Resuming(Resuming),
    Finished(SourceOutcome),
}

impl State {
    /// Hands `event` to the state. It has passed the rules that hold everywhere
    /// ([`Context::screen`](super::context::Context)), so a PONG is the awaited one and a timeout is due.
    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match self {
            Self::Greeting(state) => state.on(event, context, now),
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
            Self::OpeningPreempt(state) => state.on(event, context),
            Self::DiscardingAhead(state) => state.on(event, context, now),
            Self::CompletingForPostcopy(state) => state.on(event, context, now),
            Self::Discarding(state) => state.on(event, context, now),
            Self::PackagingDevices(state) => state.on(event, context, now),
            Self::SendingPackage(state) => state.on(event, context, now),
            Self::AwaitingRunning(state) => state.on(event, context, now),
            Self::Pushing(state) => state.on(event, context, now),
            Self::Draining(state) => state.on(event, context, now),
            Self::CompletingPostcopy(state) => state.on(event, context, now),
            Self::AwaitingCompletion(state) => state.on(event, context, now),
            Self::Pausing(state) => state.on(event, context, now),
            Self::Paused(state) => state.on(event, context, now),
            Self::Reconnecting(state) => state.on(event, context, now),
            Self::ReplacingLinks(state) => state.on(event, context, now),
            Self::FetchingBitmaps(state) => state.on(event, context, now),
            Self::ReopeningChannels(state) => state.on(event, context, now),
            Self::ReopeningPreempt(state) => state.on(event, context, now),
            Self::AwaitingResume(state) => state.on(event, context, now),
            Self::Resuming(state) => state.on(event, context, now),
            Self::Finished(_) => Ok(self),
        }
    }

    /// Its name in errors and tests.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Greeting(_) => Greeting::NAME,
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
            Self::OpeningPreempt(_) => OpeningPreempt::NAME,
            Self::DiscardingAhead(_) => DiscardingAhead::NAME,
            Self::CompletingForPostcopy(_) => CompletingForPostcopy::NAME,
            Self::Discarding(_) => Discarding::NAME,
            Self::PackagingDevices(_) => PackagingDevices::NAME,
            Self::SendingPackage(_) => SendingPackage::NAME,
            Self::AwaitingRunning(_) => AwaitingRunning::NAME,
            Self::Pushing(_) => Pushing::NAME,
            Self::Draining(_) => Draining::NAME,
            Self::CompletingPostcopy(_) => CompletingPostcopy::NAME,
            Self::AwaitingCompletion(_) => AwaitingCompletion::NAME,
            Self::Pausing(_) => Pausing::NAME,
            Self::Paused(_) => Paused::NAME,
            Self::Reconnecting(_) => Reconnecting::NAME,
            Self::ReplacingLinks(_) => ReplacingLinks::NAME,
            Self::FetchingBitmaps(_) => FetchingBitmaps::NAME,
            Self::ReopeningChannels(_) => ReopeningChannels::NAME,
            Self::ReopeningPreempt(_) => ReopeningPreempt::NAME,
            Self::AwaitingResume(_) => AwaitingResume::NAME,
            Self::Resuming(_) => Resuming::NAME,
            Self::Finished(_) => "finished",
        }
    }

    /// What the user sees.
    pub(super) fn status(&self) -> MigrationStatus {
        match self {
            Self::Greeting(_) | Self::SavingSetup(_) | Self::ProvingSetup(_) => MigrationStatus::Setup,
            Self::Syncing(_) | Self::Iterating(_) | Self::Throttled(_) => MigrationStatus::Active,
            Self::Barrier(_) | Self::Resting(_) | Self::StoppingVm(_) => MigrationStatus::Active,
            Self::OpeningPreempt(_) | Self::DiscardingAhead(_) => MigrationStatus::Active,
            Self::PreSwitchover(_) => MigrationStatus::PreSwitchover,
            Self::FinalSyncing(_) | Self::CompletingPrecopy(_) => MigrationStatus::Device,
            Self::SavingDevices(_) | Self::ProvingDevices(_) => MigrationStatus::Device,
            Self::SendingEnd(_) | Self::AwaitingShut(_) => MigrationStatus::Device,
            Self::CompletingForPostcopy(_) | Self::Discarding(_) => MigrationStatus::Device,
            Self::PackagingDevices(_) | Self::SendingPackage(_) => MigrationStatus::Device,
            Self::AwaitingRunning(_) | Self::Pushing(_) => MigrationStatus::PostcopyActive,
            Self::Draining(_) | Self::CompletingPostcopy(_) => MigrationStatus::PostcopyActive,
            Self::AwaitingCompletion(_) => MigrationStatus::PostcopyActive,
            Self::Pausing(state) => state.status(),
            Self::Paused(_) => MigrationStatus::PostcopyPaused,
            Self::Reconnecting(_) => MigrationStatus::PostcopyRecoverSetup,
            Self::ReplacingLinks(_) => MigrationStatus::PostcopyActive,
            Self::FetchingBitmaps(FetchingBitmaps { aim, .. })
            | Self::ReopeningChannels(ReopeningChannels { aim })
            | Self::ReopeningPreempt(ReopeningPreempt { aim })
            | Self::AwaitingResume(AwaitingResume { aim, .. }) => aim.status(),
            Self::Resuming(state) => state.status(),
            Self::Finished(outcome) => outcome.status(),
        }
    }

    /// When it stops waiting.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Greeting(state) => state.deadline,
            Self::ProvingSetup(state) => state.deadline,
            Self::Throttled(state) => state.until,
            Self::Barrier(state) => state.deadline,
            Self::Resting(state) => state.until,
            Self::ProvingDevices(state) => state.deadline,
            Self::SendingEnd(state) => state.deadline,
            Self::AwaitingShut(state) => state.deadline,
            Self::DiscardingAhead(state) => state.deadline(),
            Self::AwaitingRunning(state) => state.deadline(),
            Self::Pushing(state) => state.deadline(),
            Self::Draining(state) => state.deadline,
            Self::AwaitingCompletion(state) => state.deadline,
            Self::FetchingBitmaps(state) => state.deadline,
            Self::AwaitingResume(state) => state.deadline,
            _ => None,
        }
    }

    /// Whether a changed limit can end or lengthen a pause of this state.
    pub(super) const fn obeys_limits(&self) -> bool {
        matches!(self, Self::Throttled(_) | Self::AwaitingRunning(_) | Self::Pushing(_))
    }

    /// Whether a link beside the main one may be lost here without a pause.
    pub(super) const fn bears_losses(&self) -> bool {
        match self {
            Self::Pushing(_) | Self::Draining(_) | Self::ReplacingLinks(_) => true,
            // The last sounds of those that were given up.
            Self::FetchingBitmaps(state) => matches!(state.aim, Aim::Replace),
            _ => false,
        }
    }

    /// Whether `migrate-pause` means something: postcopy has begun, and there is a connection to close.
    pub(super) fn may_pause(&self) -> bool {
        use MigrationStatus::{PostcopyActive, PostcopyRecover, PostcopyRecoverSetup};
        let connected = !self.is_disconnected();
        connected && matches!(self.status(), PostcopyActive | PostcopyRecover | PostcopyRecoverSetup)
    }

    /// The old connection is given up, and there is no new one: what still sounds from it means nothing.
    pub(super) const fn is_disconnected(&self) -> bool {
        matches!(self, Self::Pausing(_) | Self::Paused(_))
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

//! The switch to postcopy: the guest's devices go over with a promise of the rest of its memory.
//!
//! Everything up to [`SourceAction::SendPackage`] can fail and leaves the guest here. The package ends with RUN, so once
//! the shell has taken that action the guest may run there, whatever happens here (I6).

use super::context::Context;
use super::interface::{SourceAction, SourceEvent};
use super::postcopy::AwaitingRunning;
use super::state::{State, Transition, unexpected};
use super::switchover::{StoppingVm, Way};
use crate::ping::PingPurpose;
use std::time::Instant;

/// The link for pages that are asked for is being connected, while the guest still runs here.
#[derive(Debug)]
pub(super) struct OpeningPreempt;

/// What cannot go on in postcopy ends, and the channels are brought into line.
#[derive(Debug)]
pub(super) struct CompletingForPostcopy;

/// The destination is told what of its pages is stale.
#[derive(Debug)]
pub(super) struct Discarding;

/// The devices are being saved into the package.
#[derive(Debug)]
pub(super) struct PackagingDevices;

/// The package is being written.
#[derive(Debug)]
pub(super) struct SendingPackage;

/// Precopy is over, by the user's word or by policy.
pub(super) fn begin(context: &mut Context, now: Instant) -> State {
    if context.uses_preempt() {
        context.act(SourceAction::OpenPreempt);
        State::OpeningPreempt(OpeningPreempt)
    } else {
        StoppingVm::enter(Way::Postcopy, context, now)
    }
}

impl OpeningPreempt {
    pub(super) const NAME: &'static str = "opening the preempt channel";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::PreemptOpened => Ok(StoppingVm::enter(Way::Postcopy, context, now)),
            event => Err(unexpected(Self::NAME, "PreemptOpened", &event)),
        }
    }
}

impl CompletingForPostcopy {
    pub(super) const NAME: &'static str = "completing for postcopy";

    pub(super) fn enter(context: &mut Context) -> State {
        context.act(SourceAction::CompleteForPostcopy);
        State::CompletingForPostcopy(Self)
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::CompletedForPostcopy { sent } => {
                context.sent_in_downtime(sent);
                context.timeline.precopy_completed = Some(now);
                context.act(SourceAction::SendDiscards);
                Ok(State::Discarding(Discarding))
            }
            event => Err(unexpected(Self::NAME, "CompletedForPostcopy", &event)),
        }
    }
}

impl Discarding {
    pub(super) const NAME: &'static str = "discarding";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, _now: Instant) -> Transition {
        match event {
            SourceEvent::DiscardsSent { sent } => {
                context.sent_in_downtime(sent);
                context.act(SourceAction::PackageDevices { ping: PingPurpose::Package.value() });
                Ok(State::PackagingDevices(PackagingDevices))
            }
            event => Err(unexpected(Self::NAME, "DiscardsSent", &event)),
        }
    }
}

impl PackagingDevices {
    pub(super) const NAME: &'static str = "packaging devices";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::DevicesPackaged { .. } => {
                context.timeline.devices_saved = Some(now);
                context.expect_proof();
                context.act(SourceAction::SendPackage);
                Ok(State::SendingPackage(SendingPackage))
            }
            event => Err(unexpected(Self::NAME, "DevicesPackaged", &event)),
        }
    }
}

impl SendingPackage {
    pub(super) const NAME: &'static str = "sending the package";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::PackageSent { sent } => {
                context.sent_in_downtime(sent);
                context.timeline.package_sent = Some(now);
                Ok(AwaitingRunning::enter(context, now))
            }
            event => Err(unexpected(Self::NAME, "PackageSent", &event)),
        }
    }
}

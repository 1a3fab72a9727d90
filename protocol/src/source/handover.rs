//! The switch to postcopy: the guest's devices go over with a promise of the rest of its memory.
//!
//! Everything up to [`SourceAction::SendPackage`] can fail and leaves the guest here. The package ends with RUN, so once
//! the shell has taken that action the guest may run there, whatever happens here (I6).

use super::context::Context;
use super::interface::{SourceAction, SourceEvent};
use super::outcome::{SourceFailure, Wait};
use super::postcopy::AwaitingRunning;
use super::state::{State, Transition, unexpected};
use super::switchover::{StoppingVm, Way};
use crate::ping::PingPurpose;
use limosa_pages::PageCount;
use limosa_wire::ReturnMessage;
use std::time::Instant;

/// Most lists of stale pages while the guest still runs. Each is as much shorter than the one before as dropping a page is
/// faster than dirtying one: a guest that writes 150,000 pages a second leaves a ninth of it. One that leaves a half is
/// still down from 2^17 pages to [`AHEAD_ENOUGH`] after eight.
const AHEAD_MAX: u32 = 8;

/// So few stale pages may as well be named while the guest stands: at 0.75 microseconds each they take 0.4 ms, and another
/// list takes at least a round trip.
const AHEAD_ENOUGH: PageCount = PageCount(512);

/// The link for pages that are asked for is being connected, while the guest still runs here.
#[derive(Debug)]
pub(super) struct OpeningPreempt;

/// The destination drops what is stale already while the guest still runs: it costs it most of a microsecond per page, and a
/// guest that was moved because it writes a lot has hundreds of thousands. What is left for the downtime is what the guest
/// has dirtied during the last list. The PONG also proves that nothing of precopy is left in the link.
#[derive(Debug)]
pub(super) struct DiscardingAhead {
    lists: u32,
    /// Pages of the list before.
    before: PageCount,
    /// What is being dropped, and how long its proof is waited for; `None` while the list is being written.
    dropping: Option<(PageCount, Option<Instant>)>,
}

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
pub(super) fn begin(context: &mut Context) -> State {
    if context.uses_preempt() {
        context.act(SourceAction::OpenPreempt);
        State::OpeningPreempt(OpeningPreempt)
    } else {
        DiscardingAhead::begin(context)
    }
}

impl OpeningPreempt {
    pub(super) const NAME: &'static str = "opening the preempt channel";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context) -> Transition {
        match event {
            SourceEvent::PreemptOpened => Ok(DiscardingAhead::begin(context)),
            event => Err(unexpected(Self::NAME, "PreemptOpened", &event)),
        }
    }
}

impl DiscardingAhead {
    pub(super) const NAME: &'static str = "discarding ahead";

    fn begin(context: &mut Context) -> State {
        Self { lists: 0, before: PageCount(u64::MAX), dropping: None }.next(context)
    }

    fn next(self, context: &mut Context) -> State {
        context.act(SourceAction::DiscardAhead);
        State::DiscardingAhead(Self { lists: self.lists + 1, dropping: None, ..self })
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.dropping.and_then(|(_, deadline)| deadline)
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match (event, self.dropping) {
            (SourceEvent::DiscardedAhead { sent, pages }, None) => {
                context.counters.bytes_sent += sent;
                context.ping_and_wait(PingPurpose::Discards);
                let deadline = now.checked_add(context.config.timeouts.round);
                Ok(State::DiscardingAhead(Self { dropping: Some((pages, deadline)), ..self }))
            }
            (SourceEvent::Return(ReturnMessage::Pong(_)), Some((pages, _))) => {
                let no_shorter = pages.0 > self.before.0 / 2;
                if pages <= AHEAD_ENOUGH || no_shorter || self.lists == AHEAD_MAX {
                    return Ok(StoppingVm::enter(Way::Postcopy, context, now));
                }
                Ok(Self { before: pages, ..self }.next(context))
            }
            (SourceEvent::Timeout, Some(_)) => {
                Err(SourceFailure::TimedOut { wait: Wait::Discards, limit: context.config.timeouts.round })
            }
            (event, _) => Err(unexpected(Self::NAME, "DiscardedAhead, then its PONG", &event)),
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

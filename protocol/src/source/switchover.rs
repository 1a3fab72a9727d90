//! Switchover: the guest stops, and everything that is left follows, until the destination has loaded it all.

use super::commit::SendingEnd;
use super::context::Context;
use super::handover::CompletingForPostcopy;
use super::interface::{SourceAction, SourceEvent};
use super::outcome::{SourceFailure, Wait};
use super::state::{State, Transition, unexpected};
use crate::ping::PingPurpose;
use limosa_wire::ReturnMessage;
use std::time::Instant;

/// What follows the stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// All of the rest, and then the guest.
    Precopy,
    /// The guest first, as far as anything is owed then.
    Postcopy,
}

/// The guest is being stopped.
#[derive(Debug)]
pub(super) struct StoppingVm(Way);

/// The guest stands, and the user's word is waited for. There is no deadline: it is the user's guest.
#[derive(Debug)]
pub(super) struct PreSwitchover(Way);

/// The dirty log is merged for the last time.
#[derive(Debug)]
pub(super) struct FinalSyncing(Way);

/// The live handlers write the rest.
#[derive(Debug)]
pub(super) struct CompletingPrecopy;

/// The device sections are being written.
#[derive(Debug)]
pub(super) struct SavingDevices;

/// All sections are out; the PONG will say that every device is loaded.
#[derive(Debug)]
pub(super) struct ProvingDevices {
    pub(super) deadline: Option<Instant>,
}

impl StoppingVm {
    pub(super) const NAME: &'static str = "stopping the guest";

    pub(super) fn enter(way: Way, context: &mut Context, now: Instant) -> State {
        context.timeline.stop_asked = Some(now);
        context.act(SourceAction::StopVm);
        State::StoppingVm(Self(way))
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::VmStopped => {
                context.timeline.vm_stopped = Some(now);
                if context.config.pause_before_switchover {
                    Ok(State::PreSwitchover(PreSwitchover(self.0)))
                } else {
                    Ok(FinalSyncing::enter(self.0, context))
                }
            }
            event => Err(unexpected(Self::NAME, "VmStopped", &event)),
        }
    }
}

impl PreSwitchover {
    pub(super) const NAME: &'static str = "pre-switchover";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, _now: Instant) -> Transition {
        match event {
            SourceEvent::Continue => Ok(FinalSyncing::enter(self.0, context)),
            event => Err(unexpected(Self::NAME, "Continue", &event)),
        }
    }
}

impl FinalSyncing {
    pub(super) const NAME: &'static str = "final sync";

    fn enter(way: Way, context: &mut Context) -> State {
        context.act(SourceAction::SyncDirty);
        State::FinalSyncing(Self(way))
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::Synced { pending } => {
                context.synced(pending);
                context.timeline.final_synced = Some(now);
                // With nothing owed there is nothing that could follow.
                if self.0 == Way::Postcopy && pending.owed.0 > 0 {
                    return Ok(CompletingForPostcopy::enter(context));
                }
                context.act(SourceAction::CompletePrecopy);
                Ok(State::CompletingPrecopy(CompletingPrecopy))
            }
            event => Err(unexpected(Self::NAME, "Synced", &event)),
        }
    }
}

impl CompletingPrecopy {
    pub(super) const NAME: &'static str = "completing precopy";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::PrecopyCompleted { sent } => {
                context.sent_in_downtime(sent);
                context.timeline.precopy_completed = Some(now);
                context.act(SourceAction::SaveDevices);
                Ok(State::SavingDevices(SavingDevices))
            }
            event => Err(unexpected(Self::NAME, "PrecopyCompleted", &event)),
        }
    }
}

impl SavingDevices {
    pub(super) const NAME: &'static str = "saving devices";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::DevicesSaved { sent } => {
                context.sent_in_downtime(sent);
                context.timeline.devices_saved = Some(now);
                if !context.config.return_path {
                    return Ok(SendingEnd::enter(context, now));
                }
                context.ping_and_wait(PingPurpose::Switchover);
                let deadline = now.checked_add(context.config.timeouts.devices);
                Ok(State::ProvingDevices(ProvingDevices { deadline }))
            }
            event => Err(unexpected(Self::NAME, "DevicesSaved", &event)),
        }
    }
}

impl ProvingDevices {
    pub(super) const NAME: &'static str = "proving devices";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::Return(ReturnMessage::Pong(_)) => {
                context.timeline.devices_loaded = Some(now);
                Ok(SendingEnd::enter(context, now))
            }
            SourceEvent::Timeout => {
                Err(SourceFailure::TimedOut { wait: Wait::Devices, limit: context.config.timeouts.devices })
            }
            event => Err(unexpected(Self::NAME, "the PONG of the switchover", &event)),
        }
    }
}

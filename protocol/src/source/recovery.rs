//! Pause and recovery: the connection is lost, the guest is not.
//!
//! While postcopy is paused the guest stays stopped here and runs there on the pages that it has. A recovery asks the
//! destination what it holds, owes it the rest (I1), and goes on. If it fails, postcopy is paused again.

use super::context::Context;
use super::interface::{OperatorWord, SourceAction, SourceEvent};
use super::outcome::{SourceEnding, SourceFailure, Wait};
use super::postcopy::{Pushing, complete};
use super::replacement;
use super::state::{State, Transition, unexpected};
use super::unwind;
use crate::status::{GuestFate, MigrationStatus};
use limosa_wire::{Command, ReturnMessage};
use std::time::Instant;

/// The old connection is being silenced.
#[derive(Debug)]
pub(super) struct Pausing {
    reason: SourceFailure,
    was: MigrationStatus,
}

/// There is no connection. Only a user's word leads on.
#[derive(Debug)]
pub(super) struct Paused {
    reason: SourceFailure,
}

/// A new connection is being made.
#[derive(Debug)]
pub(super) struct Reconnecting;

/// What the states from the bitmaps on are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    /// To go on after a pause, over a new main link.
    Recover,
    /// To replace links beside the main one, which stays.
    Replace,
}

/// The destination says what it holds.
#[derive(Debug)]
pub(super) struct FetchingBitmaps {
    pub(super) aim: Aim,
    pub(super) deadline: Option<Instant>,
}

/// The channels that carry the push are being connected again.
#[derive(Debug)]
pub(super) struct ReopeningChannels {
    pub(super) aim: Aim,
}

/// The link for pages that are asked for is being connected again.
#[derive(Debug)]
pub(super) struct ReopeningPreempt {
    pub(super) aim: Aim,
}

/// RESUME is out; the destination says that it goes on.
#[derive(Debug)]
pub(super) struct AwaitingResume {
    pub(super) aim: Aim,
    pub(super) deadline: Option<Instant>,
}

impl Aim {
    /// What the user sees: to him a link that is replaced is no recovery, which he would have asked for.
    pub(super) const fn status(self) -> MigrationStatus {
        match self {
            Self::Recover => MigrationStatus::PostcopyRecover,
            Self::Replace => MigrationStatus::PostcopyActive,
        }
    }
}

/// The failure path of every state in which the guest may run there.
pub(super) fn pause(reason: SourceFailure, was: MigrationStatus, context: &mut Context) -> State {
    // I8: what was meant for this connection dies with it, answers included.
    context.drop_actions();
    context.forget_pings();
    context.act(SourceAction::Pause);
    State::Pausing(Pausing { reason, was })
}

impl Pausing {
    pub(super) const NAME: &'static str = "pausing";

    /// The status of before: "paused" would promise that a recovery can begin.
    pub(super) const fn status(&self) -> MigrationStatus {
        self.was
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::Paused => {
                context.counters.pauses += 1;
                context.timeline.paused = Some(now);
                Ok(State::Paused(Paused { reason: self.reason }))
            }
            // Answers to what was under way, and the sounds of the links closing.
            _ => Ok(State::Pausing(self)),
        }
    }
}

impl Paused {
    pub(super) const NAME: &'static str = "paused";

    /// Why it is paused.
    pub(super) const fn reason(&self) -> &SourceFailure {
        &self.reason
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, _now: Instant) -> Transition {
        let failed = SourceEnding::Failed(self.reason.clone());
        match event {
            SourceEvent::ResumePostcopy => {
                context.act(SourceAction::Reconnect);
                Ok(State::Reconnecting(Reconnecting))
            }
            SourceEvent::Operator(OperatorWord::NeverRan) if !context.runs_there => {
                Ok(unwind::resume(failed, context))
            }
            SourceEvent::Operator(OperatorWord::HasGuest) => Ok(unwind::finish(
                SourceEnding::Completed { confirmed: false },
                GuestFate::OnDestination,
                false,
                context,
            )),
            SourceEvent::Operator(OperatorWord::GiveUp) => {
                let fate = if context.runs_there { GuestFate::Paused } else { GuestFate::InDoubt };
                Ok(unwind::finish(failed, fate, false, context))
            }
            _ => Ok(State::Paused(self)),
        }
    }
}

impl Reconnecting {
    pub(super) const NAME: &'static str = "reconnecting";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::Reconnected => Ok(FetchingBitmaps::enter(Aim::Recover, context, now)),
            event => Err(unexpected(Self::NAME, "Reconnected", &event)),
        }
    }
}

impl FetchingBitmaps {
    pub(super) const NAME: &'static str = "fetching bitmaps";

    pub(super) fn enter(aim: Aim, context: &mut Context, now: Instant) -> State {
        context.act(SourceAction::FetchBitmaps);
        State::FetchingBitmaps(Self { aim, deadline: recovery_deadline(context, now) })
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::BitmapsMerged { pending } => {
                // Only a destination that runs the guest and has lost its connection answers with them.
                context.prove_running(now);
                context.counters.pending = pending;
                if self.aim == Aim::Replace {
                    context.replacements.note(pending.owed);
                }
                if context.pushes_on_channels() {
                    context.act(SourceAction::OpenChannels);
                    Ok(State::ReopeningChannels(ReopeningChannels { aim: self.aim }))
                } else {
                    Ok(ReopeningPreempt::enter(self.aim, context, now))
                }
            }
            // Of a link that was given up: its thread, or the destination, has said so before it knew.
            event if self.aim == Aim::Replace && replacement::reason(&event).is_some() => {
                Ok(State::FetchingBitmaps(self))
            }
            event => on_last_word(event, Self::NAME, "the received bitmaps", context),
        }
    }
}

impl ReopeningChannels {
    pub(super) const NAME: &'static str = "reopening the multifd channels";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::ChannelsOpened => Ok(ReopeningPreempt::enter(self.aim, context, now)),
            event => on_last_word(event, Self::NAME, "ChannelsOpened", context),
        }
    }
}

impl ReopeningPreempt {
    pub(super) const NAME: &'static str = "reopening the preempt channel";

    /// Goes on without one if there is to be none.
    fn enter(aim: Aim, context: &mut Context, now: Instant) -> State {
        if !context.uses_preempt() {
            return AwaitingResume::enter(aim, context, now);
        }
        context.act(SourceAction::OpenPreempt);
        State::ReopeningPreempt(Self { aim })
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::PreemptOpened => Ok(AwaitingResume::enter(self.aim, context, now)),
            event => on_last_word(event, Self::NAME, "PreemptOpened", context),
        }
    }
}

impl AwaitingResume {
    pub(super) const NAME: &'static str = "awaiting resume";

    fn enter(aim: Aim, context: &mut Context, now: Instant) -> State {
        context.act(SourceAction::SendCommand(Command::PostcopyResume));
        State::AwaitingResume(Self { aim, deadline: recovery_deadline(context, now) })
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::Return(ReturnMessage::ResumeAck) => {
                context.counters.replacements += u32::from(self.aim == Aim::Replace);
                Ok(Pushing::again(context, now))
            }
            event => on_last_word(event, Self::NAME, "RESUME_ACK", context),
        }
    }
}

/// A destination that has ended already answers a recovery with its last word: it never ran the guest, or it has all of
/// it. Only one that is known to give such answers is believed (I6, I7).
fn on_last_word(
    event: SourceEvent,
    state: &'static str,
    expected: &'static str,
    context: &mut Context,
) -> Transition {
    match event {
        SourceEvent::Return(ReturnMessage::NeverRan) if !context.runs_there => {
            Ok(unwind::resume(SourceEnding::Failed(SourceFailure::NeverRan), context))
        }
        SourceEvent::Return(ReturnMessage::Shut(0)) if context.running_answers() => Ok(complete(context)),
        SourceEvent::Timeout => {
            Err(SourceFailure::TimedOut { wait: Wait::Recovery, limit: context.config.timeouts.recovery })
        }
        event => Err(unexpected(state, expected, &event)),
    }
}

fn recovery_deadline(context: &Context, now: Instant) -> Option<Instant> {
    now.checked_add(context.config.timeouts.recovery)
}

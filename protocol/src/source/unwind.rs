//! The ways out: undo, or stand in doubt.

use super::context::Context;
use super::interface::{SourceAction, SourceEvent, SourceStep};
use super::outcome::{SourceEnding, SourceFailure, SourceOutcome};
use super::recovery;
use super::state::{State, Transition};
use crate::status::{GuestFate, MigrationStatus};
use std::time::Instant;

/// The guest is brought back to the run state it had.
#[derive(Debug)]
pub(super) struct Resuming {
    ending: SourceEnding,
}

/// Nothing that was said lets the destination run: close the link, then take the guest up again if it was stopped.
pub(super) fn resume(ending: SourceEnding, context: &mut Context) -> State {
    // I8: what was meant for this connection dies with it.
    context.drop_actions();
    // First the link, so that nothing said later can reach the destination.
    context.act(SourceAction::CloseLink);
    if !context.vm_stop_taken {
        return finish(ending, GuestFate::OnSource, false, context);
    }
    context.act(SourceAction::ResumeVm);
    State::Resuming(Resuming { ending })
}

/// The failure path of the state's phase: before the commit point the guest is ours, after that of postcopy it can go on
/// over another connection, after that of precopy nobody knows.
pub(super) fn fail(failure: SourceFailure, status: MigrationStatus, context: &mut Context) -> State {
    if context.package_taken {
        return recovery::pause(failure, status, context);
    }
    let ending = SourceEnding::Failed(failure);
    if !context.end_taken {
        return resume(ending, context);
    }
    context.drop_actions();
    context.act(SourceAction::CloseLink);
    finish(ending, GuestFate::InDoubt, false, context)
}

/// The outcome is known.
pub(super) fn finish(
    ending: SourceEnding,
    fate: GuestFate,
    resume_failed: bool,
    context: &mut Context,
) -> State {
    context.act(SourceAction::Finish);
    State::Finished(SourceOutcome { ending, fate, resume_failed, cancel_refused: context.cancel_refused })
}

impl Resuming {
    pub(super) const NAME: &'static str = "resuming";

    pub(super) fn status(&self) -> MigrationStatus {
        match self.ending {
            SourceEnding::Cancelled => MigrationStatus::Cancelling,
            _ => MigrationStatus::Failed,
        }
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, _now: Instant) -> Transition {
        let resume_failed = match event {
            SourceEvent::VmResumed => false,
            SourceEvent::HandlerFailed { step: SourceStep::ResumeVm } => true,
            // Answers to what was under way when the end came, and the sounds of the link closing.
            _ => return Ok(State::Resuming(self)),
        };
        Ok(finish(self.ending, GuestFate::OnSource, resume_failed, context))
    }
}

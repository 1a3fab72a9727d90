//! Postcopy: the guest runs there, or is about to, and the rest of its memory follows it.
//!
//! Pages that are asked for are served outside of the machine, by whoever hears the request; the machine pushes the
//! others. Nothing that fails here brings the guest back: it leads to a pause.

use super::context::Context;
use super::interface::{Pending, SourceAction, SourceEvent};
use super::outcome::{SourceEnding, SourceFailure, Wait};
use super::precopy::{EMPTY_SLICES_MAX, SLICE_BYTES_MAX, SLICE_TIME_MAX};
use super::replacement::{self, ReplacingLinks};
use super::state::{State, Transition, unexpected};
use super::unwind;
use crate::ping::PingPurpose;
use crate::status::GuestFate;
use limosa_pages::ByteCount;
use limosa_wire::ReturnMessage;
use std::time::{Duration, Instant};

/// The package is out. Loading its devices may touch pages, so pushing has begun; whether the guest runs is not known.
#[derive(Debug)]
pub(super) struct AwaitingRunning {
    push: Push,
    proof_deadline: Option<Instant>,
}

/// The guest runs there, and pages follow.
#[derive(Debug)]
pub(super) struct Pushing(Push);

/// Everything is written; the PONG will say that it is processed, the pages on the preempt link before it (I5).
#[derive(Debug)]
pub(super) struct Draining {
    pub(super) deadline: Option<Instant>,
}

/// The end is being written.
#[derive(Debug)]
pub(super) struct CompletingPostcopy;

/// The end is written; the destination says whether it has everything.
#[derive(Debug)]
pub(super) struct AwaitingCompletion {
    pub(super) deadline: Option<Instant>,
}

/// Largest slice while the guest may stand there, and its time: what is pushed is read beside the package, on the same
/// processors, and the word that the guest runs is heard between two slices. 1 MiB takes half a millisecond at 2 GB/s.
pub(super) const WHILE_IT_STANDS: (ByteCount, Duration) = (ByteCount(1 << 20), Duration::from_millis(1));

/// The same while it runs.
const WHILE_IT_RUNS: (ByteCount, Duration) = (SLICE_BYTES_MAX, SLICE_TIME_MAX);

/// How far the pages are.
#[derive(Debug)]
struct Push {
    /// Largest slice, and the longest.
    most: (ByteCount, Duration),
    step: PushStep,
    empty_slices: u32,
    owed: ByteCount,
}

#[derive(Debug)]
enum PushStep {
    /// A slice is being written.
    Slice,
    /// The bandwidth limit wants a pause.
    Throttled { until: Option<Instant> },
    /// Nothing is owed.
    Done,
}

impl Push {
    fn begin(most: (ByteCount, Duration), context: &mut Context, now: Instant) -> Self {
        let owed = context.counters.pending.owed;
        Self { most, step: PushStep::Done, empty_slices: 0, owed }.next(context, now)
    }

    fn next(self, context: &mut Context, now: Instant) -> Self {
        let (most, max_time) = self.most;
        let step = match context.bucket.take(most, now) {
            Some(max_bytes) => {
                context.act(SourceAction::Push { max_bytes, max_time });
                PushStep::Slice
            }
            None => PushStep::Throttled { until: context.bucket.ready_at() },
        };
        Self { step, ..self }
    }

    fn pushed(
        mut self,
        sent: ByteCount,
        pending: Pending,
        context: &mut Context,
        now: Instant,
    ) -> Result<Self, SourceFailure> {
        context.pushed(sent, pending, now);
        let stuck = sent.0 == 0 && pending.owed >= self.owed;
        self.empty_slices = if stuck { self.empty_slices + 1 } else { 0 };
        self.owed = pending.owed;
        if pending.owed.0 == 0 {
            Ok(Self { step: PushStep::Done, ..self })
        } else if self.empty_slices >= EMPTY_SLICES_MAX {
            Err(SourceFailure::NoProgress { slices: self.empty_slices })
        } else {
            Ok(self.next(context, now))
        }
    }

    /// What both states do with the events of pushing; `None` for any other event.
    fn on(
        self,
        event: &SourceEvent,
        context: &mut Context,
        now: Instant,
    ) -> Option<Result<Self, SourceFailure>> {
        match (event, &self.step) {
            (SourceEvent::Pushed { sent, pending }, PushStep::Slice) => {
                Some(self.pushed(*sent, *pending, context, now))
            }
            (SourceEvent::Timeout | SourceEvent::SetParameters(_), PushStep::Throttled { .. }) => {
                Some(Ok(self.next(context, now)))
            }
            (SourceEvent::SetParameters(_), _) => Some(Ok(self)),
            _ => None,
        }
    }

    fn until(&self) -> Option<Instant> {
        if let PushStep::Throttled { until } = self.step { until } else { None }
    }
}

impl AwaitingRunning {
    pub(super) const NAME: &'static str = "awaiting running";

    pub(super) fn enter(context: &mut Context, now: Instant) -> State {
        context.limit_postcopy(now);
        let proof_deadline = now.checked_add(context.config.timeouts.running);
        State::AwaitingRunning(Self { push: Push::begin(WHILE_IT_STANDS, context, now), proof_deadline })
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.push.until().into_iter().chain(self.proof_deadline).min()
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        let Self { push, proof_deadline } = self;
        if event == SourceEvent::Timeout && proof_deadline.is_some_and(|deadline| deadline <= now) {
            return Err(SourceFailure::TimedOut {
                wait: Wait::Running,
                limit: context.config.timeouts.running,
            });
        }
        match event {
            SourceEvent::Return(ReturnMessage::Running) => {
                context.prove_running(now);
                Ok(Pushing(push).or_end(context, now))
            }
            // The devices are loaded and RUN is there. Nothing is left that should fail, but it is not the guest's own sign of
            // life: who has looked may still say that it never ran.
            SourceEvent::Return(ReturnMessage::Pong(_)) => {
                context.timeline.runs_there = Some(now);
                Ok(Pushing(push).or_end(context, now))
            }
            // It has not run, says so itself, and never will (I6).
            SourceEvent::Return(ReturnMessage::NeverRan) => {
                Ok(unwind::resume(SourceEnding::Failed(SourceFailure::NeverRan), context))
            }
            SourceEvent::Return(ReturnMessage::Shut(code)) => shut(code, context),
            event => match push.on(&event, context, now) {
                Some(push) => Ok(State::AwaitingRunning(Self { push: push?, proof_deadline })),
                None => Err(unexpected(Self::NAME, "Pushed, or word that the guest runs", &event)),
            },
        }
    }
}

impl Pushing {
    pub(super) const NAME: &'static str = "pushing";

    /// After a recovery: the guest is known to run there.
    pub(super) fn again(context: &mut Context, now: Instant) -> State {
        context.limit_postcopy(now);
        Self(Push::begin(WHILE_IT_RUNS, context, now)).or_end(context, now)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.until()
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::Return(ReturnMessage::Running) => Ok(State::Pushing(self)),
            SourceEvent::Return(ReturnMessage::Shut(code)) => shut(code, context),
            event => {
                if let Some(reason) = replacement::reason(&event) {
                    return ReplacingLinks::enter(reason, context);
                }
                match self.0.on(&event, context, now) {
                    Some(push) => Ok(Self(push?).or_end(context, now)),
                    None => Err(unexpected(Self::NAME, "Pushed", &event)),
                }
            }
        }
    }

    /// Goes on, or ends if nothing is owed any more.
    fn or_end(mut self, context: &mut Context, now: Instant) -> State {
        self.0.most = WHILE_IT_RUNS;
        if !matches!(self.0.step, PushStep::Done) {
            return State::Pushing(self);
        }
        // END on the main link could overtake a page on the preempt link, and a QEMU would give the page up (wire 5.8). And a
        // loss on channels that is found at the barrier can be mended before END, not behind it.
        let mends_channels = context.pushes_on_channels() && context.replaces_links();
        if !context.uses_preempt() && !mends_channels {
            return CompletingPostcopy::enter(context);
        }
        context.act(SourceAction::Drain);
        context.ping_and_wait(PingPurpose::PostcopyEnd);
        State::Draining(Draining { deadline: now.checked_add(context.config.timeouts.drain) })
    }
}

impl Draining {
    pub(super) const NAME: &'static str = "draining";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, _now: Instant) -> Transition {
        match event {
            SourceEvent::Return(ReturnMessage::Pong(_)) => Ok(CompletingPostcopy::enter(context)),
            SourceEvent::Return(ReturnMessage::Shut(code)) => shut(code, context),
            SourceEvent::Timeout => {
                Err(SourceFailure::TimedOut { wait: Wait::Drain, limit: context.config.timeouts.drain })
            }
            event => match replacement::reason(&event) {
                Some(reason) => ReplacingLinks::enter(reason, context),
                None => Err(unexpected(Self::NAME, "the PONG of the end of postcopy", &event)),
            },
        }
    }
}

impl CompletingPostcopy {
    pub(super) const NAME: &'static str = "completing postcopy";

    fn enter(context: &mut Context) -> State {
        context.act(SourceAction::CompletePostcopy);
        State::CompletingPostcopy(Self)
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::PostcopyCompleted { sent } => {
                context.counters.bytes_sent += sent;
                context.counters.postcopy_bytes += sent;
                context.timeline.end_sent = Some(now);
                Ok(State::AwaitingCompletion(AwaitingCompletion {
                    deadline: now.checked_add(context.config.timeouts.shut),
                }))
            }
            // All pages are there, so it may say so before our own side knows that the end has left.
            SourceEvent::Return(ReturnMessage::Shut(0)) => Ok(complete(context)),
            SourceEvent::Return(ReturnMessage::Shut(code)) => shut(code, context),
            // Nothing more leaves on it. If something was lost, the destination will find it missing.
            SourceEvent::Return(ReturnMessage::LinkLost) => Ok(State::CompletingPostcopy(self)),
            event => Err(unexpected(Self::NAME, "PostcopyCompleted", &event)),
        }
    }
}

impl AwaitingCompletion {
    pub(super) const NAME: &'static str = "awaiting completion";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, _now: Instant) -> Transition {
        match event {
            SourceEvent::Return(ReturnMessage::Shut(0)) => Ok(complete(context)),
            SourceEvent::Return(ReturnMessage::Shut(code)) => shut(code, context),
            SourceEvent::Return(ReturnMessage::LinkLost) => Ok(State::AwaitingCompletion(self)),
            SourceEvent::Timeout => {
                Err(SourceFailure::TimedOut { wait: Wait::Shut, limit: context.config.timeouts.shut })
            }
            event => Err(unexpected(Self::NAME, "SHUT", &event)),
        }
    }
}

/// The destination has all of the guest.
pub(super) fn complete(context: &mut Context) -> State {
    unwind::finish(SourceEnding::Completed { confirmed: true }, GuestFate::OnDestination, false, context)
}

/// The destination ends it where it should not. One that gives such answers says SHUT with a code before it has run the
/// guest and never after; a QEMU's proves nothing, so there the pause keeps the doubt (I6, I7).
fn shut(code: u32, context: &mut Context) -> Transition {
    let failure = context.refused(code);
    if code != 0 && context.running_answers() && !context.runs_there {
        return Ok(unwind::resume(SourceEnding::Failed(failure), context));
    }
    Err(failure)
}

//! Precopy: rounds of sync, iterate and barrier while the guest runs.

use super::context::Context;
use super::handover;
use super::interface::{Pending, SourceAction, SourceEvent};
use super::outcome::{SourceFailure, Wait};
use super::state::{State, Transition, unexpected};
use super::switchover::{StoppingVm, Way};
use crate::bandwidth::BandwidthSample;
use crate::convergence::{Rest, RoundSample, Verdict};
use crate::ping::PingPurpose;
use limosa_pages::ByteCount;
use limosa_wire::ReturnMessage;
use std::time::{Duration, Instant};

/// Longest slice: a cancel, a new limit or an answer waits at most this long for the machine's ear.
pub const SLICE_TIME_MAX: Duration = Duration::from_millis(50);

/// Largest slice: what 10 GB/s move in `SLICE_TIME_MAX`, rounded up to a power of two.
pub const SLICE_BYTES_MAX: ByteCount = ByteCount(512 << 20);

/// Slices in a row that may send nothing while something is owed. Delta compression may find every page of a
/// slice unchanged, but then less is owed afterwards; a handler that does neither is stuck.
pub const EMPTY_SLICES_MAX: u32 = 16;

/// How long the source sleeps when only the peer can change anything: a tenth of a second wakes nobody up.
pub const REST: Duration = Duration::from_millis(100);

/// The dirty log is being merged.
#[derive(Debug)]
pub(super) struct Syncing {
    asked: Instant,
    /// The round that has just ended; `None` before the first and after a rest.
    ended: Option<EndedRound>,
    /// Since when the link has had to drain, if this follows such a rest.
    draining_since: Option<Instant>,
}

#[derive(Debug)]
struct EndedRound {
    began: Instant,
    link: BandwidthSample,
}

/// A round under way.
#[derive(Debug)]
struct Round {
    began: Instant,
    sent: ByteCount,
    queued_before: ByteCount,
    throttled: bool,
    empty_slices: u32,
    pending: Pending,
}

/// A slice is being written.
#[derive(Debug)]
pub(super) struct Iterating(Round);

/// The bandwidth limit wants a pause.
#[derive(Debug)]
pub(super) struct Throttled {
    round: Round,
    pub(super) until: Option<Instant>,
}

/// Everything of the round is written; the PONG will say that it is processed.
#[derive(Debug)]
pub(super) struct Barrier {
    round: Round,
    asked: Instant,
    pub(super) deadline: Option<Instant>,
}

/// Ready, but the peer is not: its acknowledgement or the draining of the link is waited for.
#[derive(Debug)]
pub(super) struct Resting {
    /// Since when the link has had to drain.
    draining_since: Option<Instant>,
    pub(super) until: Option<Instant>,
}

impl Syncing {
    pub(super) const NAME: &'static str = "syncing";

    /// The first sync: RAM begins to move.
    pub(super) fn begin(context: &mut Context, now: Instant) -> State {
        context.timeline.active = Some(now);
        Self::enter(None, None, context, now)
    }

    fn after_round(ended: EndedRound, context: &mut Context, now: Instant) -> State {
        Self::enter(Some(ended), None, context, now)
    }

    fn enter(
        ended: Option<EndedRound>,
        draining_since: Option<Instant>,
        context: &mut Context,
        now: Instant,
    ) -> State {
        context.act(SourceAction::SyncDirty);
        State::Syncing(Self { asked: now, ended, draining_since })
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::Synced { pending } => {
                context.synced(pending);
                context.convergence.note_sync(now - self.asked);
                if let Some(EndedRound { began, link }) = self.ended {
                    context.convergence.round_finished(RoundSample { link, whole: now - began });
                }
                decide(pending, self.draining_since, context, now)
            }
            event => Err(unexpected(Self::NAME, "Synced", &event)),
        }
    }
}

/// After a sync: another round, a pause, or the switchover.
fn decide(
    pending: Pending,
    draining_since: Option<Instant>,
    context: &mut Context,
    now: Instant,
) -> Transition {
    // Behind a barrier the link is empty; without a return path its queue stands in front of the rest.
    let queued = if context.config.return_path { ByteCount(0) } else { pending.queued };
    let rest = Rest { owed: pending.owed, device: pending.device, queued };
    let verdict = context.convergence.decide(rest, now);
    if context.wants_postcopy() {
        return Ok(handover::begin(context));
    }
    match verdict {
        Verdict::Switchover if context.may_switch_over() => Ok(StoppingVm::enter(Way::Precopy, context, now)),
        Verdict::Postcopy if context.may_switch_over() => Ok(handover::begin(context)),
        Verdict::Switchover | Verdict::Postcopy => Ok(Resting::enter(None, now)),
        Verdict::Wait => {
            let since = draining_since.unwrap_or(now);
            let limit = context.config.timeouts.round;
            // Nothing is written meanwhile, so a dead link would not be noticed by a failing write.
            if now.saturating_duration_since(since) >= limit {
                return Err(SourceFailure::TimedOut { wait: Wait::Round(context.counters.rounds), limit });
            }
            Ok(Resting::enter(Some(since), now))
        }
        Verdict::Iterate if context.counters.rounds >= context.config.rounds_max => {
            Err(SourceFailure::NotConverging { rounds: context.counters.rounds })
        }
        Verdict::Iterate => {
            context.counters.rounds += 1;
            Ok(Round::begin(pending, now).next_slice(context, now))
        }
    }
}

impl Round {
    fn begin(pending: Pending, now: Instant) -> Self {
        Self {
            began: now,
            sent: ByteCount(0),
            queued_before: pending.queued,
            throttled: false,
            empty_slices: 0,
            pending,
        }
    }

    /// Writes a slice if the bandwidth limit allows one, or waits until it does.
    fn next_slice(mut self, context: &mut Context, now: Instant) -> State {
        match context.bucket.take(SLICE_BYTES_MAX, now) {
            Some(max_bytes) => {
                context.act(SourceAction::Iterate { max_bytes, max_time: SLICE_TIME_MAX });
                State::Iterating(Iterating(self))
            }
            None => {
                self.throttled = true;
                State::Throttled(Throttled { until: context.bucket.ready_at(), round: self })
            }
        }
    }

    /// Everything is written: make sure that it is processed (I5), then sync.
    fn end(self, context: &mut Context, now: Instant) -> State {
        if !context.config.return_path {
            return Syncing::after_round(self.ended(false, now), context, now);
        }
        context.ping_and_wait(PingPurpose::Round(context.counters.rounds));
        let deadline = now.checked_add(context.config.timeouts.round);
        State::Barrier(Barrier { round: self, asked: now, deadline })
    }

    fn ended(self, return_path: bool, now: Instant) -> EndedRound {
        // Behind a barrier all of it has arrived. Without one, only what has left the queue counts.
        let drained = (self.queued_before + self.sent).0.saturating_sub(self.pending.queued.0);
        let bytes = if return_path { self.sent } else { ByteCount(drained) };
        let link = BandwidthSample { bytes, time: now - self.began, throttled: self.throttled };
        EndedRound { began: self.began, link }
    }
}

impl Iterating {
    pub(super) const NAME: &'static str = "iterating";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        let Self(mut round) = self;
        match event {
            SourceEvent::Iterated { sent, pending } => {
                context.iterated(sent, pending, now);
                let stuck = sent.0 == 0 && pending.owed >= round.pending.owed;
                round.sent += sent;
                round.pending = pending;
                round.empty_slices = if stuck { round.empty_slices + 1 } else { 0 };
                if context.wants_postcopy()
                    || context.convergence.postcopy_due(now) && context.may_switch_over()
                {
                    Ok(handover::begin(context))
                } else if pending.owed.0 == 0 {
                    Ok(round.end(context, now))
                } else if round.empty_slices >= EMPTY_SLICES_MAX {
                    Err(SourceFailure::NoProgress { slices: round.empty_slices })
                } else {
                    Ok(round.next_slice(context, now))
                }
            }
            event => Err(unexpected(Self::NAME, "Iterated", &event)),
        }
    }
}

impl Throttled {
    pub(super) const NAME: &'static str = "throttled";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::StartPostcopy => Ok(handover::begin(context)),
            // A changed limit ends the pause early, or makes it longer.
            SourceEvent::Timeout | SourceEvent::SetParameters(_) => Ok(self.round.next_slice(context, now)),
            event => Err(unexpected(Self::NAME, "Timeout", &event)),
        }
    }
}

impl Barrier {
    pub(super) const NAME: &'static str = "barrier";

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::Return(ReturnMessage::Pong(_)) => {
                context.convergence.note_round_trip(now - self.asked);
                Ok(Syncing::after_round(self.round.ended(true, now), context, now))
            }
            SourceEvent::Timeout => Err(SourceFailure::TimedOut {
                wait: Wait::Round(context.counters.rounds),
                limit: context.config.timeouts.round,
            }),
            event => Err(unexpected(Self::NAME, "the PONG of the round", &event)),
        }
    }
}

impl Resting {
    pub(super) const NAME: &'static str = "resting";

    fn enter(draining_since: Option<Instant>, now: Instant) -> State {
        State::Resting(Self { draining_since, until: now.checked_add(REST) })
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::StartPostcopy
            | SourceEvent::Timeout
            | SourceEvent::Return(ReturnMessage::SwitchoverAck) => {
                Ok(Syncing::enter(None, self.draining_since, context, now))
            }
            event => Err(unexpected(Self::NAME, "Timeout", &event)),
        }
    }
}

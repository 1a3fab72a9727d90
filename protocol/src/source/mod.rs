//! The source of a migration, as a machine.

mod commit;
mod config;
mod context;
mod greeting;
mod handover;
mod interface;
mod outcome;
mod postcopy;
mod precopy;
mod recovery;
mod replacement;
mod report;
mod setup;
mod state;
mod switchover;
#[cfg(test)]
mod tests;
mod unwind;

pub use config::{FeatureWishes, ParameterChange, SourceConfig, SourcePostcopy, SourceTimeouts};
pub use interface::{OperatorWord, Pending, SourceAction, SourceEvent, SourceStep};
pub use outcome::{SourceEnding, SourceFailure, SourceOutcome, Wait};
pub use precopy::{EMPTY_SLICES_MAX, REST, SLICE_BYTES_MAX, SLICE_TIME_MAX};
pub use report::{SourceCounters, Timeline};

use crate::error::Loss;
use crate::ping::ROUNDS_MAX;
use crate::status::MigrationStatus;
use crate::units::BytesPerSecond;
use context::{Context, Screened};
use greeting::Greeting;
use limosa_wire::Features;
use setup::SavingSetup;
use state::State;
use std::time::{Duration, Instant};

/// The source's half of a migration.
///
/// Greeting, setup, rounds of precopy, switchover, commit point, last word. Whatever goes wrong before the commit point
/// ([`SourceAction::SendEnd`] taken from [`Self::poll_action`]) ends with the guest running here; whatever goes
/// wrong after it, with the guest stopped here and the outcome in doubt, unless the destination says that it
/// refuses (I6).
///
/// Or, by the user's word or by policy, the switch to postcopy in the middle of the rounds. Its commit point is
/// [`SourceAction::SendPackage`]; whatever goes wrong after it pauses the migration, which can be taken up again over a
/// new connection any number of times.
///
/// The shell takes one action at a time from [`Self::poll_action`], does it, and hands in what came of it. Between two
/// actions it hands in whatever else has happened: a shell that first did all actions would hear a cancel only when a
/// round is over. Answers are handed in in the order of their actions; a late one does no harm after the end.
#[derive(Debug)]
pub struct Source {
    /// `None` only inside of `handle`.
    state: Option<State>,
    context: Context,
}

impl Source {
    /// A migration that begins `now`, over a link that is connected and carries header and configuration already.
    ///
    /// # Panics
    /// If the configuration wants acknowledgements, requires features or wants postcopy without a return path, or wants more
    /// than [`ROUNDS_MAX`] rounds.
    pub fn new(mut config: SourceConfig, now: Instant) -> Self {
        assert!(
            config.return_path || !config.switchover_ack,
            "no return path to acknowledge the switchover on"
        );
        assert!(config.return_path || config.postcopy.is_none(), "no return path to ask for pages on");
        assert!(
            config.return_path || config.features.required.is_empty(),
            "no return path to agree about {} on",
            config.features.required
        );
        assert!(config.rounds_max <= ROUNDS_MAX, "rounds_max {} above {ROUNDS_MAX}", config.rounds_max);
        // A policy for what is not enabled means nothing.
        config.convergence.auto_postcopy =
            config.convergence.auto_postcopy.filter(|_| config.postcopy.is_some());
        let mut context = Context::new(config, now);
        let state = Some(if context.config.return_path {
            Greeting::enter(&mut context, now)
        } else {
            SavingSetup::enter(Features::NONE, &mut context)
        });
        Self { state, context }
    }

    /// Takes in what happened. Anything illegal leads to the failure path of the present phase, never to a panic.
    pub fn handle(&mut self, event: SourceEvent, now: Instant) {
        let state = self.state.take().expect("handle does not nest");
        self.state = Some(self.next(state, event, now));
        if self.outcome().is_some() {
            self.context.timeline.ended.get_or_insert(now);
        }
    }

    fn next(&mut self, state: State, event: SourceEvent, now: Instant) -> State {
        let context = &mut self.context;
        let status = state.status();
        let next = if matches!(state, State::Resuming(_) | State::Finished(_)) {
            // Nothing leads back from the end.
            state.on(event, context, now)
        } else {
            match context.screen(event, &state, now) {
                Ok(Screened::Pass(event)) => state.on(event, context, now),
                Ok(Screened::Done) => Ok(state),
                Ok(Screened::Cancelled) => Ok(unwind::resume(SourceEnding::Cancelled, context)),
                Err(failure) => Err(failure),
            }
        };
        next.unwrap_or_else(|failure| unwind::fail(failure, status, context))
    }

    /// The next thing to do. From the moment it is handed out it counts as possibly done.
    pub fn poll_action(&mut self) -> Option<SourceAction> {
        self.context.take_action()
    }

    /// When to hand in [`SourceEvent::Timeout`], if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.state().deadline()
    }

    /// How it ended; `None` while it goes on. [`SourceAction::Finish`] may still have to be taken.
    pub fn outcome(&self) -> Option<&SourceOutcome> {
        match self.state() {
            State::Finished(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Where it stands, in QEMU's words. `Failed` appears as soon as that is certain, before the guest is resumed.
    pub fn status(&self) -> MigrationStatus {
        self.state().status()
    }

    /// The state's name, for logs and tests.
    pub fn state_name(&self) -> &'static str {
        self.state().name()
    }

    /// Whether a cancel would still be obeyed. From the commit point on it is refused.
    pub fn may_cancel(&self) -> bool {
        !self.context.may_run_there() && self.outcome().is_none()
    }

    /// Whether the user may ask for postcopy: it is enabled, and the guest is not being stopped yet.
    pub fn may_start_postcopy(&self) -> bool {
        let running = matches!(self.status(), MigrationStatus::Setup | MigrationStatus::Active);
        self.context.config.postcopy.is_some() && running
    }

    /// Whether the user may pause: postcopy has begun, and is connected.
    pub fn may_pause(&self) -> bool {
        self.state().may_pause()
    }

    /// Whether the link of this loss would be replaced, without a pause: whoever says so need not ask the peer why.
    pub fn may_replace(&self, loss: &Loss) -> bool {
        self.context.may_replace(loss, self.state())
    }

    /// Why postcopy is paused; `None` if it is not. Only then it can be resumed, and the operator's word means something.
    pub fn paused(&self) -> Option<&SourceFailure> {
        match self.state() {
            State::Paused(state) => Some(state.reason()),
            _ => None,
        }
    }

    /// Sums so far.
    pub const fn counters(&self) -> &SourceCounters {
        &self.context.counters
    }

    /// When the phases ended.
    pub const fn timeline(&self) -> &Timeline {
        &self.context.timeline
    }

    /// The measured rate of the link; `None` before the first round has ended.
    pub const fn bandwidth(&self) -> Option<BytesPerSecond> {
        self.context.convergence.bandwidth()
    }

    /// What a switchover would have cost at the last sync; `None` while that cannot be estimated.
    pub const fn expected_downtime(&self) -> Option<Duration> {
        self.context.convergence.expected_downtime()
    }

    fn state(&self) -> &State {
        self.state.as_ref().expect("set outside of handle")
    }
}

//! What all states of a source share.

use super::config::{ParameterChange, SourceConfig};
use super::interface::{Pending, SourceAction, SourceEvent, return_message};
use super::outcome::SourceFailure;
use super::replacement::Progress;
use super::report::{SourceCounters, Timeline};
use super::state::{State, refused};
use crate::convergence::Convergence;
use crate::error::Loss;
use crate::ping::{PingLedger, PingPurpose, Pong};
use crate::token_bucket::TokenBucket;
use limosa_pages::ByteCount;
use limosa_wire::{Command, Features, RefusalReason, ReturnMessage};
use std::collections::VecDeque;
use std::time::Instant;

/// Most actions that wait at once (I11). The longest list is that of the first moment, OPEN_RETURN_PATH and two PINGs;
/// a step adds at most two to what the shell has not taken yet, and it takes all after every event.
const ACTIONS_MAX: usize = 8;

#[derive(Debug)]
pub(super) struct Context {
    pub(super) config: SourceConfig,
    actions: VecDeque<SourceAction>,
    pings: PingLedger,
    pub(super) bucket: TokenBucket,
    pub(super) convergence: Convergence,
    pub(super) counters: SourceCounters,
    pub(super) timeline: Timeline,
    /// The shell has taken `StopVm`: the guest may be stopped, and is ours to resume.
    pub(super) vm_stop_taken: bool,
    /// The shell has taken `SendEnd`: the guest may run on the destination (I6).
    pub(super) end_taken: bool,
    /// The shell has taken `SendPackage`: the guest may run on the destination (I6).
    pub(super) package_taken: bool,
    /// The guest is known to have run on the destination.
    pub(super) runs_there: bool,
    /// How the replacements of lost links went.
    pub(super) replacements: Progress,
    /// The extensions that both sides use (wire 14.1).
    pub(super) agreed: Features,
    /// The user wants postcopy.
    postcopy_asked: bool,
    pub(super) cancel_refused: bool,
    acknowledged: bool,
    /// The destination has said HELLO: it may use the messages of our own.
    pub(super) greeted: bool,
    /// Why the destination will say SHUT, if it has said so.
    refusal: Option<RefusalReason>,
}

/// The code of the SHUT that follows a REFUSED, from every version of ours.
const REFUSED_CODE: u32 = 1;

/// What is left of an event after the rules that hold in every state.
pub(super) enum Screened {
    /// The state must see it.
    Pass(SourceEvent),
    /// It is dealt with.
    Done,
    /// The user calls the migration off, and may.
    Cancelled,
}

impl Context {
    pub(super) fn new(config: SourceConfig, now: Instant) -> Self {
        Self {
            actions: VecDeque::with_capacity(ACTIONS_MAX),
            pings: PingLedger::default(),
            bucket: TokenBucket::new(config.max_bandwidth, now),
            convergence: Convergence::new(config.convergence.clone(), now),
            counters: SourceCounters::default(),
            timeline: Timeline::new(now),
            vm_stop_taken: false,
            end_taken: false,
            package_taken: false,
            runs_there: false,
            replacements: Progress::default(),
            agreed: Features::NONE,
            postcopy_asked: false,
            cancel_refused: false,
            acknowledged: !config.switchover_ack,
            greeted: false,
            refusal: None,
            config,
        }
    }

    /// Queues an action.
    pub(super) fn act(&mut self, action: SourceAction) {
        assert!(self.actions.len() < ACTIONS_MAX, "the shell takes no actions");
        self.actions.push_back(action);
    }

    /// Hands the next action to the shell. From this moment it may have happened.
    pub(super) fn take_action(&mut self) -> Option<SourceAction> {
        let action = self.actions.pop_front()?;
        match action {
            SourceAction::StopVm => self.vm_stop_taken = true,
            SourceAction::SendEnd => self.end_taken = true,
            SourceAction::SendPackage => self.package_taken = true,
            _ => {}
        }
        Some(action)
    }

    /// Forgets the actions that the shell has not taken.
    pub(super) fn drop_actions(&mut self) {
        self.actions.clear();
    }

    pub(super) fn ping(&mut self, purpose: PingPurpose) {
        self.pings.ask(purpose);
        self.act(SourceAction::SendCommand(Command::Ping(purpose.value())));
    }

    pub(super) fn ping_and_wait(&mut self, purpose: PingPurpose) {
        self.pings.ask_and_wait(purpose);
        self.act(SourceAction::SendCommand(Command::Ping(purpose.value())));
    }

    /// Notes that the package, which is about to leave, carries a PING. Where the destination does not say itself that it
    /// runs the guest, its PONG must do: RUN follows it in bytes that are there already (wire 5.4).
    pub(super) fn expect_proof(&mut self) {
        if self.running_answers() {
            self.pings.ask(PingPurpose::Package);
        } else {
            self.pings.ask_and_wait(PingPurpose::Package);
        }
    }

    /// The connection is gone: no answer of it will come.
    pub(super) fn forget_pings(&mut self) {
        self.pings.forget();
    }

    /// What was asked last is of no interest any more.
    pub(super) fn await_no_pong(&mut self) {
        self.pings.stop_waiting();
    }

    /// The guest runs on the destination.
    pub(super) fn prove_running(&mut self, now: Instant) {
        self.runs_there = true;
        self.timeline.runs_there.get_or_insert(now);
    }

    /// From the commit point on the guest may run there, whatever happens here (I6).
    pub(super) const fn may_run_there(&self) -> bool {
        self.end_taken || self.package_taken
    }

    pub(super) fn uses_preempt(&self) -> bool {
        self.config.postcopy.is_some_and(|postcopy| postcopy.preempt)
    }

    /// Whether multifd channels carry the push.
    pub(super) const fn pushes_on_channels(&self) -> bool {
        self.agreed.contains(Features::POSTCOPY_CHANNELS) && self.config.multifd.channels > 0
    }

    /// Whether the destination says that it runs the guest, or never did (wire 14.1).
    pub(super) const fn running_answers(&self) -> bool {
        self.agreed.contains(Features::RUNNING_ANSWERS)
    }

    /// Whether links beside the main one may be replaced: the destination can, and is past the package (wire 14.4).
    pub(super) const fn replaces_links(&self) -> bool {
        self.runs_there && self.agreed.contains(Features::LINK_REPLACEMENT)
    }

    /// Whether the link of this loss would be replaced in `state`, without a pause.
    pub(super) const fn may_replace(&self, loss: &Loss, state: &State) -> bool {
        loss.is_beside_main() && self.replaces_links() && state.bears_losses()
    }

    /// The user wants postcopy, and the destination is ready for it.
    pub(super) const fn wants_postcopy(&self) -> bool {
        self.postcopy_asked && self.acknowledged
    }

    /// The limit of precopy ends with it.
    pub(super) fn limit_postcopy(&mut self, now: Instant) {
        let rate = self.config.postcopy.and_then(|postcopy| postcopy.max_bandwidth);
        self.bucket.set_rate(rate, now);
    }

    /// Whether the destination has acknowledged the switchover, where it must.
    pub(super) const fn may_switch_over(&self) -> bool {
        self.acknowledged
    }

    pub(super) fn synced(&mut self, pending: Pending) {
        self.counters.sync_count += 1;
        self.counters.pending = pending;
    }

    pub(super) fn iterated(&mut self, sent: ByteCount, pending: Pending, now: Instant) {
        self.bucket.settle(sent, now);
        self.counters.slices += 1;
        self.counters.bytes_sent += sent;
        self.counters.pending = pending;
    }

    pub(super) fn pushed(&mut self, sent: ByteCount, pending: Pending, now: Instant) {
        self.bucket.settle(sent, now);
        self.counters.bytes_sent += sent;
        self.counters.postcopy_bytes += sent;
        self.counters.pending = pending;
    }

    pub(super) fn sent_in_downtime(&mut self, sent: ByteCount) {
        self.counters.bytes_sent += sent;
        self.counters.downtime_bytes += sent;
    }

    /// Applies the rules that hold in every state but those without a connection and the last two.
    pub(super) fn screen(
        &mut self,
        event: SourceEvent,
        state: &State,
        now: Instant,
    ) -> Result<Screened, SourceFailure> {
        match event {
            SourceEvent::Lost(_)
            | SourceEvent::HandlerFailed { .. }
            | SourceEvent::Return(_)
            | SourceEvent::Timeout
                if state.is_disconnected() =>
            {
                Ok(Screened::Done)
            }
            SourceEvent::Cancel if self.may_run_there() => {
                self.cancel_refused = true;
                Ok(Screened::Done)
            }
            SourceEvent::Cancel => Ok(Screened::Cancelled),
            SourceEvent::SetParameters(change) => {
                self.change(change, now);
                Ok(pass_if(state.obeys_limits(), event))
            }
            SourceEvent::Continue => Ok(pass_if(matches!(state, State::PreSwitchover(_)), event)),
            SourceEvent::StartPostcopy => {
                self.postcopy_asked |= self.config.postcopy.is_some();
                let interrupts = matches!(state, State::Throttled(_) | State::Resting(_));
                Ok(pass_if(self.wants_postcopy() && interrupts, event))
            }
            SourceEvent::PausePostcopy if state.may_pause() => Err(SourceFailure::PausedByUser),
            SourceEvent::PausePostcopy | SourceEvent::ResumePostcopy | SourceEvent::Operator(_) => {
                Ok(pass_if(matches!(state, State::Paused(_)), event))
            }
            SourceEvent::Timeout => {
                Ok(pass_if(state.deadline().is_some_and(|deadline| deadline <= now), event))
            }
            SourceEvent::HandlerFailed { step } => Err(SourceFailure::Handler(step)),
            SourceEvent::Lost(loss) if self.may_replace(&loss, state) => Ok(Screened::Pass(event)),
            SourceEvent::Lost(loss) if !self.end_taken => Err(SourceFailure::Lost(loss)),
            SourceEvent::Return(message) => self.screen_answer(message, state),
            event => Ok(Screened::Pass(event)),
        }
    }

    fn screen_answer(&mut self, message: ReturnMessage, state: &State) -> Result<Screened, SourceFailure> {
        let broken_rule = |expected| Err(refused(state.name(), expected, return_message(&message)));
        if !self.config.return_path {
            return broken_rule("no return path");
        }
        match message {
            ReturnMessage::Pong(value) => match self.pings.answered(value) {
                Pong::Awaited => Ok(Screened::Pass(SourceEvent::Return(message))),
                Pong::Earlier => Ok(Screened::Done),
                Pong::Unasked => broken_rule("the answer to a ping of ours"),
            },
            ReturnMessage::SwitchoverAck => {
                self.acknowledged = true;
                Ok(pass_if(matches!(state, State::Resting(_)), SourceEvent::Return(message)))
            }
            ReturnMessage::Shut(_) if self.may_run_there() => {
                Ok(Screened::Pass(SourceEvent::Return(message)))
            }
            // I7: success before the end was sent is no success.
            ReturnMessage::Shut(0) => broken_rule("no success before the end of the stream"),
            ReturnMessage::Shut(code) => Err(self.refused(code)),
            ReturnMessage::Hello(_) if matches!(state, State::Greeting(_)) => {
                Ok(Screened::Pass(SourceEvent::Return(message)))
            }
            ReturnMessage::Refused(_) if !self.greeted => broken_rule("no REFUSED without a HELLO"),
            ReturnMessage::Refused(reason) => {
                self.refusal.get_or_insert(reason);
                // The SHUT says the same again. After the end of the stream only it counts.
                if self.may_run_there() { Ok(Screened::Done) } else { Err(self.refused(REFUSED_CODE)) }
            }
            ReturnMessage::Hello(_) => broken_rule("no HELLO after the greeting"),
            // The urgent path's: a shell that hands them in does no harm once there is one.
            ReturnMessage::RequestPages { .. } if self.package_taken => Ok(Screened::Done),
            ReturnMessage::ResumeAck if self.package_taken => {
                Ok(Screened::Pass(SourceEvent::Return(message)))
            }
            ReturnMessage::LinkLost if self.replaces_links() => {
                Ok(Screened::Pass(SourceEvent::Return(message)))
            }
            ReturnMessage::Running | ReturnMessage::NeverRan
                if self.package_taken && self.running_answers() =>
            {
                Ok(Screened::Pass(SourceEvent::Return(message)))
            }
            _ => broken_rule("no message of postcopy"),
        }
    }

    /// The failure that a SHUT with this code means.
    pub(super) fn refused(&mut self, code: u32) -> SourceFailure {
        SourceFailure::Refused { code, reason: self.refusal.take() }
    }

    fn change(&mut self, change: ParameterChange, now: Instant) {
        if let Some(limit) = change.downtime_limit {
            self.convergence.set_downtime_limit(limit);
        }
        if let Some(rate) = change.max_bandwidth {
            self.config.max_bandwidth = rate;
            if !self.package_taken {
                self.bucket.set_rate(rate, now);
            }
        }
        if let (Some(rate), Some(postcopy)) = (change.max_postcopy_bandwidth, &mut self.config.postcopy) {
            postcopy.max_bandwidth = rate;
            if self.package_taken {
                self.bucket.set_rate(rate, now);
            }
        }
        if let Some(rate) = change.switchover_bandwidth {
            self.convergence.set_switchover_bandwidth(rate);
        }
    }
}

fn pass_if(wanted: bool, event: SourceEvent) -> Screened {
    if wanted { Screened::Pass(event) } else { Screened::Done }
}

//! The shell around the source machine: it does what the machine says, and tells it what came of it.

use super::connect::Connected;
use super::return_path::{Heard, Peer};
use super::steps::{StepError, Steps};
use super::timeline::Downtime;
use super::{OutgoingConfig, OutgoingReport, Shared, Target};
use crate::error::{StartError, chain, loss_reason};
use crate::extensions;
use crate::observer::Observer;
use crate::parameters::Parameters;
use crate::savevm::SaveVm;
use crate::vm::Vm;
use crossbeam_channel::{Receiver, never, select};
use limosa_pages::ByteCount;
use limosa_protocol::{
    BytesPerSecond, ConvergenceConfig, GuestFate, LinkRole, Loss, LossReason, MigrationStatus, OperatorWord,
    ParameterChange, Source, SourceAction, SourceConfig, SourceEnding, SourceEvent, SourceFailure,
    SourcePostcopy, SourceStep,
};
use limosa_transport::Address;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the destination's last words are waited for after the main link has failed: it may have said why.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How often the queue of the preempt channel is looked at while it drains. It is short: requests come one at a time.
const DRAIN_LOOK: Duration = Duration::from_micros(200);

/// What the user tells a running migration.
#[derive(Debug)]
pub(super) enum Control {
    /// Look at the flags.
    Wake,
    /// Go on with the switchover.
    Continue,
    /// New tunables.
    Parameters(Parameters),
    /// Go over to postcopy.
    StartPostcopy,
    /// Close the connection of a postcopy.
    Pause,
    /// Go on with a paused postcopy, over a new connection.
    Resume(Address),
    /// How the operator ends a paused postcopy.
    Operator(OperatorWord),
}

/// What the coordinator thread owns before there is a link.
pub(super) struct Coordinator {
    pub(super) config: OutgoingConfig,
    pub(super) savevm: SaveVm,
    vm: Arc<dyn Vm>,
    observer: Arc<dyn Observer>,
    pub(super) shared: Arc<Shared>,
    pub(super) control: Receiver<Control>,
    /// The user wants postcopy, and said so before there was a link.
    pub(super) postcopy_asked: bool,
}

/// What it owns afterwards.
pub(super) struct Running {
    pub(super) machine: Source,
    pub(super) steps: Steps,
    /// The return path; `None` without one, and after its last word.
    pub(super) peer: Option<Peer>,
    control: Receiver<Control>,
    observer: Arc<dyn Observer>,
    pub(super) shared: Arc<Shared>,
    /// The latest status that the observer was told.
    status: MigrationStatus,
    /// The reason behind the machine's word for a failure: the first error is the cause of the others.
    error: Option<String>,
    /// What could not be undone when the migration had ended with the guest here.
    aftermath: Vec<String>,
    cancel_told: bool,
}

impl Coordinator {
    pub(super) fn new(
        config: OutgoingConfig,
        savevm: SaveVm,
        vm: Arc<dyn Vm>,
        observer: Arc<dyn Observer>,
        shared: Arc<Shared>,
        control: Receiver<Control>,
    ) -> Self {
        Self { config, savevm, vm, observer, shared, control, postcopy_asked: false }
    }

    pub(super) fn into_savevm(self) -> SaveVm {
        self.savevm
    }

    /// The whole migration.
    pub(super) fn run(mut self, target: Target) -> (OutgoingReport, SaveVm) {
        self.observer.status(MigrationStatus::Setup);
        let began = Instant::now();
        match self.connect(target) {
            Ok(connected) => self.start(began, connected).run(),
            Err(error) => self.never_connected(began, &error),
        }
    }

    fn start(self, began: Instant, mut connected: Connected) -> Running {
        let mut machine = Source::new(self.source_config(), began);
        if self.postcopy_asked {
            machine.handle(SourceEvent::StartPostcopy, Instant::now());
        }
        let peer = connected.peer.take();
        *self.shared.urgent.lock() = Some(Arc::clone(&connected.urgent));
        let steps = Steps::new(self.config, self.savevm, self.vm, connected);
        Running {
            machine,
            steps,
            peer,
            control: self.control,
            observer: self.observer,
            shared: self.shared,
            status: MigrationStatus::Setup,
            error: None,
            aftermath: Vec::new(),
            cancel_told: false,
        }
    }

    /// Without a link nothing has begun: the machine hears of a loss and says what that means.
    fn never_connected(self, began: Instant, error: &StartError) -> (OutgoingReport, SaveVm) {
        let mut machine = Source::new(self.source_config(), began);
        let (event, reason) = if self.shared.is_cancelled() {
            (SourceEvent::Cancel, None)
        } else {
            let reason = match error {
                StartError::Transport(error) => loss_reason(error),
                _ => LossReason::Closed,
            };
            (SourceEvent::Lost(Loss { role: LinkRole::Main, reason }), Some(chain(error)))
        };
        machine.handle(event, Instant::now());
        let report = report(&machine, reason, &[], &self.shared, self.observer.as_ref());
        (report, self.savevm)
    }

    fn source_config(&self) -> SourceConfig {
        let OutgoingConfig { parameters, capabilities, channel_sync, .. } = &self.config;
        SourceConfig {
            return_path: capabilities.listens(),
            pause_before_switchover: capabilities.pause_before_switchover,
            switchover_ack: capabilities.switchover_ack,
            features: extensions::wishes(parameters, capabilities, *channel_sync),
            multifd: extensions::multifd_settings(parameters, capabilities),
            convergence: ConvergenceConfig {
                downtime_limit: parameters.downtime_limit,
                switchover_bandwidth: parameters.switchover_bandwidth.map(rate),
                auto_postcopy: parameters.postcopy_auto,
            },
            max_bandwidth: parameters.max_bandwidth.map(rate),
            postcopy: self.savevm.postcopy_advice().filter(|_| capabilities.postcopy_ram).map(|advice| {
                let max_bandwidth = parameters.max_postcopy_bandwidth.map(rate);
                SourcePostcopy { advice, preempt: capabilities.postcopy_preempt, max_bandwidth }
            }),
            ..SourceConfig::default()
        }
    }
}

impl Running {
    fn run(mut self) -> (OutgoingReport, SaveVm) {
        loop {
            while let Some(action) = self.next_action() {
                match self.perform(action) {
                    Ok(Some(event)) => self.tell(event),
                    Ok(None) => {}
                    Err(error) => self.step_failed(error),
                }
                self.drain();
            }
            if self.machine.outcome().is_some() {
                return self.finish();
            }
            self.wait();
        }
    }

    fn finish(mut self) -> (OutgoingReport, SaveVm) {
        if let Err(error) = self.steps.savevm.save_cleanup() {
            self.aftermath.push(chain(&error));
        }
        self.show();
        let Self { machine, error, aftermath, shared, observer, .. } = &self;
        let report = report(machine, error.clone(), aftermath, shared, observer.as_ref());
        (report, self.steps.savevm)
    }

    /// The machine's next action. A cancel is heard first, and taking the commit point closes the door to it in the
    /// same step: from then on a cancel must not end the link, because the answer is still to come over it.
    fn next_action(&mut self) -> Option<SourceAction> {
        loop {
            self.tell_cancel();
            let mut stop = self.shared.stop.lock();
            if self.shared.is_cancelled() && !self.cancel_told {
                continue; // It came between the two lines above.
            }
            let action = self.machine.poll_action()?;
            if matches!(action, SourceAction::SendEnd | SourceAction::SendPackage) {
                *stop = None;
            }
            return Some(action);
        }
    }

    /// Does an action; those about the return path are done here, because the coordinator hears it.
    fn perform(&mut self, action: SourceAction) -> Result<Option<SourceEvent>, StepError> {
        match action {
            SourceAction::Pause => Ok(Some(self.pause())),
            SourceAction::Reconnect => self.reconnect().map(Some),
            SourceAction::Drain => self.drain_links(),
            SourceAction::FetchBitmaps => self.fetch_bitmaps(),
            SourceAction::SendPackage => {
                self.shared.let_pause(self.steps.links.handle());
                self.steps.perform(action)
            }
            action => self.steps.perform(action),
        }
    }

    /// Hands an event to the machine and shows what changed.
    pub(super) fn tell(&mut self, event: SourceEvent) {
        let before = *self.machine.counters();
        self.machine.handle(event, Instant::now());
        let after = self.machine.counters();
        if after.sync_count != before.sync_count {
            self.observer.pass(u64::from(after.sync_count));
        }
        if after.replacements != before.replacements {
            // The loss that led to it is mended, and no cause of what may fail later.
            self.error = None;
        }
        self.show();
        let status = self.machine.status();
        // The end is told with the report, when whoever hears of it can read it.
        if status != self.status && self.machine.outcome().is_none() {
            self.status = status;
            self.observer.status(status);
        }
    }

    /// Copies the figures to where other threads can read them.
    fn show(&self) {
        let mut view = self.shared.view.lock();
        let statistics = &mut view.statistics;
        let machine = &self.machine;
        if machine.outcome().is_none() {
            statistics.status = machine.status();
        }
        statistics.transferred = self.steps.written();
        statistics.downtime_bytes = machine.counters().downtime_bytes;
        statistics.passes = u64::from(machine.counters().sync_count);
        statistics.expected_downtime = machine.expected_downtime();
        statistics.bandwidth = machine.bandwidth().map(|rate| ByteCount(rate.0));
        if machine.timeline().package_sent.is_some() {
            statistics.downtime = Downtime::of(machine.timeline());
        }
        statistics.pauses = machine.counters().pauses;
        statistics.replacements = machine.counters().replacements;
        statistics.postcopy_bytes = machine.counters().postcopy_bytes;
        statistics.error = machine.paused().map(|failure| with_reason(failure, self.error.as_deref()));
        let rounds = self.steps.rounds.done();
        if statistics.rounds.len() != rounds.len() {
            statistics.rounds = rounds.to_vec();
        }
        if let Some(active) = machine.timeline().active {
            statistics.setup_time = active - machine.timeline().began;
        }
    }

    /// Waits until pages of every kind are there, as far as can be known on this side. Whoever has lost a link meanwhile is
    /// heard: its pages would be waited for in vain.
    fn drain_links(&mut self) -> Result<Option<SourceEvent>, StepError> {
        self.steps.bring_into_line()?;
        let asked_in = self.machine.state_name();
        let deadline = Instant::now() + self.steps.config.write_deadline;
        while !self.steps.is_drained(deadline)? {
            self.drain();
            if self.machine.state_name() != asked_in {
                break;
            }
            std::thread::sleep(DRAIN_LOOK);
        }
        Ok(None)
    }

    /// Hands in what has arrived, without waiting. What arrived with the outcome comes too late.
    fn drain(&mut self) {
        self.tell_cancel();
        while let Ok(control) = self.control.try_recv() {
            self.on_control(control);
        }
        while let Some(Ok(heard)) = self.peer.as_ref().map(|peer| peer.heard.try_recv()) {
            self.on_heard(heard);
        }
    }

    /// Waits for something to happen, or for the machine's timeout.
    fn wait(&mut self) {
        let expired = self.machine.poll_timeout().map_or_else(never, crossbeam_channel::at);
        let peer = self.peer.as_ref().map_or_else(never, |peer| peer.heard.clone());
        let urgent = self.steps.urgent.rung.clone();
        select! {
            recv(self.control) -> control => match control {
                Ok(control) => self.on_control(control),
                // The handle was dropped: nobody will control this migration any more.
                Err(_) => self.control = never(),
            },
            recv(peer) -> heard => match heard {
                Ok(heard) => self.on_heard(heard),
                // Gone without a last word: the thread panicked.
                Err(_) => {
                    self.peer = None;
                    let reason = LossReason::Unreadable;
                    self.tell(SourceEvent::Lost(Loss { role: LinkRole::ReturnPath, reason }));
                }
            },
            recv(urgent) -> _ => {
                // The push rests; the machine need not know (I10).
                if let Err(error) = self.steps.save_requested() {
                    self.step_failed(error);
                }
            }
            recv(expired) -> _ => self.tell(SourceEvent::Timeout),
        }
        self.tell_cancel();
    }

    fn tell_cancel(&mut self) {
        if self.shared.is_cancelled() && !self.cancel_told {
            self.cancel_told = true;
            self.tell(SourceEvent::Cancel);
        }
    }

    fn on_control(&mut self, control: Control) {
        match control {
            Control::Wake => {}
            Control::Continue => self.tell(SourceEvent::Continue),
            Control::Parameters(parameters) => self.tell(SourceEvent::SetParameters(ParameterChange {
                downtime_limit: Some(parameters.downtime_limit),
                max_bandwidth: Some(parameters.max_bandwidth.map(rate)),
                switchover_bandwidth: Some(parameters.switchover_bandwidth.map(rate)),
                max_postcopy_bandwidth: Some(parameters.max_postcopy_bandwidth.map(rate)),
            })),
            Control::StartPostcopy => self.tell(SourceEvent::StartPostcopy),
            Control::Pause => self.tell(SourceEvent::PausePostcopy),
            Control::Resume(address) => {
                if self.machine.paused().is_some() {
                    self.steps.dialer.address = Some(address);
                    self.error = None;
                }
                self.tell(SourceEvent::ResumePostcopy);
            }
            Control::Operator(word) => self.tell(SourceEvent::Operator(word)),
        }
    }

    pub(super) fn on_heard(&mut self, heard: Heard) {
        match heard {
            Heard::Message(message) => self.tell(SourceEvent::Return(message)),
            Heard::PreemptLost(loss, fault) => {
                self.note(&fault);
                self.tell_cancel();
                self.tell(SourceEvent::Lost(loss));
            }
            Heard::Lost(loss, fault) => {
                self.peer = None;
                self.note(fault.as_ref());
                // A cancel that closed the link comes before the loss that it caused.
                self.tell_cancel();
                self.tell(SourceEvent::Lost(loss));
            }
        }
    }

    fn step_failed(&mut self, error: StepError) {
        match error {
            StepError::Handler(step, error) => {
                match step {
                    SourceStep::ResumeVm => {
                        self.aftermath.push(format!("{step} failed: {}", chain(error.as_ref())))
                    }
                    _ => self.note(error.as_ref()),
                }
                self.tell(SourceEvent::HandlerFailed { step });
            }
            StepError::Link(error) if self.machine.may_replace(&error.loss()) => {
                self.note(error.as_error());
                self.tell(SourceEvent::Lost(error.loss()));
            }
            StepError::Link(error) => {
                self.tell_cancel();
                let silence = self.hear_last_words();
                self.note(error.as_error());
                self.tell(SourceEvent::Lost(error.loss()));
                // After the commit point the machine would go on waiting for an answer.
                if let Some(loss) = silence {
                    self.tell(SourceEvent::Lost(loss));
                }
            }
        }
    }

    /// A destination that hangs up may have said why: its word comes before the loss of the link. Returns how the
    /// return path ended, if it did: the main link's error says more, so that is told first.
    fn hear_last_words(&mut self) -> Option<Loss> {
        let deadline = Instant::now() + LAST_WORDS;
        while let Some(Ok(heard)) = self.peer.as_ref().map(|peer| peer.heard.recv_deadline(deadline)) {
            match heard {
                Heard::Message(message) => self.tell(SourceEvent::Return(message)),
                Heard::PreemptLost(..) => {}
                Heard::Lost(loss, _) => {
                    self.peer = None;
                    return Some(loss);
                }
            }
        }
        None
    }

    fn note(&mut self, error: &(dyn Error + 'static)) {
        self.error.get_or_insert_with(|| chain(error));
    }
}

/// Seals the figures, tells the observer the end, and makes the report.
fn report(
    machine: &Source,
    error: Option<String>,
    aftermath: &[String],
    shared: &Shared,
    observer: &dyn Observer,
) -> OutgoingReport {
    let outcome = machine.outcome().expect("asked for at the end").clone();
    let reason = match &outcome.ending {
        SourceEnding::Failed(failure) => Some(with_reason(failure, error.as_deref())),
        _ => None,
    };
    // What was left undone here is nobody's trouble once the guest is elsewhere.
    let aftermath = if outcome.fate == GuestFate::OnDestination { &[] } else { aftermath };
    let told: Vec<&str> = reason.iter().chain(aftermath).map(String::as_str).collect();
    let error = (!told.is_empty()).then(|| told.join("; "));
    {
        let mut view = shared.view.lock();
        view.ended = true;
        view.statistics.total_time = view.started.elapsed();
        view.statistics.status = outcome.status();
        view.statistics.downtime = Downtime::of(machine.timeline());
        view.statistics.error = error;
    }
    observer.status(outcome.status());
    OutgoingReport { outcome, statistics: shared.statistics() }
}

/// The machine's word for a failure, and what lies behind it.
fn with_reason(failure: &SourceFailure, error: Option<&str>) -> String {
    match error {
        // What the link did after such a word says no more.
        _ if matches!(failure, SourceFailure::Refused { reason: Some(_), .. }) => failure.to_string(),
        Some(error) => format!("{failure}: {error}"),
        None => failure.to_string(),
    }
}

fn rate(bytes: ByteCount) -> BytesPerSecond {
    BytesPerSecond(bytes.0)
}

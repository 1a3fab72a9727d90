//! What the machine asks for, done: the walks over the savevm list, the guest's stop and start.

use super::OutgoingConfig;
use super::connect::{Connected, Dialer};
use super::postcopy::Following;
use super::timeline::Rounds;
use super::urgent::Urgent;
use crate::error::{SaveError, SaveFault, loss_reason};
use crate::savevm::{Budget, SaveSetup, SaveVm, SendLinks, Switchover};
use crate::stop::Stop;
use crate::stream::StreamWriter;
use crate::vm::{RunState, Vm, VmError};
use crate::vmdescription::VmDescription;
use limosa_multifd::SendError;
use limosa_pages::ByteCount;
use limosa_protocol::{LinkRole, Loss, LossReason, Pending, SourceAction, SourceEvent, SourceStep};
use limosa_transport::{ShutdownHandle, TransportError};
use limosa_wire::{Command, Features, encode};
use parking_lot::Mutex;
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

/// The guest, its list and its link, for as long as the migration lasts.
pub(super) struct Steps {
    pub(super) savevm: SaveVm,
    pub(super) out: StreamWriter,
    pub(super) rounds: Rounds,
    pub(super) config: OutgoingConfig,
    /// Makes the connections that come later.
    pub(super) dialer: Dialer,
    pub(super) urgent: Arc<Urgent>,
    pub(super) following: Following,
    guest: HeldGuest,
    /// Multifd channels, until the setup hands them to RAM.
    channels: Option<SendLinks>,
    pub(super) links: HeldLinks,
    /// The text that follows the end of the stream.
    description: Vec<u8>,
}

/// The guest, and what we owe it.
struct HeldGuest {
    vm: Arc<dyn Vm>,
    /// Whether it ran when it was stopped, and so whether undoing the stop means running.
    was_running: bool,
    /// We have stopped it, and it is still ours to resume.
    owed: bool,
}

/// The connections, which have threads of their own and so do not close by being dropped here.
pub(super) struct HeldLinks(Stop);

/// A step that could not be done.
pub(super) enum StepError {
    /// A connection failed under it.
    Link(LostLink),
    /// A handler or the guest refused.
    Handler(SourceStep, Box<dyn Error + Send + Sync>),
}

/// The connection that failed.
pub(super) enum LostLink {
    Main(TransportError),
    Channel(SendError),
    Preempt(TransportError),
}

impl Steps {
    pub(super) fn new(config: OutgoingConfig, savevm: SaveVm, vm: Arc<dyn Vm>, connected: Connected) -> Self {
        let Connected { out, channels, stop, dialer, urgent, .. } = connected;
        Self {
            savevm,
            out,
            rounds: Rounds::default(),
            config,
            dialer,
            urgent,
            following: Following::default(),
            guest: HeldGuest { vm, was_running: false, owed: false },
            channels,
            links: HeldLinks(stop),
            description: Vec::new(),
        }
    }

    /// Does `action` and says what came of it; `None` for actions that have no answer.
    pub(super) fn perform(&mut self, action: SourceAction) -> Result<Option<SourceEvent>, StepError> {
        let before = self.written();
        Ok(Some(match action {
            SourceAction::SendCommand(command) => {
                if command == Command::PostcopyResume {
                    // What is asked for may come as soon as it is read.
                    self.serve_again()?;
                }
                command.encode(self.out.buffer());
                self.flush()?;
                return Ok(None);
            }
            SourceAction::SaveSetup { features } => {
                self.save_setup(features).map_err(StepError::save(SourceStep::SaveSetup))?;
                SourceEvent::SetupSaved { sent: self.sent_since(before)? }
            }
            SourceAction::SyncDirty => {
                let sync = StepError::save(SourceStep::SyncDirty);
                self.savevm.bring_into_line(&mut self.out).map_err(sync)?;
                self.savevm.sync().map_err(StepError::save(SourceStep::SyncDirty))?;
                self.rounds.next(Instant::now(), &self.savevm.ram_statistics(), self.written());
                SourceEvent::Synced { pending: self.pending() }
            }
            SourceAction::Iterate { max_bytes, max_time } => {
                let mut budget = Budget::new(max_bytes, max_time, Instant::now());
                self.savevm
                    .save_live_iterate(&mut self.out, &mut budget)
                    .map_err(StepError::save(SourceStep::Iterate))?;
                SourceEvent::Iterated { sent: self.sent_since(before)?, pending: self.pending() }
            }
            SourceAction::StopVm => {
                self.stop_vm().map_err(StepError::vm(SourceStep::StopVm))?;
                SourceEvent::VmStopped
            }
            SourceAction::CompletePrecopy => {
                self.complete_precopy().map_err(StepError::save(SourceStep::CompletePrecopy))?;
                SourceEvent::PrecopyCompleted { sent: self.sent_since(before)? }
            }
            SourceAction::SaveDevices => {
                self.save_devices().map_err(StepError::save(SourceStep::SaveDevices))?;
                SourceEvent::DevicesSaved { sent: self.sent_since(before)? }
            }
            SourceAction::SendEnd => {
                self.let_guest_go();
                encode::end_of_stream(self.out.buffer());
                encode::vm_description(&self.description, self.out.buffer());
                let sent = self.sent_since(before)?;
                if !self.config.capabilities.listens() {
                    // Nobody will say that it arrived; at least nothing is left that could fail unheard.
                    self.out.finish().map_err(StepError::main)?;
                }
                SourceEvent::EndSent { sent }
            }
            SourceAction::ResumeVm => {
                self.resume_vm().map_err(StepError::vm(SourceStep::ResumeVm))?;
                SourceEvent::VmResumed
            }
            SourceAction::CloseLink => {
                self.links.0.stop();
                return Ok(None);
            }
            SourceAction::Finish => return Ok(None),
            action => return self.perform_in_postcopy(action, before),
        }))
    }

    fn save_setup(&mut self, features: Features) -> Result<(), SaveError> {
        let setup = SaveSetup {
            capabilities: &self.config.capabilities,
            parameters: &self.config.parameters,
            features,
            channels: Mutex::new(self.channels.take()),
        };
        self.savevm.save_setup(&setup, &mut self.out)
    }

    fn stop_vm(&mut self) -> Result<(), VmError> {
        self.guest.was_running = self.guest.vm.run_state() == RunState::Running;
        // A paused guest too: its operator must not let it run here while the last of its state leaves.
        self.guest.vm.stop()?;
        self.guest.owed = true;
        self.savevm.switchover(Switchover::Started);
        Ok(())
    }

    fn resume_vm(&mut self) -> Result<(), VmError> {
        self.savevm.switchover(Switchover::Undone);
        self.guest.give_back()
    }

    fn complete_precopy(&mut self) -> Result<(), SaveError> {
        self.announce_switchover();
        self.savevm.save_live_complete_precopy(&mut self.out)?;
        self.end_rounds();
        Ok(())
    }

    /// Tells a destination that knows the word that the guest stands.
    pub(super) fn announce_switchover(&mut self) {
        if self.config.announce_switchover {
            Command::SwitchoverStart.encode(self.out.buffer());
        }
    }

    pub(super) fn end_rounds(&mut self) {
        self.rounds.end(Instant::now(), &self.savevm.ram_statistics(), self.written());
    }

    /// Notes whether the guest is to run where it goes.
    pub(super) fn note_run_state(&self) {
        let run_state = if self.guest.was_running { RunState::Running } else { RunState::Paused };
        self.savevm.set_run_state(run_state);
    }

    /// From now on the guest may run on the destination.
    pub(super) fn let_guest_go(&mut self) {
        self.guest.owed = false;
    }

    fn save_devices(&mut self) -> Result<(), SaveError> {
        let mut description = VmDescription::new(self.savevm.configuration());
        self.note_run_state();
        self.savevm.save_devices(self.out.buffer(), &mut description)?;
        self.description = description.into_json();
        Ok(())
    }

    /// What is left to move. Device state is small and its size is not known before it is saved.
    pub(super) fn pending(&self) -> Pending {
        Pending { owed: self.savevm.state_pending(), device: ByteCount(0), queued: self.out.queued() }
    }

    /// Flushes, so that what a step has written is on its way before the next is asked for.
    pub(super) fn sent_since(&mut self, before: ByteCount) -> Result<ByteCount, StepError> {
        self.flush()?;
        Ok(self.written() - before)
    }

    /// Bytes that have left so far, on every channel.
    pub(super) fn written(&self) -> ByteCount {
        self.out.offset() + self.savevm.ram_statistics().channel_bytes
    }

    pub(super) fn flush(&mut self) -> Result<(), StepError> {
        self.out.flush().map_err(StepError::main)
    }
}

impl HeldGuest {
    /// Brings the guest back to the run state that it had before we stopped it.
    fn give_back(&mut self) -> Result<(), VmError> {
        self.owed = false;
        if self.was_running { self.vm.resume() } else { Ok(()) }
    }
}

impl Drop for HeldGuest {
    /// A handler that panics while the guest is stopped must not leave it so: nobody else would resume it.
    fn drop(&mut self) {
        if self.owed && std::thread::panicking() {
            // Whoever waits for the migration is told of the panic, which is worse than this.
            drop(self.give_back());
        }
    }
}

impl HeldLinks {
    /// Also ends this one.
    pub(super) fn add(&self, link: ShutdownHandle) {
        self.0.add(link);
    }

    /// Ends all but the main one.
    pub(super) fn stop_beside(&self) {
        self.0.stop_beside();
    }

    /// The links of a new connection; those of the old one have been stopped.
    pub(super) fn replace(&mut self, links: Stop) {
        self.0 = links;
    }

    /// Ends them all.
    pub(super) fn stop(&self) {
        self.0.stop();
    }

    /// A handle with which another thread can.
    pub(super) fn handle(&self) -> Stop {
        self.0.clone()
    }
}

impl Drop for HeldLinks {
    /// The peer of a migration whose thread panicked must not wait for it.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

impl LostLink {
    pub(super) fn as_error(&self) -> &(dyn Error + 'static) {
        match self {
            Self::Main(error) | Self::Preempt(error) => error,
            Self::Channel(error) => error,
        }
    }

    pub(super) fn loss(&self) -> Loss {
        match self {
            Self::Main(error) => Loss { role: LinkRole::Main, reason: loss_reason(error) },
            Self::Preempt(error) => Loss { role: LinkRole::Preempt, reason: loss_reason(error) },
            Self::Channel(error) => {
                Loss { role: LinkRole::Channel(u16::from(error.channel)), reason: LossReason::Closed }
            }
        }
    }
}

impl StepError {
    pub(super) fn main(error: TransportError) -> Self {
        Self::Link(LostLink::Main(error))
    }

    pub(super) fn preempt(error: TransportError) -> Self {
        Self::Link(LostLink::Preempt(error))
    }

    pub(super) fn save(step: SourceStep) -> impl FnOnce(SaveError) -> Self {
        move |error| match error.source {
            SaveFault::Transport(lost) => Self::Link(LostLink::Main(lost)),
            SaveFault::Channel(lost) if lost.is_loss() => Self::Link(LostLink::Channel(lost)),
            _ => Self::Handler(step, Box::new(error)),
        }
    }

    fn vm(step: SourceStep) -> impl FnOnce(VmError) -> Self {
        move |error| Self::Handler(step, Box::new(error))
    }
}

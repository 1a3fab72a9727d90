//! What the machine asks for, done: the walks over the savevm list, the guest's stop and start.

use super::OutgoingConfig;
use super::timeline::Rounds;
use crate::error::{SaveError, SaveFault, loss_reason};
use crate::savevm::{Budget, SaveSetup, SaveVm, SendLinks, Switchover};
use crate::stop::Stop;
use crate::stream::StreamWriter;
use crate::vm::{RunState, Vm, VmError};
use crate::vmdescription::VmDescription;
use limosa_multifd::SendError;
use limosa_pages::ByteCount;
use limosa_protocol::{LossReason, Pending, SourceAction, SourceEvent, SourceStep};
use limosa_transport::TransportError;
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
    config: OutgoingConfig,
    guest: HeldGuest,
    /// Multifd channels, until the setup hands them to RAM.
    channels: Option<SendLinks>,
    links: HeldLinks,
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
struct HeldLinks(Stop);

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
}

impl Steps {
    pub(super) fn new(
        config: OutgoingConfig,
        savevm: SaveVm,
        vm: Arc<dyn Vm>,
        out: StreamWriter,
        channels: Option<SendLinks>,
        stop: Stop,
    ) -> Self {
        Self {
            savevm,
            out,
            rounds: Rounds::default(),
            config,
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
                command.encode(self.out.buffer());
                self.flush()?;
                return Ok(None);
            }
            SourceAction::SaveSetup { features } => {
                self.save_setup(features).map_err(StepError::save(SourceStep::SaveSetup))?;
                SourceEvent::SetupSaved { sent: self.sent_since(before)? }
            }
            SourceAction::SyncDirty => {
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
                self.guest.owed = false;
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
            SourceAction::OpenPreempt
            | SourceAction::CompleteForPostcopy
            | SourceAction::SendDiscards
            | SourceAction::PackageDevices { .. }
            | SourceAction::SendPackage
            | SourceAction::Push { .. }
            | SourceAction::DrainUrgent
            | SourceAction::CompletePostcopy
            | SourceAction::Pause
            | SourceAction::Reconnect
            | SourceAction::FetchBitmaps => unreachable!("postcopy is not enabled"),
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
        if self.config.announce_switchover {
            Command::SwitchoverStart.encode(self.out.buffer());
        }
        self.savevm.save_live_complete_precopy(&mut self.out)?;
        self.rounds.end(Instant::now(), &self.savevm.ram_statistics(), self.written());
        Ok(())
    }

    fn save_devices(&mut self) -> Result<(), SaveError> {
        let mut description = VmDescription::new(self.savevm.configuration());
        let run_state = if self.guest.was_running { RunState::Running } else { RunState::Paused };
        self.savevm.set_run_state(run_state);
        self.savevm.save_devices(self.out.buffer(), &mut description)?;
        self.description = description.into_json();
        Ok(())
    }

    /// What is left to move. Device state is small and its size is not known before it is saved.
    fn pending(&self) -> Pending {
        Pending { owed: self.savevm.state_pending(), device: ByteCount(0), queued: self.out.queued() }
    }

    /// Flushes, so that what a step has written is on its way before the next is asked for.
    fn sent_since(&mut self, before: ByteCount) -> Result<ByteCount, StepError> {
        self.flush()?;
        Ok(self.written() - before)
    }

    /// Bytes that have left so far, on every channel.
    pub(super) fn written(&self) -> ByteCount {
        self.out.offset() + self.savevm.ram_statistics().channel_bytes
    }

    fn flush(&mut self) -> Result<(), StepError> {
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
            Self::Main(error) => error,
            Self::Channel(error) => error,
        }
    }

    pub(super) fn reason(&self) -> LossReason {
        match self {
            Self::Main(error) => loss_reason(error),
            Self::Channel(_) => LossReason::Closed,
        }
    }
}

impl StepError {
    fn main(error: TransportError) -> Self {
        Self::Link(LostLink::Main(error))
    }

    fn save(step: SourceStep) -> impl FnOnce(SaveError) -> Self {
        move |error| match error.source {
            SaveFault::Transport(lost) => Self::Link(LostLink::Main(lost)),
            SaveFault::Channel(lost) => Self::Link(LostLink::Channel(lost)),
            _ => Self::Handler(step, Box::new(error)),
        }
    }

    fn vm(step: SourceStep) -> impl FnOnce(VmError) -> Self {
        move |error| Self::Handler(step, Box::new(error))
    }
}

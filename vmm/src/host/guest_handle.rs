//! The hold on the guest that its operator and its migration share.

use super::bell::{Bell, Ring};
use crate::error::VmmError;
use crate::machine::Machine;
use crate::run_control;
use limosa::{KernelThread, MigrationStatus, Observer, RunState, Vm, VmError};
use limosa_qmp::{Events, Notice};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use thiserror::Error;

/// The guest, why it stands still if it does, and who is told.
pub(super) struct GuestHandle {
    machine: Arc<Machine>,
    events: Events,
    /// What the guest does, or why it does not run. Held while that changes.
    state: Mutex<RunState>,
    /// Whether a guest that arrives shall run.
    autostart: AtomicBool,
    /// Whether changes of the migration are events (capability `events`).
    tell: AtomicBool,
}

/// Why a guest cannot be let run.
#[derive(Debug, Error)]
pub enum NotRunnable {
    /// It left, and runs elsewhere.
    #[error("The guest has migrated: it is on the destination")]
    Left,
    /// It has not come yet.
    #[error("The guest has not arrived yet")]
    NotArrived,
    /// The last of its state is leaving.
    #[error("Migration is not finalized yet")]
    Leaving,
    /// The machine says no.
    #[error(transparent)]
    Machine(#[from] VmmError),
}

impl GuestHandle {
    pub(super) fn new(machine: Arc<Machine>, events: Events, incoming: bool) -> Self {
        let state = Mutex::new(if incoming { RunState::InMigrate } else { RunState::Paused });
        Self { machine, events, state, autostart: AtomicBool::new(true), tell: AtomicBool::new(false) }
    }

    /// What the guest does. A guest that has stopped itself is paused.
    pub(super) fn state(&self) -> RunState {
        let state = *self.state.lock();
        match (state, self.machine.run_state()) {
            (RunState::Running, run_control::RunState::Ended(_)) => RunState::Paused,
            _ => state,
        }
    }

    /// The operator lets the guest run.
    ///
    /// I6, one guest: what may run elsewhere does not run here. Only of a guest `in_doubt` the operator knows more than
    /// we do.
    pub(super) fn run(&self, in_doubt: bool) -> Result<(), NotRunnable> {
        // Checked and done under one lock: the migration may be about to stop the guest for good.
        let mut state = self.state.lock();
        match *state {
            RunState::PostMigrate => Err(NotRunnable::Left),
            RunState::InMigrate => Err(NotRunnable::NotArrived),
            RunState::FinishMigrate if !in_doubt => Err(NotRunnable::Leaving),
            RunState::FinishMigrate | RunState::Paused | RunState::Running => {
                Ok(self.enter_running(&mut state)?)
            }
        }
    }

    /// The operator pauses the guest.
    pub(super) fn pause(&self) {
        let mut state = self.state.lock();
        if *state == RunState::Running {
            self.enter_stopped(&mut state, RunState::Paused);
        }
    }

    /// Notes why a guest that does not run does not.
    pub(super) fn note(&self, reason: RunState) {
        let mut state = self.state.lock();
        if *state != RunState::Running {
            *state = reason;
        }
    }

    /// A guest that its operator had paused when its migration stopped it, and that stayed here, is his again.
    pub(super) fn note_stayed(&self) {
        let mut state = self.state.lock();
        if *state == RunState::FinishMigrate {
            *state = RunState::Paused;
        }
    }

    /// The guest is lost: whoever of its vCPUs touches memory that never came waits as long as the process lives, so the
    /// machine is never torn down.
    pub(super) fn keep_machine(&self) {
        std::mem::forget(Arc::clone(&self.machine));
    }

    /// Whether a guest that arrives shall run.
    pub(super) fn set_autostart(&self, autostart: bool) {
        self.autostart.store(autostart, Ordering::Relaxed);
    }

    /// Whether changes of the migration shall be events.
    pub(super) fn tell_changes(&self, tell: bool) {
        self.tell.store(tell, Ordering::Relaxed);
    }

    fn enter_running(&self, state: &mut RunState) -> Result<(), VmmError> {
        if *state != RunState::Running {
            self.machine.resume()?;
            *state = RunState::Running;
            self.events.emit(Notice::Resume);
        }
        Ok(())
    }

    fn enter_stopped(&self, state: &mut RunState, reason: RunState) {
        self.machine.pause();
        *state = reason;
        self.events.emit(Notice::Stop);
    }
}

impl Vm for GuestHandle {
    fn stop(&self) -> Result<(), VmError> {
        let mut state = self.state.lock();
        match *state {
            RunState::Running => self.enter_stopped(&mut state, RunState::FinishMigrate),
            _ => *state = RunState::FinishMigrate,
        }
        Ok(())
    }

    fn resume(&self) -> Result<(), VmError> {
        let mut state = self.state.lock();
        if *state == RunState::InMigrate && !self.autostart.load(Ordering::Relaxed) {
            *state = RunState::Paused;
            return Ok(());
        }
        self.enter_running(&mut state).map_err(VmError::new)
    }

    fn run_state(&self) -> RunState {
        self.state()
    }

    fn vcpu_threads(&self) -> Vec<KernelThread> {
        self.machine.vcpu_threads()
    }
}

/// Tells the clients of the monitor how a migration goes.
pub(super) struct Teller {
    pub(super) guest: Arc<GuestHandle>,
    pub(super) journey: Journey,
}

/// Which way the guest goes.
pub(super) enum Journey {
    Out,
    /// With the bell that rings when it has ended.
    In(Arc<Bell>),
}

impl Observer for Teller {
    fn status(&self, status: MigrationStatus) {
        if status == MigrationStatus::Completed {
            self.guest.note(match &self.journey {
                Journey::Out => RunState::PostMigrate,
                Journey::In(_) => RunState::Paused,
            });
        }
        if let (Journey::Out, MigrationStatus::Cancelled) = (&self.journey, status) {
            // QEMU passes through this state; its clients may wait for it.
            self.tell(Notice::Migration { status: limosa_qmp::MigrationStatus::Cancelling });
        }
        self.tell(Notice::Migration { status: super::reply::status(status) });
        if let (Journey::In(bell), MigrationStatus::Failed | MigrationStatus::Cancelled) =
            (&self.journey, status)
        {
            bell.ring(Ring::Look);
        }
    }

    fn pass(&self, number: u64) {
        self.tell(Notice::MigrationPass { pass: number });
    }
}

impl Teller {
    fn tell(&self, notice: Notice) {
        if self.guest.tell.load(Ordering::Relaxed) {
            self.guest.events.emit(notice);
        }
    }
}

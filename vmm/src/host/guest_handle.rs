//! The hold on the guest that its operator and its migration share.

use crate::error::VmmError;
use crate::machine::Machine;
use crate::run_control;
use limosa::{MigrationStatus, Observer, RunState, Vm, VmError};
use limosa_qmp::{Events, Notice};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The guest, why it stands still if it does, and who is told.
pub(super) struct GuestHandle {
    machine: Arc<Machine>,
    events: Events,
    /// What the guest does, or why it does not run. Held while that changes.
    state: Mutex<RunState>,
    /// Whether changes of the migration are events (capability `events`).
    tell: AtomicBool,
}

impl GuestHandle {
    pub(super) fn new(machine: Arc<Machine>, events: Events, incoming: bool) -> Self {
        let state = Mutex::new(if incoming { RunState::InMigrate } else { RunState::Paused });
        Self { machine, events, state, tell: AtomicBool::new(false) }
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
    pub(super) fn run(&self) -> Result<(), VmmError> {
        self.enter_running(&mut self.state.lock())
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
        self.enter_stopped(&mut self.state.lock(), RunState::FinishMigrate);
        Ok(())
    }

    fn resume(&self) -> Result<(), VmError> {
        self.enter_running(&mut self.state.lock()).map_err(VmError::new)
    }

    fn run_state(&self) -> RunState {
        self.state()
    }
}

/// Tells the clients of the monitor how a migration goes.
pub(super) struct Teller {
    pub(super) guest: Arc<GuestHandle>,
    /// Why the guest does not run once the migration is completed.
    pub(super) afterwards: RunState,
}

impl Observer for Teller {
    fn status(&self, status: MigrationStatus) {
        if status == MigrationStatus::Completed {
            self.guest.note(self.afterwards);
        }
        if self.guest.tell.load(Ordering::Relaxed) {
            self.guest.events.emit(Notice::Migration { status: super::reply::status(status) });
        }
    }

    fn pass(&self, number: u64) {
        if self.guest.tell.load(Ordering::Relaxed) {
            self.guest.events.emit(Notice::MigrationPass { pass: number });
        }
    }
}

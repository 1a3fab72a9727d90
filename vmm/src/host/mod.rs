//! A machine with a monitor: what `limosa vmm` runs.
//!
//! A [`Host`] owns a [`Machine`] and moves it with the engine, as its clients ask for over QMP. It is the example of
//! how an embedder wires the engine in: the savevm list is made once ([`Machine::savevm`]) and lent to one migration at
//! a time; [`limosa::Vm`] is implemented on the handle that the migration holds.

mod bell;
mod commands;
mod guest_handle;
mod memory_dump;
mod moving;
mod reply;
mod settings;
mod vendor;

pub use guest_handle::NotRunnable;
pub use moving::Refused;

use crate::error::VmmError;
use crate::machine::Machine;
use bell::{Bell, Ring};
use guest_handle::GuestHandle;
use limosa::Address;
use limosa_qmp::{Events, Identity, Notice, Server};
use limosa_transport::TransportError;
use moving::{ExitOnError, Moving};
use parking_lot::Mutex;
use settings::Settings;
use std::path::Path;
use std::sync::Arc;

/// A machine, its monitor, and the migration it is in.
pub struct Host {
    machine: Arc<Machine>,
    guest: Arc<GuestHandle>,
    events: Events,
    state: Mutex<State>,
    bell: Arc<Bell>,
}

struct State {
    settings: Settings,
    moving: Moving,
}

/// What [`Host::wait`] waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occurrence {
    /// The VMM shall end.
    Quit,
    /// No guest came of an incoming migration.
    ArrivalFailed {
        /// Why.
        reason: String,
        /// Whether the VMM shall end for it (`exit-on-error`, on unless `migrate-incoming` says otherwise).
        fatal: bool,
    },
}

/// Who ends a VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuitCause {
    /// A client of the monitor.
    Monitor,
    /// A signal to the process.
    Signal,
}

impl Host {
    /// A host for `machine`, which waits for a guest to arrive if `incoming`.
    ///
    /// # Errors
    /// If the machine has no dirty log: such a guest could arrive, but never leave.
    pub fn new(machine: Machine, incoming: bool) -> Result<Arc<Self>, VmmError> {
        let savevm = machine.savevm()?;
        let machine = Arc::new(machine);
        let events = Events::new();
        let guest = Arc::new(GuestHandle::new(Arc::clone(&machine), events.clone(), incoming));
        let bell = Arc::new(Bell::default());
        let moving = Moving::resting(savevm, Arc::clone(&bell));
        let state = Mutex::new(State { settings: Settings::default(), moving });
        Ok(Arc::new(Self { machine, guest, events, state, bell }))
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Opens a monitor at the unix socket `path`. Dropping it closes the monitor.
    ///
    /// # Errors
    /// If it cannot listen there.
    pub fn listen(self: &Arc<Self>, path: &Path) -> Result<Server, TransportError> {
        let server = Server::new(Identity::limosa(), Arc::clone(self) as Arc<_>, self.events.clone());
        server.listen(path)?;
        Ok(server)
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// If it has stopped itself, or is not here.
    pub fn run(&self) -> Result<(), NotRunnable> {
        let mut state = self.state.lock();
        state.moving.settle(&self.guest);
        self.guest.run(state.moving.is_in_doubt())
    }

    /// Listens for a guest at `address`, and says where: with the port that the kernel chose if 0 was asked for. If no
    /// guest comes of it, that is fatal.
    ///
    /// # Errors
    /// If it cannot listen there, or is not waiting for a guest.
    pub fn await_guest(&self, address: &Address) -> Result<Option<Address>, Refused> {
        let mut state = self.state.lock();
        let State { settings, moving } = &mut *state;
        moving.listen(address, settings, &self.guest, ExitOnError(true))
    }

    /// Whether a guest that arrives shall run, if it ran where it came from. It shall unless this was said.
    pub fn set_autostart(&self, autostart: bool) {
        self.guest.set_autostart(autostart);
    }

    /// Blocks until something happens that the owner of the process has to act on.
    pub fn wait(&self) -> Occurrence {
        loop {
            match self.bell.wait() {
                Ring::Quit => return Occurrence::Quit,
                Ring::Look => {
                    let mut state = self.state.lock();
                    state.moving.settle(&self.guest);
                    if let Some(failed) = state.moving.take_failed_arrival() {
                        return failed;
                    }
                }
            }
        }
    }

    /// Makes [`Self::wait`] say [`Occurrence::Quit`], and tells the clients.
    pub fn quit(&self, cause: QuitCause) {
        let reason = match cause {
            QuitCause::Monitor => "host-qmp-quit",
            QuitCause::Signal => "host-signal",
        };
        self.events.emit(Notice::Shutdown { guest: false, reason });
        self.bell.ring(Ring::Quit);
    }

    /// Calls off the migration that is on its way, if there is one. Afterwards nothing listens for a guest any more.
    pub fn close(&self) {
        self.state.lock().moving.close(&self.guest);
    }
}

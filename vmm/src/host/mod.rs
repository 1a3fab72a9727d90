//! A machine with a monitor: what `limosa vmm` runs.
//!
//! A [`Host`] owns a [`Machine`] and moves it with the engine, as its clients ask for over QMP. It is the example of
//! how an embedder wires the engine in: the savevm list is made once ([`Host::new`]) and lent to one migration at a
//! time; [`limosa::Vm`] is implemented on the handle that the migration holds.

mod commands;
mod guest_handle;
mod moving;
mod reply;
mod settings;

pub use moving::Refused;

use crate::error::VmmError;
use crate::machine::Machine;
use crate::system_image::Executor;
use guest_handle::GuestHandle;
use limosa::{Address, Configuration, Priority, RamHandler, SaveVm};
use limosa_qmp::{Events, Identity, Notice, Server};
use limosa_transport::TransportError;
use moving::Moving;
use parking_lot::{Condvar, Mutex};
use settings::Settings;
use std::path::Path;
use std::sync::Arc;

/// A machine, its monitor, and the migration it is in.
pub struct Host {
    machine: Arc<Machine>,
    guest: Arc<GuestHandle>,
    events: Events,
    state: Mutex<State>,
    quit: Mutex<bool>,
    quitting: Condvar,
}

struct State {
    settings: Settings,
    moving: Moving,
}

impl Host {
    /// A host for `machine`, which waits for a guest to arrive if `incoming`.
    ///
    /// # Errors
    /// If the machine has no dirty log: such a guest could arrive, but never leave.
    pub fn new(machine: Machine, incoming: bool) -> Result<Arc<Self>, VmmError> {
        let savevm = savevm(&machine)?;
        let machine = Arc::new(machine);
        let events = Events::new();
        let guest = Arc::new(GuestHandle::new(Arc::clone(&machine), events.clone(), incoming));
        Ok(Arc::new(Self {
            machine,
            guest,
            events,
            state: Mutex::new(State { settings: Settings::default(), moving: Moving::resting(savevm) }),
            quit: Mutex::new(false),
            quitting: Condvar::new(),
        }))
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
    pub fn run(&self) -> Result<(), VmmError> {
        self.guest.run()
    }

    /// Listens for a guest at `address`.
    ///
    /// # Errors
    /// If it cannot listen there, or is not waiting for a guest.
    pub fn await_guest(&self, address: &Address) -> Result<(), Refused> {
        let mut state = self.state.lock();
        let State { settings, moving } = &mut *state;
        moving.listen(address, settings, &self.guest)
    }

    /// Whether a guest that arrives shall run.
    pub fn set_autostart(&self, autostart: bool) {
        self.state.lock().settings.set_autostart(autostart);
    }

    /// Blocks until a client says `quit`.
    pub fn wait_for_quit(&self) {
        let mut quit = self.quit.lock();
        while !*quit {
            self.quitting.wait(&mut quit);
        }
    }

    /// Ends [`Self::wait_for_quit`], as a client's `quit` does.
    pub fn quit(&self) {
        self.events.emit(Notice::Shutdown { guest: false, reason: "host-qmp-quit" });
        *self.quit.lock() = true;
        self.quitting.notify_all();
    }
}

/// Everything of `machine` that travels.
fn savevm(machine: &Machine) -> Result<SaveVm, VmmError> {
    // The executor is part of the machine's name: state of one cannot be loaded into the other.
    let name = match machine.executor() {
        Executor::Kvm => "limosa-kvm-1",
        Executor::Process => "limosa-process-1",
    };
    let mut savevm = SaveVm::new(Configuration { machine: name.to_owned(), ..Configuration::default() });
    savevm.register_ram(RamHandler::new(machine.ram().clone(), Some(machine.dirty_log()?)));
    for entry in machine.devices() {
        savevm.register_device(entry.idstr, entry.instance, Priority::Default, entry.device);
    }
    Ok(savevm)
}

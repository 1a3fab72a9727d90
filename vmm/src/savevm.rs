//! The machine as the engine sees it: the list of everything that travels.

use crate::error::VmmError;
use crate::machine::Machine;
use crate::system_image::Executor;
use limosa::{Configuration, Priority, RamHandler, SaveVm};

impl Machine {
    /// The list of all that migrates, to be lent to one migration at a time. Make it once: it holds the dirty log.
    ///
    /// # Errors
    /// [`VmmError::DirtyLog`] if there is no dirty log to be had: such a guest could arrive, but never leave.
    pub fn savevm(&self) -> Result<SaveVm, VmmError> {
        // The executor is part of the machine's name: state of one cannot be loaded into the other.
        let name = match self.executor() {
            Executor::Kvm => "limosa-kvm-1",
            Executor::Process => "limosa-process-1",
        };
        let mut savevm = SaveVm::new(Configuration { machine: name.to_owned(), ..Configuration::default() });
        savevm.register_ram(RamHandler::new(self.ram().clone(), Some(self.dirty_log()?)));
        for entry in self.devices() {
            savevm.register_device(entry.idstr, entry.instance, Priority::Default, entry.device);
        }
        Ok(savevm)
    }
}

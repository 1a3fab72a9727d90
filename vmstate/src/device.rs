//! A device as the savevm list sees it.

use crate::error::{LoadError, LoadProblem, SaveError, SaveProblem};
use crate::input::Input;
use crate::load::load_device;
use crate::path::FieldPath;
use crate::save::save_device;
use crate::state::VmState;
use serde_json::{Map, Value};
use std::sync::{Arc, Mutex, MutexGuard};

/// State that is saved whole, in one section, while the guest is stopped.
///
/// Every `T: VmState + Send` is one; so is a device that its threads share, as `Arc<Mutex<T>>` of `std` or of
/// `parking_lot`: the lock is held while it is saved or loaded.
pub trait Device: Send {
    /// Name of the description, as in `globalstate`.
    fn vmsd_name(&self) -> &str;

    /// The version it is saved with, and the newest it can be loaded from.
    fn version(&self) -> u32;

    /// The oldest version it can be loaded from.
    fn minimum_version(&self) -> u32;

    /// Whether it is worth a section now; a destination accepts it in any case.
    fn needed(&self) -> bool {
        true
    }

    /// The body of its section, and the description of it.
    ///
    /// The count fields of variable arrays are brought up to date, and the device's `pre_save` may change more.
    ///
    /// # Errors
    /// [`SaveError`] if a hook refuses or a limit is passed.
    fn save(&mut self) -> Result<SavedDevice, SaveError>;

    /// Takes the state from the next bytes of `input`, written by `version`, and not a byte more.
    ///
    /// # Errors
    /// [`LoadError`]; the device is then partly overwritten and must not be run.
    fn load(&mut self, version: u32, input: &mut dyn Input) -> Result<(), LoadError>;
}

/// A device's section body and what it consists of.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedDevice {
    /// The bytes between the section's header and its footer.
    pub body: Vec<u8>,
    /// `vmsd_name`, `version`, `fields` and, if there are any, `subsections`.
    pub description: Map<String, Value>,
}

impl SavedDevice {
    /// The device's entry in the `devices` of a vmdescription, under the identity that its section has.
    pub fn into_entry(self, idstr: &str, instance: u32) -> Value {
        let mut entry = Map::new();
        entry.insert("name".to_owned(), idstr.into());
        entry.insert("instance_id".to_owned(), instance.into());
        entry.extend(self.description);
        Value::Object(entry)
    }
}

impl<T: VmState + Send> Device for T {
    fn vmsd_name(&self) -> &str {
        T::NAME
    }

    fn version(&self) -> u32 {
        T::VERSION
    }

    fn minimum_version(&self) -> u32 {
        T::MINIMUM_VERSION
    }

    fn needed(&self) -> bool {
        VmState::needed(self)
    }

    fn save(&mut self) -> Result<SavedDevice, SaveError> {
        save_device(self)
    }

    fn load(&mut self, version: u32, input: &mut dyn Input) -> Result<(), LoadError> {
        load_device(self, version, input)
    }
}

impl<T: VmState + Send> Device for Arc<Mutex<T>> {
    fn vmsd_name(&self) -> &str {
        T::NAME
    }

    fn version(&self) -> u32 {
        T::VERSION
    }

    fn minimum_version(&self) -> u32 {
        T::MINIMUM_VERSION
    }

    /// A poisoned device says yes: its save then names the reason.
    fn needed(&self) -> bool {
        self.lock().map_or(true, |state: MutexGuard<'_, T>| VmState::needed(&*state))
    }

    fn save(&mut self) -> Result<SavedDevice, SaveError> {
        let poisoned = |_| SaveError { path: FieldPath::device(T::NAME), problem: SaveProblem::Poisoned };
        save_device(&mut *self.lock().map_err(poisoned)?)
    }

    fn load(&mut self, version: u32, input: &mut dyn Input) -> Result<(), LoadError> {
        let offset = input.offset();
        let poisoned =
            |_| LoadError { path: FieldPath::device(T::NAME), offset, problem: LoadProblem::Poisoned };
        load_device(&mut *self.lock().map_err(poisoned)?, version, input)
    }
}

impl<T: VmState + Send> Device for Arc<parking_lot::Mutex<T>> {
    fn vmsd_name(&self) -> &str {
        T::NAME
    }

    fn version(&self) -> u32 {
        T::VERSION
    }

    fn minimum_version(&self) -> u32 {
        T::MINIMUM_VERSION
    }

    fn needed(&self) -> bool {
        VmState::needed(&*self.lock())
    }

    fn save(&mut self) -> Result<SavedDevice, SaveError> {
        save_device(&mut *self.lock())
    }

    fn load(&mut self, version: u32, input: &mut dyn Input) -> Result<(), LoadError> {
        load_device(&mut *self.lock(), version, input)
    }
}

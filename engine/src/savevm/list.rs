//! The list itself: registration, lookup, order.

use super::entry::{EntryIdentity, EntryState, LiveState, Opaque, Priority, SaveStateEntry};
use crate::global_state::GlobalState;
use crate::ram::{RamCounters, RamHandler, RamStatistics};
use crate::vm::RunState;
use limosa_vmstate::Device;
use limosa_wire::{Configuration, RAM_IDSTR, RAM_VERSION, SectionId};
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;

/// The ordered list of a guest's migratable state, and the configuration both sides must share.
pub struct SaveVm {
    configuration: Configuration,
    entries: Vec<SaveStateEntry>,
    ram: Option<Arc<RamCounters>>,
    /// The run state that travels with the guest; not in a list that replays what it has received.
    global_state: Option<Arc<Mutex<GlobalState>>>,
}

impl SaveVm {
    /// A list for a guest with this machine name, capabilities and UUID. It holds the run state and nothing else.
    pub fn new(configuration: Configuration) -> Self {
        let mut list = Self::replaying(configuration);
        let state = Arc::new(Mutex::new(GlobalState::default()));
        list.register_device(GlobalState::IDSTR, 0, Priority::Last, Box::new(Arc::clone(&state)));
        list.global_state = Some(state);
        list
    }

    /// An empty list, for sections that are sent as they were received, the run state among them.
    pub fn replaying(configuration: Configuration) -> Self {
        Self { configuration, entries: Vec::new(), ram: None, global_state: None }
    }

    /// What the stream's configuration section says.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Adds the guest's RAM.
    ///
    /// # Panics
    /// If there is RAM already.
    pub fn register_ram(&mut self, handler: RamHandler) {
        self.ram = Some(handler.counters());
        self.register(RAM_IDSTR, 0, RAM_VERSION, Priority::Default, EntryState::Ram(Box::new(handler)));
    }

    /// Adds state that leaves while the guest runs.
    ///
    /// # Panics
    /// If (`idstr`, `instance_id`) is registered already, or `idstr` has not 1 to 255 bytes.
    pub fn register_live(
        &mut self,
        idstr: &str,
        instance_id: u32,
        version_id: u32,
        priority: Priority,
        state: Box<dyn LiveState>,
    ) {
        self.register(idstr, instance_id, version_id, priority, EntryState::Live(state));
    }

    /// Adds a device that leaves whole while the guest is stopped.
    ///
    /// # Panics
    /// As [`Self::register_live`].
    pub fn register_device(
        &mut self,
        idstr: &str,
        instance_id: u32,
        priority: Priority,
        device: Box<dyn Device>,
    ) {
        let version = device.version();
        self.register(idstr, instance_id, version, priority, EntryState::Device(device));
    }

    /// Adds a device section that is replayed as it was received. It can be sent, not loaded.
    ///
    /// # Panics
    /// As [`Self::register_live`].
    pub fn register_opaque(&mut self, idstr: &str, instance_id: u32, section: Opaque) {
        self.register(idstr, instance_id, section.version, Priority::Default, EntryState::Opaque(section));
    }

    /// The handler of the guest's RAM with its entry, if there is one.
    pub(crate) fn ram_mut(&mut self) -> Option<(&EntryIdentity, &mut RamHandler)> {
        self.entries.iter_mut().find_map(|entry| match &mut entry.state {
            EntryState::Ram(ram) => Some((&entry.identity, ram.as_mut())),
            _ => None,
        })
    }

    /// What the RAM handler counts, if there is one.
    pub fn ram_counters(&self) -> Option<Arc<RamCounters>> {
        self.ram.clone()
    }

    /// The same counters, zeroed for a migration that begins.
    pub(crate) fn count_anew(&self) -> Option<Arc<RamCounters>> {
        self.ram.as_ref().inspect(|counters| counters.reset()).cloned()
    }

    /// A copy of those counters; zeros without RAM.
    pub(crate) fn ram_statistics(&self) -> RamStatistics {
        self.ram.as_ref().map(|counters| counters.snapshot()).unwrap_or_default()
    }

    /// Notes the run state that the next save sends along.
    pub(crate) fn set_run_state(&self, state: RunState) {
        if let Some(global_state) = &self.global_state {
            global_state.lock().set(state);
        }
    }

    /// Whether the guest that was loaded ran where it came from.
    pub(crate) fn was_running(&self) -> bool {
        self.global_state.as_ref().is_some_and(|state| state.lock().was_running())
    }

    /// The entries in the order in which they leave.
    pub fn entries(&self) -> impl Iterator<Item = &SaveStateEntry> {
        self.entries.iter()
    }

    pub(super) fn entries_mut(&mut self) -> impl Iterator<Item = &mut SaveStateEntry> {
        self.entries.iter_mut()
    }

    pub(super) fn position(&self, idstr: &str, instance_id: u32) -> Option<usize> {
        self.entries.iter().position(|entry| entry.identity.is(idstr, instance_id))
    }

    pub(super) fn entry(&self, position: usize) -> &SaveStateEntry {
        &self.entries[position]
    }

    pub(super) fn entry_mut(&mut self, position: usize) -> &mut SaveStateEntry {
        &mut self.entries[position]
    }

    fn register(
        &mut self,
        idstr: &str,
        instance_id: u32,
        version_id: u32,
        priority: Priority,
        state: EntryState,
    ) {
        assert!((1..=255).contains(&idstr.len()), "an idstr has 1 to 255 bytes, not {}", idstr.len());
        assert!(self.position(idstr, instance_id).is_none(), "{idstr}/{instance_id} is registered twice");
        let identity =
            EntryIdentity { idstr: idstr.to_owned(), instance_id, section_id: SectionId(0), version_id };
        // Behind every entry of the same or a higher class: registration order within a class.
        let at = self.entries.partition_point(|other| other.priority >= priority);
        self.entries.insert(at, SaveStateEntry { identity, priority, state });
        // In the order in which they leave, which is how readers that look for footers know them; not from 0, which
        // QEMU's receiver takes for "not yet seen" (wire 1.4, 8).
        for (id, entry) in (1..).zip(&mut self.entries) {
            entry.identity.section_id = SectionId(id);
        }
    }
}

impl fmt::Debug for SaveVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.entries.iter().map(|entry| &entry.identity);
        f.debug_struct("SaveVm").field("configuration", &self.configuration).finish_non_exhaustive()?;
        f.debug_list().entries(names).finish()
    }
}

//! The handler that the savevm list calls; its two halves are in `save` and `load`.

use super::counters::RamCounters;
use super::load::RamLoad;
use super::save::RamSave;
use crate::error::{LoadFault, SaveFault};
use crate::savevm::{Budget, LiveState, LoadSetup, SaveSetup, Switchover};
use crate::stream::{StreamReader, StreamWriter};
use limosa_pages::ByteCount;
use limosa_ram::{DirtyLog, GuestRam};
use std::sync::Arc;

/// Guest RAM as a live entry of the savevm list.
///
/// One handler serves a guest for its whole life here: it receives the guest, and sends it on.
pub struct RamHandler {
    ram: GuestRam,
    dirty_log: Option<Box<dyn DirtyLog>>,
    counters: Arc<RamCounters>,
    saving: Option<RamSave>,
    loading: Option<RamLoad>,
}

impl RamHandler {
    /// A handler for `ram`. Without a dirty log the guest can be received, but not sent while it runs.
    pub fn new(ram: GuestRam, dirty_log: Option<Box<dyn DirtyLog>>) -> Self {
        Self { ram, dirty_log, counters: Arc::default(), saving: None, loading: None }
    }

    /// What the handler counts; to be read by anybody at any time.
    pub fn counters(&self) -> Arc<RamCounters> {
        Arc::clone(&self.counters)
    }

    fn saving(&mut self) -> (&mut RamSave, &mut dyn DirtyLog) {
        match (&mut self.saving, &mut self.dirty_log) {
            (Some(saving), Some(log)) => (saving, log.as_mut()),
            _ => unreachable!("the list calls save_setup before every other save call"),
        }
    }
}

impl LiveState for RamHandler {
    fn save_setup(&mut self, setup: &SaveSetup<'_>, out: &mut StreamWriter) -> Result<(), SaveFault> {
        let log = self.dirty_log.as_deref_mut().ok_or(SaveFault::NoDirtyLog)?;
        let saving = RamSave::begin(self.ram.clone(), log, setup, Arc::clone(&self.counters))?;
        self.saving.insert(saving).write_setup(out)
    }

    fn sync(&mut self) -> Result<(), SaveFault> {
        let (saving, log) = self.saving();
        saving.sync(log)
    }

    fn state_pending(&self) -> ByteCount {
        self.saving.as_ref().map_or(ByteCount(0), RamSave::pending)
    }

    fn save_live_iterate(&mut self, out: &mut StreamWriter, budget: &mut Budget) -> Result<(), SaveFault> {
        let (saving, log) = self.saving();
        saving.write_pages(log, out, |sent| {
            budget.spend(sent);
            budget.is_exhausted()
        })?;
        saving.write_end(out)
    }

    fn save_live_complete_precopy(&mut self, out: &mut StreamWriter) -> Result<(), SaveFault> {
        let (saving, log) = self.saving();
        saving.write_pages(log, out, |_| false)?;
        saving.write_end(out)
    }

    fn has_postcopy(&self) -> bool {
        false
    }

    fn save_cleanup(&mut self) -> Result<(), SaveFault> {
        // Channels end with it: the other side has all that it needs of them, or will never run the guest.
        self.saving = None;
        if let Some(log) = &mut self.dirty_log {
            log.stop()?;
        }
        Ok(())
    }

    fn load_setup(&mut self, setup: &LoadSetup) -> Result<(), LoadFault> {
        let links = setup.channels.lock().take();
        self.loading = Some(RamLoad::begin(self.ram.clone(), Arc::clone(&self.counters), links)?);
        Ok(())
    }

    fn load_state(&mut self, input: &mut StreamReader) -> Result<(), LoadFault> {
        self.loading.as_mut().expect("the list calls load_setup before load_state").read_section(input)
    }

    fn load_complete(&mut self) -> Result<(), LoadFault> {
        let loading = self.loading.take().expect("the list calls load_setup before load_complete");
        loading.check_whole()?;
        loading.close()
    }

    fn load_cleanup(&mut self) -> Result<(), LoadFault> {
        // Still there only if the stream was not complete: a channel may have been the reason.
        self.loading.take().map_or(Ok(()), RamLoad::give_up)
    }

    fn switchover(&mut self, _change: Switchover) {
        // Nothing to prepare: the last sync and the END section see to the rest.
    }
}

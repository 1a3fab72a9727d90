//! The handler that the savevm list calls; its two halves are in `save` and `load`.

use super::counters::RamCounters;
use super::load::{PostcopyRam, RamLoad};
use super::save::{RamSave, UrgentPath};
use crate::error::{LoadFault, SaveFault};
use crate::savevm::{Budget, LiveState, LoadSetup, SaveSetup, SendLinks, Switchover};
use crate::stream::{StreamReader, StreamWriter};
use limosa_pages::{BlockName, ByteCount, DirtyMap, PageCount, RamLayout, ReceivedMap};
use limosa_postcopy::UffdError;
use limosa_ram::{DirtyLog, GuestRam};
use limosa_wire::{DiscardRange, RamContext};
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
    /// What the next stream's block list has; ADVISE says so before it.
    context: RamContext,
}

impl RamHandler {
    /// A handler for `ram`. Without a dirty log the guest can be received, but not sent while it runs.
    pub fn new(ram: GuestRam, dirty_log: Option<Box<dyn DirtyLog>>) -> Self {
        Self {
            ram,
            dirty_log,
            counters: Arc::default(),
            saving: None,
            loading: None,
            context: RamContext::new(),
        }
    }

    /// What the handler counts; to be read by anybody at any time.
    pub fn counters(&self) -> Arc<RamCounters> {
        Arc::clone(&self.counters)
    }

    /// The blocks.
    pub(crate) fn layout(&self) -> &RamLayout {
        self.ram.layout()
    }

    fn saving(&mut self) -> (&mut RamSave, &mut dyn DirtyLog) {
        match (&mut self.saving, &mut self.dirty_log) {
            (Some(saving), Some(log)) => (saving, log.as_mut()),
            _ => unreachable!("the list calls save_setup before every other save call"),
        }
    }
}

/// The sending half of postcopy. All are called after `save_setup`.
impl RamHandler {
    /// Whether pages are on their way that could be overtaken by what follows on the main channel.
    pub(crate) fn is_racing(&self) -> bool {
        self.saving.as_ref().is_some_and(RamSave::is_racing)
    }

    /// Writes the body of a section behind which no page is in flight.
    pub(crate) fn save_barrier(&mut self, out: &mut StreamWriter) -> Result<(), SaveFault> {
        self.saving().0.write_barrier(out)
    }

    /// Appends commands that take back what is stale on the destination already, and says how many pages they name.
    pub(crate) fn save_discards_ahead(&mut self, out: &mut Vec<u8>) -> PageCount {
        self.saving().0.write_discards_ahead(out)
    }

    /// Appends commands that take back what is stale on the destination and was not named before.
    pub(crate) fn save_discards(&mut self, out: &mut Vec<u8>) {
        self.saving().0.write_discards(out);
    }

    /// The guest moves: what is owed, to be shared with whoever serves requests.
    pub(crate) fn begin_postcopy(&mut self) -> (GuestRam, Arc<DirtyMap>) {
        let ram = self.ram.clone();
        (ram, self.saving().0.begin_postcopy())
    }

    /// Writes the body of a PART section: owed pages, asked-for ones first, as far as `budget` reaches.
    pub(crate) fn push(
        &mut self,
        urgent: &UrgentPath,
        out: &mut StreamWriter,
        budget: &mut Budget,
    ) -> Result<(), SaveFault> {
        let saving = self.saving().0;
        let pushed = saving.push(urgent, out, |sent| {
            budget.spend(sent);
            budget.is_exhausted()
        });
        saving.end_body(pushed, out)
    }

    /// Writes the body of a PART section: asked-for pages and nothing else.
    pub(crate) fn save_requested(
        &mut self,
        urgent: &UrgentPath,
        out: &mut StreamWriter,
    ) -> Result<(), SaveFault> {
        let saving = self.saving().0;
        let written = saving.write_requested(urgent, out);
        saving.end_body(written, out)
    }

    /// The multifd channels of a new connection, to be brought into line before the next push.
    pub(crate) fn open_channels(&mut self, links: SendLinks) -> Result<(), SaveFault> {
        self.saving().0.open_channels(links)
    }

    /// Ends the threads of the multifd channels, whose connections are lost.
    pub(crate) fn drop_channels(&mut self) {
        self.saving().0.drop_channels();
    }

    /// Owes exactly what the destination lacks.
    pub(crate) fn owe_missing(&mut self, received: &ReceivedMap) {
        self.saving().0.owe_missing(received);
    }
}

/// The receiving half of postcopy.
impl RamHandler {
    /// Whether this process may watch for faults of this guest.
    pub(crate) fn can_postcopy(&self) -> Result<(), UffdError> {
        limosa_postcopy::probe(&self.ram)
    }

    /// Postcopy may follow: faults can be watched here, and the memory is empty (wire 5.2).
    pub(crate) fn prepare_postcopy(&mut self) -> Result<(), LoadFault> {
        self.can_postcopy()?;
        self.context = RamContext::new().with_postcopy(self.ram.layout());
        for (_, block) in self.ram.iter() {
            block.punch(block.whole())?;
        }
        Ok(())
    }

    /// Drops what is stale.
    pub(crate) fn discard(&mut self, block: &BlockName, ranges: &[DiscardRange]) -> Result<(), LoadFault> {
        self.loading().discard(block, ranges)
    }

    /// Watches for faults: the pages that are missing come to what is returned, while devices are loaded here.
    pub(crate) fn listen(&mut self) -> Result<PostcopyRam, LoadFault> {
        self.loading.take().expect(LOADING).listen()
    }

    fn loading(&mut self) -> &mut RamLoad {
        self.loading.as_mut().expect(LOADING)
    }
}

/// What is wrong if there is nothing that loads.
const LOADING: &str = "the list calls load_setup before every other load call";

impl LiveState for RamHandler {
    fn save_setup(&mut self, setup: &SaveSetup<'_>, out: &mut StreamWriter) -> Result<(), SaveFault> {
        let log = self.dirty_log.as_deref_mut().ok_or(SaveFault::NoDirtyLog)?;
        let saving = RamSave::begin(self.ram.clone(), log, setup, Arc::clone(&self.counters))?;
        self.saving.insert(saving).write_setup(setup.capabilities.postcopy_ram, out)
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
        let context = std::mem::take(&mut self.context);
        self.loading = Some(RamLoad::begin(self.ram.clone(), Arc::clone(&self.counters), links, context)?);
        Ok(())
    }

    fn load_state(&mut self, input: &mut StreamReader) -> Result<(), LoadFault> {
        self.loading().read_section(input)
    }

    fn load_complete(&mut self) -> Result<(), LoadFault> {
        let loading = self.loading.take().expect(LOADING);
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

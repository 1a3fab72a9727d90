//! The source's walks over the list. Each section gets its header and footer here.

use super::entry::{Budget, EntryIdentity, EntryState, LiveState, SaveSetup, SaveStateEntry, Switchover};
use super::list::SaveVm;
use crate::error::{SaveError, SaveFault, SavePhase};
use crate::stream::StreamWriter;
use crate::vmdescription::VmDescription;
use limosa_pages::ByteCount;
use limosa_wire::{ContinueKind, StartKind, encode};

impl SaveVm {
    /// Writes a START section for every live entry.
    ///
    /// # Errors
    /// The first entry that fails, or the link.
    pub fn save_setup(&mut self, setup: &SaveSetup<'_>, out: &mut StreamWriter) -> Result<(), SaveError> {
        self.for_each_live(SavePhase::Setup, |entry, live| {
            encode::section_start(&entry.header(StartKind::Start), out.buffer());
            live.save_setup(setup, out)?;
            encode::footer(entry.section_id, out.buffer());
            Ok(())
        })
    }

    /// Asks every live entry to learn what changed.
    ///
    /// # Errors
    /// The first entry that fails.
    pub fn sync(&mut self) -> Result<(), SaveError> {
        self.for_each_live(SavePhase::Sync, |_, live| live.sync())
    }

    /// What all live entries have pending.
    pub fn state_pending(&self) -> ByteCount {
        let pending =
            |entry: &SaveStateEntry| entry.state.live().map_or(ByteCount(0), LiveState::state_pending);
        self.entries().map(pending).sum()
    }

    /// Writes one PART section for every live entry that has something pending, until `budget` is used up.
    ///
    /// # Errors
    /// The first entry that fails, or the link.
    pub fn save_live_iterate(
        &mut self,
        out: &mut StreamWriter,
        budget: &mut Budget,
    ) -> Result<(), SaveError> {
        self.for_each_live(SavePhase::Iterate, |entry, live| {
            if budget.is_exhausted() || live.state_pending() == ByteCount(0) {
                return Ok(());
            }
            encode::section_continue(ContinueKind::Part, entry.section_id, out.buffer());
            live.save_live_iterate(out, budget)?;
            encode::footer(entry.section_id, out.buffer());
            Ok(())
        })
    }

    /// Tells every live entry that the guest was stopped for good, or runs here again.
    pub fn switchover(&mut self, change: Switchover) {
        for entry in self.entries_mut() {
            if let Some(live) = entry.state.live_mut() {
                live.switchover(change);
            }
        }
    }

    /// Writes an END section for every live entry. The guest is stopped.
    ///
    /// # Errors
    /// The first entry that fails, or the link.
    pub fn save_live_complete_precopy(&mut self, out: &mut StreamWriter) -> Result<(), SaveError> {
        self.for_each_live(SavePhase::Complete, |entry, live| {
            encode::section_continue(ContinueKind::End, entry.section_id, out.buffer());
            live.save_live_complete_precopy(out)?;
            encode::footer(entry.section_id, out.buffer());
            Ok(())
        })
    }

    /// Appends a FULL section for every device to `out`, and describes each in `description`. The guest is stopped.
    ///
    /// Device state is small beside RAM, and postcopy must know its length before its first byte leaves: it is
    /// collected, not streamed.
    ///
    /// # Errors
    /// The first device that fails.
    pub fn save_devices(
        &mut self,
        out: &mut Vec<u8>,
        description: &mut VmDescription,
    ) -> Result<(), SaveError> {
        for entry in self.entries_mut() {
            save_device(entry, out, description)
                .map_err(|source| SaveError::new(&entry.identity, SavePhase::Devices, source))?;
        }
        Ok(())
    }

    /// Ends the outgoing migration for every live entry; all are told, the first failure is returned.
    ///
    /// # Errors
    /// The first entry that fails.
    pub fn save_cleanup(&mut self) -> Result<(), SaveError> {
        let mut first = Ok(());
        for entry in self.entries_mut() {
            if let Some(live) = entry.state.live_mut()
                && let Err(source) = live.save_cleanup()
            {
                first = first.and(Err(SaveError::new(&entry.identity, SavePhase::Cleanup, source)));
            }
        }
        first
    }

    fn for_each_live(
        &mut self,
        phase: SavePhase,
        mut walk: impl FnMut(&EntryIdentity, &mut dyn LiveState) -> Result<(), SaveFault>,
    ) -> Result<(), SaveError> {
        for entry in self.entries_mut() {
            if let Some(live) = entry.state.live_mut() {
                walk(&entry.identity, live)
                    .map_err(|source| SaveError::new(&entry.identity, phase, source))?;
            }
        }
        Ok(())
    }
}

fn save_device(
    entry: &mut SaveStateEntry,
    out: &mut Vec<u8>,
    description: &mut VmDescription,
) -> Result<(), SaveFault> {
    let identity = &entry.identity;
    let (body, described) = match &mut entry.state {
        EntryState::Live(_) | EntryState::Ram(_) => return Ok(()),
        EntryState::Device(device) if !device.needed() => return Ok(()),
        EntryState::Device(device) => {
            let saved = device.save()?;
            (saved.body.clone(), saved.into_entry(&identity.idstr, identity.instance_id))
        }
        EntryState::Opaque(opaque) => (opaque.body.clone(), opaque.described(identity)),
    };
    encode::section_start(&identity.header(StartKind::Full), out);
    out.extend_from_slice(&body);
    encode::footer(identity.section_id, out);
    description.push(described);
    Ok(())
}

//! The destination's side of the list: which section is whose, and whether all came.

use super::entry::{EntryState, LiveState, LoadSetup, SaveStateEntry};
use super::list::SaveVm;
use crate::error::{LoadFault, Place};
use crate::stream::StreamReader;
use limosa_protocol::EntryIndex;
use limosa_wire::{SectionHeader, SectionId, StartKind};
use std::collections::HashMap;

/// One incoming migration's way through the list. Order and repetition are the machine's affair.
#[derive(Debug, Default)]
pub(crate) struct LoadProgress {
    /// Entries by the sender's section id.
    sections: HashMap<SectionId, usize>,
}

impl SaveVm {
    /// Prepares every live entry.
    pub(crate) fn load_setup(&mut self, setup: &LoadSetup) -> Result<(), (Place, LoadFault)> {
        for entry in self.entries_mut() {
            if let Some(live) = entry.state.live_mut() {
                live.load_setup(setup).map_err(|fault| (entry.place(), fault))?;
            }
        }
        Ok(())
    }

    /// Finds the entry of a START or FULL section, and checks that it can read this kind and version.
    pub(crate) fn open(
        &self,
        progress: &mut LoadProgress,
        header: &SectionHeader,
    ) -> Result<EntryIndex, LoadFault> {
        let (idstr, instance_id) = (&header.idstr, header.instance_id);
        let position = self
            .position(idstr, instance_id)
            .ok_or_else(|| LoadFault::UnknownSection { idstr: idstr.clone(), instance_id })?;
        let entry = self.entry(position);
        let version = entry.identity.version_id;
        match (&entry.state, header.kind) {
            (EntryState::Live(_) | EntryState::Ram(_), StartKind::Start) => {
                check_version(header.version_id, version, version)?
            }
            (EntryState::Device(device), StartKind::Full) => {
                check_version(header.version_id, device.minimum_version(), device.version())?;
            }
            (state, kind) => {
                return Err(LoadFault::SectionKind { expected: state.kind(), got: kind_name(kind) });
            }
        }
        progress.sections.insert(header.id, position);
        Ok(EntryIndex(position as u32))
    }

    /// Reads the body of an opened section.
    pub(crate) fn load(
        &mut self,
        progress: &LoadProgress,
        id: SectionId,
        version: u32,
        input: &mut StreamReader,
    ) -> Result<(), LoadFault> {
        let position = *progress.sections.get(&id).ok_or(LoadFault::UnknownSectionId { id: id.0 })?;
        match &mut self.entry_mut(position).state {
            EntryState::Live(live) => live.load_state(input),
            EntryState::Ram(ram) => ram.load_state(input),
            EntryState::Device(device) => Ok(device.load(version, input)?),
            EntryState::Opaque(_) => unreachable!("open refuses sections of opaque entries"),
        }
    }

    /// Where in the stream an error about section `id` belongs.
    pub(crate) fn place_of(&self, progress: &LoadProgress, id: SectionId) -> Place {
        progress.sections.get(&id).map_or(Place::BetweenSections, |position| self.entry(*position).place())
    }

    /// Checks that nothing is missing: every live entry came and is whole, and so did every device that is worth a
    /// section in the state that it has now. That live entries came to their end is the machine's affair.
    pub(crate) fn check_complete(&mut self, progress: &LoadProgress) -> Result<(), (Place, LoadFault)> {
        self.check_all_came(progress)?;
        for entry in self.entries_mut() {
            if let Some(live) = entry.state.live_mut() {
                live.load_complete().map_err(|fault| (entry.place(), fault))?;
            }
        }
        Ok(())
    }

    /// As [`Self::check_complete`], of everything but RAM, whose pages follow.
    pub(crate) fn check_devices(&mut self, progress: &LoadProgress) -> Result<(), (Place, LoadFault)> {
        self.check_all_came(progress)?;
        for entry in self.entries_mut() {
            if let EntryState::Live(live) = &mut entry.state {
                live.load_complete().map_err(|fault| (entry.place(), fault))?;
            }
        }
        Ok(())
    }

    /// The sender's number for the section of RAM, if it has come.
    pub(crate) fn ram_section(&self, progress: &LoadProgress) -> Option<SectionId> {
        let is_ram = |position: usize| matches!(self.entry(position).state, EntryState::Ram(_));
        progress.sections.iter().find_map(|(id, position)| is_ram(*position).then_some(*id))
    }

    fn check_all_came(&self, progress: &LoadProgress) -> Result<(), (Place, LoadFault)> {
        for (position, entry) in self.entries().enumerate() {
            let expected = match &entry.state {
                EntryState::Live(_) | EntryState::Ram(_) => true,
                EntryState::Device(device) => device.needed(),
                EntryState::Opaque(_) => false,
            };
            if expected && !progress.sections.values().any(|seen| *seen == position) {
                let identity = &entry.identity;
                let (idstr, instance_id) = (identity.idstr.clone(), identity.instance_id);
                return Err((Place::End, LoadFault::Missing { idstr, instance_id }));
            }
        }
        Ok(())
    }

    /// Ends the incoming migration for every live entry; all are told, the first failure is returned.
    pub(crate) fn load_cleanup(&mut self) -> Result<(), (Place, LoadFault)> {
        let mut first = Ok(());
        for entry in self.entries_mut() {
            if let Some(live) = entry.state.live_mut()
                && let Err(fault) = live.load_cleanup()
            {
                first = first.and(Err((entry.place(), fault)));
            }
        }
        first
    }
}

impl SaveStateEntry {
    fn place(&self) -> Place {
        let identity = &self.identity;
        Place::Section { idstr: identity.idstr.clone(), instance_id: identity.instance_id }
    }
}

fn check_version(got: u32, minimum: u32, maximum: u32) -> Result<(), LoadFault> {
    if (minimum..=maximum).contains(&got) {
        Ok(())
    } else {
        Err(LoadFault::Version { got, minimum, maximum })
    }
}

fn kind_name(kind: StartKind) -> &'static str {
    match kind {
        StartKind::Start => "live state",
        StartKind::Full => "a device",
    }
}

impl EntryState {
    fn kind(&self) -> &'static str {
        match self {
            Self::Live(_) | Self::Ram(_) => "live state",
            Self::Device(_) => "a device",
            Self::Opaque(_) => "nothing, because it is kept for sending only",
        }
    }
}

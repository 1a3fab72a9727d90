//! Which sections a stream has opened, and which of the live ones still owe their end.

use super::interface::{EntryIndex, SectionKind};
use super::outcome::DestinationFailure;
use limosa_wire::SectionId;
use std::collections::{BTreeMap, BTreeSet};

/// Most sections of one stream (I11). A machine of 4096 vCPUs has two each (CPU and local APIC), 8192; its devices fit
/// into as many again.
pub const SECTIONS_MAX: usize = 16_384;

/// Live sections under way.
pub(super) type LiveSections = BTreeMap<SectionId, Progress>;

#[derive(Debug, Default)]
pub(super) struct SectionTable {
    sections: BTreeMap<SectionId, Progress>,
    entries: BTreeSet<EntryIndex>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// A live section that has started.
    Started,
    /// A live section that has ended, or a device.
    Whole,
}

impl SectionTable {
    /// Notes a section header, if it is allowed where it stands.
    pub(super) fn open(&mut self, id: SectionId, kind: SectionKind) -> Result<(), DestinationFailure> {
        match kind {
            SectionKind::Start(entry) => self.add(id, entry, Progress::Started),
            SectionKind::Full(entry) => self.add(id, entry, Progress::Whole),
            SectionKind::Part | SectionKind::End => match self.sections.get_mut(&id) {
                Some(progress @ Progress::Started) => {
                    if kind == SectionKind::End {
                        *progress = Progress::Whole;
                    }
                    Ok(())
                }
                _ => Err(DestinationFailure::NotLive { kind: kind.name(), id }),
            },
        }
    }

    /// The live sections that have not ended.
    pub(super) fn live(&self) -> LiveSections {
        let started = self.sections.iter().filter(|(_, progress)| **progress == Progress::Started);
        started.map(|(id, progress)| (*id, *progress)).collect()
    }

    /// The first live section that has not ended.
    pub(super) fn unended(&self) -> Option<SectionId> {
        let mut started = self.sections.iter().filter(|(_, progress)| **progress == Progress::Started);
        started.next().map(|(id, _)| *id)
    }

    fn add(
        &mut self,
        id: SectionId,
        entry: EntryIndex,
        progress: Progress,
    ) -> Result<(), DestinationFailure> {
        if self.sections.len() >= SECTIONS_MAX {
            return Err(DestinationFailure::TooManySections { limit: SECTIONS_MAX });
        }
        if self.sections.insert(id, progress).is_some() {
            return Err(DestinationFailure::DuplicateId { id });
        }
        if !self.entries.insert(entry) {
            return Err(DestinationFailure::DuplicateEntry { id });
        }
        Ok(())
    }
}

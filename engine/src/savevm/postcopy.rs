//! The source's walks over the list once postcopy is wanted: RAM stays behind and follows, everything else moves at once.

use super::entry::{Budget, EntryIdentity, EntryState, SendLinks};
use super::list::SaveVm;
use crate::error::{SaveError, SaveFault, SavePhase};
use crate::ram::{RamHandler, UrgentPath};
use crate::stream::StreamWriter;
use crossbeam_channel::Receiver;
use limosa_pages::{DirtyMap, PAGE_BYTES, PageCount, RamLayout, ReceivedMap};
use limosa_postcopy::UffdError;
use limosa_ram::GuestRam;
use limosa_wire::{ContinueKind, PostcopyAdvice, encode};
use std::sync::Arc;

impl SaveVm {
    /// The blocks of the guest's RAM; `None` without any.
    pub(crate) fn ram_layout(&self) -> Option<RamLayout> {
        self.entries().find_map(|entry| match &entry.state {
            EntryState::Ram(ram) => Some(ram.layout().clone()),
            _ => None,
        })
    }

    /// What both sides of a postcopy must know of each other's pages; `None` without RAM.
    pub(crate) fn postcopy_advice(&self) -> Option<PostcopyAdvice> {
        let layout = self.ram_layout()?;
        let page_size_summary = layout.iter().fold(0, |sizes, (_, block)| sizes | block.page_size.bytes());
        Some(PostcopyAdvice { page_size_summary, target_page_size: PAGE_BYTES as u64 })
    }

    /// Whether this process may watch for faults of this guest.
    pub(crate) fn can_postcopy(&self) -> Result<(), UffdError> {
        self.entries().try_for_each(|entry| match &entry.state {
            EntryState::Ram(ram) => ram.can_postcopy(),
            _ => Ok(()),
        })
    }

    /// Brings the multifd channels into line in a section of RAM, where pages still race each other (I5).
    pub(crate) fn bring_into_line(&mut self, out: &mut StreamWriter) -> Result<(), SaveError> {
        self.with_ram(SavePhase::Iterate, |identity, ram| {
            if !ram.is_racing() {
                return Ok(());
            }
            section(ContinueKind::Part, identity, out, |out| ram.save_barrier(out))
        })
    }

    /// Writes an END section for every live entry but RAM. The guest is stopped.
    pub(crate) fn save_live_complete_for_postcopy(
        &mut self,
        out: &mut StreamWriter,
    ) -> Result<(), SaveError> {
        for entry in self.entries_mut() {
            if let EntryState::Live(live) = &mut entry.state {
                let identity = &entry.identity;
                section(ContinueKind::End, identity, out, |out| live.save_live_complete_precopy(out))
                    .map_err(|source| SaveError::new(identity, SavePhase::Complete, source))?;
            }
        }
        Ok(())
    }

    /// Writes commands that take back what is stale on the destination already; the guest runs. Returns how many pages no
    /// earlier one had named.
    pub(crate) fn save_discards_ahead(&mut self, out: &mut StreamWriter) -> Result<PageCount, SaveError> {
        let mut pages = PageCount(0);
        self.with_ram(SavePhase::Complete, |_, ram| {
            pages = ram.save_discards_ahead(out.buffer());
            Ok(out.flush()?)
        })?;
        Ok(pages)
    }

    /// Writes commands that take back what is stale on the destination and was not named before.
    pub(crate) fn save_discards(&mut self, out: &mut StreamWriter) -> Result<(), SaveError> {
        self.with_ram(SavePhase::Complete, |_, ram| {
            ram.save_discards(out.buffer());
            Ok(out.flush()?)
        })
    }

    /// The guest moves: its memory and what is owed of it, to be shared with whoever serves requests. `None` without RAM.
    pub(crate) fn begin_postcopy(&mut self) -> Option<(GuestRam, Arc<DirtyMap>)> {
        self.ram_mut().map(|(_, ram)| ram.begin_postcopy())
    }

    /// Writes a PART section of owed pages, asked-for ones first, as far as `budget` reaches.
    pub(crate) fn push(
        &mut self,
        urgent: &UrgentPath,
        out: &mut StreamWriter,
        budget: &mut Budget,
    ) -> Result<(), SaveError> {
        self.with_ram(SavePhase::Push, |identity, ram| {
            section(ContinueKind::Part, identity, out, |out| ram.push(urgent, out, budget))
        })
    }

    /// Writes a PART section of pages that somebody waits for, if there are any, and nothing else.
    pub(crate) fn save_requested(
        &mut self,
        urgent: &UrgentPath,
        out: &mut StreamWriter,
    ) -> Result<(), SaveError> {
        if urgent.claimed.as_ref().is_none_or(Receiver::is_empty) {
            return Ok(());
        }
        self.with_ram(SavePhase::Push, |identity, ram| {
            section(ContinueKind::Part, identity, out, |out| ram.save_requested(urgent, out))
        })
    }

    /// Writes the END section of RAM, of which nothing is owed any more.
    pub(crate) fn save_live_complete_postcopy(&mut self, out: &mut StreamWriter) -> Result<(), SaveError> {
        self.with_ram(SavePhase::Complete, |identity, ram| {
            section(ContinueKind::End, identity, out, |out| ram.save_barrier(out))
        })
    }

    /// Multifd channels of a new connection, for the push.
    pub(crate) fn open_channels(&mut self, links: SendLinks) -> Result<(), SaveError> {
        self.with_ram(SavePhase::Push, |_, ram| ram.open_channels(links))
    }

    /// Ends the threads that have sent pages over a connection that is lost.
    pub(crate) fn drop_channels(&mut self) {
        if let Some((_, ram)) = self.ram_mut() {
            ram.drop_channels();
        }
    }

    /// Owes the destination exactly what it lacks, over a new connection (I1).
    pub(crate) fn owe_missing(&mut self, received: &ReceivedMap) {
        if let Some((_, ram)) = self.ram_mut() {
            ram.owe_missing(received);
        }
    }

    /// Runs `step` on the guest's RAM, if it has any.
    fn with_ram(
        &mut self,
        phase: SavePhase,
        step: impl FnOnce(&EntryIdentity, &mut RamHandler) -> Result<(), SaveFault>,
    ) -> Result<(), SaveError> {
        let Some((identity, ram)) = self.ram_mut() else { return Ok(()) };
        step(identity, ram).map_err(|source| SaveError::new(identity, phase, source))
    }
}

/// Writes a section that continues an entry's state. One that a lost channel breaks off is ended all the same: the main
/// stream may go on.
fn section(
    kind: ContinueKind,
    identity: &EntryIdentity,
    out: &mut StreamWriter,
    body: impl FnOnce(&mut StreamWriter) -> Result<(), SaveFault>,
) -> Result<(), SaveFault> {
    encode::section_continue(kind, identity.section_id, out.buffer());
    let written = body(out);
    if matches!(written, Ok(()) | Err(SaveFault::Channel(_))) {
        encode::footer(identity.section_id, out.buffer());
    }
    written
}

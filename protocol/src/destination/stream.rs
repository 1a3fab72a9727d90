//! What the main link may carry in postcopy, for the thread that reads it beside the coordinator.

use super::interface::{DestinationEvent, SectionKind};
use super::outcome::DestinationFailure;
use super::sections::{LiveSections, Progress};
use super::state::unexpected;
use limosa_wire::{Command, SectionId};

/// The order of the main link from LISTEN to EOF, and again after every recovery.
///
/// The reader asks it about each item before it reads on, so that a page never waits for the coordinator, which may itself
/// wait for that page while it loads a device.
#[derive(Debug)]
pub struct PostcopyStream {
    live: LiveSections,
    open: Option<SectionId>,
    require_end_sections: bool,
}

impl PostcopyStream {
    pub(super) const NAME: &'static str = "postcopy stream";

    pub(super) const fn new(live: LiveSections, require_end_sections: bool) -> Self {
        Self { live, open: None, require_end_sections }
    }

    /// Takes in what was read. `Some` is to be handed to [`Destination`](super::Destination), in order; after `None` the
    /// reader goes on, with the body of a section that has just opened.
    ///
    /// # Errors
    /// Something that may not come. Hand it over as [`DestinationEvent::StreamRefused`] and read no more.
    pub fn on(&mut self, event: DestinationEvent) -> Result<Option<DestinationEvent>, DestinationFailure> {
        match event {
            DestinationEvent::SectionOpened { id, kind } if self.open.is_none() => {
                let progress = self.live.get_mut(&id).filter(|progress| **progress == Progress::Started);
                let not_live = DestinationFailure::NotLive { kind: kind.name(), id };
                match (progress, kind) {
                    (Some(_), SectionKind::Part) => {}
                    (Some(progress), SectionKind::End) => *progress = Progress::Whole,
                    _ => return Err(not_live),
                }
                self.open = Some(id);
                Ok(None)
            }
            DestinationEvent::SectionLoaded { id } if self.open == Some(id) => {
                self.open = None;
                Ok(None)
            }
            DestinationEvent::CommandRead(
                Command::Ping(_)
                | Command::RecvBitmap { .. }
                | Command::PostcopyResume
                | Command::ReplaceLinks,
            ) if self.open.is_none() => Ok(Some(event)),
            DestinationEvent::EndOfStream if self.open.is_none() => {
                let unended = self.live.iter().find(|(_, progress)| **progress == Progress::Started);
                match unended.filter(|_| self.require_end_sections) {
                    Some((id, _)) => Err(DestinationFailure::Unended { id: *id }),
                    None => Ok(Some(event)),
                }
            }
            event => Err(unexpected(Self::NAME, "pages, PING or EOF", &event)),
        }
    }
}

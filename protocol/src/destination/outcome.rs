//! How a destination ended.

use crate::error::{Loss, ProtocolError};
use crate::status::{GuestFate, MigrationStatus};
use limosa_pages::PageCount;
use limosa_wire::{Features, MultifdSettings, PostcopyAdvice, SectionId};
use std::fmt;

/// How an incoming migration ended, and where the guest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationOutcome {
    /// What happened.
    pub ending: DestinationEnding,
    /// Whose the guest is. `OnSource` means that it never ran here and never will; whether the source can and
    /// will run it is for the source to know.
    pub fate: GuestFate,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationEnding {
    /// The guest is here.
    Completed {
        /// SHUT(0) was sent. `false`: there is no return path, or it was lost before.
        told_source: bool,
        /// What went wrong when it could not matter any more.
        late_failure: Option<DestinationFailure>,
    },
    /// It will never run here.
    Failed(DestinationFailure),
    /// The user called it off; it will never run here.
    Cancelled,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DestinationFailure {
    /// The connection, or the bytes on it.
    #[error(transparent)]
    Lost(Loss),
    /// The source is another kind of machine.
    #[error("the source's configuration does not fit this machine")]
    Configuration,
    /// A section was not accepted.
    #[error("loading {} failed", section_or_header(.section))]
    Load {
        /// The section, if it had opened.
        section: Option<SectionId>,
    },
    /// Something out of order.
    #[error(transparent)]
    Protocol(ProtocolError),
    /// A command that this version knows and does not do.
    #[error("command {command} is not supported")]
    Unsupported {
        /// Its name.
        command: &'static str,
    },
    /// The source has chosen what was not offered to it.
    #[error("the source uses {features}, which was not offered")]
    NotOffered {
        /// What it should not have chosen.
        features: Features,
    },
    /// A setting that must be the same on both sides is not.
    #[error(transparent)]
    Settings(SettingsMismatch),
    /// The source wants answers over a link that has no way back.
    #[error("the source opened a return path on a link that has none")]
    NoReturnPath,
    /// A number was given twice.
    #[error("section id {:#x} is in use", id.0)]
    DuplicateId {
        /// The number.
        id: SectionId,
    },
    /// An entry was sent twice.
    #[error("section {:#x} is for an entry that another section has set already", id.0)]
    DuplicateEntry {
        /// The second section.
        id: SectionId,
    },
    /// A piece of a section that was not started, is a device, or has ended.
    #[error("{kind} for section {:#x}, which is not a live one under way", id.0)]
    NotLive {
        /// PART or END.
        kind: &'static str,
        /// The number.
        id: SectionId,
    },
    /// Too many sections for any machine.
    #[error("more than {limit} sections")]
    TooManySections {
        /// The most that are accepted.
        limit: usize,
    },
    /// EOF came while live state was still missing.
    #[error("EOF before the END of section {:#x}", id.0)]
    Unended {
        /// The first section that had not ended.
        id: SectionId,
    },
    /// The source's pages are not ours.
    #[error("the source has page sizes {source_pages:?}, we have {here:?}")]
    Advice {
        /// The source's.
        source_pages: PostcopyAdvice,
        /// Ours.
        here: PostcopyAdvice,
    },
    /// The source has ended, and not everything is here.
    #[error("{pages} pages are missing at the end of the stream")]
    PagesMissing {
        /// How many.
        pages: PageCount,
    },
    /// The user closed the connection of postcopy.
    #[error("paused by the user")]
    PausedByUser,
    /// The host did not take the guest over.
    #[error("the guest could not be started")]
    Start,
}

/// Multifd settings that differ: pages would not arrive, or could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct SettingsMismatch {
    /// The source's.
    pub theirs: MultifdSettings,
    /// Ours.
    pub ours: MultifdSettings,
}

impl fmt::Display for SettingsMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { theirs, ours } = *self;
        if (theirs.channels == 0) != (ours.channels == 0) {
            let on_off = |channels: u8| if channels == 0 { "off" } else { "on" };
            return differs("multifd", on_off(theirs.channels), on_off(ours.channels), f);
        }
        if theirs.channels != ours.channels {
            differs("multifd-channels", theirs.channels, ours.channels, f)?;
        }
        if theirs.channels != ours.channels && theirs.compression != ours.compression {
            f.write_str("; ")?;
        }
        if theirs.compression != ours.compression {
            differs("multifd-compression", theirs.compression.name(), ours.compression.name(), f)?;
        }
        Ok(())
    }
}

impl DestinationOutcome {
    /// The status that goes with it.
    pub const fn status(&self) -> MigrationStatus {
        match self.ending {
            DestinationEnding::Completed { .. } => MigrationStatus::Completed,
            DestinationEnding::Failed(_) => MigrationStatus::Failed,
            DestinationEnding::Cancelled => MigrationStatus::Cancelled,
        }
    }
}

/// Said the same way on both sides: the source hears these words too.
fn differs<T: fmt::Display>(name: &str, theirs: T, ours: T, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{name}: {theirs} at the source, {ours} at the destination")
}

fn section_or_header(section: &Option<SectionId>) -> String {
    match section {
        Some(id) => format!("section {:#x}", id.0),
        None => "a section header".to_owned(),
    }
}

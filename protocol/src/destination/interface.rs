//! The words between the destination machine and its shell.

use super::outcome::DestinationFailure;
use crate::error::{Loss, Unexpected};
use limosa_pages::{BlockName, PageCount};
use limosa_wire::{
    Command, DiscardRange, Features, MultifdSettings, PostcopyAdvice, ReturnMessage, SectionId,
};

/// Settings of one incoming migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationConfig {
    /// Extensions that a source may choose from.
    pub features: Features,
    /// Our multifd channels. A source that says what it has must have the same.
    pub multifd: MultifdSettings,
    /// The link has a way back. A source that opens a return path over one that has none is refused.
    pub bidirectional: bool,
    /// Acknowledge the switchover as soon as the return path opens; a source that does not wait for it ignores it.
    pub switchover_ack: bool,
    /// Every live section must have ended before EOF. `true` for a live migration: without END(ram) nobody
    /// knows that all RAM is here. A background snapshot of QEMU has no END(ram) (wire 3.5); whoever loads one
    /// says `false`.
    pub require_end_sections: bool,
    /// EOF is followed by a vmdescription, and the guest is not run before it is read whole. Only machines with
    /// `suppress-vmdesc` send none (wire 1.5), and no stream says so: with `false` EOF is the end.
    pub require_vmdescription: bool,
    /// Postcopy is enabled, and these are our pages; a source whose pages differ is refused.
    pub postcopy: Option<PostcopyAdvice>,
}

/// What the shell must do next. Actions are done in order, one at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationAction {
    /// Write this to the return path and flush. No answer, only [`DestinationEvent::Lost`] if it could not leave.
    Send(ReturnMessage),
    /// Let every live handler prepare for what will come: the first section has opened. No answer, only
    /// [`DestinationEvent::LoadFailed`] if that was not possible.
    LoadSetup {
        /// The extensions that the source uses.
        features: Features,
    },
    /// Write REFUSED to the return path, with the reason that will be in the report, and flush. No answer, only
    /// [`DestinationEvent::Lost`] if it could not leave.
    SendReason,
    /// **The commit point of this side.** Take the guest over, into the run state that the source or the user
    /// wants: running, or paused. Answer: [`DestinationEvent::GuestStarted`] or [`DestinationEvent::StartFailed`].
    StartGuest,
    /// Postcopy may follow: empty the RAM, and see to it that faults can be watched. No answer, only
    /// [`DestinationEvent::LoadFailed`].
    PreparePostcopy,
    /// Drop these pages; they count as received no more. No answer, only [`DestinationEvent::LoadFailed`].
    Discard {
        /// The RAM block.
        block: BlockName,
        /// What to drop.
        ranges: Vec<DiscardRange>,
    },
    /// Watch every block for faults, take the preempt link, and hand the main link to a reader of its own, with
    /// [`PostcopyStream`](super::PostcopyStream): pages come from now on while the package is loaded. No answer, only
    /// [`DestinationEvent::LoadFailed`].
    Listen,
    /// The end has been read: wait until every page is received, or no link is left that could bring one. Answer:
    /// [`DestinationEvent::AllReceived`] or [`DestinationEvent::PagesMissing`].
    AwaitPages,
    /// Shut every link of this connection down, join every thread that used one, and drop what they still had to say (I8).
    /// The guest runs on. Answer: [`DestinationEvent::Paused`]; nothing of the old connection is handed in after it.
    Pause,
    /// Give the links beside the main one up: shut them down, join every thread that used one, and drop what they still had
    /// to say (I8). Nobody asks for pages before [`Self::ResumeFaults`]. No answer, only `Lost` of the main link.
    DropLinks,
    /// Answer RECV_BITMAP for this block: a page is received if all of its host page is. No answer, only `Lost`.
    SendBitmap {
        /// The RAM block.
        block: BlockName,
    },
    /// Take the links beside the main one that the source has connected for this recovery: multifd channels, if they carry
    /// the push, then the preempt link. No answer, only [`DestinationEvent::LoadFailed`].
    TakeLinks,
    /// Postcopy goes on: ask again for every page that is waited for. No answer, only `Lost`.
    ResumeFaults,
    /// Close the link and release everything; the outcome is known. No answer.
    Finish,
}

/// What the shell tells the machine, in the order of the stream.
#[derive(Clone, Debug, PartialEq)]
pub enum DestinationEvent {
    /// Magic and version are read and right.
    HeaderRead,
    /// The configuration is read and fits this machine.
    ConfigurationChecked,
    /// The configuration does not fit; the shell keeps the reason.
    ConfigurationRefused,
    /// A command is read.
    CommandRead(Command),
    /// The header of a section is read, and of START and FULL the entry is found and the version accepted.
    SectionOpened {
        /// The number that the source gave it.
        id: SectionId,
        /// Which header.
        kind: SectionKind,
    },
    /// Body and footer of the open section are loaded.
    SectionLoaded {
        /// Its number.
        id: SectionId,
    },
    /// EOF is read.
    EndOfStream,
    /// The vmdescription is read whole.
    VmDescriptionRead,
    /// A header or body could not be accepted; the shell keeps the error.
    LoadFailed {
        /// The section, if it had opened.
        section: Option<SectionId>,
    },
    /// [`PostcopyStream`](super::PostcopyStream) has refused what came on the main link.
    StreamRefused(DestinationFailure),
    /// A direction of the link is gone, or carries something that is no stream.
    Lost(Loss),
    /// The preempt link has ended between two records. A QEMU's may, when it has sent all; one of ours stays to the end.
    PreemptEnded,
    /// The guest is ours.
    GuestStarted,
    /// The guest could not be started and does not run.
    StartFailed,
    /// The package is used up.
    PackageEnded,
    /// Every page is here.
    AllReceived,
    /// These are not, and nothing can bring them.
    PagesMissing {
        /// How many.
        pages: PageCount,
    },
    /// The connection is closed and silent.
    Paused,
    /// A new connection has come.
    Reconnected,
    /// The user wants the connection closed and postcopy paused (`migrate-pause`); means nothing before the guest runs.
    PausePostcopy,
    /// The user gives a paused guest up; means nothing unless it is paused.
    GiveUp,
    /// The user calls it off.
    Cancel,
}

/// Header of a section, as far as the machine cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionKind {
    /// First piece of a live entry.
    Start(EntryIndex),
    /// Another piece of one.
    Part,
    /// Its last piece.
    End,
    /// A device, whole.
    Full(EntryIndex),
}

/// Position of the addressed entry in the shell's savevm list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryIndex(pub u32);

impl Default for DestinationConfig {
    fn default() -> Self {
        Self {
            features: Features::NONE,
            multifd: MultifdSettings::default(),
            bidirectional: true,
            switchover_ack: false,
            require_end_sections: true,
            require_vmdescription: true,
            postcopy: None,
        }
    }
}

impl SectionKind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Start(_) => "START",
            Self::Part => "PART",
            Self::End => "END",
            Self::Full(_) => "FULL",
        }
    }
}

impl DestinationEvent {
    pub(super) fn as_unexpected(&self) -> Unexpected {
        match self {
            Self::HeaderRead => Unexpected::named("header"),
            Self::ConfigurationChecked | Self::ConfigurationRefused => Unexpected::named("configuration"),
            Self::CommandRead(Command::Ping(value)) => Unexpected::valued("PING", *value),
            Self::CommandRead(command) => Unexpected::named(command.name()),
            Self::SectionOpened { id, kind } => Unexpected::valued(kind.name(), id.0),
            Self::SectionLoaded { id } => Unexpected::valued("footer", id.0),
            Self::EndOfStream => Unexpected::named("EOF"),
            Self::VmDescriptionRead => Unexpected::named("vmdescription"),
            Self::LoadFailed { .. } => Unexpected::named("LoadFailed"),
            Self::StreamRefused(_) => Unexpected::named("StreamRefused"),
            Self::Lost(_) => Unexpected::named("Lost"),
            Self::PreemptEnded => Unexpected::named("PreemptEnded"),
            Self::GuestStarted => Unexpected::named("GuestStarted"),
            Self::StartFailed => Unexpected::named("StartFailed"),
            Self::PackageEnded => Unexpected::named("end of the package"),
            Self::AllReceived => Unexpected::named("AllReceived"),
            Self::PagesMissing { .. } => Unexpected::named("PagesMissing"),
            Self::Paused => Unexpected::named("Paused"),
            Self::Reconnected => Unexpected::named("Reconnected"),
            Self::PausePostcopy => Unexpected::named("PausePostcopy"),
            Self::GiveUp => Unexpected::named("GiveUp"),
            Self::Cancel => Unexpected::named("Cancel"),
        }
    }
}

//! The words between the source machine and its shell.

use super::config::ParameterChange;
use crate::error::{Loss, Unexpected};
use limosa_pages::{ByteCount, PageCount};
use limosa_wire::{Command, Features, ReturnMessage};
use std::fmt;
use std::time::Duration;

/// What the shell must do next. Actions are done in order, one at a time.
///
/// Each is answered by one event, named with it, or by [`SourceEvent::HandlerFailed`] (a handler failed and the
/// link is whole) or [`SourceEvent::Lost`] (the link is not). Actions without an answer say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceAction {
    /// Encode this command and flush. No answer, only `Lost` if it could not leave.
    SendCommand(Command),
    /// Write the START sections. Answer: [`SourceEvent::SetupSaved`].
    SaveSetup {
        /// The extensions that both sides use from now on.
        features: Features,
    },
    /// Merge the dirty log into what is owed. Answer: [`SourceEvent::Synced`].
    SyncDirty,
    /// Write PART sections until a limit is reached or nothing is owed. Answer: [`SourceEvent::Iterated`].
    Iterate {
        /// May be passed by one page record, no more.
        max_bytes: ByteCount,
        /// Checked between batches.
        max_time: Duration,
    },
    /// Stop the guest. Answer: [`SourceEvent::VmStopped`].
    StopVm,
    /// Say SWITCHOVER_START where the peer knows it, then write everything still owed in END sections.
    /// Answer: [`SourceEvent::PrecopyCompleted`].
    CompletePrecopy,
    /// Write the FULL sections. Answer: [`SourceEvent::DevicesSaved`].
    SaveDevices,
    /// **The commit point.** Write EOF and the vmdescription and flush: the destination may run the guest
    /// from the first of these bytes on. Answer: [`SourceEvent::EndSent`].
    SendEnd,
    /// Connect the link for pages that are asked for and hand it to whoever serves requests.
    /// Answer: [`SourceEvent::PreemptOpened`].
    OpenPreempt,
    /// Connect the multifd channels of a recovery, which carry the push from RESUME_ACK on. They come before the preempt
    /// link (wire 14.3). Answer: [`SourceEvent::ChannelsOpened`].
    OpenChannels,
    /// Say SWITCHOVER_START where the peer knows it, write the END sections of what cannot go on in postcopy, and bring the
    /// multifd channels into line: behind it nothing of precopy is in flight (I5).
    /// Answer: [`SourceEvent::CompletedForPostcopy`].
    CompleteForPostcopy,
    /// Bring the multifd channels into line, merge the dirty log into what is owed, and write DISCARD commands for what no
    /// earlier one has named. The guest runs. Answer: [`SourceEvent::DiscardedAhead`].
    DiscardAhead,
    /// Write DISCARD commands for everything that is owed and was not named before; at least one in all (wire 5.3).
    /// Answer: [`SourceEvent::DiscardsSent`].
    SendDiscards,
    /// Build the package in memory: LISTEN, FULL sections, PING, RUN. Answer: [`SourceEvent::DevicesPackaged`].
    PackageDevices {
        /// Value of the PING between the devices and RUN.
        ping: u32,
    },
    /// **The commit point of postcopy.** Begin to serve requests, then write PACKAGED with its blob and flush.
    /// Answer: [`SourceEvent::PackageSent`].
    SendPackage,
    /// Write PART sections of what is owed, asked-for pages first. Answer: [`SourceEvent::Pushed`].
    Push {
        /// May be passed by one page record, no more.
        max_bytes: ByteCount,
        /// Checked between batches.
        max_time: Duration,
    },
    /// Bring the multifd channels into line, and wait until no asked-for page is claimed and unwritten, or waits in the preempt
    /// link's queue. No answer, only `Lost`.
    Drain,
    /// Bring the multifd channels into line, write END sections and EOF, and flush. No vmdescription follows (wire 5.4).
    /// Answer: [`SourceEvent::PostcopyCompleted`].
    CompletePostcopy,
    /// Stop serving requests, shut every link of this connection down, join every thread that used one, and drop what they
    /// still had to say (I8). Answer: [`SourceEvent::Paused`]; nothing of the old connection is handed in after it.
    Pause,
    /// Connect anew, with a return path and no header. Answer: [`SourceEvent::Reconnected`], or `Lost`.
    Reconnect,
    /// Stop serving requests, shut the links beside the main one down, join every thread that used one, and say REPLACE_LINKS
    /// on the main link, which goes on. Answer: [`SourceEvent::LinksDropped`].
    ReplaceLinks,
    /// Send RECV_BITMAP for every block, take the answers off the return path, and set owed := not received (I1). Every
    /// channel forgets its previous block. Answer: [`SourceEvent::BitmapsMerged`].
    FetchBitmaps,
    /// Shut both directions of the link down. No answer.
    CloseLink,
    /// Undo `StopVm`: bring the guest back to the run state it had before. Answer: [`SourceEvent::VmResumed`].
    ResumeVm,
    /// Stop dirty logging and release everything; the outcome is known. No answer.
    Finish,
}

/// What the shell tells the machine.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceEvent {
    /// The START sections are written.
    SetupSaved {
        /// Bytes written.
        sent: ByteCount,
    },
    /// The dirty log is merged.
    Synced {
        /// What is left now.
        pending: Pending,
    },
    /// A slice is written.
    Iterated {
        /// Bytes written by this slice.
        sent: ByteCount,
        /// What is left, without what the guest has dirtied since the last sync.
        pending: Pending,
    },
    /// The guest does not run any more.
    VmStopped,
    /// The END sections are written.
    PrecopyCompleted {
        /// Bytes written.
        sent: ByteCount,
    },
    /// The FULL sections are written.
    DevicesSaved {
        /// Bytes written.
        sent: ByteCount,
    },
    /// EOF and vmdescription are written and flushed.
    EndSent {
        /// Bytes written.
        sent: ByteCount,
    },
    /// The guest has the run state again that it had before `StopVm`.
    VmResumed,
    /// The preempt link is there.
    PreemptOpened,
    /// The multifd channels are there again.
    ChannelsOpened,
    /// What cannot go on in postcopy has ended, and nothing of precopy is in flight.
    CompletedForPostcopy {
        /// Bytes written.
        sent: ByteCount,
    },
    /// The destination has been told what is stale already.
    DiscardedAhead {
        /// Bytes written.
        sent: ByteCount,
        /// Pages that it had not been told of before.
        pages: PageCount,
    },
    /// The destination has been told what to drop.
    DiscardsSent {
        /// Bytes written.
        sent: ByteCount,
    },
    /// The package is built.
    DevicesPackaged {
        /// Its size.
        size: ByteCount,
    },
    /// The package has left.
    PackageSent {
        /// Bytes written.
        sent: ByteCount,
    },
    /// A slice of postcopy is written.
    Pushed {
        /// Bytes written by this slice.
        sent: ByteCount,
        /// What nobody has claimed yet.
        pending: Pending,
    },
    /// END sections and EOF are written.
    PostcopyCompleted {
        /// Bytes written.
        sent: ByteCount,
    },
    /// The connection is closed and silent.
    Paused,
    /// There is a new connection.
    Reconnected,
    /// No link but the main one is left, and the destination will know it.
    LinksDropped,
    /// What the destination lacks is owed again.
    BitmapsMerged {
        /// What that is.
        pending: Pending,
    },
    /// The user wants postcopy now (`migrate-start-postcopy`); means nothing without the capability or once the guest is being
    /// stopped.
    StartPostcopy,
    /// The user wants the connection closed and postcopy paused (`migrate-pause`); means nothing before it has begun.
    PausePostcopy,
    /// The user wants a paused postcopy to go on (`migrate` with `resume`); means nothing unless it is paused.
    ResumePostcopy,
    /// The operator has looked at the destination and ends a paused migration; means nothing unless it is paused.
    Operator(OperatorWord),
    /// The destination said something.
    Return(ReturnMessage),
    /// A direction of the link is gone. Hand in a [`SourceEvent::Cancel`] that caused it first.
    Lost(Loss),
    /// A step failed for a reason of our own side; the shell keeps the error.
    HandlerFailed {
        /// The step.
        step: SourceStep,
    },
    /// The user calls it off.
    Cancel,
    /// The user lets the switchover go on (`migrate-continue`); means nothing unless it is waited for.
    Continue,
    /// The user changes settings.
    SetParameters(ParameterChange),
    /// The time of [`Source::poll_timeout`](super::Source::poll_timeout) has come. Early is harmless.
    Timeout,
}

/// What an operator says who has looked at the destination (I6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperatorWord {
    /// It does not run the guest and never will: resume it here. Not obeyed once the guest is known to have run there.
    NeverRan,
    /// It has the whole guest, and nothing here is needed any more.
    HasGuest,
    /// Whatever there is, give it up.
    GiveUp,
}

/// What is left to move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// RAM and other live state still to be written.
    pub owed: ByteCount,
    /// Estimated size of the device sections.
    pub device: ByteCount,
    /// Written to the link and not yet acknowledged by the peer's kernel.
    pub queued: ByteCount,
}

/// The steps that can fail without the link failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceStep {
    /// [`SourceAction::SaveSetup`]
    SaveSetup,
    /// [`SourceAction::SyncDirty`]
    SyncDirty,
    /// [`SourceAction::Iterate`]
    Iterate,
    /// [`SourceAction::StopVm`]
    StopVm,
    /// [`SourceAction::CompletePrecopy`]
    CompletePrecopy,
    /// [`SourceAction::SaveDevices`]
    SaveDevices,
    /// [`SourceAction::SendEnd`]. Some of it may have left, so this leads to doubt like a loss.
    SendEnd,
    /// [`SourceAction::ResumeVm`]
    ResumeVm,
    /// [`SourceAction::OpenPreempt`]
    OpenPreempt,
    /// [`SourceAction::OpenChannels`]
    OpenChannels,
    /// [`SourceAction::CompleteForPostcopy`]
    CompleteForPostcopy,
    /// [`SourceAction::SendDiscards`]
    SendDiscards,
    /// [`SourceAction::PackageDevices`]
    PackageDevices,
    /// [`SourceAction::SendPackage`]. Some of it may have left, so this leads to a pause like a loss.
    SendPackage,
    /// [`SourceAction::Push`]
    Push,
    /// [`SourceAction::CompletePostcopy`]
    CompletePostcopy,
    /// [`SourceAction::Reconnect`]
    Reconnect,
    /// [`SourceAction::FetchBitmaps`]
    FetchBitmaps,
}

impl fmt::Display for SourceStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SaveSetup => "setup of the live sections",
            Self::SyncDirty => "sync of the dirty log",
            Self::Iterate => "iteration of the live sections",
            Self::StopVm => "stopping the guest",
            Self::CompletePrecopy => "completion of the live sections",
            Self::SaveDevices => "saving the devices",
            Self::SendEnd => "ending the stream",
            Self::ResumeVm => "resuming the guest",
            Self::OpenPreempt => "opening the preempt channel",
            Self::OpenChannels => "opening the multifd channels",
            Self::CompleteForPostcopy => "completion of what stays out of postcopy",
            Self::SendDiscards => "discarding what is owed",
            Self::PackageDevices => "packaging the devices",
            Self::SendPackage => "sending the package",
            Self::Push => "pushing pages",
            Self::CompletePostcopy => "ending postcopy",
            Self::Reconnect => "connecting anew",
            Self::FetchBitmaps => "fetching the received bitmaps",
        })
    }
}

impl SourceEvent {
    pub(super) fn as_unexpected(&self) -> Unexpected {
        match self {
            Self::Return(message) => return_message(message),
            Self::SetupSaved { .. } => Unexpected::named("SetupSaved"),
            Self::Synced { .. } => Unexpected::named("Synced"),
            Self::Iterated { .. } => Unexpected::named("Iterated"),
            Self::VmStopped => Unexpected::named("VmStopped"),
            Self::PrecopyCompleted { .. } => Unexpected::named("PrecopyCompleted"),
            Self::DevicesSaved { .. } => Unexpected::named("DevicesSaved"),
            Self::EndSent { .. } => Unexpected::named("EndSent"),
            Self::VmResumed => Unexpected::named("VmResumed"),
            Self::PreemptOpened => Unexpected::named("PreemptOpened"),
            Self::ChannelsOpened => Unexpected::named("ChannelsOpened"),
            Self::CompletedForPostcopy { .. } => Unexpected::named("CompletedForPostcopy"),
            Self::DiscardedAhead { .. } => Unexpected::named("DiscardedAhead"),
            Self::DiscardsSent { .. } => Unexpected::named("DiscardsSent"),
            Self::DevicesPackaged { .. } => Unexpected::named("DevicesPackaged"),
            Self::PackageSent { .. } => Unexpected::named("PackageSent"),
            Self::Pushed { .. } => Unexpected::named("Pushed"),
            Self::PostcopyCompleted { .. } => Unexpected::named("PostcopyCompleted"),
            Self::Paused => Unexpected::named("Paused"),
            Self::Reconnected => Unexpected::named("Reconnected"),
            Self::LinksDropped => Unexpected::named("LinksDropped"),
            Self::BitmapsMerged { .. } => Unexpected::named("BitmapsMerged"),
            Self::StartPostcopy => Unexpected::named("StartPostcopy"),
            Self::PausePostcopy => Unexpected::named("PausePostcopy"),
            Self::ResumePostcopy => Unexpected::named("ResumePostcopy"),
            Self::Operator(_) => Unexpected::named("Operator"),
            Self::Lost(_) => Unexpected::named("Lost"),
            Self::HandlerFailed { .. } => Unexpected::named("HandlerFailed"),
            Self::Cancel => Unexpected::named("Cancel"),
            Self::Continue => Unexpected::named("Continue"),
            Self::SetParameters(_) => Unexpected::named("SetParameters"),
            Self::Timeout => Unexpected::named("Timeout"),
        }
    }
}

/// A message of the return path, as something that was not expected.
pub(super) fn return_message(message: &ReturnMessage) -> Unexpected {
    match message {
        ReturnMessage::Shut(code) => Unexpected::valued("SHUT", *code),
        ReturnMessage::Pong(value) => Unexpected::valued("PONG", *value),
        ReturnMessage::RequestPages { .. } => Unexpected::named("page request"),
        ReturnMessage::RecvBitmap(_) => Unexpected::named("RECV_BITMAP"),
        ReturnMessage::ResumeAck => Unexpected::named("RESUME_ACK"),
        ReturnMessage::SwitchoverAck => Unexpected::named("SWITCHOVER_ACK"),
        ReturnMessage::Running => Unexpected::named("RUNNING"),
        ReturnMessage::NeverRan => Unexpected::named("NEVER_RAN"),
        ReturnMessage::LinkLost => Unexpected::named("LINK_LOST"),
        ReturnMessage::Hello(_) => Unexpected::named("HELLO"),
        ReturnMessage::Refused(_) => Unexpected::named("REFUSED"),
    }
}

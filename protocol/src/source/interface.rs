//! The words between the source machine and its shell.

use super::config::ParameterChange;
use crate::error::{Loss, Unexpected};
use limosa_pages::ByteCount;
use limosa_wire::{Command, ReturnMessage};
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
    SaveSetup,
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
    }
}

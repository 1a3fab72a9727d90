//! How a source ended.

use super::interface::SourceStep;
use crate::error::{Loss, ProtocolError};
use crate::status::{GuestFate, MigrationStatus};
use limosa_wire::{Features, RefusalReason};
use std::fmt;
use std::time::Duration;

/// How an outgoing migration ended, and where the guest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceOutcome {
    /// What happened.
    pub ending: SourceEnding,
    /// Whose the guest is.
    pub fate: GuestFate,
    /// The guest is ours and should run, but resuming it failed: it stands stopped here.
    pub resume_failed: bool,
    /// The user cancelled after a commit point, when the guest could run there already.
    pub cancel_refused: bool,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEnding {
    /// The destination has the guest.
    Completed {
        /// It said so. `false`: there was no return path to say it on.
        confirmed: bool,
    },
    /// Something went wrong.
    Failed(SourceFailure),
    /// The user called it off.
    Cancelled,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceFailure {
    /// The connection.
    #[error(transparent)]
    Lost(Loss),
    /// The destination has lost a link beside the main one.
    #[error("the destination has lost a link beside the main one")]
    LostThere,
    /// A handler on this side.
    #[error("{0} failed")]
    Handler(SourceStep),
    /// The destination, or the shell, broke the rules.
    #[error(transparent)]
    Protocol(ProtocolError),
    /// The destination did not answer.
    #[error("no answer within {limit:?} to {wait}")]
    TimedOut {
        /// The question.
        wait: Wait,
        /// How long it was given.
        limit: Duration,
    },
    /// The destination said SHUT with a code that is not zero: it does not run the guest.
    #[error("the destination refused{}", said(*.code, .reason))]
    Refused {
        /// The code.
        code: u32,
        /// Its reason; a QEMU gives none.
        reason: Option<RefusalReason>,
    },
    /// The destination cannot do what this migration needs. Nothing has moved.
    #[error("the destination {}offers no {missing}", if *.extended { "" } else { "knows no extensions and " })]
    MissingFeatures {
        /// What it lacks.
        missing: Features,
        /// It has said HELLO, so it is none of QEMU's.
        extended: bool,
    },
    /// The guest dirties memory faster than it can be sent.
    #[error("not converged after {rounds} rounds")]
    NotConverging {
        /// Rounds done.
        rounds: u32,
    },
    /// The destination says that it never ran the guest, and never will.
    #[error("the destination never ran the guest")]
    NeverRan,
    /// The user closed the connection of postcopy.
    #[error("paused by the user")]
    PausedByUser,
    /// The live handlers owe bytes and send none.
    #[error("{slices} slices in a row sent nothing of what is owed")]
    NoProgress {
        /// Empty slices.
        slices: u32,
    },
}

/// What the source was waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wait {
    /// The answer to the greeting.
    Greeting,
    /// The proof that setup was accepted.
    Setup,
    /// The barrier at the end of a round.
    Round(u32),
    /// The proof that what is stale was dropped there, while the guest still runs here.
    Discards,
    /// The proof that every device is loaded.
    Devices,
    /// The last word.
    Shut,
    /// The proof that the guest runs there.
    Running,
    /// The proof that all pages of postcopy are processed.
    Drain,
    /// The received bitmaps, or the word that postcopy goes on.
    Recovery,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Greeting => f.write_str("the greeting"),
            Self::Setup => f.write_str("the setup"),
            Self::Round(number) => write!(f, "the barrier of round {number}"),
            Self::Discards => f.write_str("the discards"),
            Self::Devices => f.write_str("the device state"),
            Self::Shut => f.write_str("the end of the stream"),
            Self::Running => f.write_str("the package"),
            Self::Drain => f.write_str("the barrier of postcopy"),
            Self::Recovery => f.write_str("the recovery"),
        }
    }
}

impl SourceOutcome {
    /// The status that goes with it.
    pub const fn status(&self) -> MigrationStatus {
        match self.ending {
            SourceEnding::Completed { .. } => MigrationStatus::Completed,
            SourceEnding::Failed(_) => MigrationStatus::Failed,
            SourceEnding::Cancelled => MigrationStatus::Cancelled,
        }
    }
}

fn said(code: u32, reason: &Option<RefusalReason>) -> String {
    match reason {
        Some(reason) => format!(": {reason}"),
        None => format!(" with code {code}"),
    }
}

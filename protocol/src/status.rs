//! What both sides say about themselves.

use std::fmt;

/// Where a migration stands, in QEMU's words (wire 9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MigrationStatus {
    /// Nothing has begun.
    None,
    /// Source: streams are being opened and described. Destination: listening.
    Setup,
    /// RAM moves.
    Active,
    /// The guest is stopped on the source, which waits for the user's word to go on.
    PreSwitchover,
    /// The guest is stopped on the source; the rest of its state moves.
    Device,
    /// The guest is the destination's, and the rest of its memory follows.
    PostcopyActive,
    /// The connection was lost before the rest had followed; it can be taken up again.
    PostcopyPaused,
    /// The connection is being made anew.
    PostcopyRecoverSetup,
    /// It is there again; the two sides find out what is missing.
    PostcopyRecover,
    /// The guest is the destination's.
    Completed,
    /// It did not happen; the outcome says where the guest is.
    Failed,
    /// The user called it off and the source is undoing what it did.
    Cancelling,
    /// The user called it off; the guest is the source's.
    Cancelled,
}

impl MigrationStatus {
    /// The word that QEMU uses for it in QMP.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Active => "active",
            Self::PreSwitchover => "pre-switchover",
            Self::Device => "device",
            Self::PostcopyActive => "postcopy-active",
            Self::PostcopyPaused => "postcopy-paused",
            Self::PostcopyRecoverSetup => "postcopy-recover-setup",
            Self::PostcopyRecover => "postcopy-recover",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the guest has moved and its memory follows, or waits to.
    pub const fn is_postcopy(self) -> bool {
        matches!(
            self,
            Self::PostcopyActive | Self::PostcopyPaused | Self::PostcopyRecoverSetup | Self::PostcopyRecover
        )
    }
}

impl fmt::Display for MigrationStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whose the guest is when a migration has ended (I6: at most one side runs it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestFate {
    /// The source has it; the destination never ran it and never will.
    OnSource,
    /// The destination has it; the source must never run it again.
    OnDestination,
    /// Stopped on the source, and the destination may run it. Only the peer, or someone who has looked
    /// there, can end the doubt.
    InDoubt,
    /// The destination runs it on the pages that it has; the rest stayed on the source, which has given up sending it.
    Paused,
    /// The destination has run it and has given it up with pages missing. Nobody has all of it.
    Lost,
}

impl fmt::Display for GuestFate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OnSource => "on the source",
            Self::OnDestination => "on the destination",
            Self::InDoubt => "stopped on the source, possibly running on the destination",
            Self::Paused => "on the destination, without all of its memory",
            Self::Lost => "lost",
        })
    }
}

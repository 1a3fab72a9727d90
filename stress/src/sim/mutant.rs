//! Deliberate mistakes, one per invariant, made by the shells around the machines.
//!
//! Each wraps an action or an event of a machine that is itself untouched. A simulator that lets one of them live
//! would not notice the same mistake in the engine either.

use super::check::Violation;

/// A mistake of a shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// I1: a page is claimed, and dropped because the link is full.
    DropsClaimedPage,
    /// I2: the dirty bit is cleared after the page is read.
    ClearsAfterRead,
    /// I3: the received bit is set before the page is placed.
    MarksBeforePlacing,
    /// I5: the barrier at the end of a round answers itself.
    SkipsBarrier,
    /// I6: a guest in doubt is resumed.
    ResumesInDoubt,
    /// I7: the end of the connection is taken for the last word.
    TakesEofForSuccess,
    /// I8: what was to be sent outlives the decision to close.
    FlushesOutboxOnClose,
    /// I9: an answer slot that nobody has written counts as the answer.
    ReadsUnwrittenAnswer,
    /// I11: the writer does not wait for room.
    IgnoresFullLink,
    /// I5: the channels are not brought into line at the end of a round.
    SkipsFlush,
    /// I5: the main channel does not wait for the channels at a FLUSH record.
    PassesFlush,
    /// I1: a recovery goes on with the old list of what is owed.
    KeepsOldDebt,
    /// I4: a page that was asked for is sent whether it is owed or not.
    ServesWithoutClaim,
    /// I7: the destination takes the end of the stream for the last page.
    EndsWithPagesMissing,
    /// I8: pages that were to be sent on the old connection are sent on the new one.
    KeepsUrgentPages,
    /// I8: a link is replaced before its reader has ended.
    LeavesReaderBehind,
    /// I10: pages that were asked for wait until the background scan comes by.
    PushesInOrder,
}

impl Mutant {
    /// All that need neither channels nor postcopy.
    pub const ALL: [Self; 9] = [
        Self::DropsClaimedPage,
        Self::ClearsAfterRead,
        Self::MarksBeforePlacing,
        Self::SkipsBarrier,
        Self::ResumesInDoubt,
        Self::TakesEofForSuccess,
        Self::FlushesOutboxOnClose,
        Self::ReadsUnwrittenAnswer,
        Self::IgnoresFullLink,
    ];

    /// Those of the channels.
    pub const OF_CHANNELS: [Self; 2] = [Self::SkipsFlush, Self::PassesFlush];

    /// Those of postcopy.
    pub const POSTCOPY: [Self; 8] = [
        Self::SkipsFlush,
        Self::KeepsOldDebt,
        Self::ServesWithoutClaim,
        Self::ResumesInDoubt,
        Self::EndsWithPagesMissing,
        Self::KeepsUrgentPages,
        Self::LeavesReaderBehind,
        Self::PushesInOrder,
    ];

    /// Whether this violation is one that the mistake must cause; dying of something else proves little.
    pub fn explains(self, violation: &Violation) -> bool {
        match self {
            Self::DropsClaimedPage | Self::ClearsAfterRead => matches!(violation, Violation::LostPage { .. }),
            Self::MarksBeforePlacing => matches!(violation, Violation::MarkedBeforePlaced { .. }),
            Self::SkipsBarrier | Self::ReadsUnwrittenAnswer => {
                matches!(violation, Violation::PassedBarrier { .. })
            }
            Self::ResumesInDoubt | Self::FlushesOutboxOnClose => matches!(violation, Violation::TwoGuests),
            Self::TakesEofForSuccess => matches!(violation, Violation::WrongOutcome { .. }),
            Self::IgnoresFullLink => matches!(violation, Violation::OverLimit { .. }),
            Self::KeepsOldDebt => matches!(violation, Violation::LostPage { .. }),
            Self::ServesWithoutClaim | Self::KeepsUrgentPages | Self::LeavesReaderBehind => {
                matches!(violation, Violation::PlacedTwice { .. })
            }
            Self::EndsWithPagesMissing => matches!(violation, Violation::WrongOutcome { .. }),
            Self::PushesInOrder => matches!(violation, Violation::Overtaken { .. }),
            Self::SkipsFlush | Self::PassesFlush => matches!(
                violation,
                Violation::PassedBarrier { .. } | Violation::LostPage { .. } | Violation::WrongState { .. }
            ),
        }
    }
}

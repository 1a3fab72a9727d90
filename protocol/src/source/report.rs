//! What a source has counted and when its phases ended.

use super::interface::Pending;
use limosa_pages::ByteCount;
use std::time::Instant;

/// Sums over one migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceCounters {
    /// Syncs of the dirty log; QEMU numbers its MIGRATION_PASS events with it.
    pub sync_count: u32,
    /// Rounds begun. The switchover is none.
    pub rounds: u32,
    /// Slices written in rounds.
    pub slices: u64,
    /// Bytes written in all, section headers included, commands not.
    pub bytes_sent: ByteCount,
    /// Those written while the guest was stopped.
    pub downtime_bytes: ByteCount,
    /// Those written in postcopy by the machine's order; pages that were asked for are counted by whoever serves them.
    pub postcopy_bytes: ByteCount,
    /// How often postcopy was paused.
    pub pauses: u32,
    /// How often links beside the main one were replaced without a pause.
    pub replacements: u32,
    /// What was left when it was last looked at.
    pub pending: Pending,
}

/// When each phase ended; `None` for those that were not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// The machine was made.
    pub began: Instant,
    /// Setup was accepted; RAM begins to move.
    pub active: Option<Instant>,
    /// The guest was told to stop: the downtime begins.
    pub stop_asked: Option<Instant>,
    /// The guest stood.
    pub vm_stopped: Option<Instant>,
    /// The dirty log was merged for the last time.
    pub final_synced: Option<Instant>,
    /// The END sections were written.
    pub precopy_completed: Option<Instant>,
    /// The FULL sections were written.
    pub devices_saved: Option<Instant>,
    /// The destination had loaded them all; only with a return path.
    pub devices_loaded: Option<Instant>,
    /// EOF was written, and in precopy the vmdescription.
    pub end_sent: Option<Instant>,
    /// The package of postcopy was written.
    pub package_sent: Option<Instant>,
    /// The guest was known to run on the destination.
    pub runs_there: Option<Instant>,
    /// Postcopy was paused for the last time.
    pub paused: Option<Instant>,
    /// The outcome was known.
    pub ended: Option<Instant>,
}

impl Timeline {
    pub(super) const fn new(began: Instant) -> Self {
        Self {
            began,
            active: None,
            stop_asked: None,
            vm_stopped: None,
            final_synced: None,
            precopy_completed: None,
            devices_saved: None,
            devices_loaded: None,
            end_sent: None,
            package_sent: None,
            runs_there: None,
            paused: None,
            ended: None,
        }
    }
}

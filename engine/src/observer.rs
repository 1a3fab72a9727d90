//! Who is told how a migration goes.

use limosa_protocol::MigrationStatus;

/// Hears of every change, in order, from the migration's own thread. Must not block: the guest may be stopped.
pub trait Observer: Send + Sync {
    /// The migration entered `status`.
    fn status(&self, status: MigrationStatus);

    /// The dirty log was read for the `number`th time, counted from 1.
    fn pass(&self, number: u64);
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn status(&self, _status: MigrationStatus) {}

    fn pass(&self, _number: u64) {}
}

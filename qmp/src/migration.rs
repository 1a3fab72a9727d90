//! What `query-migrate` answers (wire 9.4), and the words of migration.

use crate::address::SocketAddress;
use crate::words::words;
use serde::{Deserialize, Serialize};
use serde_json::Value;

words! {
    /// Where a migration stands (wire 9.6).
    pub enum MigrationStatus {
        /// There never was one.
        None = "none",
        /// Connecting, or waiting for a connection.
        Setup = "setup",
        /// Being cancelled.
        Cancelling = "cancelling",
        /// Cancelled; the guest stayed.
        Cancelled = "cancelled",
        /// RAM moves while the guest runs here.
        Active = "active",
        /// The guest runs there, and pages follow.
        PostcopyActive = "postcopy-active",
        /// The link broke while the guest ran there.
        PostcopyPaused = "postcopy-paused",
        /// Connecting again.
        PostcopyRecoverSetup = "postcopy-recover-setup",
        /// Agreeing on what is missing.
        PostcopyRecover = "postcopy-recover",
        /// The guest is there.
        Completed = "completed",
        /// It did not work; the guest stayed.
        Failed = "failed",
        /// Continuous checkpointing, not offered here.
        Colo = "colo",
        /// Stopped, waiting for `migrate-continue`.
        PreSwitchover = "pre-switchover",
        /// Device state moves.
        Device = "device",
        /// Waiting for the guest to release a device, not offered here.
        WaitUnplug = "wait-unplug",
    }
}

words! {
    /// Whether the guest runs, and if not, why.
    pub enum RunState {
        /// Stopped by a debugger.
        Debug = "debug",
        /// Waits for its state to arrive.
        InMigrate = "inmigrate",
        /// The VMM failed.
        InternalError = "internal-error",
        /// A disk failed.
        IoError = "io-error",
        /// Stopped by its operator.
        Paused = "paused",
        /// Its state has left.
        PostMigrate = "postmigrate",
        /// Never started.
        PreLaunch = "prelaunch",
        /// Stopped while the last of its state leaves.
        FinishMigrate = "finish-migrate",
        /// Stopped while its state is restored.
        RestoreVm = "restore-vm",
        /// vCPUs run.
        Running = "running",
        /// Stopped while its state is saved.
        SaveVm = "save-vm",
        /// Powered off.
        Shutdown = "shutdown",
        /// Asleep.
        Suspended = "suspended",
        /// Stopped by its watchdog.
        Watchdog = "watchdog",
        /// It panicked.
        GuestPanicked = "guest-panicked",
        /// Stopped for a checkpoint.
        Colo = "colo",
    }
}

/// What `query-status` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusInfo {
    /// Whether vCPUs run.
    pub running: bool,
    /// Why, or why not.
    pub status: RunState,
    /// Only said by QEMU before 8.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub singlestep: Option<bool>,
}

/// What `query-migrate` answers; everything is left out before the first migration. Times are in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationInfo {
    /// Where it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<MigrationStatus>,
    /// Since `migrate`; the whole once it is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_time: Option<u64>,
    /// From `migrate` until RAM moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup_time: Option<u64>,
    /// How long the guest would stand still if it were stopped now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_downtime: Option<u64>,
    /// How long it stood still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime: Option<u64>,
    /// RAM; only while it moves and when it has moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ram: Option<MigrationStats>,
    /// Deltas; only with capability `xbzrle`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xbzrle_cache: Option<XbzrleCacheStats>,
    /// How much the vCPUs are throttled, in percent; only while they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_percentage: Option<u64>,
    /// How long all vCPUs waited for pages at once; only with capability `postcopy-blocktime`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postcopy_blocktime: Option<u64>,
    /// How long each vCPU waited for pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postcopy_vcpu_blocktime: Option<Vec<u64>>,
    /// Ours: requests, faults and their latencies (docs/qmp.md).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_limosa_postcopy: Option<Value>,
    /// Why it failed, or is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_desc: Option<String>,
    /// Why it could not even start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_reasons: Option<Vec<String>>,
    /// What each multifd channel has done; of Limosa alone, and only with channels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_multifd_channels: Option<Vec<MultifdChannelStats>>,
    /// How packets were compressed, and why: a line for each kind of choice. Of Limosa alone, and only with
    /// `multifd-compression` `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_multifd_choices: Option<Vec<String>>,
    /// Where the destination listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_address: Option<Vec<SocketAddress>>,
}

/// RAM statistics of a migration. Bytes, unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationStats {
    /// Sent, headers included.
    pub transferred: u64,
    /// Still owed; 0 when completed.
    pub remaining: u64,
    /// All of RAM.
    pub total: u64,
    /// Pages of zeros, sent as such.
    pub duplicate: u64,
    /// Pages sent whole.
    pub normal: u64,
    /// The same in bytes.
    pub normal_bytes: u64,
    /// Pages per second that the guest dirties.
    pub dirty_pages_rate: u64,
    /// Megabits per second.
    pub mbps: f64,
    /// How often the dirty log was read.
    pub dirty_sync_count: u64,
    /// Pages that the destination asked for.
    pub postcopy_requests: u64,
    /// Bytes in a page.
    pub page_size: u64,
    /// Sent over multifd channels.
    pub multifd_bytes: u64,
    /// Pages per second that leave.
    pub pages_per_second: u64,
    /// Sent before the guest stopped.
    pub precopy_bytes: u64,
    /// Sent while it stood still.
    pub downtime_bytes: u64,
    /// Sent after it ran there.
    pub postcopy_bytes: u64,
    /// Times that zero-copy fell back to copying.
    pub dirty_sync_missed_zero_copy: u64,
}

/// What one multifd channel has done. Bytes, unless said otherwise; times in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MultifdChannelStats {
    /// On its connection, headers included.
    pub bytes: u64,
    /// Packets, those of synchronisation included.
    pub packets: u64,
    /// Pages with their bytes.
    pub normal: u64,
    /// Pages of zeros, only named.
    pub duplicate: u64,
    /// Time inside sends or receives.
    pub transferring_us: u64,
    /// Time without work.
    pub waiting_us: u64,
    /// Time that it waited for compression.
    pub waiting_for_codec_us: u64,
}

/// Statistics of delta encoding.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct XbzrleCacheStats {
    /// Bytes of pages kept to encode against.
    pub cache_size: u64,
    /// Bytes of deltas sent.
    pub bytes: u64,
    /// Pages sent as deltas.
    pub pages: u64,
    /// Pages whose previous version was not kept.
    pub cache_miss: u64,
    /// Share of such pages in the last round.
    pub cache_miss_rate: f64,
    /// Bytes of pages per byte of delta in the last round.
    pub encoding_rate: f64,
    /// Pages whose delta was longer than the page.
    pub overflow: u64,
}

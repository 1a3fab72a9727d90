//! Parameters and capabilities of migration, under QEMU's names (wire 9.2, 9.3).

use crate::arguments::{Argument, Arguments};
use crate::message::CommandError;
use crate::words::words;
use serde::{Deserialize, Serialize};
use serde_json::Value;

words! {
    /// A feature of migration that is on or off.
    pub enum MigrationCapability {
        /// Pages leave as deltas after the first round.
        Xbzrle = "xbzrle",
        /// RDMA registers all memory at the start.
        RdmaPinAll = "rdma-pin-all",
        /// A guest that dirties too fast is slowed down.
        AutoConverge = "auto-converge",
        /// Does nothing any more.
        ZeroBlocks = "zero-blocks",
        /// Status changes and passes are events.
        Events = "events",
        /// The guest may move before its RAM has.
        PostcopyRam = "postcopy-ram",
        /// Continuous checkpointing.
        XColo = "x-colo",
        /// The source drops pages that it has sent.
        ReleaseRam = "release-ram",
        /// The destination answers.
        ReturnPath = "return-path",
        /// Stop before the switchover until told to go on.
        PauseBeforeSwitchover = "pause-before-switchover",
        /// Several channels of pages.
        Multifd = "multifd",
        /// Block dirty bitmaps move too.
        DirtyBitmaps = "dirty-bitmaps",
        /// Measure how long vCPUs waited for pages.
        PostcopyBlocktime = "postcopy-blocktime",
        /// Does nothing any more.
        LateBlockActivate = "late-block-activate",
        /// Shared RAM does not move.
        XIgnoreShared = "x-ignore-shared",
        /// The destination compares the guest's UUID.
        ValidateUuid = "validate-uuid",
        /// Snapshot of a running guest.
        BackgroundSnapshot = "background-snapshot",
        /// Sending without a copy in the kernel.
        ZeroCopySend = "zero-copy-send",
        /// Requested pages have a channel of their own.
        PostcopyPreempt = "postcopy-preempt",
        /// The destination has to agree to the switchover.
        SwitchoverAck = "switchover-ack",
        /// A guest that dirties too fast is slowed down, one vCPU at a time.
        DirtyLimit = "dirty-limit",
        /// Pages have fixed places in a file.
        MappedRam = "mapped-ram",
    }
}

words! {
    /// How multifd channels compress.
    pub enum MultiFdCompression {
        /// Not at all.
        None = "none",
        /// zlib.
        Zlib = "zlib",
        /// zstd.
        Zstd = "zstd",
        /// Intel QAT.
        Qatzip = "qatzip",
        /// Intel IAA.
        Qpl = "qpl",
        /// Kunpeng.
        Uadk = "uadk",
        /// LZ4, each packet by itself; of Limosa alone.
        Lz4 = "lz4",
        /// zstd, each packet by itself; of Limosa alone.
        ZstdPacket = "zstd-packet",
        /// Each packet as link and processors have it; of Limosa alone.
        Auto = "auto",
    }
}

words! {
    /// Where pages of zeros are found.
    pub enum ZeroPageDetection {
        /// Nowhere: all are sent whole.
        None = "none",
        /// In the main thread.
        Legacy = "legacy",
        /// In the multifd channels.
        Multifd = "multifd",
    }
}

words! {
    /// What the migration is for.
    pub enum MigMode {
        /// To another process.
        Normal = "normal",
        /// Across a reboot of the host, not offered here.
        CprReboot = "cpr-reboot",
        /// To a new VMM on the same host, not offered here.
        CprTransfer = "cpr-transfer",
    }
}

/// A capability with its state: an entry of `migrate-set-capabilities` and of `query-migrate-capabilities`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationCapabilityStatus {
    /// Which.
    pub capability: MigrationCapability,
    /// Whether it is on.
    pub state: bool,
}

/// Text where null means the empty text, as the `tls-*` parameters have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StrOrNull(pub String);

/// Declares the parameters once: as a structure, and as arguments of `migrate-set-parameters`.
macro_rules! parameters {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        /// Parameters of migration: those to set, or all that there are.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case", default)]
        pub struct MigrationParameters {
            $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $name: Option<$type>,)*
        }

        impl MigrationParameters {
            pub(crate) fn read(arguments: &mut Arguments) -> Result<Self, CommandError> {
                Ok(Self { $($name: arguments.optional(&stringify!($name).replace('_', "-"))?,)* })
            }

            /// Takes every value that `changes` has, and leaves the others.
            pub fn apply(&mut self, changes: Self) {
                $(if changes.$name.is_some() { self.$name = changes.$name; })*
            }
        }
    };
}

parameters! {
    /// Time from the start of the guest to the first announcement of its addresses, in ms.
    announce_initial: u64,
    /// Longest time between two announcements, in ms.
    announce_max: u64,
    /// Number of announcements.
    announce_rounds: u64,
    /// How much longer the time gets with each, in ms.
    announce_step: u64,
    /// Share of dirtied to sent bytes that begins throttling, in percent.
    throttle_trigger_threshold: u8,
    /// Throttling to begin with, in percent.
    cpu_throttle_initial: u8,
    /// Throttling to add, in percent.
    cpu_throttle_increment: u8,
    /// Smaller steps near the end.
    cpu_throttle_tailslow: bool,
    /// Most throttling, in percent.
    max_cpu_throttle: u8,
    /// Name of the TLS credentials.
    tls_creds: StrOrNull,
    /// Name that the peer's certificate must have.
    tls_hostname: StrOrNull,
    /// Name of the object that admits peers.
    tls_authz: StrOrNull,
    /// Bytes per second of precopy; 0 is unlimited.
    max_bandwidth: u64,
    /// Bytes per second to assume for the switchover; 0 is to measure.
    avail_switchover_bandwidth: u64,
    /// Longest downtime, in ms.
    downtime_limit: u64,
    /// Time between two checkpoints, in ms.
    x_checkpoint_delay: u64,
    /// Number of multifd channels.
    multifd_channels: u8,
    /// How they compress.
    multifd_compression: MultiFdCompression,
    /// Level of zlib.
    multifd_zlib_level: u8,
    /// Level of QAT.
    multifd_qatzip_level: u8,
    /// Level of zstd.
    multifd_zstd_level: u8,
    /// Threads that compress or decompress for all channels together; 0 is one per processor. Of Limosa alone.
    x_multifd_codec_workers: u8,
    /// The channels are brought into line at the end of every RAM section: QEMU's machine property
    /// `multifd-flush-after-each-section`, on up to machine version 8.0.
    x_multifd_flush_after_each_section: bool,
    /// Bytes of pages kept to encode deltas against; a power of two.
    xbzrle_cache_size: u64,
    /// Bytes per second of background pages in postcopy; 0 is unlimited.
    max_postcopy_bandwidth: u64,
    /// Period of the dirty limit, in ms.
    x_vcpu_dirty_limit_period: u64,
    /// MB per second that a vCPU may dirty.
    vcpu_dirty_limit: u64,
    /// What the migration is for.
    mode: MigMode,
    /// Where pages of zeros are found.
    zero_page_detection: ZeroPageDetection,
    /// Bypass the page cache of a file.
    direct_io: bool,
    /// Ours: go over to postcopy without being told to, when another round would not shorten the rest.
    x_postcopy_auto: bool,
    /// Ours: or after this many rounds; 0 is any number.
    x_postcopy_auto_rounds: u64,
    /// Ours: or after this time since RAM began to move, in ms; 0 is any time.
    x_postcopy_auto_time: u64,
}

impl Argument for MigrationCapabilityStatus {
    fn read(value: Value, path: &str) -> Result<Self, CommandError> {
        let mut members = Arguments::nested(value, path)?;
        let read = Self { capability: members.required("capability")?, state: members.required("state")? };
        members.finish()?;
        Ok(read)
    }
}

impl Argument for StrOrNull {
    fn read(value: Value, path: &str) -> Result<Self, CommandError> {
        if value.is_null() { Ok(Self::default()) } else { String::read(value, path).map(Self) }
    }
}

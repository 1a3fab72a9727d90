//! What an operator can set, under QEMU's names (wire 9.2, 9.3).

use limosa_compress::packet::{ZLIB_LEVEL_MAX, ZSTD_LEVEL_MAX};
use limosa_multifd::Codec;
use limosa_pages::ByteCount;
use limosa_protocol::AutoPostcopy;
use limosa_wire::multifd::Compression;
use std::num::NonZeroU8;
use std::time::Duration;
use thiserror::Error;

/// Tunables of a migration. Those of a running one may be changed at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// `max-bandwidth`: bytes per second that precopy may send; `None` is unlimited (0 in QMP).
    pub max_bandwidth: Option<ByteCount>,
    /// `avail-switchover-bandwidth`: overrides the measured bandwidth in the switchover decision.
    pub switchover_bandwidth: Option<ByteCount>,
    /// `downtime-limit`: the longest pause that the guest may be asked to take.
    pub downtime_limit: Duration,
    /// `xbzrle-cache-size`: bytes of page copies kept to encode deltas against; a power of two.
    pub xbzrle_cache_size: ByteCount,
    /// `multifd-channels`: connections for pages beside the main one, 1 to 255. The same on both sides.
    pub multifd_channels: u8,
    /// `multifd-compression` with `multifd-zlib-level` or `multifd-zstd-level`: how pages are compressed on these
    /// channels. The same method on both sides; `lz4`, `zstd-packet` and `auto` count as the same, and need a Limosa there.
    pub multifd_codec: Codec,
    /// `x-multifd-codec-workers`: threads that compress or decompress for all channels together; `None` is one per
    /// processor (0 in QMP).
    pub codec_workers: Option<NonZeroU8>,
    /// `zero-page-detection`: who finds zero pages when pages leave on multifd channels.
    pub zero_page_detection: ZeroPageDetection,
    /// `max-postcopy-bandwidth`: bytes per second of pages that nobody has asked for, once the guest runs on the
    /// destination; `None` is unlimited (0 in QMP). Pages that a vCPU waits for are never held back.
    pub max_postcopy_bandwidth: Option<ByteCount>,
    /// `x-postcopy-auto`: when to go over to postcopy without being told to; `None` is never.
    pub postcopy_auto: Option<AutoPostcopy>,
}

/// Who finds the zero pages of a guest that leaves on multifd channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroPageDetection {
    /// The channels.
    #[default]
    Multifd,
    /// The coordinator: they leave on the main channel.
    Legacy,
    /// Nobody: every page that was ever touched leaves with its bytes.
    None,
}

/// Features of a migration that are on or off from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// `return-path`: the destination answers, and the source waits for its word before it lets go.
    pub return_path: bool,
    /// `xbzrle`: after the first round, pages leave as deltas against their previous version.
    pub xbzrle: bool,
    /// `events`: report status changes and passes.
    pub events: bool,
    /// `pause-before-switchover`: stop in `pre-switchover` until told to go on.
    pub pause_before_switchover: bool,
    /// `switchover-ack`: the destination must agree before the guest is stopped.
    pub switchover_ack: bool,
    /// `validate-uuid`: send the guest's UUID; the destination compares it.
    pub validate_uuid: bool,
    /// `multifd`: pages leave on several connections. On both sides.
    pub multifd: bool,
    /// `zero-copy-send`: channels send pages without a copy into the kernel. For TCP, and pages that are not compressed.
    pub zero_copy_send: bool,
    /// `postcopy-ram`: the guest may move before its memory has. On both sides. Implies a return path.
    pub postcopy_ram: bool,
    /// `postcopy-preempt`: pages that a vCPU waits for have a connection of their own. On both sides.
    pub postcopy_preempt: bool,
    /// `postcopy-blocktime`: the destination measures how long vCPUs waited for pages.
    pub postcopy_blocktime: bool,
}

/// A value that cannot be set, or a set of values that cannot go together.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParameterError {
    /// Out of range.
    #[error("parameter {name}: got {got}, expected {expected}")]
    OutOfRange {
        /// QEMU's name of the parameter.
        name: &'static str,
        /// What was asked for.
        got: u64,
        /// What would be accepted.
        expected: &'static str,
    },
    /// A capability that needs another one.
    #[error("capability {name} needs capability {needs}")]
    Needs {
        /// QEMU's name of the capability.
        name: &'static str,
        /// The one that is missing.
        needs: &'static str,
    },
    /// A method of compression that only another Limosa can read, and nobody to ask whether there is one.
    #[error("multifd-compression {method} needs capability return-path")]
    NeedsAnswers {
        /// The method.
        method: &'static str,
    },
    /// A capability that is for pages as they are, and a method of compression.
    #[error("capability {name} needs multifd-compression none")]
    NeedsNoCompression {
        /// QEMU's name of the capability.
        name: &'static str,
    },
    /// Two capabilities that exclude each other.
    #[error("capabilities {name} and {other} cannot both be on")]
    Excludes {
        /// QEMU's name of one.
        name: &'static str,
        /// And of the other.
        other: &'static str,
    },
}

/// The longest downtime limit that can be set, as in QEMU: 2,000 s.
pub const DOWNTIME_LIMIT_MAX: Duration = Duration::from_secs(2000);

impl Default for Parameters {
    /// QEMU's defaults, but for the bandwidth: a migration that nobody throttled uses the whole link.
    fn default() -> Self {
        Self {
            max_bandwidth: None,
            switchover_bandwidth: None,
            downtime_limit: Duration::from_millis(300),
            xbzrle_cache_size: ByteCount(64 << 20),
            multifd_channels: 2,
            multifd_codec: Codec::None,
            codec_workers: None,
            zero_page_detection: ZeroPageDetection::Multifd,
            max_postcopy_bandwidth: None,
            postcopy_auto: None,
        }
    }
}

impl Parameters {
    /// Checks every value on its own.
    ///
    /// # Errors
    /// [`ParameterError::OutOfRange`] with the first value that is not acceptable.
    pub fn validate(&self) -> Result<(), ParameterError> {
        if self.downtime_limit > DOWNTIME_LIMIT_MAX {
            return Err(ParameterError::OutOfRange {
                name: "downtime-limit",
                got: u64::try_from(self.downtime_limit.as_millis()).unwrap_or(u64::MAX),
                expected: "0 to 2000000 ms",
            });
        }
        let cache = self.xbzrle_cache_size.0;
        if cache < 4096 || !cache.is_power_of_two() {
            return Err(ParameterError::OutOfRange {
                name: "xbzrle-cache-size",
                got: cache,
                expected: "a power of two of at least 4096 bytes",
            });
        }
        if self.multifd_channels == 0 {
            let name = "multifd-channels";
            return Err(ParameterError::OutOfRange { name, got: 0, expected: "1 to 255" });
        }
        let (name, level, levels, expected) = match self.multifd_codec {
            Codec::None | Codec::Lz4 | Codec::Auto => return Ok(()),
            Codec::Zlib { level } => ("multifd-zlib-level", level, 0..=ZLIB_LEVEL_MAX, "0 to 9"),
            Codec::Zstd { level } => ("multifd-zstd-level", level, 0..=ZSTD_LEVEL_MAX, "0 to 20"),
            Codec::ZstdPacket { level } => ("multifd-zstd-level", level, 1..=ZSTD_LEVEL_MAX, "1 to 20"),
        };
        if !levels.contains(&level) {
            return Err(ParameterError::OutOfRange { name, got: u64::from(level), expected });
        }
        Ok(())
    }
}

impl Parameters {
    /// Checks that the values can go together with `capabilities`, for a source.
    ///
    /// # Errors
    /// [`ParameterError::NeedsAnswers`] for a codec that the destination must be asked about, without a return path;
    /// [`ParameterError::NeedsNoCompression`] for a codec whose output the kernel cannot take from guest RAM.
    pub fn validate_with(&self, capabilities: &Capabilities) -> Result<(), ParameterError> {
        if capabilities.zero_copy_send && self.multifd_codec != Codec::None {
            return Err(ParameterError::NeedsNoCompression { name: "zero-copy-send" });
        }
        let asks = capabilities.multifd && self.multifd_codec.compression() == Compression::PerPacket;
        match self.multifd_codec {
            _ if !asks || capabilities.listens() => Ok(()),
            Codec::Lz4 => Err(ParameterError::NeedsAnswers { method: "lz4" }),
            Codec::Auto => Err(ParameterError::NeedsAnswers { method: "auto" }),
            _ => Err(ParameterError::NeedsAnswers { method: "zstd-packet" }),
        }
    }
}

impl Capabilities {
    /// Whether the source listens to its destination. Postcopy cannot do without.
    pub const fn listens(&self) -> bool {
        self.return_path || self.postcopy_ram
    }

    /// Checks that the features can go together (wire 10).
    ///
    /// # Errors
    /// [`ParameterError::Needs`] for a capability whose precondition is off.
    pub fn validate(&self) -> Result<(), ParameterError> {
        if self.switchover_ack && !self.listens() {
            return Err(ParameterError::Needs { name: "switchover-ack", needs: "return-path" });
        }
        if self.postcopy_preempt && !self.postcopy_ram {
            return Err(ParameterError::Needs { name: "postcopy-preempt", needs: "postcopy-ram" });
        }
        if self.zero_copy_send && !self.multifd {
            return Err(ParameterError::Needs { name: "zero-copy-send", needs: "multifd" });
        }
        if self.multifd && self.xbzrle {
            // A delta needs what came before it, and channels have no order between them.
            return Err(ParameterError::Excludes { name: "multifd", other: "xbzrle" });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sending_without_a_copy_needs_channels_and_pages_as_they_are() {
        let alone = Capabilities { zero_copy_send: true, ..Capabilities::default() };
        assert_eq!(alone.validate(), Err(ParameterError::Needs { name: "zero-copy-send", needs: "multifd" }));
        let capabilities = Capabilities { multifd: true, return_path: true, ..alone };
        assert_eq!(capabilities.validate(), Ok(()));
        assert_eq!(Parameters::default().validate_with(&capabilities), Ok(()));
        for multifd_codec in [Codec::Zlib { level: 1 }, Codec::Zstd { level: 1 }, Codec::Lz4, Codec::Auto] {
            let parameters = Parameters { multifd_codec, ..Parameters::default() };
            let needs = ParameterError::NeedsNoCompression { name: "zero-copy-send" };
            assert_eq!(parameters.validate_with(&capabilities), Err(needs));
        }
    }

    #[test]
    fn defaults_are_valid() {
        assert_eq!(Parameters::default().validate(), Ok(()));
        assert_eq!(Capabilities::default().validate(), Ok(()));
    }

    #[test]
    fn an_odd_cache_size_is_refused_by_name() {
        let parameters = Parameters { xbzrle_cache_size: ByteCount(5000), ..Parameters::default() };
        let ParameterError::OutOfRange { name, got, .. } = parameters.validate().unwrap_err() else {
            panic!("expected a range error")
        };
        assert_eq!((name, got), ("xbzrle-cache-size", 5000));
    }

    #[test]
    fn a_codec_of_our_own_needs_somebody_to_ask() {
        let capabilities = Capabilities { multifd: true, ..Capabilities::default() };
        let parameters = Parameters { multifd_codec: Codec::Lz4, ..Parameters::default() };
        let needs = ParameterError::NeedsAnswers { method: "lz4" };
        assert_eq!(parameters.validate_with(&capabilities), Err(needs));
        let listening = Capabilities { return_path: true, ..capabilities };
        assert_eq!(parameters.validate_with(&listening), Ok(()));
        let unused = Capabilities { multifd: false, ..capabilities };
        assert_eq!(parameters.validate_with(&unused), Ok(()), "no channel, no codec");
    }

    #[test]
    fn switchover_ack_needs_a_return_path() {
        let capabilities = Capabilities { switchover_ack: true, ..Capabilities::default() };
        let needs = ParameterError::Needs { name: "switchover-ack", needs: "return-path" };
        assert_eq!(capabilities.validate(), Err(needs));
        let postcopy = Capabilities { postcopy_ram: true, ..capabilities };
        assert_eq!(postcopy.validate(), Ok(()), "postcopy has one of itself");
    }

    #[test]
    fn a_channel_for_urgent_pages_needs_postcopy() {
        let capabilities = Capabilities { postcopy_preempt: true, ..Capabilities::default() };
        let needs = ParameterError::Needs { name: "postcopy-preempt", needs: "postcopy-ram" };
        assert_eq!(capabilities.validate(), Err(needs));
    }
}

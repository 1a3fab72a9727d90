//! Parameters and capabilities: QMP's words on one side, the engine's on the other.

use super::moving::{Moving, Refused};
use limosa::pages::ByteCount;
use limosa::{
    AutoPostcopy, Capabilities, ChannelSync, Codec, IncomingChannels, IncomingPostcopy, ParameterError,
    Parameters,
};
use limosa_qmp::{
    CommandError, MigMode, MigrationCapability, MigrationCapabilityStatus, MigrationParameters,
    MultiFdCompression, ZeroPageDetection,
};
use std::num::NonZeroU8;
use std::time::Duration;

/// What the operator has set so far.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    parameters: Parameters,
    levels: Levels,
    channel_sync: ChannelSync,
    auto: AutoPolicy,
    capabilities: Capabilities,
}

/// How hard each method of `multifd-compression` tries. A level may be set before its method is.
#[derive(Clone, Copy, Debug)]
struct Levels {
    zlib: u8,
    zstd: u8,
}

/// When to go over to postcopy without being told to. A limit may be set before it is switched on.
#[derive(Clone, Copy, Debug, Default)]
struct AutoPolicy {
    on: bool,
    limits: AutoPostcopy,
}

impl Default for Settings {
    /// The engine's defaults. Unlike QEMU's, the return path is on: a source should hear whether its guest arrived.
    fn default() -> Self {
        Self {
            parameters: Parameters::default(),
            // QEMU's defaults.
            levels: Levels { zlib: 1, zstd: 1 },
            channel_sync: ChannelSync::default(),
            auto: AutoPolicy::default(),
            capabilities: Capabilities { return_path: true, ..Capabilities::default() },
        }
    }
}

impl Settings {
    pub(super) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// At which records of the stream multifd channels are brought into line.
    pub(super) fn channel_sync(&self) -> ChannelSync {
        self.channel_sync
    }

    /// The multifd channels that a guest comes on, if it does: these settings are the source's too.
    pub(super) fn incoming_channels(&self, uuid: Option<[u8; 16]>) -> Option<IncomingChannels> {
        self.capabilities.multifd.then(|| IncomingChannels {
            count: self.parameters.multifd_channels,
            compression: self.parameters.multifd_codec.compression(),
            sync: self.channel_sync,
            uuid: uuid.unwrap_or_default(),
        })
    }

    /// How a guest may come in postcopy, if it may.
    pub(super) fn incoming_postcopy(&self) -> Option<IncomingPostcopy> {
        let preempt = self.capabilities.postcopy_preempt;
        self.capabilities.postcopy_ram.then_some(IncomingPostcopy { preempt })
    }

    /// Takes the values that are there; all or none.
    pub(super) fn set_parameters(&mut self, wanted: &MigrationParameters) -> Result<(), CommandError> {
        refuse_unsupported(wanted)?;
        let (mut parameters, mut levels, mut auto) = (self.parameters.clone(), self.levels, self.auto);
        if let Some(bytes) = wanted.max_bandwidth {
            parameters.max_bandwidth = none_if_zero(bytes);
        }
        if let Some(bytes) = wanted.avail_switchover_bandwidth {
            parameters.switchover_bandwidth = none_if_zero(bytes);
        }
        if let Some(milliseconds) = wanted.downtime_limit {
            parameters.downtime_limit = Duration::from_millis(milliseconds);
        }
        if let Some(bytes) = wanted.xbzrle_cache_size {
            parameters.xbzrle_cache_size = ByteCount(bytes);
        }
        if let Some(count) = wanted.multifd_channels {
            parameters.multifd_channels = count;
        }
        if let Some(place) = wanted.zero_page_detection {
            parameters.zero_page_detection = engine_detection(place);
        }
        if let Some(workers) = wanted.x_multifd_codec_workers {
            parameters.codec_workers = NonZeroU8::new(workers);
        }
        let channel_sync = wanted.x_multifd_flush_after_each_section.map_or(self.channel_sync, when_in_line);
        if let Some(bytes) = wanted.max_postcopy_bandwidth {
            parameters.max_postcopy_bandwidth = none_if_zero(bytes);
        }
        auto.take(wanted);
        parameters.postcopy_auto = auto.on.then_some(auto.limits);
        levels.zlib = wanted.multifd_zlib_level.unwrap_or(levels.zlib);
        levels.zstd = wanted.multifd_zstd_level.unwrap_or(levels.zstd);
        let method = wanted.multifd_compression.unwrap_or_else(|| method(parameters.multifd_codec));
        parameters.multifd_codec = levels.codec(method)?;
        parameters.validate().and_then(|()| levels.validate()).map_err(generic)?;
        (self.parameters, self.levels, self.auto) = (parameters, levels, auto);
        self.channel_sync = channel_sync;
        Ok(())
    }

    /// The parameters that this VMM has.
    pub(super) fn query_parameters(&self) -> MigrationParameters {
        let Parameters {
            max_bandwidth,
            switchover_bandwidth,
            downtime_limit,
            xbzrle_cache_size,
            multifd_channels,
            multifd_codec,
            codec_workers,
            zero_page_detection,
            max_postcopy_bandwidth,
            postcopy_auto,
        } = &self.parameters;
        MigrationParameters {
            max_bandwidth: Some(max_bandwidth.map_or(0, |bytes| bytes.0)),
            avail_switchover_bandwidth: Some(switchover_bandwidth.map_or(0, |bytes| bytes.0)),
            downtime_limit: Some(downtime_limit.as_millis() as u64),
            xbzrle_cache_size: Some(xbzrle_cache_size.0),
            multifd_channels: Some(*multifd_channels),
            multifd_compression: Some(method(*multifd_codec)),
            multifd_zlib_level: Some(self.levels.zlib),
            multifd_zstd_level: Some(self.levels.zstd),
            x_multifd_codec_workers: Some(codec_workers.map_or(0, NonZeroU8::get)),
            x_multifd_flush_after_each_section: Some(self.channel_sync == ChannelSync::PerSection),
            zero_page_detection: Some(monitor_detection(*zero_page_detection)),
            max_postcopy_bandwidth: Some(max_postcopy_bandwidth.map_or(0, |bytes| bytes.0)),
            x_postcopy_auto: Some(postcopy_auto.is_some()),
            x_postcopy_auto_rounds: Some(self.auto.limits.rounds_max.map_or(0, u64::from)),
            x_postcopy_auto_time: Some(self.auto.limits.time_max.map_or(0, |time| time.as_millis() as u64)),
            mode: Some(MigMode::Normal),
            ..MigrationParameters::default()
        }
    }

    /// Switches capabilities; all or none. Those of a migration that has begun stay as they are; only `events` may change
    /// while the host waits for a guest.
    pub(super) fn set_capabilities(
        &mut self,
        wanted: &[MigrationCapabilityStatus],
        moving: &Moving,
    ) -> Result<(), CommandError> {
        let mut capabilities = self.capabilities;
        for MigrationCapabilityStatus { capability, state } in wanted {
            match flag(&mut capabilities, *capability) {
                Some(flag) => *flag = *state,
                None if !state => {}
                None => {
                    let text = format!("Capability '{capability}' is not supported by this VMM");
                    return Err(CommandError::generic(text));
                }
            }
        }
        capabilities.validate().map_err(generic)?;
        let only_events =
            Capabilities { events: self.capabilities.events, ..capabilities } == self.capabilities;
        if moving.is_busy() && !(moving.is_arriving() && only_events) {
            return Err(CommandError::generic(Refused::Busy.to_string()));
        }
        self.capabilities = capabilities;
        Ok(())
    }

    /// Every capability of QEMU, and whether it is on.
    pub(super) fn query_capabilities(&self) -> Vec<MigrationCapabilityStatus> {
        let mut capabilities = self.capabilities;
        let state = |capability: &MigrationCapability| MigrationCapabilityStatus {
            capability: *capability,
            state: flag(&mut capabilities, *capability).is_some_and(|flag| *flag),
        };
        MigrationCapability::ALL.iter().map(state).collect()
    }
}

impl AutoPolicy {
    fn take(&mut self, wanted: &MigrationParameters) {
        self.on = wanted.x_postcopy_auto.unwrap_or(self.on);
        if let Some(rounds) = wanted.x_postcopy_auto_rounds {
            self.limits.rounds_max = (rounds > 0).then(|| u32::try_from(rounds).unwrap_or(u32::MAX));
        }
        if let Some(milliseconds) = wanted.x_postcopy_auto_time {
            self.limits.time_max = (milliseconds > 0).then(|| Duration::from_millis(milliseconds));
        }
    }
}

impl Levels {
    /// The engine's name for a method with its level.
    fn codec(self, method: MultiFdCompression) -> Result<Codec, CommandError> {
        match method {
            MultiFdCompression::None => Ok(Codec::None),
            MultiFdCompression::Zlib => Ok(Codec::Zlib { level: self.zlib }),
            MultiFdCompression::Zstd => Ok(Codec::Zstd { level: self.zstd }),
            MultiFdCompression::Lz4 => Ok(Codec::Lz4),
            MultiFdCompression::Auto => Ok(Codec::Auto),
            MultiFdCompression::ZstdPacket => Ok(Codec::ZstdPacket { level: self.zstd }),
            MultiFdCompression::Qatzip | MultiFdCompression::Qpl | MultiFdCompression::Uadk => {
                let text = format!("Compression '{method}' is not supported by this VMM");
                Err(CommandError::generic(text))
            }
        }
    }

    /// Checks both, whichever method is on.
    fn validate(self) -> Result<(), ParameterError> {
        [Codec::Zlib { level: self.zlib }, Codec::Zstd { level: self.zstd }]
            .into_iter()
            .try_for_each(|codec| Parameters { multifd_codec: codec, ..Parameters::default() }.validate())
    }
}

fn method(codec: Codec) -> MultiFdCompression {
    match codec {
        Codec::None => MultiFdCompression::None,
        Codec::Zlib { .. } => MultiFdCompression::Zlib,
        Codec::Zstd { .. } => MultiFdCompression::Zstd,
        Codec::Lz4 => MultiFdCompression::Lz4,
        Codec::Auto => MultiFdCompression::Auto,
        Codec::ZstdPacket { .. } => MultiFdCompression::ZstdPacket,
    }
}

fn when_in_line(after_each_section: bool) -> ChannelSync {
    if after_each_section { ChannelSync::PerSection } else { ChannelSync::PerRound }
}

fn engine_detection(place: ZeroPageDetection) -> limosa::ZeroPageDetection {
    match place {
        ZeroPageDetection::None => limosa::ZeroPageDetection::None,
        ZeroPageDetection::Legacy => limosa::ZeroPageDetection::Legacy,
        ZeroPageDetection::Multifd => limosa::ZeroPageDetection::Multifd,
    }
}

fn monitor_detection(place: limosa::ZeroPageDetection) -> ZeroPageDetection {
    match place {
        limosa::ZeroPageDetection::None => ZeroPageDetection::None,
        limosa::ZeroPageDetection::Legacy => ZeroPageDetection::Legacy,
        limosa::ZeroPageDetection::Multifd => ZeroPageDetection::Multifd,
    }
}

/// Where the engine keeps a capability; `None` for those that it does not have.
fn flag(capabilities: &mut Capabilities, capability: MigrationCapability) -> Option<&mut bool> {
    match capability {
        MigrationCapability::Xbzrle => Some(&mut capabilities.xbzrle),
        MigrationCapability::Events => Some(&mut capabilities.events),
        MigrationCapability::ReturnPath => Some(&mut capabilities.return_path),
        MigrationCapability::PauseBeforeSwitchover => Some(&mut capabilities.pause_before_switchover),
        MigrationCapability::SwitchoverAck => Some(&mut capabilities.switchover_ack),
        MigrationCapability::Multifd => Some(&mut capabilities.multifd),
        MigrationCapability::ZeroCopySend => Some(&mut capabilities.zero_copy_send),
        MigrationCapability::PostcopyRam => Some(&mut capabilities.postcopy_ram),
        MigrationCapability::PostcopyPreempt => Some(&mut capabilities.postcopy_preempt),
        MigrationCapability::PostcopyBlocktime => Some(&mut capabilities.postcopy_blocktime),
        _ => None,
    }
}

/// Parameters that would silently do nothing are refused by name.
fn refuse_unsupported(wanted: &MigrationParameters) -> Result<(), CommandError> {
    let mut rest = wanted.clone();
    rest.max_bandwidth = None;
    rest.avail_switchover_bandwidth = None;
    rest.downtime_limit = None;
    rest.xbzrle_cache_size = None;
    rest.multifd_channels = None;
    rest.multifd_compression = None;
    rest.multifd_zlib_level = None;
    rest.multifd_zstd_level = None;
    rest.x_multifd_codec_workers = None;
    rest.x_multifd_flush_after_each_section = None;
    rest.zero_page_detection = None;
    rest.max_postcopy_bandwidth = None;
    rest.x_postcopy_auto = None;
    rest.x_postcopy_auto_rounds = None;
    rest.x_postcopy_auto_time = None;
    rest.mode = rest.mode.filter(|mode| *mode != MigMode::Normal);
    let rest = serde_json::to_value(&rest).expect("parameters are JSON");
    match rest.as_object().and_then(|members| members.keys().next()) {
        None => Ok(()),
        Some(name) => Err(CommandError::generic(format!("Parameter '{name}' is not supported by this VMM"))),
    }
}

fn generic(error: ParameterError) -> CommandError {
    CommandError::generic(error.to_string())
}

fn none_if_zero(bytes: u64) -> Option<ByteCount> {
    (bytes > 0).then_some(ByteCount(bytes))
}

//! What this version can do beyond QEMU's protocol, and what it asks of its peer (wire 14.1).

use crate::incoming::IncomingChannels;
use crate::parameters::{Capabilities, Parameters};
use crate::savevm::ChannelSync;
use limosa_protocol::FeatureWishes;
use limosa_wire::multifd::Compression;
use limosa_wire::{Features, MultifdSettings};

/// What a destination offers to every source.
pub(crate) const OFFERED: Features = Features::from_bits(
    Features::PER_PACKET_CODECS.bits()
        | Features::POPULATED_REPORT.bits()
        | Features::RUNNING_ANSWERS.bits()
        | Features::POSTCOPY_CHANNELS.bits()
        | Features::LINK_REPLACEMENT.bits(),
);

/// What a source asks for.
pub(crate) fn wishes(
    parameters: &Parameters,
    capabilities: &Capabilities,
    sync: ChannelSync,
) -> FeatureWishes {
    let required = match multifd_settings(parameters, capabilities).compression {
        Compression::PerPacket => Features::PER_PACKET_CODECS,
        _ => Features::NONE,
    };
    // Where every section has its synchronisation point, those of a push would have one too, for nothing.
    let pushes = capabilities.multifd && sync == ChannelSync::PerRound;
    let any = Features::RUNNING_ANSWERS | Features::LINK_REPLACEMENT;
    let postcopy = match (capabilities.postcopy_ram, pushes) {
        (true, true) => any | Features::POSTCOPY_CHANNELS,
        (true, false) => any,
        (false, _) => Features::NONE,
    };
    FeatureWishes { wanted: Features::POPULATED_REPORT | postcopy, required }
}

/// What a source says of its multifd channels.
pub(crate) fn multifd_settings(parameters: &Parameters, capabilities: &Capabilities) -> MultifdSettings {
    if !capabilities.multifd {
        return MultifdSettings::default();
    }
    let compression = parameters.multifd_codec.compression();
    MultifdSettings { channels: parameters.multifd_channels, compression }
}

impl IncomingChannels {
    /// What a destination compares with what the source says.
    pub(crate) fn settings(&self) -> MultifdSettings {
        MultifdSettings { channels: self.count, compression: self.compression }
    }
}

//! The options for pages on several connections (multifd); the same for `vmm` and for `demo`.

use clap::ValueEnum;
use limosa_qmp::{MigrationCapability, MigrationCapabilityStatus, MigrationParameters, MultiFdCompression};

/// How pages are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    /// Not at all.
    None,
    /// zlib.
    Zlib,
    /// zstd.
    Zstd,
    /// LZ4, each packet by itself; only between two Limosas.
    Lz4,
    /// zstd, each packet by itself; only between two Limosas.
    ZstdPacket,
    /// Not at all, LZ4 or zstd, each packet as link and processors have it; only between two Limosas.
    Auto,
}

/// Connections for pages.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ChannelOptions {
    /// Connections for pages beside the main one (multifd), 1 to 255; the same on both sides [default: the main one alone]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    channels: Option<u8>,
    /// How pages are compressed on these connections; the same on both sides.
    #[arg(long, value_enum, value_name = "METHOD", default_value_t = Method::None, requires = "channels")]
    compression: Method,
    /// Threads that compress or decompress for all of them together; 0 is one per processor [default: 0]
    #[arg(long, value_name = "N", requires = "channels")]
    codec_workers: Option<u8>,
    /// Send pages without a copy into the kernel; only over TCP and without compression. Nothing to a destination.
    #[arg(long, requires = "channels")]
    zero_copy: bool,
}

impl ChannelOptions {
    /// The capabilities, on or off.
    pub(crate) fn capabilities(&self) -> [MigrationCapabilityStatus; 2] {
        [
            (MigrationCapability::Multifd, self.channels.is_some()),
            (MigrationCapability::ZeroCopySend, self.zero_copy),
        ]
        .map(|(capability, state)| MigrationCapabilityStatus { capability, state })
    }

    /// The parameters that say the same to a monitor; none without channels.
    pub(crate) fn parameters(&self) -> MigrationParameters {
        let method = match self.compression {
            Method::None => MultiFdCompression::None,
            Method::Zlib => MultiFdCompression::Zlib,
            Method::Zstd => MultiFdCompression::Zstd,
            Method::Lz4 => MultiFdCompression::Lz4,
            Method::ZstdPacket => MultiFdCompression::ZstdPacket,
            Method::Auto => MultiFdCompression::Auto,
        };
        MigrationParameters {
            multifd_channels: self.channels,
            multifd_compression: self.channels.map(|_| method),
            x_multifd_codec_workers: self.codec_workers,
            ..MigrationParameters::default()
        }
    }

    /// The words of a command line that say the same to a destination.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let Some(channels) = self.channels else { return Vec::new() };
        let method = self.compression.to_possible_value().expect("no method is hidden");
        let mut words =
            vec![format!("--channels={channels}"), format!("--compression={}", method.get_name())];
        words.extend(self.codec_workers.map(|workers| format!("--codec-workers={workers}")));
        words
    }
}

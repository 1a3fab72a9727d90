//! What ends a channel, and with it the migration.

use limosa_compress::delta::DeltaError;
use limosa_compress::{PacketError, PerPacketError};
use limosa_pages::ByteCount;
use limosa_transport::TransportError;
use limosa_wire::WireError;
use limosa_wire::multifd::Compression;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

use crate::pool::WorkerPanicked;
use crate::receive::PlaceError;

/// A sending channel failed: which one, where and how. Every later call returns the same error.
#[derive(Clone, Debug, Error)]
#[error("multifd channel {channel}, packet {packet}")]
pub struct SendError {
    /// Number of the channel.
    pub channel: u8,
    /// Packets that it had sent before.
    pub packet: u64,
    /// What happened.
    #[source]
    pub failure: Arc<SendFailure>,
}

/// How a sending channel failed.
#[derive(Debug, Error)]
pub enum SendFailure {
    /// Its link is lost, late or shut down.
    #[error(transparent)]
    Link(#[from] TransportError),
    /// Its pages could not be compressed.
    #[error("compression failed")]
    Codec(#[from] PacketError),
    /// Pages could not be compressed into a packet of their own.
    #[error("compression failed")]
    PerPacketCodec(#[from] PerPacketError),
    /// There is no thread for it.
    #[error("no thread for the channel")]
    Thread(#[source] io::Error),
    /// There are no workers for its codec.
    #[error("no threads for the codec pool")]
    Workers(#[source] io::Error),
    /// Its thread has a bug.
    #[error("the thread of the channel panicked")]
    Panicked,
    /// Its codec has a bug.
    #[error("a worker of the codec pool panicked")]
    WorkerPanicked,
}

/// The receiving end failed: on which channel, where and how. Every later call returns the same error.
#[derive(Clone, Debug, Error)]
#[error("{connection}, packet {packet}")]
pub struct ReceiveError {
    /// Which channel.
    pub connection: Connection,
    /// Packets that had come on it before.
    pub packet: u64,
    /// What happened.
    #[source]
    pub failure: Arc<ReceiveFailure>,
}

/// A connection of pages, before and after it has said which channel it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its place among the links that were given, from 0.
    pub accepted: usize,
    /// The number in its init packet.
    pub channel: Option<u8>,
}

impl SendError {
    /// Whether its link is gone, and nothing worse: another could take its place.
    pub fn is_loss(&self) -> bool {
        matches!(*self.failure, SendFailure::Link(_))
    }
}

impl ReceiveError {
    /// Whether its link is gone or silent, and nothing worse: another could take its place.
    pub fn is_loss(&self) -> bool {
        use ReceiveFailure::{EndedBeforeSync, Link, LostSync};
        matches!(*self.failure, Link(_) | EndedBeforeSync { .. } | LostSync { .. })
    }
}

/// How a receiving channel failed.
#[derive(Debug, Error)]
pub enum ReceiveFailure {
    /// Its link is lost, late, shut down, or ended inside a packet.
    #[error(transparent)]
    Link(#[from] TransportError),
    /// Bytes that are no packet.
    #[error("bytes that are no packet")]
    Wire(#[from] WireError),
    /// A channel of another virtual machine.
    #[error("the channel belongs to machine {}; expected {}", Uuid(got), Uuid(expected))]
    Uuid {
        /// Our machine.
        expected: [u8; 16],
        /// The machine in the init packet.
        got: [u8; 16],
    },
    /// A channel number that does not exist: the two sides are set to different numbers of channels.
    #[error("channel number {got}; expected less than {channels}")]
    ChannelNumber {
        /// How many channels there are.
        channels: usize,
        /// The number in the init packet.
        got: u8,
    },
    /// Two connections with one number.
    #[error("a second connection says that it is channel {got}")]
    DuplicateChannel {
        /// The number in the init packet.
        got: u8,
    },
    /// The two sides are set to different methods of compression.
    #[error("a packet compressed with {got:?}; expected {expected:?}")]
    Method {
        /// Our setting.
        expected: Compression,
        /// What the packet says.
        got: Compression,
    },
    /// Pages before the first synchronisation point: the list of blocks is not agreed on yet.
    #[error("pages before the first synchronisation point")]
    PagesBeforeSync,
    /// Pages of a block that we do not have.
    #[error("unknown RAM block {name:?}")]
    UnknownBlock {
        /// Its name.
        name: String,
    },
    /// A page outside of its block.
    #[error("a page at {offset:#x} of RAM block {name:?}, which has {length} bytes")]
    PageOutside {
        /// The block.
        name: String,
        /// Where the page would be.
        offset: u64,
        /// Bytes in the block.
        length: ByteCount,
    },
    /// A compressed payload that does not make exactly its pages.
    #[error("a payload of {payload} bytes cannot be decompressed")]
    Codec {
        /// Bytes in the payload.
        payload: usize,
        /// Why.
        source: PacketError,
    },
    /// A compressed block that does not make exactly its pages.
    #[error("a compressed block of {block} bytes cannot be decompressed")]
    Block {
        /// Bytes in the block.
        block: usize,
        /// Why.
        source: PerPacketError,
    },
    /// Bytes that are no delta records, or not as many as announced.
    #[error("delta records of {bytes} bytes cannot be read")]
    Deltas {
        /// Bytes of all of them.
        bytes: usize,
        /// Why.
        source: DeltaError,
    },
    /// A decompressor could not be had.
    #[error("no decompressor")]
    NoDecoder(#[source] PacketError),
    /// A decompressor for packets of their own could not be had.
    #[error("no decompressor")]
    NoPacketDecoder(#[source] PerPacketError),
    /// State of a device; nothing here takes it.
    #[error("device state of {idstr:?} on a channel of pages")]
    DeviceState {
        /// The device.
        idstr: String,
    },
    /// A page could not be put where it belongs.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The channel ended although the main channel says that a synchronisation point comes on it.
    #[error("the channel ended before synchronisation point {point}")]
    EndedBeforeSync {
        /// Which one, from 1.
        point: u64,
    },
    /// The main channel says that a synchronisation point comes, and the channel has been silent since.
    #[error("nothing came for {after:?} before synchronisation point {point}")]
    LostSync {
        /// Which one, from 1.
        point: u64,
        /// How long it was waited for.
        after: Duration,
    },
    /// The migration is over, and the channel is at a synchronisation point that the main channel never named: what
    /// is behind it was not read.
    #[error("synchronisation point {point} on the channel is missing on the main channel")]
    UnnamedSync {
        /// Which one, from 1.
        point: u64,
    },
    /// The migration is over, and something came behind the channel's last synchronisation point: nothing says that
    /// it is all of it.
    #[error("a packet behind synchronisation point {point}, the last one")]
    BehindLastSync {
        /// The last one, from 1.
        point: u64,
    },
    /// There is no thread for it.
    #[error("no thread for the channel")]
    Thread(#[source] io::Error),
    /// There are no workers for its codec.
    #[error("no threads for the codec pool")]
    Workers(#[source] io::Error),
    /// Its thread has a bug.
    #[error("the thread of the channel panicked")]
    Panicked,
    /// Its codec has a bug.
    #[error("a worker of the codec pool panicked")]
    WorkerPanicked,
}

impl From<WorkerPanicked> for SendFailure {
    fn from(_: WorkerPanicked) -> Self {
        Self::WorkerPanicked
    }
}

impl From<WorkerPanicked> for ReceiveFailure {
    fn from(_: WorkerPanicked) -> Self {
        Self::WorkerPanicked
    }
}

/// Sixteen bytes as a UUID is written.
struct Uuid<'a>(&'a [u8; 16]);

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.channel {
            Some(channel) => write!(f, "multifd channel {channel}"),
            None => write!(f, "multifd connection {} (its number is not known)", self.accepted),
        }
    }
}

impl fmt::Display for Uuid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if [4, 6, 8, 10].contains(&index) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

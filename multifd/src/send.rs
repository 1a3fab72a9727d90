//! The sending end.

mod channel;
mod chooser;
mod encode;
mod packet;
mod parcel;
mod queue;
mod versions;

use crate::error::{SendError, SendFailure};
use crate::pool::{CodecPool, PoolStatistics};
use crate::shutdown::ChannelsShutdown;
use crate::statistics::{AllCounters, ChannelStatistics, QueueStatistics};
use channel::{Channel, Shared};
use chooser::Chooser;
use encode::{Encoders, Encoding};
use limosa_compress::choice::ChoiceReport;
use limosa_compress::{PacketEncoder, PacketError};
use limosa_pages::{BlockId, ByteCount, PageCount, PageRun, RamLayout};
use limosa_ram::GuestRam;
use limosa_transport::LinkWriter;
use limosa_wire::multifd::{Compression, PACKET_PAGES};
use queue::Queue;
use std::num::NonZeroU8;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::{Builder, JoinHandle};

/// Most channels: the init packet has a byte for the number, and QEMU has no more either.
pub const CHANNELS_MAX: usize = 255;

/// Batches that wait in the queue, per channel: one to take when the packet in hand is gone, and one more for
/// a coordinator that is late. A longer queue would only hold claimed pages for longer.
const QUEUED_PER_CHANNEL: usize = 2;

/// How pages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendConfig {
    /// What each channel sends first: the UUID of the virtual machine, zeros if it has none. The other side compares
    /// it with its own. `None` for links that carry their init packets already.
    pub uuid: Option<[u8; 16]>,
    /// How packets are compressed; the other side must be set to the same method.
    pub codec: Codec,
    /// Where zero pages are found.
    pub zero_detection: ZeroDetection,
    /// Threads that compress, for all channels together; `None` is one per processor. Without a codec there are none.
    pub codec_workers: Option<NonZeroU8>,
    /// Most memory for versions of pages to make deltas against, where packets stand for themselves; 0 is no deltas.
    pub delta_cache: ByteCount,
    /// Guest pages leave without a copy into the kernel, and a synchronisation point waits until it has let go of them.
    /// Slower over loopback, where the kernel copies all the same.
    pub zero_copy: bool,
}

/// How the payload of packets is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// Pages as they are, straight from guest RAM.
    #[default]
    None,
    /// One zlib stream per channel.
    Zlib {
        /// 0 to [`limosa_compress::packet::ZLIB_LEVEL_MAX`].
        level: u8,
    },
    /// One zstd frame per channel.
    Zstd {
        /// 0 to [`limosa_compress::packet::ZSTD_LEVEL_MAX`].
        level: u8,
    },
    /// LZ4, each packet for itself: the workers make several packets of a channel at once, pages that would not shrink
    /// leave straight from guest RAM, and pages sent before may leave as deltas. The other side must be a Limosa.
    Lz4,
    /// zstd, each packet for itself, as [`Self::Lz4`].
    ZstdPacket {
        /// 1 to [`limosa_compress::packet::ZSTD_LEVEL_MAX`].
        level: u8,
    },
    /// Each packet by what gets the pages through soonest, by what is measured of link and workers: as it is, straight
    /// from guest RAM; as [`Self::Lz4`]; or as [`Self::ZstdPacket`] at some level.
    Auto,
}

/// Where zero pages are found. QEMU's third setting, `legacy`, is `None` here: the main channel has told them
/// already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroDetection {
    /// In the thread of the channel, or with a codec on its pool.
    #[default]
    Multifd,
    /// Nowhere: every page is sent with its bytes.
    None,
}

/// Pages of one block that leave in one packet: at most 128, each at most once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendBatch {
    /// Block of all runs.
    pub block: BlockId,
    /// Pages to look at and to send. The dirty log has forgotten them already (invariant I2). In ascending order,
    /// so that neighbours go out as one piece.
    pub content: Vec<PageRun>,
    /// Pages that the guest has never touched: sent as zero without a look, which would give them memory.
    pub untouched: Vec<PageRun>,
}

/// The sending end of all channels. Dropping it ends the links under their threads: the other side sees a loss.
///
/// Memory: with a codec at most 1.5 MiB for each of 2 packets per channel and 2 per worker, beside what the codec
/// itself needs for a channel; without, a few KiB.
#[derive(Debug)]
pub struct SendChannels {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
    encoders: Option<Encoders>,
    counters: AllCounters,
    shutdown: ChannelsShutdown,
    layout: RamLayout,
    /// Whether the first synchronisation point is behind us.
    synced: bool,
}

impl Default for SendConfig {
    fn default() -> Self {
        Self {
            uuid: Some([0; 16]),
            codec: Codec::None,
            zero_detection: ZeroDetection::Multifd,
            codec_workers: None,
            delta_cache: ByteCount(0),
            zero_copy: false,
        }
    }
}

impl SendBatch {
    /// No pages of `block`.
    pub fn new(block: BlockId) -> Self {
        Self { block, content: Vec::new(), untouched: Vec::new() }
    }

    /// Pages in all runs.
    pub fn pages(&self) -> PageCount {
        self.content.iter().chain(&self.untouched).map(|run| run.count).sum()
    }

    /// Empties the batch and keeps its allocations.
    pub fn clear(&mut self) {
        self.content.clear();
        self.untouched.clear();
    }
}

impl Codec {
    /// What the packets say.
    pub const fn compression(self) -> Compression {
        match self {
            Self::None => Compression::None,
            Self::Zlib { .. } => Compression::Zlib,
            Self::Zstd { .. } => Compression::Zstd,
            Self::Lz4 | Self::ZstdPacket { .. } | Self::Auto => Compression::PerPacket,
        }
    }

    /// The stream of one channel, where the codec has one.
    fn stream(self) -> Result<Option<PacketEncoder>, PacketError> {
        Ok(match self {
            Self::None | Self::Lz4 | Self::ZstdPacket { .. } | Self::Auto => None,
            Self::Zlib { level } => Some(PacketEncoder::zlib(level)),
            Self::Zstd { level } => Some(PacketEncoder::zstd(level)?),
        })
    }
}

impl SendChannels {
    /// Starts a channel on each of `links`, numbered in this order; each sends its init packet at once, if there is one
    /// to send.
    ///
    /// Deadlines and roles are those of the links: a role is set before a link is split. A link is idle while the
    /// guest writes less than it can carry.
    ///
    /// # Errors
    /// If a codec or a thread cannot be had, or zero-copy on a link that does not have it.
    ///
    /// # Panics
    /// If there are no links or more than [`CHANNELS_MAX`], or the codec does not have the level.
    pub fn new(links: Vec<LinkWriter>, ram: GuestRam, config: SendConfig) -> Result<Self, SendError> {
        assert!((1..=CHANNELS_MAX).contains(&links.len()), "{} channels", links.len());
        let failed = |number, failure| SendError { channel: number, packet: 0, failure: Arc::new(failure) };
        let pool = match config.codec {
            Codec::None => None,
            _ => Some(
                CodecPool::new("multifd-encode", config.codec_workers)
                    .map_err(|error| failed(0, SendFailure::Workers(error)))?,
            ),
        };
        let encoders = pool.map(|pool| {
            let chooser = Chooser::new(config.codec, links.len(), &pool);
            Encoders::new(pool, ram.clone(), config.zero_detection, chooser, config.delta_cache)
        });
        let queue = Arc::new(Queue::new(links.len(), links.len() * QUEUED_PER_CHANNEL));
        let shutdown = ChannelsShutdown::new(links.iter().map(LinkWriter::shutdown_handle));
        let counters: AllCounters = links.iter().map(|_| Default::default()).collect();
        let layout = ram.layout().clone();
        let mut channels =
            Self { queue, threads: Vec::new(), encoders, counters, shutdown, layout, synced: false };
        let packet_numbers = Arc::new(AtomicU64::new(0));
        for (number, mut link) in (0..=u8::MAX).zip(links) {
            if config.zero_copy {
                link.use_zero_copy().map_err(|error| failed(number, error.into()))?;
            }
            let shared = Shared {
                number,
                queue: Arc::clone(&channels.queue),
                counters: Arc::clone(&channels.counters),
                packet_numbers: Arc::clone(&packet_numbers),
            };
            let stream = config.codec.stream().map_err(|error| failed(number, error.into()))?;
            let encoding = channels.encoders.clone().map(|encoders| Encoding::new(encoders, stream));
            let channel = Channel::new(link, ram.clone(), config, shared);
            let thread =
                Builder::new().name(format!("multifd-send-{number}")).spawn(|| channel.run(encoding));
            channels.threads.push(thread.map_err(|error| failed(number, SendFailure::Thread(error)))?);
        }
        Ok(channels)
    }

    /// Hands `batch` to whichever channel is free first, and leaves an empty batch in its place. Waits while the
    /// queue is full. An empty batch is not sent.
    ///
    /// # Errors
    /// If a channel has failed, also while waiting.
    ///
    /// # Panics
    /// Before the first [`Self::sync`], if there are more than 128 pages, or a run leaves the block.
    pub fn submit(&mut self, batch: &mut SendBatch) -> Result<(), SendError> {
        assert!(self.synced, "the other side takes no page before the first synchronisation point");
        let pages = batch.pages();
        assert!(pages.0 <= PACKET_PAGES as u64, "{pages} pages do not fit into a packet");
        let layout = self.layout.block(batch.block);
        for &run in batch.content.iter().chain(&batch.untouched) {
            assert!(layout.contains(run), "{run:?} leaves {}", layout.name);
        }
        self.queue.submit(batch)
    }

    /// Makes every channel send one SYNC packet behind everything that was submitted; returns when all are
    /// written to their links.
    ///
    /// The other side reads no further on any channel before it has the FLUSH record of the main channel. That
    /// record must have left, not only be in a buffer, before [`Self::submit`] is called again.
    ///
    /// # Errors
    /// If a channel has failed.
    pub fn sync(&mut self) -> Result<(), SendError> {
        self.synced = true;
        self.queue.sync()
    }

    /// From now on no packet holds deltas: the other side drops what it had of the pages. To be called at a synchronisation
    /// point.
    pub fn forget_versions(&self) {
        if let Some(encoders) = &self.encoders {
            encoders.forget_versions();
        }
    }

    /// Lets at most about `least` bytes wait in our kernel on each channel, or as many as a long path holds.
    pub fn limit_queues(&self, least: usize) {
        self.shutdown.limit_queues(least);
    }

    /// Ends the links after everything that was submitted. Only for a migration that has completed: a channel that
    /// ends early is a failure to the other side.
    ///
    /// # Errors
    /// If a channel has failed.
    pub fn close(mut self) -> Result<Vec<ChannelStatistics>, SendError> {
        self.queue.close();
        self.join();
        self.queue.failure().map_or_else(|| Ok(self.statistics()), Err)
    }

    /// What each channel has done so far, by number.
    pub fn statistics(&self) -> Vec<ChannelStatistics> {
        self.counters.iter().map(|counters| counters.snapshot()).collect()
    }

    /// What waits for a channel.
    pub fn queue_statistics(&self) -> QueueStatistics {
        self.queue.statistics()
    }

    /// What the workers have done so far; `None` without a codec.
    pub fn pool_statistics(&self) -> Option<PoolStatistics> {
        self.encoders.as_ref().map(|encoders| encoders.pool.statistics())
    }

    /// How packets were made so far, and why; `None` unless the codec is [`Codec::Auto`].
    pub fn choices(&self) -> Option<ChoiceReport> {
        self.encoders.as_ref().and_then(Encoders::choices)
    }

    /// The error of the channel that failed first, if one has.
    pub fn failure(&self) -> Option<SendError> {
        self.queue.failure()
    }

    /// A handle with which any thread can end all channels, and whoever waits for them.
    pub fn shutdown_handle(&self) -> ChannelsShutdown {
        self.shutdown.clone()
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            // A panic is in the queue already, as the channel's failure.
            let _ = thread.join();
        }
    }
}

impl Drop for SendChannels {
    fn drop(&mut self) {
        if let Some(encoders) = &self.encoders {
            encoders.pool.abandon();
        }
        self.shutdown.shutdown();
        self.queue.abort();
        self.join();
    }
}

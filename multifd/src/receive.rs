//! The receiving end.

mod barrier;
mod channel;
mod decode;
mod intake;
mod parcel;
mod runs;
mod sink;

use crate::error::{Connection, ReceiveError, ReceiveFailure};
use crate::pool::{CodecPool, PoolStatistics};
use crate::shutdown::ChannelsShutdown;
use crate::statistics::{AllCounters, ChannelStatistics};
use barrier::Barrier;
use channel::Channel;
use decode::{Decoders, Decoding};
use limosa_transport::{LinkReader, ShutdownHandle};
use limosa_wire::multifd::{Compression, InitPacket};
use std::num::NonZeroU8;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

pub use sink::{PageSink, PlaceError, RamSink};

/// How long a channel may be silent while the main channel waits for its SYNC packet. A packet of 128 pages takes
/// half a second at 10 Mbit/s, so this is for a peer that has lost its place, not for a slow one.
pub const SYNC_PATIENCE: Duration = Duration::from_secs(30);

/// How pages are received.
#[derive(Clone, Debug)]
pub struct ReceiveConfig {
    /// UUID of the virtual machine; zeros if it has none. Every channel must say the same.
    pub uuid: [u8; 16],
    /// How packets must be compressed: [`Compression::None`], [`Compression::Zlib`], [`Compression::Zstd`] or
    /// [`Compression::PerPacket`].
    pub compression: Compression,
    /// How long a channel may be silent before a SYNC packet that the main channel waits for.
    pub sync_patience: Duration,
    /// Shut down when a channel fails: a link, usually the main one, whose reader must hear of it.
    pub on_failure: Option<ShutdownHandle>,
    /// Threads that decompress, for all channels together; `None` is one per processor. Without a codec there are
    /// none.
    pub codec_workers: Option<NonZeroU8>,
}

/// A connection that carries pages.
#[derive(Debug)]
pub struct ReceiveLink {
    /// What comes in on it.
    pub reader: LinkReader,
    /// The init packet, if it has been taken from the link already to tell what the connection is for.
    pub init: Option<InitPacket>,
}

/// The receiving end of all channels. Dropping it ends the links under their threads.
///
/// Memory, whatever the peer sends: with a codec at most 1.5 MiB for each of 2 packets per channel and 2 per worker,
/// beside what the decompressor itself needs for a channel; without, a few KiB.
#[derive(Debug)]
pub struct ReceiveChannels {
    barrier: Arc<Barrier>,
    threads: Vec<JoinHandle<()>>,
    pool: Option<CodecPool>,
    counters: AllCounters,
    shutdown: ChannelsShutdown,
}

impl Default for ReceiveConfig {
    fn default() -> Self {
        Self {
            uuid: [0; 16],
            compression: Compression::None,
            sync_patience: SYNC_PATIENCE,
            on_failure: None,
            codec_workers: None,
        }
    }
}

impl ReceiveLink {
    /// A link from which nothing was taken.
    pub fn new(reader: LinkReader) -> Self {
        Self { reader, init: None }
    }
}

impl ReceiveChannels {
    /// Starts a channel on each of `links`: all that there will be.
    ///
    /// Their numbers, from the init packets, must be those from 0 to the number of links, in any order. What
    /// comes goes to `sink`. Deadlines are those of the links; a source may be silent for long, and usually there
    /// is none.
    ///
    /// # Errors
    /// If a decompressor or a thread cannot be had. What the peer does wrong is told by the calls that follow.
    ///
    /// # Panics
    /// If there are no links or more than [`CHANNELS_MAX`](crate::CHANNELS_MAX), or the method of compression is
    /// none of those of [`ReceiveConfig`].
    pub fn new(
        links: Vec<ReceiveLink>,
        sink: Arc<dyn PageSink>,
        config: ReceiveConfig,
    ) -> Result<Self, ReceiveError> {
        assert!((1..=crate::CHANNELS_MAX).contains(&links.len()), "{} channels", links.len());
        let failed = |accepted, failure| ReceiveError {
            connection: Connection { accepted, channel: None },
            packet: 0,
            failure: Arc::new(failure),
        };
        let pool = match config.compression {
            Compression::None => None,
            _ => Some(
                CodecPool::new("multifd-decode", config.codec_workers)
                    .map_err(|error| failed(0, ReceiveFailure::Workers(error)))?,
            ),
        };
        let decoders = pool.clone().map(|pool| Decoders::new(pool, Arc::clone(&sink)));
        let shutdown = ChannelsShutdown::new(links.iter().map(|link| link.reader.shutdown_handle()));
        let counters: AllCounters = links.iter().map(|_| Default::default()).collect();
        let barrier =
            Arc::new(Barrier::new(Arc::clone(&counters), config.sync_patience, config.on_failure.clone()));
        let mut channels = Self { barrier, threads: Vec::new(), pool, counters, shutdown };
        for (accepted, link) in links.into_iter().enumerate() {
            let decoding = decoders.clone().map(|decoders| Decoding::new(decoders, config.compression));
            let decoding = decoding.transpose().map_err(|failure| failed(accepted, failure))?;
            let barrier = Arc::clone(&channels.barrier);
            let channel = Channel::new(accepted, link, Arc::clone(&sink), &config, barrier, decoding);
            let thread = Builder::new().name(format!("multifd-receive-{accepted}")).spawn(|| channel.run());
            channels.threads.push(thread.map_err(|error| failed(accepted, ReceiveFailure::Thread(error)))?);
        }
        Ok(channels)
    }

    /// Waits until every channel is at its next synchronisation point, and lets them go on.
    ///
    /// To be called by the reader of the main channel at each FLUSH record, or at each end of a section where
    /// that is the mode. Afterwards all pages that were sent before the point are in the sink.
    ///
    /// # Errors
    /// If a channel has failed, ended, or is silent for too long; never later than that.
    pub fn wait_sync(&self) -> Result<(), ReceiveError> {
        self.barrier.wait_all()
    }

    /// Ends the channels of a migration that the main channel has said is complete, whether the source has ended
    /// them or not. What has come and was not read is looked at first: there must be nothing. What is still on
    /// its way on the network is not waited for: a source may keep its channels open until it hears of the end.
    ///
    /// # Errors
    /// If a channel has failed, or something is on it behind the last point that the main channel named: another
    /// point, or pages.
    pub fn close(mut self) -> Result<Vec<ChannelStatistics>, ReceiveError> {
        self.barrier.closing();
        self.shutdown.end_receiving();
        self.join();
        self.barrier.closed()?;
        Ok(self.statistics())
    }

    /// Lets at most about `least` bytes wait in our kernel unread on each channel, or as many as a long path holds.
    pub fn limit_queues(&self, least: usize) {
        self.shutdown.limit_queues(least);
    }

    /// What each channel has done so far, in the order of the links.
    pub fn statistics(&self) -> Vec<ChannelStatistics> {
        self.counters.iter().map(|counters| counters.snapshot()).collect()
    }

    /// What the workers have done so far; `None` without a codec.
    pub fn pool_statistics(&self) -> Option<PoolStatistics> {
        self.pool.as_ref().map(CodecPool::statistics)
    }

    /// The error of the channel that failed first, if one has.
    pub fn failure(&self) -> Option<ReceiveError> {
        self.barrier.failure()
    }

    /// A handle with which any thread can end all channels, and whoever waits for them.
    pub fn shutdown_handle(&self) -> ChannelsShutdown {
        self.shutdown.clone()
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            // A panic is with the barrier already, as the channel's failure.
            let _ = thread.join();
        }
    }
}

impl Drop for ReceiveChannels {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            pool.abandon();
        }
        self.barrier.abandon();
        self.shutdown.shutdown();
        self.join();
    }
}

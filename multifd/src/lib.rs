//! The channels that carry a guest's pages beside the main stream (wire 4).
//!
//! [`SendChannels`] has one thread per channel, and a thread owns its link. The coordinator hands out batches of
//! pages through one bounded queue; whoever is free takes the next, so a slow channel gets less. Without a codec a
//! packet leaves straight from guest RAM, in one system call if the kernel takes it; with one it is made from a
//! private copy. [`ReceiveChannels`] has one thread per channel too, receives
//! straight into guest RAM, and tells a [`PageSink`] what has come.
//!
//! Channels race each other. What orders them is the synchronisation point: every channel sends a SYNC packet,
//! the main channel says FLUSH, and the receiving end goes on when it has all of them (invariant I5). A page is
//! sent at most once between two of them.
//!
//! A channel that fails fails the migration: the next call on the owner's side returns its error at once, and
//! nobody waits for a channel that is gone.
//!
//! ```
//! use limosa_multifd::{PageSink, RamSink, ReceiveChannels, ReceiveConfig, ReceiveLink};
//! use limosa_multifd::{SendBatch, SendChannels, SendConfig};
//! use limosa_pages::{BlockId, BlockName, ByteCount, PageCount, PageIndex, PageRun};
//! use limosa_ram::{GuestRam, RamBlock};
//! use limosa_transport::Link;
//! use std::sync::Arc;
//!
//! let ram = || -> Result<GuestRam, Box<dyn std::error::Error>> {
//!     Ok(GuestRam::new(vec![RamBlock::memfd(BlockName::new("pc.ram")?, ByteCount(1 << 20))?])?)
//! };
//! let (here, there) = (ram()?, ram()?);
//! here.block(BlockId(0)).copy_in(4096, b"hello");
//!
//! let (near, far) = Link::pair()?;
//! let (reader, writer) = (far.split().0, near.split().1);
//! let sink: Arc<dyn PageSink> = Arc::new(RamSink::new(there.clone()));
//! let receive = ReceiveChannels::new(vec![ReceiveLink::new(reader)], sink, ReceiveConfig::default())?;
//! let mut send = SendChannels::new(vec![writer], here, SendConfig::default())?;
//!
//! send.sync()?; // and FLUSH on the main channel
//! receive.wait_sync()?; // at that FLUSH
//! let mut batch = SendBatch::new(BlockId(0));
//! batch.content.push(PageRun::new(PageIndex(0), PageCount(2)));
//! send.submit(&mut batch)?;
//! send.sync()?;
//! receive.wait_sync()?;
//! assert!(!there.block(BlockId(0)).is_zero(PageIndex(1)));
//! receive.close()?;
//! send.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A codec runs on a pool of workers, as many as the machine is to spend, however many channels there are. While a
//! channel writes a packet, the pool makes its next one; on the other side, while a channel reads, the pool
//! decompresses what came before. At a synchronisation point nothing of the channel is on the pool.
//!
//! Trade-off taken: the queue holds where pages lie, not their bytes. A batch is read when a channel is free for
//! it, as late as possible.
//!
//! **Deliberately absent:** the main channel and its FLUSH records, the choice of pages, the dirty log,
//! connecting and accepting, telling one connection from another, postcopy.
#![forbid(unsafe_code)]

mod error;
mod pool;
mod receive;
mod runs;
mod send;
mod shutdown;
mod statistics;

pub use limosa_compress::choice::{Choice, ChoiceCount, ChoiceReport, Reason};

pub use error::{Connection, ReceiveError, ReceiveFailure, SendError, SendFailure};
pub use pool::PoolStatistics;
pub use receive::{
    PageSink, PlaceError, RamSink, ReceiveChannels, ReceiveConfig, ReceiveLink, SYNC_PATIENCE,
};
pub use send::{CHANNELS_MAX, Codec, SendBatch, SendChannels, SendConfig, ZeroDetection};
pub use shutdown::ChannelsShutdown;
pub use statistics::{ChannelStatistics, QueueStatistics};

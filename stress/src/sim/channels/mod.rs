//! Connections for pages beside the main one: what the multifd channels are to a real migration.
//!
//! Each is a wire of its own, so pages race each other between them. Both ends work like the real ones: claimed pages
//! wait in one bounded queue for whichever channel is free, a channel that has come to its SYNC reads no further before
//! the main channel says FLUSH, and FLUSH waits for all of them.
//!
//! **Deliberately absent:** packets of several pages, codecs, init packets: what is in a packet is for the rings outside.

mod receive;
mod send;

pub(super) use receive::Line;
pub use receive::{ReceiveChannels, SYNC_PATIENCE};
pub use send::{QUEUED_PER_CHANNEL, SendChannels};

/// What a channel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// A page and the generation of its bytes.
    Page {
        /// Which page.
        page: usize,
        /// Its content.
        generation: u64,
    },
    /// A synchronisation point.
    Sync,
}

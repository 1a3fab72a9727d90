//! Pages through channels inside this process, beside what its sockets and its memory can do at all.
//!
//! A [`Pair`] is a source and a destination mapping of the same layout. [`Pair::transfer`] moves the source through
//! multifd channels over TCP; [`Pair::bare`] moves the same bytes between the same two mappings with nothing but
//! `sendmsg` and `readv`; [`read_bandwidth`] is what scanning for zero pages is held against.

mod bare;
mod pair;
mod transfer;

pub use bare::read_bandwidth;
pub use pair::{Kind, Layout, Pair};
pub use transfer::Setting;

use limosa_multifd::{ReceiveError, SendError};
use limosa_pages::PageIndex;
use limosa_ram::RamError;
use limosa_transport::TransportError;
use std::io;
use thiserror::Error;

/// A transfer that was not measured.
#[derive(Debug, Error)]
pub enum ChannelBenchError {
    /// Memory for one of the sides.
    #[error("guest memory")]
    Ram(#[from] RamError),
    /// The source's file could not be filled.
    #[error("filling the source")]
    Fill(#[from] crate::BenchError),
    /// A link.
    #[error("connecting")]
    Link(#[from] TransportError),
    /// A sending channel.
    #[error("sending")]
    Send(#[from] SendError),
    /// A receiving channel.
    #[error("receiving")]
    Receive(#[from] ReceiveError),
    /// A bare socket.
    #[error("a bare socket")]
    Bare(#[from] io::Error),
    /// What arrived is not what was sent.
    #[error("page {page} did not arrive as it was")]
    Differs {
        /// The first page that differs.
        page: PageIndex,
    },
}

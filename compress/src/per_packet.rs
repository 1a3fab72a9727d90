//! Packets that stand for themselves: LZ4, zstd or nothing, raw pages and deltas in one payload (wire 4.10).
//!
//! Without the state of a channel, packets of one channel can be encoded and decoded on all cores at once. A
//! [`PacketPages`] is filled page by page from guest RAM; each page is compressed with its neighbours, or becomes a
//! [delta](crate::delta), or goes raw. A [`PerPacketEncoder`] makes of it what stands before the raw pages.
//!
//! Raw pages are not here at all: their sender takes them straight from guest RAM. [`Sampler`] tells cheaply
//! which pages would not shrink.

mod decode;
mod encode;
mod pages;
mod sample;

#[cfg(test)]
mod tests;

pub use decode::PerPacketDecoder;
pub use encode::PerPacketEncoder;
pub use pages::PacketPages;
pub use sample::Sampler;

use limosa_wire::multifd::BlockMethod;
use std::fmt;
use thiserror::Error;

/// How the pages of a packet are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Method {
    /// Not at all.
    #[default]
    None,
    /// LZ4: the fastest.
    Lz4,
    /// zstd at a level from 1 to [`ZSTD_LEVEL_MAX`](crate::packet::ZSTD_LEVEL_MAX).
    Zstd {
        /// Higher is smaller and slower.
        level: u8,
    },
}

impl Method {
    /// What the packet's head says of it.
    pub const fn block_method(self) -> BlockMethod {
        match self {
            Self::None => BlockMethod::None,
            Self::Lz4 => BlockMethod::Lz4,
            Self::Zstd { .. } => BlockMethod::Zstd,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd { level } => write!(f, "zstd-{level}"),
        }
    }
}

/// A packet that could not be encoded or decoded. Other packets are not concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PerPacketError {
    /// The block is not LZ4's, or makes more than its pages.
    #[error("the LZ4 block of {block} bytes cannot be decompressed into {expected} bytes of pages")]
    Lz4 {
        /// Bytes in the block.
        block: usize,
        /// Bytes of its pages.
        expected: usize,
    },
    /// What zstd said, to bytes or for lack of memory.
    #[error("zstd: {0}")]
    Zstd(&'static str),
    /// The block makes fewer bytes than its pages have.
    #[error("a compressed block makes {got} bytes of pages; expected {expected}")]
    TooFewBytes {
        /// Bytes of its pages.
        expected: usize,
        /// Bytes that came out.
        got: usize,
    },
    /// The block goes on behind its end.
    #[error("{unread} bytes follow the end of a compressed block")]
    Trailing {
        /// Bytes behind the end.
        unread: usize,
    },
    /// A block without a method.
    #[error("a compressed block of {block} bytes has no method")]
    NoMethod {
        /// Bytes in the block.
        block: usize,
    },
}

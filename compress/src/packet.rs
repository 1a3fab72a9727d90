//! Compressed packets: the pages of one multifd packet, with the state of their channel (wire 4.7).
//!
//! A channel is one zlib stream, or one zstd frame, for the whole migration; after each packet it is flushed, so
//! that the packet can be decoded before the next one comes. Encoder and decoder therefore live as long as their
//! channel, and packets are decoded in the order in which they were encoded.
//!
//! A method without state, and packets that are not compressed, need nothing from here.

mod zlib;
mod zstd;

#[cfg(test)]
pub(crate) mod tests;

use limosa_pages::PAGE_BYTES;
use thiserror::Error;

/// Most pages in a packet: 128 x 4 KiB = 512 KiB.
pub const PACKET_PAGES_MAX: usize = 128;

/// Longest payload, either way: twice the pages of a full packet, as much as QEMU has room for. Neither method
/// needs it: incompressible pages grow by less than one per cent.
pub const PAYLOAD_BYTES_MAX: usize = 2 * PACKET_PAGES_MAX * PAGE_BYTES;

/// Highest level of zlib; 0 is no compression at all.
pub const ZLIB_LEVEL_MAX: u8 = 9;

/// Highest level of zstd that QEMU has; 0 stands for zstd's own default.
pub const ZSTD_LEVEL_MAX: u8 = 20;

pub use zstd::WINDOW_LOG_MAX;

/// Compresses the packets of one channel.
#[derive(Debug)]
pub struct PacketEncoder {
    method: Encoding,
}

/// Decompresses the packets of one channel.
#[derive(Debug)]
pub struct PacketDecoder {
    method: Decoding,
}

/// A packet that could not be compressed or decompressed. The stream of its channel is broken from there on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PacketError {
    /// The payload is longer than any packet's.
    #[error("a packet's payload has {got} bytes; at most {PAYLOAD_BYTES_MAX} are possible")]
    TooLong {
        /// Bytes in the payload; for an encoder, at least so many.
        got: usize,
    },
    /// The payload ends before its pages do.
    #[error("a packet's payload makes {got} bytes of pages; expected {expected}")]
    TooFewBytes {
        /// Bytes in the packet's pages.
        expected: usize,
        /// Bytes that came out.
        got: usize,
    },
    /// The payload makes more than its pages: a bomb, or a header that does not belong to it.
    #[error("a packet's payload makes more than the {expected} bytes of its pages")]
    TooManyBytes {
        /// Bytes in the packet's pages.
        expected: usize,
    },
    /// The stream ends, although its channel goes on.
    #[error("the compressed stream ends inside a packet, {unread} bytes before the payload does")]
    StreamEnded {
        /// Bytes of the payload behind the end.
        unread: usize,
    },
    /// Bytes that zlib does not understand.
    #[error("the payload is not zlib's")]
    Zlib,
    /// What zstd said, to bytes or for lack of memory.
    #[error("zstd: {0}")]
    Zstd(&'static str),
}

#[derive(Debug)]
enum Encoding {
    Zlib(zlib::Encoder),
    Zstd(zstd::Encoder),
}

#[derive(Debug)]
enum Decoding {
    Zlib(zlib::Decoder),
    Zstd(zstd::Decoder),
}

impl PacketEncoder {
    /// A channel of zlib at `level`, 0 to [`ZLIB_LEVEL_MAX`]. Cost: about 300 KiB.
    ///
    /// # Panics
    /// If the level is higher.
    pub fn zlib(level: u8) -> Self {
        assert!(level <= ZLIB_LEVEL_MAX, "zlib has no level {level}");
        Self { method: Encoding::Zlib(zlib::Encoder::new(level)) }
    }

    /// A channel of zstd at `level`, 0 to [`ZSTD_LEVEL_MAX`]. Cost: about 1 MiB at level 1, 100 MiB and more at 20.
    ///
    /// # Errors
    /// If there is no memory for it.
    ///
    /// # Panics
    /// If the level is higher.
    pub fn zstd(level: u8) -> Result<Self, PacketError> {
        assert!(level <= ZSTD_LEVEL_MAX, "zstd has no level {level}");
        Ok(Self { method: Encoding::Zstd(zstd::Encoder::new(level)?) })
    }

    /// Replaces `payload` by the compressed form of `pages`, at most [`PAYLOAD_BYTES_MAX`] bytes.
    ///
    /// `pages` must be a private copy: what a guest changes while it is read would break the stream.
    ///
    /// # Errors
    /// [`PacketError::TooLong`], or what zstd says.
    ///
    /// # Panics
    /// Unless `pages` are 1 to [`PACKET_PAGES_MAX`] whole pages.
    pub fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Result<(), PacketError> {
        assert_whole_pages(pages);
        payload.clear();
        payload.reserve_exact(PAYLOAD_BYTES_MAX);
        match &mut self.method {
            Encoding::Zlib(zlib) => zlib.encode(pages, payload),
            Encoding::Zstd(zstd) => zstd.encode(pages, payload),
        }
    }
}

impl PacketDecoder {
    /// A channel of zlib. Cost: about 40 KiB.
    pub fn zlib() -> Self {
        Self { method: Decoding::Zlib(zlib::Decoder::new()) }
    }

    /// A channel of zstd. Cost: at most 2 to the power of [`WINDOW_LOG_MAX`] bytes, whatever the peer says; 512 KiB
    /// if it compresses at level 1.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn zstd() -> Result<Self, PacketError> {
        Ok(Self { method: Decoding::Zstd(zstd::Decoder::new()?) })
    }

    /// Fills `pages` with what `payload` holds, which must be exactly as much, and consumes all of `payload`.
    ///
    /// # Errors
    /// Anything else. `pages` then holds anything, and the channel cannot be read on.
    ///
    /// # Panics
    /// Unless `pages` are 1 to [`PACKET_PAGES_MAX`] whole pages.
    pub fn decode(&mut self, payload: &[u8], pages: &mut [u8]) -> Result<(), PacketError> {
        assert_whole_pages(pages);
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(PacketError::TooLong { got: payload.len() });
        }
        match &mut self.method {
            Decoding::Zlib(zlib) => fill(payload, pages, |input, output| zlib.step(input, output)),
            Decoding::Zstd(zstd) => fill(payload, pages, |input, output| zstd.step(input, output)),
        }
    }
}

/// What one call of a decompressor did.
struct Progress {
    /// Bytes of the payload consumed.
    taken: usize,
    /// Bytes of pages made.
    made: usize,
    /// The stream is over.
    ended: bool,
}

/// Makes all of `payload` into exactly `pages`, by `step`s.
fn fill(
    payload: &[u8],
    pages: &mut [u8],
    mut step: impl FnMut(&[u8], &mut [u8]) -> Result<Progress, PacketError>,
) -> Result<(), PacketError> {
    let expected = pages.len();
    let (mut taken, mut made) = (0, 0);
    loop {
        // Behind the pages there is room for one byte more: a decompressor can have output left when its input is
        // gone, and what belongs to no page must not be taken for the next packet's.
        let mut excess = [0];
        let output = if made < expected { &mut pages[made..] } else { &mut excess[..] };
        let progress = step(&payload[taken..], output)?;
        taken += progress.taken;
        made += progress.made;
        if made > expected {
            return Err(PacketError::TooManyBytes { expected });
        }
        if progress.ended {
            return Err(PacketError::StreamEnded { unread: payload.len() - taken });
        }
        if progress.taken == 0 && progress.made == 0 {
            break;
        }
    }
    match (made == expected, taken == payload.len()) {
        (true, true) => Ok(()),
        (false, _) => Err(PacketError::TooFewBytes { expected, got: made }),
        // A decompressor with room for output takes every byte that it is given.
        (true, false) => Err(PacketError::StreamEnded { unread: payload.len() - taken }),
    }
}

pub(crate) fn assert_whole_pages(pages: &[u8]) {
    let length = pages.len();
    let fits = (1..=PACKET_PAGES_MAX * PAGE_BYTES).contains(&length) && length.is_multiple_of(PAGE_BYTES);
    assert!(fits, "{length} bytes are no packet of pages");
}

//! Decoding the compressed block of a packet.

use super::PerPacketError;
use crate::packet::assert_whole_pages;
use limosa_wire::multifd::BlockMethod;
use std::fmt;
use zstd_safe::{DCtx, find_frame_compressed_size, get_error_name};

/// Decodes packets, one after the other, of any channel. One for each worker.
pub struct PerPacketDecoder {
    zstd: DCtx<'static>,
}

impl PerPacketDecoder {
    /// A decoder for all methods. Cost: 160 KiB, and no more whatever comes: blocks are decompressed straight into
    /// their pages, without a window.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new() -> Result<Self, PerPacketError> {
        Ok(Self { zstd: DCtx::try_create().ok_or(PerPacketError::Zstd("no memory"))? })
    }

    /// Fills `pages`, those of the packet that are neither raw nor deltas, with what `block` holds, which must be
    /// exactly as much.
    ///
    /// `pages` must be private: a decompressor reads again what it has written.
    ///
    /// # Errors
    /// Anything else; `pages` then hold anything.
    ///
    /// # Panics
    /// Unless `pages` are whole pages, no more than a packet's.
    pub fn decode(
        &mut self,
        method: BlockMethod,
        block: &[u8],
        pages: &mut [u8],
    ) -> Result<(), PerPacketError> {
        assert_whole_pages(pages);
        let expected = pages.len();
        let got = match method {
            BlockMethod::None => return Err(PerPacketError::NoMethod { block: block.len() }),
            BlockMethod::Lz4 => lz4_flex::block::decompress_into(block, pages)
                .map_err(|_| PerPacketError::Lz4 { block: block.len(), expected })?,
            BlockMethod::Zstd => self.zstd(block, pages)?,
        };
        if got == expected { Ok(()) } else { Err(PerPacketError::TooFewBytes { expected, got }) }
    }

    fn zstd(&mut self, block: &[u8], pages: &mut [u8]) -> Result<usize, PerPacketError> {
        let said = |code| PerPacketError::Zstd(get_error_name(code));
        // zstd would go on with a second frame, and skip what is marked so.
        let frame = find_frame_compressed_size(block).map_err(said)?;
        if frame < block.len() {
            return Err(PerPacketError::Trailing { unread: block.len() - frame });
        }
        self.zstd.decompress(pages, block).map_err(said)
    }
}

impl fmt::Debug for PerPacketDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerPacketDecoder").finish_non_exhaustive()
    }
}

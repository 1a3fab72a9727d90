//! Encoding a packet.

use super::{Method, PacketPages, PerPacketError};
use crate::packet::ZSTD_LEVEL_MAX;
use limosa_pages::PAGE_BYTES;
use limosa_wire::multifd::{PACKET_PAGES, PageMap, PerPacketHead};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use std::fmt;
use zstd_safe::zstd_sys::ZSTD_EndDirective::ZSTD_e_end;
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, ResetDirective, get_error_name};

/// A block must save at least a 32nd of its pages: less is not worth the decompression, for which a receiver takes
/// about as long as for reading the same bytes from a link of 2 GB/s.
const LEAST_SAVING: usize = 32;

/// Encodes packets, one after the other, of any channel. One for each worker.
pub struct PerPacketEncoder {
    zstd: CCtx<'static>,
    /// Of `zstd`; 0 before it is first used.
    level: u8,
    lz4: CompressTable,
    /// Where LZ4 writes, which wants room for the worst case.
    block: Box<[u8]>,
}

impl PerPacketEncoder {
    /// An encoder for all methods. Cost: 600 KiB, and with zstd at level 1 or 3 about 1 MiB more.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new() -> Result<Self, PerPacketError> {
        Ok(Self {
            zstd: CCtx::try_create().ok_or(PerPacketError::Zstd("no memory"))?,
            level: 0,
            lz4: CompressTable::large(),
            block: vec![0; get_maximum_output_size(PACKET_PAGES * PAGE_BYTES)].into(),
        })
    }

    /// Replaces `payload` by the head, the compressed block and the delta records of `packet`. Behind them the
    /// caller sends the pages that the returned head calls raw: those of the packet, and all that were to be
    /// compressed but would hardly have shrunk.
    ///
    /// With the raw pages it is at most [`max_per_packet_bytes`](limosa_wire::multifd::max_per_packet_bytes).
    ///
    /// # Errors
    /// What zstd says, which can only be a lack of memory.
    ///
    /// # Panics
    /// If the packet has no pages, or the method a level that zstd does not have.
    pub fn encode(
        &mut self,
        method: Method,
        packet: &PacketPages,
        payload: &mut Vec<u8>,
    ) -> Result<PerPacketHead, PerPacketError> {
        assert!(packet.count() > 0, "a packet without pages has no payload");
        payload.clear();
        // The head comes first and is known last.
        payload.resize(PerPacketHead::BYTES, 0);
        let pages = packet.compressed();
        let limit = pages.len() - pages.len() / LEAST_SAVING;
        let shrunk = match method {
            _ if pages.is_empty() => false,
            Method::None => false,
            Method::Lz4 => self.lz4(pages, limit, payload),
            Method::Zstd { level } => self.zstd(level, pages, limit, payload)?,
        };
        let all = PageMap::first(packet.count());
        let (raw, delta) = (packet.raw_pages(), packet.delta_pages());
        let head = PerPacketHead {
            method: if shrunk { method.block_method() } else { Method::None.block_method() },
            compressed_bytes: (payload.len() - PerPacketHead::BYTES) as u32,
            delta_bytes: packet.delta_records().len() as u32,
            raw: if shrunk { raw } else { all.without(delta) },
            delta,
        };
        payload.extend_from_slice(packet.delta_records());
        let mut encoded = Vec::with_capacity(PerPacketHead::BYTES);
        head.encode(packet.count(), &mut encoded);
        payload[..PerPacketHead::BYTES].copy_from_slice(&encoded);
        Ok(head)
    }

    /// Appends `pages` to `payload` as an LZ4 block, if that is no longer than `limit`.
    fn lz4(&mut self, pages: &[u8], limit: usize, payload: &mut Vec<u8>) -> bool {
        let written = compress_into_with_table(pages, &mut self.block, &mut self.lz4);
        let written = written.expect("there is room for the worst case of a full packet");
        if written > limit {
            return false;
        }
        payload.extend_from_slice(&self.block[..written]);
        true
    }

    /// Appends `pages` to `payload` as a zstd frame, if that is no longer than `limit`.
    fn zstd(
        &mut self,
        level: u8,
        pages: &[u8],
        limit: usize,
        payload: &mut Vec<u8>,
    ) -> Result<bool, PerPacketError> {
        assert!((1..=ZSTD_LEVEL_MAX).contains(&level), "zstd has no level {level}");
        let said = |code| PerPacketError::Zstd(get_error_name(code));
        let Self { zstd, level: current, block, .. } = self;
        // What a packet that did not fit has left behind.
        zstd.reset(ResetDirective::SessionOnly).map_err(said)?;
        if *current != level {
            zstd.set_parameter(CParameter::CompressionLevel(i32::from(level))).map_err(said)?;
            *current = level;
        }
        // With it zstd needs no window and no tables larger than the packet.
        zstd.set_pledged_src_size(Some(pages.len() as u64)).map_err(said)?;
        let mut output = OutBuffer::around(&mut block[..limit]);
        let left = zstd.compress_stream2(&mut output, &mut InBuffer::around(pages), ZSTD_e_end);
        let fits = left.map_err(said)? == 0;
        if fits {
            payload.extend_from_slice(output.as_slice());
        }
        Ok(fits)
    }
}

impl fmt::Debug for PerPacketEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerPacketEncoder").field("level", &self.level).finish_non_exhaustive()
    }
}

//! A packet on its way from batch to payload.

use super::chooser::Selected;
use super::packet::Contents;
use super::versions::SharedVersions;
use super::{SendBatch, ZeroDetection};
use crate::error::SendFailure;
use crate::pool::Converted;
use crate::runs::{bytes_in, push_page};
use limosa_compress::choice::PacketSample;
use limosa_compress::versions::{Interval, PageKey};
use limosa_compress::{PacketEncoder, PacketPages, PerPacketEncoder, Sampler};
use limosa_pages::{BlockId, PAGE_BYTES, PageIndex};
use limosa_ram::GuestRam;
use limosa_wire::multifd::{PACKET_PAGES, PerPacketHead};

/// A packet, and the memory that it is made in.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) batch: SendBatch,
    pub(super) contents: Contents,
    /// What stands before the raw pages.
    pub(super) payload: Vec<u8>,
    /// A private copy of the pages: the guest may write while they are read.
    copies: Copies,
}

#[derive(Debug)]
enum Copies {
    Stream(Vec<u8>),
    PerPacket(PacketPages),
}

/// What a worker needs to make packets of any channel.
#[derive(Debug)]
pub(super) struct PacketTools {
    encoder: PerPacketEncoder,
    sampler: Sampler,
}

/// How one packet is to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) detection: ZeroDetection,
    pub(super) selected: Selected,
    /// Number of the latest synchronisation point of the channel: what was sent before it is in the other side's
    /// RAM.
    pub(super) interval: Interval,
}

impl Parcel {
    /// Memory for packets of a stream: 512 KiB of pages, 1 MiB of payload.
    pub(super) fn of_stream() -> Self {
        Self::new(Copies::Stream(vec![0; PACKET_PAGES * PAGE_BYTES]))
    }

    /// Memory for packets that stand for themselves: 640 KiB of pages and deltas, at most as much of payload.
    pub(super) fn per_packet() -> Self {
        Self::new(Copies::PerPacket(PacketPages::new()))
    }

    fn new(copies: Copies) -> Self {
        let (batch, contents) = (SendBatch::new(BlockId(0)), Contents::default());
        Self { batch, contents, payload: Vec::new(), copies }
    }

    /// Makes the next packet of a channel's stream. Without pages the payload is empty, and the stream has not moved.
    pub(super) fn encode_stream(
        &mut self,
        ram: &GuestRam,
        detection: ZeroDetection,
        encoder: &mut PacketEncoder,
    ) -> Result<Converted, SendFailure> {
        let Copies::Stream(pages) = &mut self.copies else { unreachable!("memory for streams") };
        let block = ram.block(self.batch.block);
        let mut filled = 0;
        self.contents.sort(block, &self.batch, detection, |page| {
            block.copy_out(page.byte_offset(), &mut pages[filled..filled + PAGE_BYTES]);
            filled += PAGE_BYTES;
        });
        self.payload.clear();
        if filled > 0 {
            encoder.encode(&pages[..filled], &mut self.payload)?;
        }
        Ok(Converted { bytes_in: filled, bytes_out: self.payload.len() })
    }

    /// Makes a packet of raw pages only, without a copy. Which form the codec has does not matter if there are none.
    pub(super) fn fill_raw(
        &mut self,
        ram: &GuestRam,
        detection: ZeroDetection,
        versions: Option<&SharedVersions>,
    ) {
        self.contents.sort_raw(ram.block(self.batch.block), &self.batch, detection);
        self.payload.clear();
        let pages = self.contents.normal.len();
        if pages > 0 {
            PerPacketHead::all_raw(pages).encode(pages, &mut self.payload);
        }
        if let Some(versions) = versions {
            let sent = self.batch.content.iter().flat_map(|run| run.pages());
            versions.forget(sent.map(key_in(self.batch.block)));
        }
    }

    /// Makes a packet that stands for itself, by the plan. The time it took is the caller's to measure.
    pub(super) fn encode_packet(
        &mut self,
        ram: &GuestRam,
        plan: Plan,
        tools: &mut PacketTools,
        versions: Option<&SharedVersions>,
    ) -> Result<(Converted, PacketSample), SendFailure> {
        let Copies::PerPacket(pages) = &mut self.copies else { unreachable!("memory for packets") };
        let (block, key) = (ram.block(self.batch.block), key_in(self.batch.block));
        pages.clear();
        let (sampler, mut sample) = (&mut tools.sampler, PacketSample::default());
        let mut walk = versions.filter(|_| plan.selected.delta).map(SharedVersions::walk);
        self.contents.sort(block, &self.batch, plan.detection, |page| {
            if sampler.skips() {
                sample.incompressible += 1;
                return pages.raw();
            }
            block.copy_out(page.byte_offset(), pages.candidate());
            let mut versions = walk.as_mut().map(|walk| walk.to(key(page)));
            let before = versions.as_ref().and_then(|versions| versions.before(key(page), plan.interval));
            let is_delta = before.is_some_and(|old| pages.delta(old));
            if !is_delta && sampler.is_incompressible(pages.candidate()) {
                sample.incompressible += 1;
                return pages.raw();
            }
            // Exactly what is sent.
            if let Some(versions) = &mut versions {
                versions.keep(key(page), plan.interval, pages.candidate());
            }
            if !is_delta {
                pages.compress();
            }
        });
        drop(walk);
        if let Some(versions) = versions {
            versions.forget(self.contents.found_zero().map(key));
        }
        self.payload.clear();
        if pages.count() == 0 {
            return Ok((Converted { bytes_in: 0, bytes_out: 0 }, sample));
        }
        let head = tools.encoder.encode(plan.selected.method, pages, &mut self.payload)?;
        let Contents { normal, raw, .. } = &mut self.contents;
        let page_at = |place: usize| PageIndex::containing(normal[place]);
        head.raw.pages().for_each(|place| push_page(raw, page_at(place)));
        let bytes_out = self.payload.len() + bytes_in(raw);
        if let Some(versions) = versions {
            // As they are in guest RAM when the link takes them: nobody here knows those bytes.
            versions.forget(head.raw.pages().map(page_at).map(key));
        }
        let shrunk = head.compressed(pages.count()).count();
        sample.pages = pages.count() as u32;
        sample.deltas = head.delta.count() as u32;
        sample.delta_bytes = head.delta_bytes;
        sample.compressed = sample.pages - sample.deltas - sample.incompressible;
        // All of a block's pages shrink, or none.
        let unshrunk = if shrunk == 0 { sample.compressed * PAGE_BYTES as u32 } else { 0 };
        sample.compressed_bytes = head.compressed_bytes + unshrunk;
        Ok((Converted { bytes_in: pages.count() * PAGE_BYTES, bytes_out }, sample))
    }
}

impl PacketTools {
    pub(super) fn new() -> Result<Self, SendFailure> {
        Ok(Self { encoder: PerPacketEncoder::new()?, sampler: Sampler::new() })
    }
}

/// Names the pages of a block.
fn key_in(block: BlockId) -> impl Fn(PageIndex) -> PageKey + Copy {
    move |page| PageKey { block, page }
}

//! What goes into a packet.

use super::{Codec, SendBatch, ZeroDetection};
use limosa_compress::{PacketEncoder, PacketError};
use limosa_pages::{PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_ram::RamBlock;
use limosa_wire::multifd::PACKET_PAGES;

/// The pages of a batch, sorted into those that are sent and those that are zero.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Offsets of the pages that are sent, in the order of the payload.
    pub(super) normal: Vec<u64>,
    /// Offsets of the pages that are zero.
    pub(super) zero: Vec<u64>,
    /// `normal` as runs: a run is one piece of a vectored send.
    pub(super) runs: Vec<PageRun>,
}

/// Makes the payloads of one channel. It has everything that a packet needs but the link, and can therefore move to
/// where there is a core for it.
#[derive(Debug)]
pub(super) struct Compressor {
    encoder: PacketEncoder,
    /// A private copy of the pages: the guest may write while they are read.
    pages: Vec<u8>,
    payload: Vec<u8>,
}

impl Contents {
    /// Replaces the contents by those of `batch`.
    pub(super) fn sort(&mut self, block: &RamBlock, batch: &SendBatch, detection: ZeroDetection) {
        self.normal.clear();
        self.zero.clear();
        self.runs.clear();
        for page in batch.content.iter().flat_map(|run| run.pages()) {
            if detection == ZeroDetection::Multifd && block.is_zero(page) {
                self.zero.push(page.byte_offset());
            } else {
                self.push_normal(page);
            }
        }
        let untouched = batch.untouched.iter().flat_map(|run| run.pages());
        self.zero.extend(untouched.map(PageIndex::byte_offset));
    }

    fn push_normal(&mut self, page: PageIndex) {
        self.normal.push(page.byte_offset());
        match self.runs.last_mut() {
            Some(last) if last.end() == page => last.count += PageCount(1),
            _ => self.runs.push(PageRun::new(page, PageCount(1))),
        }
    }
}

impl Compressor {
    /// `None` without a codec.
    pub(super) fn new(codec: Codec) -> Result<Option<Self>, PacketError> {
        let encoder = match codec {
            Codec::None => return Ok(None),
            Codec::Zlib { level } => PacketEncoder::zlib(level),
            Codec::Zstd { level } => PacketEncoder::zstd(level)?,
        };
        Ok(Some(Self { encoder, pages: vec![0; PACKET_PAGES * PAGE_BYTES], payload: Vec::new() }))
    }

    /// The payload of `runs`; empty if there are none, and then the stream of the channel has not moved.
    pub(super) fn payload(&mut self, block: &RamBlock, runs: &[PageRun]) -> Result<&[u8], PacketError> {
        let mut filled = 0;
        for run in runs {
            let bytes = run.bytes().0 as usize;
            block.copy_out(run.byte_offset(), &mut self.pages[filled..filled + bytes]);
            filled += bytes;
        }
        if filled == 0 {
            return Ok(&[]);
        }
        self.encoder.encode(&self.pages[..filled], &mut self.payload)?;
        Ok(&self.payload)
    }
}

//! A packet on its way from payload to pages.

use super::PageSink;
use super::runs::Runs;
use crate::error::ReceiveFailure;
use crate::pool::Converted;
use crate::runs::bytes_in;
use limosa_compress::delta::DeltaRecords;
use limosa_compress::{PacketDecoder, PerPacketDecoder};
use limosa_pages::{BlockId, PAGE_BYTES, PageIndex};
use limosa_wire::multifd::{MAX_COMPRESSED_BYTES, PACKET_PAGES, PageMap, PerPacketHead};

/// A packet, and the memory that it is taken apart in. Memory: 1.5 MiB, of which the kernel gives what is used.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) block: BlockId,
    pub(super) runs: Runs,
    /// Of a packet that stands for itself.
    pub(super) head: PerPacketHead,
    /// The payload, without head and raw pages.
    payload: Vec<u8>,
    payload_bytes: usize,
    /// The pages on their way to guest RAM: a decompressor reads again what it has written, and a guest's page is
    /// not ours to read.
    pages: Vec<u8>,
}

impl Parcel {
    pub(super) fn new() -> Self {
        Self {
            block: BlockId(0),
            runs: Runs::default(),
            head: PerPacketHead::all_raw(0),
            payload: vec![0; MAX_COMPRESSED_BYTES as usize],
            payload_bytes: 0,
            pages: vec![0; PACKET_PAGES * PAGE_BYTES],
        }
    }

    /// Where the payload goes.
    ///
    /// # Panics
    /// If it is longer than any.
    pub(super) fn payload(&mut self, bytes: usize) -> &mut [u8] {
        self.payload_bytes = bytes;
        &mut self.payload[..bytes]
    }

    /// Gives the sink the pages of the next packet of a channel's stream.
    pub(super) fn decode_stream(
        &mut self,
        sink: &dyn PageSink,
        stream: &mut PacketDecoder,
    ) -> Result<Converted, ReceiveFailure> {
        let payload = &self.payload[..self.payload_bytes];
        let bytes = bytes_in(&self.runs.normal);
        stream
            .decode(payload, &mut self.pages[..bytes])
            .map_err(|source| ReceiveFailure::Codec { payload: payload.len(), source })?;
        self.runs.announce_to(sink, self.block)?;
        let block = sink.ram().block(self.block);
        let mut rest = self.pages.as_slice();
        for run in &self.runs.normal {
            let (bytes, behind) = rest.split_at(run.bytes().0 as usize);
            block.copy_in(run.byte_offset(), bytes);
            rest = behind;
        }
        self.runs.give_to(sink, self.block)?;
        Ok(Converted { bytes_in: payload.len(), bytes_out: bytes })
    }

    /// Gives the sink the pages of a packet that stands for itself, of which it has been told. The raw ones are in
    /// its memory.
    pub(super) fn decode_packet(
        &mut self,
        sink: &dyn PageSink,
        decoder: &mut PerPacketDecoder,
    ) -> Result<Converted, ReceiveFailure> {
        let Self { head, payload, pages, runs, .. } = self;
        let block = sink.ram().block(self.block);
        let (compressed, rest) = payload.split_at(head.compressed_bytes as usize);
        let records = &rest[..head.delta_bytes as usize];
        let places = head.compressed(runs.pages());
        if places.count() > 0 {
            let pages = &mut pages[..places.count() * PAGE_BYTES];
            decoder
                .decode(head.method, compressed, pages)
                .map_err(|source| ReceiveFailure::Block { block: compressed.len(), source })?;
            for (page, bytes) in runs.at(places).zip(pages.as_chunks::<PAGE_BYTES>().0) {
                block.copy_in(page.byte_offset(), bytes);
            }
        }
        // All records are validated before the first touches a page.
        let deltas = DeltaRecords::new(records, head.delta.count())
            .map_err(|source| ReceiveFailure::Deltas { bytes: records.len(), source })?;
        for (page, record) in runs.at(head.delta).zip(deltas) {
            for (offset, word) in record.words() {
                block.copy_in(page.byte_offset() + offset as u64, word);
            }
        }
        runs.give_to(sink, self.block)?;
        let bytes_out = (places.count() + head.delta.count()) * PAGE_BYTES;
        Ok(Converted { bytes_in: compressed.len() + records.len(), bytes_out })
    }
}

impl Runs {
    /// Pages with their bytes.
    fn pages(&self) -> usize {
        bytes_in(&self.normal) / PAGE_BYTES
    }

    /// Of them, those at these places of the packet, in its order.
    pub(super) fn at(&self, places: PageMap) -> impl Iterator<Item = PageIndex> {
        let pages = self.normal.iter().flat_map(|run| run.pages()).enumerate();
        pages.filter(move |(place, _)| places.contains(*place)).map(|(_, page)| page)
    }
}

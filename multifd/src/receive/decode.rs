//! The packets of one channel that are taken apart on the codec pool.

use super::PageSink;
use super::runs::Runs;
use crate::error::ReceiveFailure;
use crate::pool::{CodecPool, Converted, Pipeline, Workspaces};
use limosa_compress::PacketDecoder;
use limosa_pages::{BlockId, PAGE_BYTES};
use limosa_wire::multifd::{Compression, MAX_COMPRESSED_BYTES, PACKET_PAGES};
use std::sync::Arc;

/// A packet, from its payload to its pages.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) block: BlockId,
    pub(super) runs: Runs,
    /// Room for any payload.
    payload: Vec<u8>,
    payload_bytes: usize,
    /// The pages on their way to guest RAM: a decompressor reads again what it has written, and a guest's page is
    /// not ours to read.
    pages: Vec<u8>,
}

/// Takes the packets of one channel apart on the pool, and gives their pages to the sink.
pub(super) struct Decoding {
    pool: CodecPool,
    sink: Arc<dyn PageSink>,
    workspaces: Arc<Workspaces<Parcel>>,
    /// The stream of the channel. It travels with a packet, so that packets are taken apart one at a time.
    decoder: Option<PacketDecoder>,
    pipeline: Pipeline<(Parcel, PacketDecoder)>,
    /// Workspaces that the channel has, wherever they are.
    held: usize,
}

/// A worker has failed, and has reported it.
#[derive(Debug)]
pub(super) struct Reported;

impl Decoding {
    pub(super) fn new(
        pool: CodecPool,
        sink: Arc<dyn PageSink>,
        workspaces: Arc<Workspaces<Parcel>>,
        decoder: PacketDecoder,
    ) -> Self {
        Self { pool, sink, workspaces, decoder: Some(decoder), pipeline: Pipeline::new(), held: 0 }
    }

    /// Memory for the next packet. Waits for earlier ones if there is none left.
    pub(super) fn room(&mut self) -> Result<Parcel, Reported> {
        loop {
            if let Some(parcel) = self.workspaces.take(self.held) {
                self.held += 1;
                return Ok(parcel);
            }
            self.finish_oldest()?;
        }
    }

    /// Takes `parcel` apart. What goes wrong is told to `report`.
    pub(super) fn start(
        &mut self,
        mut parcel: Parcel,
        report: impl FnOnce(ReceiveFailure) + Send + 'static,
    ) -> Result<(), Reported> {
        let mut decoder = loop {
            match self.decoder.take() {
                Some(decoder) => break decoder,
                None => self.finish_oldest()?,
            };
        };
        let sink = Arc::clone(&self.sink);
        let work = move || {
            let converted = parcel.decode(&mut decoder, &*sink)?;
            Ok(((parcel, decoder), converted))
        };
        self.pipeline.push(self.pool.start(work, report));
        Ok(())
    }

    /// Waits until everything that was started is in the sink.
    pub(super) fn finish(&mut self) -> Result<(), Reported> {
        while self.finish_oldest()? {}
        Ok(())
    }

    /// Waits for the oldest packet; `false` if there is none.
    fn finish_oldest(&mut self) -> Result<bool, Reported> {
        let Some(done) = self.pipeline.oldest() else { return Ok(false) };
        let (parcel, decoder) = done.ok_or(Reported)?;
        self.decoder = Some(decoder);
        self.workspaces.give(self.held, parcel);
        self.held -= 1;
        Ok(true)
    }
}

impl Parcel {
    /// Where the payload goes.
    pub(super) fn payload(&mut self, bytes: usize) -> &mut [u8] {
        self.payload_bytes = bytes;
        &mut self.payload[..bytes]
    }

    fn decode(
        &mut self,
        decoder: &mut PacketDecoder,
        sink: &dyn PageSink,
    ) -> Result<Converted, ReceiveFailure> {
        let payload = &self.payload[..self.payload_bytes];
        let bytes = self.runs.normal.iter().map(|run| run.bytes().0 as usize).sum();
        decoder
            .decode(payload, &mut self.pages[..bytes])
            .map_err(|source| ReceiveFailure::Codec { payload: payload.len(), source })?;
        self.runs.announce_to(sink, self.block);
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
}

impl Default for Parcel {
    fn default() -> Self {
        Self {
            block: BlockId(0),
            runs: Runs::default(),
            payload: vec![0; MAX_COMPRESSED_BYTES as usize],
            payload_bytes: 0,
            pages: vec![0; PACKET_PAGES * PAGE_BYTES],
        }
    }
}

/// The stream of one channel; `None` without a codec.
///
/// # Panics
/// If the method is not one of zlib and zstd.
pub(super) fn decoder(compression: Compression) -> Result<Option<PacketDecoder>, ReceiveFailure> {
    Ok(match compression {
        Compression::None => None,
        Compression::Zlib => Some(PacketDecoder::zlib()),
        Compression::Zstd => Some(PacketDecoder::zstd().map_err(ReceiveFailure::NoDecoder)?),
        other => panic!("{other:?} cannot be decompressed here"),
    })
}

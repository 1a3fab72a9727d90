//! The packets of one channel that are made on the codec pool.

use super::packet::Contents;
use super::{SendBatch, SendConfig};
use crate::error::SendFailure;
use crate::pool::{CodecPool, Converted, Pipeline, Workspaces};
use limosa_compress::PacketEncoder;
use limosa_pages::{BlockId, PAGE_BYTES};
use limosa_ram::{GuestRam, RamBlock};
use limosa_wire::multifd::PACKET_PAGES;
use std::sync::Arc;

/// A packet, from its batch to its payload.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) batch: SendBatch,
    pub(super) contents: Contents,
    /// Empty if no page is sent; the stream of the channel has not moved then.
    pub(super) payload: Vec<u8>,
    /// A private copy of the pages: the guest may write while they are read.
    pages: Vec<u8>,
}

/// Makes the packets of one channel on the pool.
pub(super) struct Encoding {
    pool: CodecPool,
    ram: GuestRam,
    config: SendConfig,
    workspaces: Arc<Workspaces<Parcel>>,
    /// The stream of the channel. It travels with a packet, so that packets are made one at a time.
    encoder: Option<PacketEncoder>,
    pipeline: Pipeline<(Parcel, PacketEncoder)>,
    /// Has room for the next batch.
    next: Option<Parcel>,
    /// Workspaces that the channel has, wherever they are.
    held: usize,
}

impl Encoding {
    pub(super) fn new(
        pool: CodecPool,
        ram: GuestRam,
        config: SendConfig,
        workspaces: Arc<Workspaces<Parcel>>,
        encoder: PacketEncoder,
    ) -> Self {
        let (encoder, pipeline) = (Some(encoder), Pipeline::new());
        Self { pool, ram, config, workspaces, encoder, pipeline, next: None, held: 0 }
    }

    /// Where the next batch goes, to be followed by [`Self::start`]; `None` if another packet has to end first.
    pub(super) fn room(&mut self) -> Option<&mut SendBatch> {
        self.encoder.as_ref()?;
        if self.next.is_none() {
            self.next = self.workspaces.take(self.held);
            self.held += usize::from(self.next.is_some());
        }
        self.next.as_mut().map(|parcel| &mut parcel.batch)
    }

    /// Makes the packet of the batch for which there was room. What goes wrong is told to `report`.
    pub(super) fn start(&mut self, report: impl FnOnce(SendFailure) + Send + 'static) {
        let mut parcel = self.next.take().expect("there was room for it");
        let mut encoder = self.encoder.take().expect("there was room for it");
        let (ram, config) = (self.ram.clone(), self.config);
        let work = move || {
            let converted = parcel.make(ram.block(parcel.batch.block), config, &mut encoder)?;
            Ok::<_, SendFailure>(((parcel, encoder), converted))
        };
        self.pipeline.push(self.pool.start(work, report));
    }

    /// Waits for the oldest packet under way. `None` if there is none, `Some(None)` if it could not be made, which
    /// is reported.
    pub(super) fn oldest(&mut self) -> Option<Option<Parcel>> {
        let made = self.pipeline.oldest()?;
        Some(made.map(|(parcel, encoder)| {
            self.encoder = Some(encoder);
            parcel
        }))
    }

    /// Takes back a packet that is sent.
    pub(super) fn give_back(&mut self, parcel: Parcel) {
        self.workspaces.give(self.held, parcel);
        self.held -= 1;
    }
}

impl Parcel {
    fn make(
        &mut self,
        block: &RamBlock,
        config: SendConfig,
        encoder: &mut PacketEncoder,
    ) -> Result<Converted, SendFailure> {
        self.contents.sort(block, &self.batch, config.zero_detection);
        self.payload.clear();
        let mut filled = 0;
        for run in &self.contents.runs {
            let bytes = run.bytes().0 as usize;
            block.copy_out(run.byte_offset(), &mut self.pages[filled..filled + bytes]);
            filled += bytes;
        }
        if filled > 0 {
            encoder.encode(&self.pages[..filled], &mut self.payload)?;
        }
        Ok(Converted { bytes_in: filled, bytes_out: self.payload.len() })
    }
}

impl Default for Parcel {
    fn default() -> Self {
        Self {
            batch: SendBatch::new(BlockId(0)),
            contents: Contents::default(),
            payload: Vec::new(),
            pages: vec![0; PACKET_PAGES * PAGE_BYTES],
        }
    }
}

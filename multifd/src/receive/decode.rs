//! The packets of one channel that are taken apart on the codec pool.

use super::PageSink;
use super::parcel::Parcel;
use crate::error::ReceiveFailure;
use crate::pool::{CodecPool, Pipeline, Tools, Workspaces};
use limosa_compress::{PacketDecoder, PerPacketDecoder};
use limosa_wire::multifd::Compression;
use std::sync::Arc;

/// What the channels of one end share to take their packets apart.
#[derive(Clone)]
pub(super) struct Decoders {
    pub(super) pool: CodecPool,
    sink: Arc<dyn PageSink>,
    workspaces: Arc<Workspaces<Parcel>>,
    tools: Arc<Tools<PerPacketDecoder>>,
}

/// Takes the packets of one channel apart on the pool, and gives their pages to the sink.
pub(super) struct Decoding {
    shared: Decoders,
    form: Form,
    pipeline: Pipeline<Done>,
    /// Workspaces that the channel has, wherever they are.
    held: usize,
}

/// What the packets of a channel have to do with each other.
enum Form {
    /// They are one stream. It travels with a packet, so that packets are taken apart one at a time.
    Stream(Option<PacketDecoder>),
    /// Nothing.
    PerPacket,
}

/// A packet whose pages the sink has.
type Done = (Parcel, Option<PacketDecoder>);

/// A worker has failed, and has reported it.
#[derive(Debug)]
pub(super) struct Reported;

impl Decoders {
    pub(super) fn new(pool: CodecPool, sink: Arc<dyn PageSink>) -> Self {
        let workspaces = Arc::new(Workspaces::new(pool.workers(), Parcel::new));
        Self { pool, sink, workspaces, tools: Arc::new(Tools::new()) }
    }
}

impl Decoding {
    /// For one channel.
    ///
    /// # Errors
    /// If there is no memory for its stream.
    ///
    /// # Panics
    /// If the method is none that can be taken apart here.
    pub(super) fn new(shared: Decoders, compression: Compression) -> Result<Self, ReceiveFailure> {
        let form = match compression {
            Compression::Zlib => Form::Stream(Some(PacketDecoder::zlib())),
            Compression::Zstd => {
                Form::Stream(Some(PacketDecoder::zstd().map_err(ReceiveFailure::NoDecoder)?))
            }
            Compression::PerPacket => Form::PerPacket,
            other => panic!("{other:?} cannot be decompressed here"),
        };
        Ok(Self { shared, form, pipeline: Pipeline::new(), held: 0 })
    }

    /// Whether packets stand for themselves.
    pub(super) fn is_per_packet(&self) -> bool {
        matches!(self.form, Form::PerPacket)
    }

    /// Memory for the next packet. Waits for earlier ones if there is none left.
    pub(super) fn room(&mut self) -> Result<Parcel, Reported> {
        loop {
            if let Some(parcel) = self.shared.workspaces.take(self.held) {
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
        let sink = Arc::clone(&self.shared.sink);
        let task = match self.stream()? {
            Some(mut stream) => {
                let work = move || {
                    let converted = parcel.decode_stream(&*sink, &mut stream)?;
                    Ok(((parcel, Some(stream)), converted))
                };
                self.shared.pool.start(work, report)
            }
            None => {
                let tools = Arc::clone(&self.shared.tools);
                let work = move || {
                    let new = || PerPacketDecoder::new().map_err(ReceiveFailure::NoPacketDecoder);
                    let converted = tools.with(new, |decoder| parcel.decode_packet(&*sink, decoder))?;
                    Ok(((parcel, None), converted))
                };
                self.shared.pool.start(work, report)
            }
        };
        self.pipeline.push(task);
        Ok(())
    }

    /// Takes back memory for a packet that did not need the pool.
    pub(super) fn give_back(&mut self, parcel: Parcel) {
        self.shared.workspaces.give(self.held, parcel);
        self.held -= 1;
    }

    /// Waits until everything that was started is in the sink.
    pub(super) fn finish(&mut self) -> Result<(), Reported> {
        while self.finish_oldest()? {}
        Ok(())
    }

    /// The stream of the channel, once the packet before is done with it; `None` if there is no stream.
    fn stream(&mut self) -> Result<Option<PacketDecoder>, Reported> {
        loop {
            match &mut self.form {
                Form::PerPacket => return Ok(None),
                Form::Stream(stream) if stream.is_some() => return Ok(stream.take()),
                Form::Stream(_) => assert!(self.finish_oldest()?, "a packet on the pool has the stream"),
            }
        }
    }

    /// Waits for the oldest packet; `false` if there is none.
    fn finish_oldest(&mut self) -> Result<bool, Reported> {
        let Some(done) = self.pipeline.oldest() else { return Ok(false) };
        let (parcel, returned) = done.ok_or(Reported)?;
        if let Form::Stream(stream) = &mut self.form {
            *stream = returned;
        }
        self.give_back(parcel);
        Ok(true)
    }
}

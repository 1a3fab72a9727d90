//! One receiving channel: a thread that owns its link.

use super::barrier::Barrier;
use super::decode::{Decoding, Reported};
use super::intake::Intake;
use super::parcel::Parcel;
use super::runs::Runs;
use super::{PageSink, ReceiveConfig, ReceiveLink};
use crate::error::ReceiveFailure;
use crate::runs::push_page;
use crate::statistics::ChannelCounters;
use limosa_pages::BlockId;
use limosa_ram::Scatter;
use limosa_transport::ShutdownHandle;
use limosa_wire::Step;
use limosa_wire::multifd::{self, Compression, InitPacket, Packet, PagesHeader, PerPacketHead};
use std::sync::Arc;

/// Empty packets that may follow a synchronisation point. A QEMU 7.2 whose channel still has pages to send when it is told to
/// synchronise puts the point on these pages, and sends one empty packet more.
const EMPTY_PACKETS_MAX: u32 = 8;

pub(super) struct Channel {
    reader: Intake,
    init: Option<InitPacket>,
    sink: Arc<dyn PageSink>,
    uuid: [u8; 16],
    compression: Compression,
    /// Without a codec pages go straight into guest RAM.
    decoding: Option<Decoding>,
    /// Kept between packets for its allocations.
    scatter: Scatter<'static>,
    runs: Runs,
    reporter: Reporter,
    /// Synchronisation points so far.
    points: u64,
    /// There were pages since the last one.
    behind_sync: bool,
    /// Packets in a row with neither pages nor a synchronisation point.
    empty: u32,
}

/// Tells how a channel failed: the barrier, and the source, which must not wait for a reader that is gone.
#[derive(Clone)]
struct Reporter {
    accepted: usize,
    barrier: Arc<Barrier>,
    link: ShutdownHandle,
}

/// What ends a channel too early.
enum Stop {
    Failure(ReceiveFailure),
    /// A failure that is told already.
    Reported,
}

impl Channel {
    pub(super) fn new(
        accepted: usize,
        link: ReceiveLink,
        sink: Arc<dyn PageSink>,
        config: &ReceiveConfig,
        barrier: Arc<Barrier>,
        decoding: Option<Decoding>,
    ) -> Self {
        Self {
            reporter: Reporter { accepted, barrier, link: link.reader.shutdown_handle() },
            reader: Intake::new(link.reader),
            init: link.init,
            sink,
            uuid: config.uuid,
            compression: config.compression,
            decoding,
            scatter: Scatter::new(),
            runs: Runs::default(),
            points: 0,
            behind_sync: false,
            empty: 0,
        }
    }

    /// Receives until the link ends, and tells the barrier how that was, even if it was a panic.
    pub(super) fn run(mut self) {
        let reporter = self.reporter.clone();
        let mut guard = Guard { reporter, behind_sync: false, outcome: Err(ReceiveFailure::Panicked) };
        guard.outcome = match self.receive_all() {
            Err(Stop::Failure(failure)) => Err(failure),
            Ok(()) | Err(Stop::Reported) => Ok(()),
        };
        guard.behind_sync = self.behind_sync;
    }

    fn receive_all(&mut self) -> Result<(), Stop> {
        let init = self.init.take().map_or_else(|| self.read_init(), Ok)?;
        if init.uuid != self.uuid {
            return Err(ReceiveFailure::Uuid { expected: self.uuid, got: init.uuid }.into());
        }
        self.reporter.barrier.name(self.reporter.accepted, init.channel)?;
        let mut bytes = Box::new([0; PagesHeader::BYTES]);
        while let Some(header) = self.read_header(&mut bytes)? {
            let has_pages = header.normal().len() + header.zero().len() > 0;
            self.empty = if has_pages || header.sync { 0 } else { self.empty + 1 };
            // Without this a peer that goes on sending would keep the end of the migration waiting.
            let goes_on = has_pages || self.empty > EMPTY_PACKETS_MAX;
            if !header.sync && goes_on && self.reporter.barrier.is_closing() {
                return Err(ReceiveFailure::BehindLastSync { point: self.points }.into());
            }
            self.receive_pages(&header)?;
            self.behind_sync = !header.sync && (has_pages || self.behind_sync);
            if header.sync {
                self.finish_decoding()?;
                self.points += 1;
                self.reporter.barrier.arrive(self.reporter.accepted);
            }
            let counters = self.reporter.counters();
            counters.count_bytes(PagesHeader::BYTES + header.payload_bytes());
            counters.count_packet(header.normal().len(), header.zero().len());
            if header.sync {
                let release = || self.reporter.barrier.wait_release(self.reporter.accepted);
                if !counters.waiting(release) {
                    return Ok(());
                }
            }
        }
        Ok(self.finish_decoding()?)
    }

    fn read_init(&mut self) -> Result<InitPacket, ReceiveFailure> {
        let mut bytes = [0; InitPacket::BYTES];
        self.reader.read_exact(&mut bytes)?;
        match InitPacket::decode(&bytes)? {
            Step::Item { item, .. } => Ok(item),
            Step::Need(_) => unreachable!("an init packet has a fixed size"),
        }
    }

    /// The next header; `None` at the end of the link.
    ///
    /// A header is read as far as its beginning says that it goes: what is no packet is refused by its first bytes.
    fn read_header<'a>(
        &mut self,
        bytes: &'a mut [u8; PagesHeader::BYTES],
    ) -> Result<Option<PagesHeader<'a>>, ReceiveFailure> {
        let counters = self.reporter.counters();
        let mut filled = 0;
        loop {
            let count = counters.transferring(|| self.reader.read_some(&mut bytes[filled..]))?;
            match count {
                0 if filled == 0 => return Ok(None),
                // Says what is missing.
                0 => self.reader.read_exact(&mut bytes[filled..])?,
                _ => {}
            }
            filled += count;
            if let Step::Item { .. } = multifd::decode(&bytes[..filled])? {
                break;
            }
        }
        match multifd::decode(&bytes[..filled])? {
            Step::Item { item: Packet::Pages(header), .. } => Ok(Some(header)),
            Step::Item { item: Packet::DeviceState(state), .. } => {
                Err(ReceiveFailure::DeviceState { idstr: state.idstr.to_owned() })
            }
            Step::Need(_) => unreachable!("it was whole a moment ago"),
        }
    }

    /// Receives the pages of a packet; the sink has them now, or when the pool is done with them.
    fn receive_pages(&mut self, header: &PagesHeader<'_>) -> Result<(), Stop> {
        let Some(name) = header.block() else { return Ok(()) };
        if self.points == 0 {
            return Err(ReceiveFailure::PagesBeforeSync.into());
        }
        if header.compression != self.compression {
            let (expected, got) = (self.compression, header.compression);
            return Err(ReceiveFailure::Method { expected, got }.into());
        }
        let unknown = || ReceiveFailure::UnknownBlock { name: name.to_owned() };
        let id = self.sink.ram().layout().find(name).ok_or_else(unknown)?;
        if header.normal().len() > 0 && self.decoding.is_some() {
            return self.receive_compressed(id, header);
        }
        Ok(self.receive_directly(id, header)?)
    }

    /// Pages as they are, straight into guest RAM.
    fn receive_directly(&mut self, id: BlockId, header: &PagesHeader<'_>) -> Result<(), ReceiveFailure> {
        let sink = Arc::clone(&self.sink);
        let block = sink.ram().block(id);
        self.runs.locate(block, header)?;
        self.runs.announce_to(&*sink, id)?;
        let mut scatter = std::mem::take(&mut self.scatter).reset();
        self.runs.normal.iter().for_each(|&run| scatter.pages(block, run));
        self.reporter.counters().transferring(|| self.reader.read_scatter(&mut scatter))?;
        self.scatter = scatter.reset();
        Ok(self.runs.give_to(&*sink, id)?)
    }

    /// A payload, for the pool to take apart.
    fn receive_compressed(&mut self, id: BlockId, header: &PagesHeader<'_>) -> Result<(), Stop> {
        let Some(decoding) = &mut self.decoding else { unreachable!("called only with a codec") };
        let counters = self.reporter.counters();
        let mut parcel = counters.waiting_for_codec(|| decoding.room())?;
        parcel.block = id;
        parcel.runs.locate(self.sink.ram().block(id), header)?;
        if decoding.is_per_packet() {
            let mut reading = Reading { reader: &mut self.reader, counters, scatter: &mut self.scatter };
            reading.packet(&mut parcel, header, &*self.sink)?;
            if parcel.head.raw.count() == header.normal().len() {
                parcel.runs.give_to(&*self.sink, id).map_err(ReceiveFailure::from)?;
                decoding.give_back(parcel);
                return Ok(());
            }
        } else {
            let payload = parcel.payload(header.payload_bytes());
            counters.transferring(|| self.reader.read_exact(payload)).map_err(ReceiveFailure::from)?;
        }
        let (reporter, packet) = (self.reporter.clone(), counters.packets());
        let report = move |failure| reporter.fail(packet, failure);
        Ok(counters.waiting_for_codec(|| decoding.start(parcel, report))?)
    }

    /// Waits until the sink has everything that has come.
    fn finish_decoding(&mut self) -> Result<(), Reported> {
        let Some(decoding) = &mut self.decoding else { return Ok(()) };
        self.reporter.counters().waiting_for_codec(|| decoding.finish())
    }
}

/// What a packet is read with.
struct Reading<'a> {
    reader: &'a mut Intake,
    counters: &'a ChannelCounters,
    scatter: &'a mut Scatter<'static>,
}

impl Reading<'_> {
    /// Reads a payload that stands for itself: what is to be taken apart into `parcel`, the raw pages straight
    /// into guest RAM.
    fn packet(
        &mut self,
        parcel: &mut Parcel,
        header: &PagesHeader<'_>,
        sink: &dyn PageSink,
    ) -> Result<(), ReceiveFailure> {
        let mut bytes = [0; PerPacketHead::BYTES];
        self.counters.transferring(|| self.reader.read_exact(&mut bytes))?;
        parcel.head = match PerPacketHead::decode(&bytes, header.normal().len(), header.payload_bytes())? {
            Step::Item { item, .. } => item,
            Step::Need(_) => unreachable!("a head has a fixed size"),
        };
        parcel.runs.announce_to(sink, parcel.block)?;
        let mut raw = Vec::new();
        parcel.runs.at(parcel.head.raw).for_each(|page| push_page(&mut raw, page));
        let rest = parcel.head.compressed_bytes + parcel.head.delta_bytes;
        let block = sink.ram().block(parcel.block);
        let mut scatter = std::mem::take(self.scatter).reset();
        scatter.bytes(parcel.payload(rest as usize));
        raw.iter().for_each(|&run| scatter.pages(block, run));
        self.counters.transferring(|| self.reader.read_scatter(&mut scatter))?;
        *self.scatter = scatter.reset();
        Ok(())
    }
}

impl Reporter {
    fn counters(&self) -> &ChannelCounters {
        self.barrier.counters(self.accepted)
    }

    /// `packet`: packets that had come before the one that failed.
    fn fail(&self, packet: u64, failure: ReceiveFailure) {
        self.barrier.fail(self.accepted, packet, failure);
        self.link.shutdown();
    }
}

impl From<ReceiveFailure> for Stop {
    fn from(failure: ReceiveFailure) -> Self {
        Self::Failure(failure)
    }
}

impl From<Reported> for Stop {
    fn from(_: Reported) -> Self {
        Self::Reported
    }
}

/// Reports how a channel ended, from wherever it does.
struct Guard {
    reporter: Reporter,
    behind_sync: bool,
    outcome: Result<(), ReceiveFailure>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.outcome, Ok(())) {
            Ok(()) => self.reporter.barrier.end(self.reporter.accepted, self.behind_sync),
            Err(failure) => self.reporter.fail(self.reporter.counters().packets(), failure),
        }
    }
}

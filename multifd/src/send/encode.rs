//! The packets of one channel that are made on the codec pool.

use super::chooser::{Chooser, Selected};
use super::parcel::{PacketTools, Parcel, Plan};
use super::versions::SharedVersions;
use super::{SendBatch, ZeroDetection};
use crate::error::SendFailure;
use crate::pool::{CodecPool, Pipeline, Tools, Workspaces};
use limosa_compress::PacketEncoder;
use limosa_compress::choice::ChoiceReport;
use limosa_compress::versions::Interval;
use limosa_pages::ByteCount;
use limosa_ram::GuestRam;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A channel that waits so long for a batch is not kept from it by the others or the coordinator: there is none.
const REST: Duration = Duration::from_millis(2);

/// What the channels of one end share to make their packets.
#[derive(Clone)]
pub(super) struct Encoders {
    pub(super) pool: CodecPool,
    ram: GuestRam,
    detection: ZeroDetection,
    workspaces: Arc<Workspaces<Parcel>>,
    /// Without it packets belong to the stream of their channel.
    per_packet: Option<Arc<PerPacket>>,
}

/// What packets need that stand for themselves.
struct PerPacket {
    chooser: Chooser,
    tools: Tools<PacketTools>,
    versions: Option<SharedVersions>,
    /// The other side has none of them any more.
    forgotten: AtomicBool,
}

/// Makes the packets of one channel on the pool.
pub(super) struct Encoding {
    shared: Encoders,
    /// The stream of the channel. It travels with a packet, so that packets are made one at a time.
    stream: Option<PacketEncoder>,
    pipeline: Pipeline<Made>,
    /// Has room for the next batch.
    next: Option<Parcel>,
    /// How the packet of that batch is made.
    selected: Option<Selected>,
    /// Workspaces that the channel has, wherever they are.
    held: usize,
}

/// A packet that is made, and the stream that it is part of.
type Made = (Parcel, Option<PacketEncoder>);

impl Encoders {
    /// For packets that `chooser` chooses for, with at most `versions` bytes of earlier versions to make deltas
    /// against; without it for packets of streams.
    pub(super) fn new(
        pool: CodecPool,
        ram: GuestRam,
        detection: ZeroDetection,
        chooser: Option<Chooser>,
        versions: ByteCount,
    ) -> Self {
        let per_packet = chooser.map(|chooser| {
            let versions = (versions > ByteCount(0)).then(|| SharedVersions::new(versions));
            Arc::new(PerPacket { chooser, tools: Tools::new(), versions, forgotten: AtomicBool::new(false) })
        });
        let workspace = if per_packet.is_some() { Parcel::per_packet } else { Parcel::of_stream };
        let workspaces = Arc::new(Workspaces::new(pool.workers(), workspace));
        Self { pool, ram, detection, workspaces, per_packet }
    }
}

impl PerPacket {
    fn versions(&self) -> Option<&SharedVersions> {
        // Relaxed: what is submitted afterwards goes through the lock of the queue.
        self.versions.as_ref().filter(|_| !self.forgotten.load(Ordering::Relaxed))
    }
}

impl Encoders {
    /// Makes no deltas from now on.
    pub(super) fn forget_versions(&self) {
        if let Some(per_packet) = &self.per_packet {
            per_packet.forgotten.store(true, Ordering::Relaxed);
        }
    }

    /// What was chosen so far; `None` where there is no choice.
    pub(super) fn choices(&self) -> Option<ChoiceReport> {
        self.per_packet.as_ref().and_then(|per_packet| per_packet.chooser.report())
    }
}

impl fmt::Debug for Encoders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoders").field("pool", &self.pool).finish_non_exhaustive()
    }
}

impl Encoding {
    /// For one channel; `stream` is its own, where the codec has one.
    pub(super) fn new(shared: Encoders, stream: Option<PacketEncoder>) -> Self {
        assert_eq!(shared.per_packet.is_none(), stream.is_some(), "a stream, or packets without one");
        Self { shared, stream, pipeline: Pipeline::new(), next: None, selected: None, held: 0 }
    }

    /// Where the next batch goes, to be followed by [`Self::start`]; `None` if another packet has to end first.
    pub(super) fn room(&mut self) -> Option<&mut SendBatch> {
        if self.shared.per_packet.is_none() && self.stream.is_none() {
            return None;
        }
        if self.next.is_none() {
            self.next = self.shared.workspaces.take(self.held);
            self.held += usize::from(self.next.is_some());
        }
        self.next.as_mut().map(|parcel| &mut parcel.batch)
    }

    /// The packet of the batch for which there was room, if there is nothing for the pool to do. Otherwise
    /// [`Self::start`] follows.
    pub(super) fn make_directly(&mut self) -> Option<Parcel> {
        let batch = &self.next.as_ref().expect("there was room for it").batch;
        let is_empty = batch.content.is_empty();
        let per_packet = self.shared.per_packet.as_ref().filter(|_| !is_empty);
        self.selected = per_packet.map(|per_packet| per_packet.chooser.select());
        if !is_empty && !self.selected.is_some_and(Selected::is_raw) {
            return None;
        }
        let mut parcel = self.next.take()?;
        let versions = per_packet.and_then(|per_packet| per_packet.versions());
        parcel.fill_raw(&self.shared.ram, self.shared.detection, versions);
        Some(parcel)
    }

    /// Makes the packet of the batch for which there was room, in the interval behind the `points`th synchronisation
    /// point. What goes wrong is told to `report`.
    pub(super) fn start(&mut self, points: u64, report: impl FnOnce(SendFailure) + Send + 'static) {
        let mut parcel = self.next.take().expect("there was room for it");
        let (ram, detection) = (self.shared.ram.clone(), self.shared.detection);
        let task = match (&self.shared.per_packet, self.stream.take()) {
            (Some(per_packet), _) => {
                let per_packet = Arc::clone(per_packet);
                let selected = self.selected.take().expect("there was something to make");
                let plan = Plan { detection, selected, interval: Interval(points) };
                let work = move || {
                    let start = Instant::now();
                    let versions = per_packet.versions();
                    let (converted, mut sample) = per_packet
                        .tools
                        .with(PacketTools::new, |tools| parcel.encode_packet(&ram, plan, tools, versions))?;
                    sample.busy = start.elapsed();
                    per_packet.chooser.encoded(selected, &sample);
                    Ok::<_, SendFailure>(((parcel, None), converted))
                };
                self.shared.pool.start(work, report)
            }
            (None, stream) => {
                let mut stream = stream.expect("there was room for it");
                let work = move || {
                    let converted = parcel.encode_stream(&ram, detection, &mut stream)?;
                    Ok::<_, SendFailure>(((parcel, Some(stream)), converted))
                };
                self.shared.pool.start(work, report)
            }
        };
        self.pipeline.push(task);
    }

    /// Waits for the oldest packet under way. `None` if there is none, `Some(None)` if it could not be made, which
    /// is reported.
    pub(super) fn oldest(&mut self) -> Option<Option<Parcel>> {
        let made = self.pipeline.oldest()?;
        Some(made.map(|(parcel, stream)| {
            self.stream = stream;
            parcel
        }))
    }

    /// The channel had nothing to send for as long as `waited`.
    pub(super) fn rested(&self, waited: Duration) {
        if let Some(per_packet) = self.shared.per_packet.as_ref().filter(|_| waited >= REST) {
            per_packet.chooser.rested();
        }
    }

    /// Takes back a packet that is sent: `bytes` in all, which took `writing`.
    pub(super) fn give_back(&mut self, parcel: Parcel, bytes: ByteCount, writing: Duration) {
        // What waits is written with something else, which then says what it took.
        if let Some(per_packet) = self.shared.per_packet.as_ref().filter(|_| bytes > ByteCount(0)) {
            per_packet.chooser.written(parcel.contents.normal.len(), bytes, writing);
        }
        self.shared.workspaces.give(self.held, parcel);
        self.held -= 1;
    }
}

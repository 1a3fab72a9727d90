//! One sending channel: a thread that owns its link.

use super::encode::Encoding;
use super::packet::Contents;
use super::parcel::Parcel;
use super::queue::{Job, Queue};
use super::{SendBatch, SendConfig};
use crate::error::{SendError, SendFailure};
use crate::runs::bytes_in;
use crate::statistics::{AllCounters, ChannelCounters};
use limosa_pages::{BlockId, ByteCount};
use limosa_ram::{Gather, GuestRam};
use limosa_transport::LinkWriter;
use limosa_wire::multifd::{InitPacket, PagesHeader, PagesPacket};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Packets of zero pages wait for each other up to this many bytes: twelve headers, which stand for 6 MiB of RAM. To scan
/// a packet's pages takes 20 microseconds, a system call and the wake-up of its reader as long.
const HELD_BYTES: u64 = 16 << 10;

pub(super) struct Channel {
    link: LinkWriter,
    ram: GuestRam,
    config: SendConfig,
    shared: Shared,
    /// Synchronisation points so far.
    points: u64,
    /// Packets without a payload that wait for more; otherwise empty, and kept for its allocations.
    gather: Gather<'static>,
}

/// What a channel has in common with the others and the coordinator, and its place among them.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) number: u8,
    pub(super) queue: Arc<Queue>,
    pub(super) counters: AllCounters,
    /// Numbers of packets, over all channels.
    pub(super) packet_numbers: Arc<AtomicU64>,
}

impl Channel {
    pub(super) fn new(link: LinkWriter, ram: GuestRam, config: SendConfig, shared: Shared) -> Self {
        Self { link, ram, config, shared, points: 0, gather: Gather::new() }
    }

    /// Sends until told to end, and tells the queue if that was a failure, even a panic. Packets are made by
    /// `encoding`, or without it straight from guest RAM.
    pub(super) fn run(mut self, encoding: Option<Encoding>) {
        let mut guard = Guard { shared: self.shared.clone(), outcome: Err(SendFailure::Panicked) };
        guard.outcome = self.send_init().and_then(|()| match encoding {
            None => self.send_directly(),
            Some(encoding) => self.send_encoded(encoding),
        });
    }

    fn send_directly(&mut self) -> Result<(), SendFailure> {
        let (mut batch, mut contents) = (SendBatch::new(BlockId(0)), Contents::default());
        loop {
            let job = if !self.gather.is_empty() && self.shared.queue.try_next(&mut batch) {
                Job::Batch
            } else {
                self.flush()?;
                self.next_job(&mut batch).0
            };
            match job {
                Job::Batch => {
                    contents.sort_raw(self.ram.block(batch.block), &batch, self.config.zero_detection);
                    self.send_packet(&batch, &contents, &[])?;
                }
                other => {
                    if self.obey(other)?.is_break() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// While a packet is written, the next ones are made.
    fn send_encoded(&mut self, mut encoding: Encoding) -> Result<(), SendFailure> {
        let mut ready: Option<Parcel> = None;
        loop {
            while encoding.room().is_some_and(|batch| self.shared.queue.try_next(batch)) {
                self.begin(&mut encoding)?;
            }
            if let Some(parcel) = ready.take() {
                self.send_parcel(&mut encoding, parcel)?;
                continue;
            }
            self.flush()?;
            match self.shared.counters().waiting_for_codec(|| encoding.oldest()) {
                Some(Some(parcel)) => ready = Some(parcel),
                // The worker has reported why.
                Some(None) => return Ok(()),
                // Nothing is under way, so what was taken before a synchronisation point is written.
                None => {
                    let (job, waited) = self.next_job(encoding.room().expect("nothing is under way"));
                    encoding.rested(waited);
                    match job {
                        Job::Batch => self.begin(&mut encoding)?,
                        other => {
                            if self.obey(other)?.is_break() {
                                return Ok(());
                            }
                        }
                    }
                }
            }
        }
    }

    /// Has the packet of the batch that was taken made; sends it at once if there is nothing to make.
    fn begin(&mut self, encoding: &mut Encoding) -> Result<(), SendFailure> {
        if let Some(parcel) = encoding.make_directly() {
            return self.send_parcel(encoding, parcel);
        }
        let shared = self.shared.clone();
        encoding.start(self.points, move |failure| shared.fail(failure));
        Ok(())
    }

    fn send_parcel(&mut self, encoding: &mut Encoding, parcel: Parcel) -> Result<(), SendFailure> {
        let (bytes, writing) = self.send_packet(&parcel.batch, &parcel.contents, &parcel.payload)?;
        encoding.give_back(parcel, bytes, writing);
        Ok(())
    }

    /// Waits for the next job; also returns how long that took.
    fn next_job(&self, batch: &mut SendBatch) -> (Job, Duration) {
        self.shared.counters().waiting_for(|| self.shared.queue.next(self.points, batch))
    }

    /// Does what is no batch. `Break` if nothing comes after it.
    fn obey(&mut self, job: Job) -> Result<ControlFlow<()>, SendFailure> {
        match job {
            Job::Batch => unreachable!("its packet is made elsewhere"),
            Job::Sync => {
                self.send_sync()?;
                let counters = self.shared.counters();
                if counters.transferring(|| self.link.wait_zero_copy())? {
                    counters.count_missed_zero_copy();
                }
                self.points += 1;
                self.shared.queue.synced();
                Ok(ControlFlow::Continue(()))
            }
            Job::Close => {
                // The other side knows that it has everything, and may be gone.
                let _ = self.link.finish();
                Ok(ControlFlow::Break(()))
            }
            Job::Abort => Ok(ControlFlow::Break(())),
        }
    }

    fn send_init(&mut self) -> Result<(), SendFailure> {
        let Some(uuid) = self.config.uuid else { return Ok(()) };
        let mut packet = Vec::with_capacity(InitPacket::BYTES);
        InitPacket { uuid, channel: self.shared.number }.encode(&mut packet);
        self.send_bytes(&packet)
    }

    fn send_sync(&mut self) -> Result<(), SendFailure> {
        let mut packet = Vec::with_capacity(PagesHeader::BYTES);
        PagesPacket::encode_sync(self.shared.next_packet_number(), &mut packet);
        self.send_bytes(&packet)?;
        self.shared.counters().count_packet(0, 0);
        Ok(())
    }

    fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), SendFailure> {
        let counters = self.shared.counters();
        counters.transferring(|| self.link.write_all(bytes))?;
        counters.count_bytes(bytes.len());
        Ok(())
    }

    /// Sends header, payload and raw pages with one call, the pages from guest RAM as they lie there. A packet of zero
    /// pages only may wait for [`Self::flush`]. Returns how many bytes were written, and how long the call took.
    fn send_packet(
        &mut self,
        batch: &SendBatch,
        contents: &Contents,
        payload: &[u8],
    ) -> Result<(ByteCount, Duration), SendFailure> {
        let block = self.ram.block(batch.block);
        let packet = PagesPacket {
            block: block.name(),
            normal: &contents.normal,
            zero: &contents.zero,
            compression: self.config.codec.compression(),
            payload_bytes: (payload.len() + bytes_in(&contents.raw)) as u32,
            packet_number: self.shared.next_packet_number(),
        };
        self.gather.header(|out| packet.encode(out));
        if contents.normal.is_empty() && self.gather.remaining().0 < HELD_BYTES {
            self.shared.counters().count_packet(0, contents.zero.len());
            return Ok((ByteCount(0), Duration::ZERO));
        }
        let mut gather: Gather<'_> = std::mem::take(&mut self.gather);
        gather.bytes(payload);
        contents.raw.iter().for_each(|&run| gather.pages(block, run));
        let written = write(&mut self.link, &mut gather, self.shared.counters())?;
        self.gather = gather.reset();
        self.shared.counters().count_packet(contents.normal.len(), contents.zero.len());
        Ok(written)
    }

    /// Sends what waits.
    fn flush(&mut self) -> Result<(), SendFailure> {
        if self.gather.is_empty() {
            return Ok(());
        }
        write(&mut self.link, &mut self.gather, self.shared.counters())?;
        self.gather = std::mem::take(&mut self.gather).reset();
        Ok(())
    }
}

/// Sends all of `gather`, with one call if the kernel takes it. Returns how many bytes that were, and how long it took.
fn write(
    link: &mut LinkWriter,
    gather: &mut Gather<'_>,
    counters: &ChannelCounters,
) -> Result<(ByteCount, Duration), SendFailure> {
    let bytes = gather.remaining();
    let (written, writing) = counters.transferring_for(|| link.write_gather(gather));
    written?;
    counters.count_bytes(bytes.0 as usize);
    Ok((bytes, writing))
}

impl Shared {
    fn counters(&self) -> &ChannelCounters {
        &self.counters[usize::from(self.number)]
    }

    fn next_packet_number(&self) -> u64 {
        self.packet_numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Ends the migration, if nothing has before.
    fn fail(&self, failure: SendFailure) {
        let (channel, packet) = (self.number, self.counters().packets());
        self.queue.fail(SendError { channel, packet, failure: Arc::new(failure) });
    }
}

/// Reports how a channel ended, from wherever it does.
struct Guard {
    shared: Shared,
    outcome: Result<(), SendFailure>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(failure) = std::mem::replace(&mut self.outcome, Ok(())) {
            self.shared.fail(failure);
        }
    }
}

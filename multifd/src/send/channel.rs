//! One sending channel: a thread that owns its link.

use super::packet::{Compressor, Contents};
use super::queue::{Job, Queue};
use super::{SendBatch, SendConfig};
use crate::error::{SendError, SendFailure};
use crate::statistics::ChannelCounters;
use limosa_ram::{Gather, GuestRam};
use limosa_transport::LinkWriter;
use limosa_wire::multifd::{InitPacket, PagesHeader, PagesPacket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) struct Channel {
    number: u8,
    link: LinkWriter,
    ram: GuestRam,
    config: SendConfig,
    queue: Arc<Queue>,
    counters: Arc<ChannelCounters>,
    /// Numbers of packets, over all channels.
    numbers: Arc<AtomicU64>,
    compressor: Option<Compressor>,
    contents: Contents,
    /// Kept between packets for its allocations.
    gather: Gather<'static>,
}

impl Channel {
    pub(super) fn new(
        number: u8,
        link: LinkWriter,
        ram: GuestRam,
        config: SendConfig,
        queue: Arc<Queue>,
        counters: Arc<ChannelCounters>,
        numbers: Arc<AtomicU64>,
    ) -> Result<Self, SendFailure> {
        let compressor = Compressor::new(config.codec)?;
        let (contents, gather) = (Contents::default(), Gather::new());
        Ok(Self { number, link, ram, config, queue, counters, numbers, compressor, contents, gather })
    }

    /// Sends until told to end, and tells the queue if that was a failure, even a panic.
    pub(super) fn run(mut self) {
        let mut guard = Guard {
            number: self.number,
            queue: Arc::clone(&self.queue),
            counters: Arc::clone(&self.counters),
            outcome: Err(SendFailure::Panicked),
        };
        guard.outcome = self.send_all();
    }

    fn send_all(&mut self) -> Result<(), SendFailure> {
        self.send_init()?;
        let mut points = 0;
        let mut sent = None;
        loop {
            match self.counters.waiting(|| self.queue.next(points, sent.take())) {
                Job::Batch(batch) => {
                    self.send_batch(&batch)?;
                    sent = Some(batch);
                }
                Job::Sync => {
                    self.send_sync()?;
                    points += 1;
                    self.queue.synced();
                }
                Job::Close => {
                    // The other side knows that it has everything, and may be gone.
                    let _ = self.link.finish();
                    return Ok(());
                }
                Job::Abort => return Ok(()),
            }
        }
    }

    fn send_init(&mut self) -> Result<(), SendFailure> {
        let mut packet = Vec::with_capacity(InitPacket::BYTES);
        InitPacket { uuid: self.config.uuid, channel: self.number }.encode(&mut packet);
        self.send_bytes(&packet)
    }

    fn send_sync(&mut self) -> Result<(), SendFailure> {
        let mut packet = Vec::with_capacity(PagesHeader::BYTES);
        PagesPacket::encode_sync(self.next_number(), &mut packet);
        self.send_bytes(&packet)?;
        self.counters.count_packet(0, 0);
        Ok(())
    }

    fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), SendFailure> {
        self.counters.transferring(|| self.link.write_all(bytes))?;
        self.counters.count_bytes(bytes.len());
        Ok(())
    }

    /// Header and pages with one call: from guest RAM as they lie there, or compressed.
    fn send_batch(&mut self, batch: &SendBatch) -> Result<(), SendFailure> {
        let packet_number = self.next_number();
        let block = self.ram.block(batch.block);
        let Contents { normal, zero, runs } = {
            self.contents.sort(block, batch, self.config.zero_detection);
            &self.contents
        };
        let payload = match &mut self.compressor {
            Some(compressor) => Some(compressor.payload(block, runs)?),
            None => None,
        };
        let pages_bytes = runs.iter().map(|run| run.bytes().0).sum::<u64>();
        let packet = PagesPacket {
            block: block.name(),
            normal,
            zero,
            compression: self.config.codec.compression(),
            payload_bytes: payload.map_or(pages_bytes as u32, |payload| payload.len() as u32),
            packet_number,
        };
        let mut gather = std::mem::take(&mut self.gather).reset();
        gather.header(|out| packet.encode(out));
        match payload {
            Some(payload) => gather.bytes(payload),
            None => runs.iter().for_each(|&run| gather.pages(block, run)),
        }
        let bytes = gather.remaining().0 as usize;
        self.counters.transferring(|| self.link.write_gather(&mut gather))?;
        self.gather = gather.reset();
        self.counters.count_bytes(bytes);
        self.counters.count_packet(normal.len(), zero.len());
        Ok(())
    }

    fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }
}

/// Reports how a channel ended, from wherever it does.
struct Guard {
    number: u8,
    queue: Arc<Queue>,
    counters: Arc<ChannelCounters>,
    outcome: Result<(), SendFailure>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(failure) = std::mem::replace(&mut self.outcome, Ok(())) {
            let packet = self.counters.packets();
            self.queue.fail(SendError { channel: self.number, packet, failure: Arc::new(failure) });
        }
    }
}

//! The sending half: dirty log in, page records out.

mod postcopy;

pub(crate) use postcopy::UrgentPath;

use super::channels::{ChannelSettings, Channels, PACKET_PAGES};
use super::counters::{RamCounters, add};
use super::population::PopulationReport;
use super::records::Records;
use super::xbzrle_cache::XbzrleCache;
use crate::error::SaveFault;
use crate::parameters::ZeroPageDetection;
use crate::savevm::SaveSetup;
use crate::stream::StreamWriter;
use limosa_compress::xbzrle::{self, Encoded};
use limosa_multifd::ChannelStatistics;
use limosa_pages::{ByteCount, DirtyMap, PAGE_BYTES, PageBatch, PageCount, PageRun, PageScheduler, PageSize};
use limosa_ram::{DirtyLog, GuestRam, is_zero};
use limosa_wire::{Features, RamEncoder, RamSetup, SetupBlock};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Pages handed to the kernel at once: 256 x (8 + 4096) bytes is a little over 1 MiB in 512 of the 1024
/// entries that one `sendmsg` may have. Larger batches measure no faster, smaller ones do slow down.
const BATCH_PAGES: PageCount = PageCount(256);

/// One outgoing migration of a guest's RAM.
pub(super) struct RamSave {
    ram: GuestRam,
    counters: Arc<RamCounters>,
    owed: Arc<DirtyMap>,
    /// What the destination has been told to drop. All of it is owed until the push begins.
    discarded: Option<DirtyMap>,
    scheduler: PageScheduler,
    encoder: RamEncoder,
    /// Whether the dirty log has been read yet.
    synced: bool,
    /// A bit for each page that had memory behind it at the start; consulted until the first round is over.
    populated: Option<DirtyMap>,
    /// What the setup tells the destination, if it wants to know.
    report: Option<PopulationReport>,
    xbzrle: Option<Xbzrle>,
    /// Where pages leave, if not on the main channel.
    channels: Option<Channels>,
    channel_settings: ChannelSettings,
    /// What channels had done that are lost.
    lost_channels: Vec<ChannelStatistics>,
    /// Whether they may bring pages once the guest has moved; a QEMU takes none then (wire 12).
    channels_in_postcopy: bool,
    /// They are at rest, and are not ended before the migration is: the other side would take that for a loss.
    resting: Option<Channels>,
    /// Zero pages leave on the main channel in any case.
    zero_on_main: bool,
    batch: PageBatch,
    records: Records,
}

/// Neighbouring pages of a batch that are alike.
#[derive(Clone, Copy)]
struct Part {
    run: PageRun,
    /// Whether the guest had ever touched them.
    touched: bool,
}

struct Xbzrle {
    cache: XbzrleCache,
    current: Box<[u8; PAGE_BYTES]>,
    delta: Vec<u8>,
    /// Deltas begin with the second round: in the first nothing has a previous version.
    active: bool,
}

impl RamSave {
    /// Starts the dirty log and owes all RAM.
    pub(super) fn begin(
        ram: GuestRam,
        log: &mut dyn DirtyLog,
        setup: &SaveSetup<'_>,
        counters: Arc<RamCounters>,
    ) -> Result<Self, SaveFault> {
        let owed = Arc::new(DirtyMap::clean(ram.layout()));
        owed.owe_all();
        log.start()?;
        // After the start: a page that is touched from now on is in the log.
        let populated = DirtyMap::clean(ram.layout());
        let mut report = setup.features.contains(Features::POPULATED_REPORT).then(PopulationReport::default);
        for (id, _) in ram.iter() {
            let now = log.populated(id)?;
            now.owe_into(populated.block(id));
            if let Some(report) = &mut report {
                report.add(&ram, id, &now);
            }
        }
        counters.owed.store(owed.count().0, Ordering::Relaxed);
        let cache = setup.capabilities.xbzrle.then_some(setup.parameters.xbzrle_cache_size);
        let channel_settings = ChannelSettings::of(setup);
        let links = setup.channels.lock().take();
        let channels = links.map(|links| Channels::begin(&ram, links, channel_settings, Vec::new()));
        let channels = channels.transpose()?;
        Ok(Self {
            channels,
            channel_settings,
            lost_channels: Vec::new(),
            channels_in_postcopy: setup.features.contains(Features::POSTCOPY_CHANNELS),
            resting: None,
            zero_on_main: setup.parameters.zero_page_detection == ZeroPageDetection::Legacy,
            ram,
            counters,
            owed,
            discarded: None,
            scheduler: PageScheduler::new(),
            encoder: RamEncoder::new(),
            synced: false,
            populated: Some(populated),
            report,
            xbzrle: cache.map(Xbzrle::new),
            batch: PageBatch::default(),
            records: Records::default(),
        })
    }

    /// Writes the list of blocks, with page sizes above 4 KiB if `postcopy` may follow (wire 3.3): the body of the START
    /// section.
    pub(super) fn write_setup(&mut self, postcopy: bool, out: &mut StreamWriter) -> Result<(), SaveFault> {
        let large = |size: &PageSize| postcopy && *size > PageSize::FOUR_KIB;
        let blocks = self.ram.layout().iter().map(|(_, block)| SetupBlock {
            page_size: Some(block.page_size).filter(large),
            ..SetupBlock::new(block.name.clone(), block.length)
        });
        let setup = RamSetup { blocks: blocks.collect() };
        self.encoder.setup(&setup, out.buffer());
        if let Some(report) = self.report.take() {
            report.encode(&self.ram, &mut self.encoder, out.buffer());
        }
        if let Some(channels) = &mut self.channels {
            channels.open();
            channels.end_round(&mut self.encoder, out, &self.counters)?;
        }
        self.write_end(out)
    }

    /// Ends the body of a section.
    pub(super) fn write_end(&mut self, out: &mut StreamWriter) -> Result<(), SaveFault> {
        self.encoder.end_of_section(out.buffer());
        if let Some(channels) = &mut self.channels {
            channels.end_section(out, &self.counters)?;
        }
        Ok(out.flush_if_full()?)
    }

    /// Adds what the guest has written since the last call to what is owed.
    ///
    /// # Panics
    /// If pages of the round before still race each other on the channels (I5).
    pub(super) fn sync(&mut self, log: &mut dyn DirtyLog) -> Result<(), SaveFault> {
        let in_line = self.channels.as_ref().is_none_or(Channels::are_in_line);
        assert!(in_line, "no page may be claimed again before the channels are in line");
        let first = !std::mem::replace(&mut self.synced, true);
        let dirtied = match &self.populated {
            // All RAM is owed anyway. What was written since the start is untouched no longer, and no later
            // sync will say so again.
            Some(populated) if first => log.sync_into(populated)?,
            // The round is not over: postcopy begins in the middle of it.
            Some(populated) if self.owed.count() > PageCount(0) => {
                postcopy::sync_into_both(log, self.ram.layout(), populated, &self.owed)?
            }
            _ => {
                // A page that was untouched may be among these, and deltas have a base now.
                self.populated = None;
                if let Some(xbzrle) = &mut self.xbzrle {
                    xbzrle.active = true;
                }
                log.sync_into(&self.owed)?
            }
        };
        self.counters.dirtied.store(dirtied.0, Ordering::Relaxed);
        self.counters.owed.store(self.owed.count().0, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes of the pages that are owed.
    pub(super) fn pending(&self) -> ByteCount {
        self.owed.count().bytes()
    }

    /// Writes owed pages until none is left or `spent`, told the bytes of each batch, says that it is enough.
    pub(super) fn write_pages(
        &mut self,
        log: &mut dyn DirtyLog,
        out: &mut StreamWriter,
        mut spent: impl FnMut(ByteCount) -> bool,
    ) -> Result<(), SaveFault> {
        let most = if self.channels.is_some() { PACKET_PAGES } else { BATCH_PAGES };
        while self.scheduler.next_batch(&self.owed, most, &mut self.batch) {
            let (before, main_before) = (self.written(out), out.offset());
            self.records.clear();
            match self.channels.take() {
                Some(mut channels) => {
                    let submitted = self.submit_batch(&mut channels, log, out);
                    self.channels = Some(channels);
                    submitted?;
                }
                None => self.write_batch(log, out)?,
            }
            let sent = self.written(out) - before;
            add(&self.counters.bytes, (out.offset() - main_before).0);
            self.counters.owed.fetch_sub(self.batch.pages().0, Ordering::Relaxed);
            // A slice that is used up with the last page of the round ends the round all the same: none follows (I5).
            if spent(sent) && self.owed.count() > PageCount(0) {
                return Ok(());
            }
        }
        match &mut self.channels {
            Some(channels) => channels.end_round(&mut self.encoder, out, &self.counters),
            None => Ok(()),
        }
    }

    /// Bytes that have left so far, on every channel.
    fn written(&self, out: &StreamWriter) -> ByteCount {
        out.offset() + self.channels.as_ref().map_or(ByteCount(0), Channels::bytes)
    }

    /// Hands the batch to the multifd channels; what must not go there leaves on the main one.
    fn submit_batch(
        &mut self,
        channels: &mut Channels,
        log: &mut dyn DirtyLog,
        out: &mut StreamWriter,
    ) -> Result<(), SaveFault> {
        channels.begin_packet(self.batch.block);
        for index in 0..self.batch.runs.len() {
            let mut rest = self.batch.runs[index];
            while !rest.is_empty() {
                let part = self.leading_part(rest);
                rest = PageRun::new(part.run.end(), rest.count - part.run.count);
                match (part.touched, self.zero_on_main) {
                    (false, false) => channels.add_untouched(part.run),
                    (false, true) => {
                        self.encode_untouched(part.run);
                        channels.count_zero_on_main(part.run.count);
                    }
                    // I2, as below: the channel reads the pages later still.
                    (true, false) => {
                        log.clear_before_read(self.batch.block, part.run)?;
                        channels.add_content(part.run);
                    }
                    (true, true) => {
                        log.clear_before_read(self.batch.block, part.run)?;
                        self.divide_zeros(channels, part.run);
                    }
                }
            }
        }
        out.buffer().extend_from_slice(self.records.without_pages().expect("content leaves on the channels"));
        out.flush_if_full()?;
        channels.submit(&self.counters)
    }

    /// Zero records on the main channel for zero pages, the others to the multifd channels.
    fn divide_zeros(&mut self, channels: &mut Channels, run: PageRun) {
        let id = self.batch.block;
        let block = self.ram.block(id);
        for page in run.pages() {
            if block.is_zero(page) {
                self.records.push(|out| self.encoder.zero(id, block.name(), page.byte_offset(), out));
                channels.count_zero_on_main(PageCount(1));
            } else {
                channels.add_content(PageRun::new(page, PageCount(1)));
            }
        }
    }

    fn write_batch(&mut self, log: &mut dyn DirtyLog, out: &mut StreamWriter) -> Result<(), SaveFault> {
        for index in 0..self.batch.runs.len() {
            let mut rest = self.batch.runs[index];
            while !rest.is_empty() {
                let part = self.leading_part(rest);
                rest = PageRun::new(part.run.end(), rest.count - part.run.count);
                self.encode(log, part)?;
            }
        }
        self.send_records(out)
    }

    /// Sends the records of the batch, or collects them if they are small.
    fn send_records(&mut self, out: &mut StreamWriter) -> Result<(), SaveFault> {
        if let Some(bytes) = self.records.without_pages() {
            out.buffer().extend_from_slice(bytes);
            return Ok(out.flush_if_full()?);
        }
        Ok(out.send(&mut self.records.gather(self.ram.block(self.batch.block)))?)
    }

    /// The pages at the start of `run` that were touched, or those that were not.
    fn leading_part(&self, run: PageRun) -> Part {
        let Some(populated) = self.populated.as_ref().map(|map| map.block(self.batch.block)) else {
            return Part { run, touched: true };
        };
        let touched = populated.is_owed(run.start);
        let count = run.pages().take_while(|page| populated.is_owed(*page) == touched).count();
        Part { run: PageRun::new(run.start, PageCount(count as u64)), touched }
    }

    fn encode(&mut self, log: &mut dyn DirtyLog, part: Part) -> Result<(), SaveFault> {
        if !part.touched {
            // Neither read nor cleared: a first write to these pages, at any moment, is still in the log.
            self.encode_untouched(part.run);
            return Ok(());
        }
        // I2: the log forgets the pages before their bytes are read. A write that lands in between is
        // reported again and costs one page; the other order would lose it.
        log.clear_before_read(self.batch.block, part.run)?;
        match &self.xbzrle {
            Some(xbzrle) if xbzrle.active => self.encode_deltas(part.run),
            _ => self.encode_plain(part.run),
        }
        Ok(())
    }

    /// Zero records, without a look: reading a page that was never touched would give it memory.
    fn encode_untouched(&mut self, run: PageRun) {
        let id = self.batch.block;
        let name = self.ram.block(id).name();
        for page in run.pages() {
            self.records.push(|out| self.encoder.zero(id, name, page.byte_offset(), out));
        }
        add(&self.counters.zero, run.count.0);
        add(&self.counters.untouched, run.count.0);
    }

    /// Zero records for zero pages, page records for the others.
    fn encode_plain(&mut self, run: PageRun) {
        let id = self.batch.block;
        let block = self.ram.block(id);
        let mut zeros = 0;
        for page in run.pages() {
            let offset = page.byte_offset();
            if block.is_zero(page) {
                zeros += 1;
                self.records.push(|out| self.encoder.zero(id, block.name(), offset, out));
            } else {
                self.records.push_page(page, |out| self.encoder.page(id, block.name(), offset, out));
            }
        }
        add(&self.counters.zero, zeros);
        add(&self.counters.normal, run.count.0 - zeros);
    }

    /// What changed of each page since it was last sent.
    fn encode_deltas(&mut self, run: PageRun) {
        let id = self.batch.block;
        let Some(xbzrle) = &mut self.xbzrle else { unreachable!("called only with a cache") };
        let block = self.ram.block(id);
        let counters = &self.counters;
        let (encoder, records) = (&mut self.encoder, &mut self.records);
        for page in run.pages() {
            let offset = page.byte_offset();
            // A private copy: the guest may write meanwhile, and the cache must hold what was sent.
            block.copy_out(offset, xbzrle.current.as_mut_slice());
            if is_zero(&xbzrle.current) {
                xbzrle.cache.insert(id, page, &xbzrle.current);
                records.push(|out| encoder.zero(id, block.name(), offset, out));
                add(&counters.zero, 1);
                continue;
            }
            let Some(held) = xbzrle.cache.get(id, page) else {
                add(&counters.xbzrle_miss, 1);
                add(&counters.normal, 1);
                xbzrle.cache.insert(id, page, &xbzrle.current);
                records.push(|out| {
                    encoder.page(id, block.name(), offset, out);
                    out.extend_from_slice(xbzrle.current.as_slice());
                });
                continue;
            };
            xbzrle.delta.clear();
            match xbzrle::encode(held, &xbzrle.current, &mut xbzrle.delta) {
                Encoded::Same => add(&counters.xbzrle_same, 1),
                Encoded::Delta(length) => {
                    records.push(|out| encoder.xbzrle(id, block.name(), offset, &xbzrle.delta, out));
                    add(&counters.xbzrle_pages, 1);
                    add(&counters.xbzrle_bytes, length as u64);
                }
                Encoded::Overflow => {
                    records.push(|out| {
                        encoder.page(id, block.name(), offset, out);
                        out.extend_from_slice(xbzrle.current.as_slice());
                    });
                    add(&counters.xbzrle_overflow, 1);
                    add(&counters.normal, 1);
                }
            }
            held.copy_from_slice(xbzrle.current.as_slice());
        }
    }
}

impl Xbzrle {
    fn new(size: ByteCount) -> Self {
        Self {
            cache: XbzrleCache::new(size),
            current: Box::new([0; PAGE_BYTES]),
            delta: Vec::with_capacity(PAGE_BYTES),
            active: false,
        }
    }
}

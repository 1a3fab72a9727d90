//! The receiving half: page records in, guest RAM out.

mod arrivals;
mod postcopy;

pub(crate) use postcopy::{OnLoss, PostcopyRam, RamArrivals};

use super::counters::{RamCounters, RamStatistics, add};
use super::locate::Locator;
use super::population;
use crate::error::LoadFault;
use crate::savevm::{ChannelSync, ReceiveLinks};
use crate::stream::StreamReader;
use arrivals::Arrivals;
use limosa_compress::xbzrle;
use limosa_multifd::{PageSink, ReceiveChannels};
use limosa_pages::{BlockId, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_ram::{AllocationAhead, GuestRam};
use limosa_wire::{PageAddress, RamContext, RamDecoder, RamItem, RamSetup};
use std::sync::Arc;

/// One incoming migration of a guest's RAM.
pub(crate) struct RamLoad {
    ram: GuestRam,
    counters: Arc<RamCounters>,
    decoder: RamDecoder,
    /// Where pages go, those of the main channel and those of the multifd channels.
    sink: Arc<Arrivals>,
    channels: Option<Channels>,
    /// The source has begun to say what it has; the end of the section is the end of that.
    told: bool,
    /// Allocates memory just ahead of the content. Ends where pages may be dropped again.
    ahead: Option<AllocationAhead>,
    /// The block list has come and fits.
    agreed: bool,
    locator: Locator,
    page: Box<[u8; PAGE_BYTES]>,
}

/// The multifd channels of one incoming migration.
struct Channels {
    pool: ReceiveChannels,
    sync: ChannelSync,
}

impl Channels {
    /// Receives on accepted links from now on.
    fn begin(links: ReceiveLinks, sink: &Arc<Arrivals>) -> Result<Self, LoadFault> {
        let ReceiveLinks { links, config, sync } = links;
        let sink: Arc<dyn PageSink> = Arc::clone(sink) as Arc<_>;
        Ok(Self { pool: ReceiveChannels::new(links, sink, config)?, sync })
    }

    /// Ends them, behind everything that they have brought.
    fn close(self, counters: &RamCounters) -> Result<(), LoadFault> {
        let statistics = self.pool.close()?;
        add(&counters.normal, statistics.iter().map(|channel| channel.normal.0).sum());
        add(&counters.zero, statistics.iter().map(|channel| channel.zero.0).sum());
        counters.show_channels(statistics);
        Ok(())
    }
}

impl RamLoad {
    /// Starts the multifd channels, if this migration has any.
    pub(crate) fn begin(
        ram: GuestRam,
        counters: Arc<RamCounters>,
        links: Option<ReceiveLinks>,
        context: RamContext,
    ) -> Result<Self, LoadFault> {
        let sink = Arc::new(Arrivals::new(ram.clone()));
        Ok(Self {
            decoder: RamDecoder::new(context),
            channels: links.map(|links| Channels::begin(links, &sink)).transpose()?,
            sink,
            told: false,
            ahead: None,
            agreed: false,
            locator: Locator::default(),
            page: Box::new([0; PAGE_BYTES]),
            ram,
            counters,
        })
    }

    /// Reads records up to and including the end of the section.
    pub(crate) fn read_section(&mut self, input: &mut StreamReader) -> Result<(), LoadFault> {
        loop {
            let before = input.offset();
            match input.decode(|bytes| self.decoder.next(bytes))? {
                RamItem::EndOfSection => {
                    if std::mem::take(&mut self.told) && self.ahead.is_none() {
                        // Only a help: without the thread memory comes with its content.
                        self.ahead = self.sink.memory().allocate_ahead().ok();
                    }
                    return self.bring_into_line_if(|sync| sync == ChannelSync::PerSection);
                }
                RamItem::Setup(setup) => self.agree(&setup)?,
                RamItem::Zero(address) => {
                    let (block, page) = self.locate(address)?;
                    self.sink.zero(block, PageRun::new(page, PageCount(1)))?;
                    add(&self.counters.zero, 1);
                }
                RamItem::Page(address) => {
                    let (block, page) = self.locate(address)?;
                    self.sink.before_content(block, PageRun::new(page, PageCount(1)));
                    let bytes = input.take(PAGE_BYTES)?;
                    self.ram.block(block).copy_in(page.byte_offset(), bytes);
                    self.sink.place(block, PageRun::new(page, PageCount(1)))?;
                    add(&self.counters.normal, 1);
                }
                RamItem::Xbzrle { page, length } => {
                    let (block, page) = self.locate(page)?;
                    let delta = input.take(usize::from(length))?;
                    self.load_delta(block, page, delta)?;
                }
                RamItem::Populated { start, pages } => {
                    let (block, start) = self.locate(start)?;
                    population::expect(self.sink.memory(), block, start, &pages);
                    self.told = true;
                }
                RamItem::MultifdFlush if self.channels.is_some() => {
                    self.bring_into_line_if(|sync| sync == ChannelSync::PerRound)?;
                }
                RamItem::MultifdFlush => {
                    return Err(LoadFault::UnexpectedRecord { record: "multifd flush" });
                }
                RamItem::MappedSetup { .. } | RamItem::MappedBlock(_) => {
                    unreachable!("the decoder's context has no mapped-ram")
                }
            }
            add(&self.counters.bytes, input.offset() - before);
        }
    }

    /// The memory, and what was received into it.
    pub(crate) fn into_parts(self) -> (GuestRam, RamStatistics) {
        (self.ram, self.counters.snapshot())
    }

    /// Waits until every channel is at its synchronisation point, where the mode has one here: the pages before it are
    /// in place then (I5).
    fn bring_into_line_if(&self, here: impl FnOnce(ChannelSync) -> bool) -> Result<(), LoadFault> {
        let Some(channels) = self.channels.as_ref().filter(|channels| here(channels.sync)) else {
            return Ok(());
        };
        channels.pool.wait_sync()?;
        self.counters.show_channels(channels.pool.statistics());
        Ok(())
    }

    /// Ends the multifd channels of a stream that is not complete, with the failure of one if that was the reason.
    pub(crate) fn give_up(self) -> Result<(), LoadFault> {
        match self.channels.and_then(|channels| channels.pool.failure()) {
            Some(failure) => Err(failure.into()),
            None => Ok(()),
        }
    }

    /// Ends the multifd channels of a stream that is complete.
    pub(crate) fn close(mut self) -> Result<(), LoadFault> {
        self.channels.take().map_or(Ok(()), |channels| channels.close(&self.counters))?;
        self.ahead = None;
        self.sink.memory().preallocation().give_back_rest();
        Ok(())
    }

    /// Checks that every page has come at least once, as content, as zero or as a delta (I1). A source sends each in
    /// its first round; a stream that lost some on the way would otherwise run with what was here before.
    pub(crate) fn check_whole(&self) -> Result<(), LoadFault> {
        for (id, block) in self.ram.iter() {
            let received = self.sink.memory().received().block(id);
            let missing = received.pages().0 - received.count().0;
            if missing > 0 {
                let first = (0..received.pages().0).map(PageIndex).find(|page| !received.is_received(*page));
                let offset = first.map_or(0, PageIndex::byte_offset);
                let name = block.name().as_str().to_owned();
                return Err(LoadFault::MissingPages { name, pages: PageCount(missing), offset });
            }
        }
        Ok(())
    }

    /// Compares the peer's blocks with ours: same names, same lengths, none missing.
    pub(crate) fn agree(&mut self, setup: &RamSetup) -> Result<(), LoadFault> {
        let layout = self.ram.layout();
        for theirs in &setup.blocks {
            let name = theirs.name.as_str();
            let Some(id) = layout.find(name) else {
                return Err(LoadFault::UnknownBlock { name: name.to_owned() });
            };
            let expected = layout.block(id).length;
            if theirs.length != expected {
                let name = name.to_owned();
                return Err(LoadFault::BlockLength { name, expected, got: theirs.length });
            }
            let expected = layout.block(id).page_size;
            if let Some(got) = theirs.page_size.filter(|got| *got != expected) {
                let (name, expected, got) = (name.to_owned(), expected.bytes(), got.bytes());
                return Err(LoadFault::BlockPageSize { name, expected, got });
            }
        }
        for (_, ours) in layout.iter() {
            match setup.blocks.iter().filter(|theirs| theirs.name == ours.name).count() {
                1 => {}
                0 => return Err(LoadFault::MissingBlock { name: ours.name.as_str().to_owned() }),
                _ => return Err(LoadFault::RepeatedBlock { name: ours.name.as_str().to_owned() }),
            }
        }
        self.agreed = true;
        Ok(())
    }

    /// The page that a record speaks of.
    #[inline]
    fn locate(&mut self, address: PageAddress) -> Result<(BlockId, PageIndex), LoadFault> {
        if !self.agreed {
            return Err(LoadFault::PageBeforeSetup);
        }
        self.locator.locate(address, &self.decoder, self.ram.layout())
    }

    fn load_delta(&mut self, block: BlockId, page: PageIndex, delta: &[u8]) -> Result<(), LoadFault> {
        let offset = page.byte_offset();
        self.ram.block(block).copy_out(offset, self.page.as_mut_slice());
        xbzrle::decode(delta, &mut self.page).map_err(|source| LoadFault::Delta { offset, source })?;
        self.ram.block(block).copy_in(offset, self.page.as_slice());
        self.sink.place(block, PageRun::new(page, PageCount(1)))?;
        add(&self.counters.xbzrle_pages, 1);
        add(&self.counters.xbzrle_bytes, delta.len() as u64);
        Ok(())
    }
}

//! The receiving half once the guest may run: pages go where faults are watched, each once and whole (I4).

use super::super::counters::{RamCounters, add};
use super::super::locate::Locator;
use super::{Arrivals, Channels, RamLoad};
use crate::error::LoadFault;
use crate::savevm::ReceiveLinks;
use crate::stream::{PUSH_QUEUE, StreamReader};
use crossbeam_channel::{Receiver, Sender};
use limosa_multifd::ReceiveError;
use limosa_pages::{BlockId, BlockName, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_postcopy::UffdSink;
use limosa_ram::GuestRam;
use limosa_wire::{DiscardRange, RamContext, RamDecoder, RamItem, ReceivedPages};
use std::sync::Arc;

impl RamLoad {
    /// Drops what is stale. The ranges came from a peer.
    pub(in crate::ram) fn discard(
        &mut self,
        block: &BlockName,
        ranges: &[DiscardRange],
    ) -> Result<(), LoadFault> {
        self.ahead = None;
        let unknown = || LoadFault::UnknownBlock { name: block.as_str().to_owned() };
        let id = self.ram.layout().find(block.as_str()).ok_or_else(unknown)?;
        let run = |range: &DiscardRange| {
            let pages = PageCount(range.length / PAGE_BYTES as u64);
            PageRun::new(PageIndex::containing(range.start), pages)
        };
        let runs: Vec<PageRun> = ranges.iter().map(run).collect();
        Ok(limosa_postcopy::discard(&self.ram, self.sink.memory().received(), id, &runs)?)
    }

    /// Watches for faults from now on (wire 5.5).
    pub(in crate::ram) fn listen(mut self) -> Result<PostcopyRam, LoadFault> {
        if !self.agreed {
            return Err(LoadFault::PageBeforeSetup);
        }
        self.ahead = None;
        let received = Arc::clone(self.sink.memory().received());
        let sink = Arc::new(UffdSink::listen(self.ram.clone(), received)?);
        self.sink.watch(Arc::clone(&sink));
        let mut ram = PostcopyRam {
            ram: self.ram,
            counters: self.counters,
            sink,
            arrivals: self.sink,
            channels: hand_over(),
        };
        if let Some(channels) = self.channels {
            ram.give(channels);
        }
        Ok(ram)
    }
}

/// RAM whose guest runs, or is about to, and whose pages follow.
pub(crate) struct PostcopyRam {
    ram: GuestRam,
    counters: Arc<RamCounters>,
    sink: Arc<UffdSink>,
    arrivals: Arc<Arrivals>,
    /// Multifd channels on their way to the reader of their connection.
    channels: HandOver,
}

/// The channels of a connection, given to its reader once: at the start, or when a recovery has them.
type HandOver = (Sender<Channels>, Receiver<Channels>);

fn hand_over() -> HandOver {
    crossbeam_channel::bounded(1)
}

impl PostcopyRam {
    /// Where pages go and faults come from.
    pub(crate) fn sink(&self) -> &Arc<UffdSink> {
        &self.sink
    }

    /// What reads the records of a connection.
    ///
    /// With `on_loss` the loss of a channel does not end it, and is told at once: the source may wait for that channel.
    pub(crate) fn arrivals(&mut self, on_loss: Option<OnLoss>) -> RamArrivals {
        let decoder = RamDecoder::new(RamContext::new());
        let (sink, counters) = (Arc::clone(&self.sink), Arc::clone(&self.counters));
        RamArrivals {
            sink,
            counters,
            channels: None,
            on_loss,
            given: self.channels.1.clone(),
            decoder,
            locator: Locator::default(),
            run: None,
        }
    }

    /// The connection is lost, and its reader has ended with its channels.
    pub(crate) fn forget_channels(&mut self) {
        self.channels = hand_over();
    }

    /// Receives on the multifd channels of a recovery. They must be here before the source sends on them.
    pub(crate) fn open_channels(&mut self, links: ReceiveLinks) -> Result<(), LoadFault> {
        let channels = Channels::begin(links, &self.arrivals)?;
        self.give(channels);
        Ok(())
    }

    fn give(&mut self, channels: Channels) {
        channels.pool.limit_queues(PUSH_QUEUE);
        assert!(self.channels.0.try_send(channels).is_ok(), "a connection has its channels once");
    }

    /// What is here of a block, to be told to the source (wire 5.9). A huge page is received when all of it is.
    pub(crate) fn received_pages(&self, block: &BlockName) -> Option<ReceivedPages> {
        let id = self.ram.layout().find(block.as_str())?;
        let words = self.sink.received().block(id).to_words();
        let bitmap = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Some(ReceivedPages { block: block.clone(), bitmap })
    }

    /// Pages that have not come.
    pub(crate) fn missing(&self) -> PageCount {
        let all: PageCount = self.ram.iter().map(|(_, block)| block.pages()).sum();
        all - self.sink.received().count()
    }
}

/// Who hears that a channel is lost.
pub(crate) type OnLoss = Box<dyn Fn(ReceiveError) + Send>;

/// Pages that are placed together: 64 KiB cost 5 microseconds, 16 single pages as much more again. Larger runs save
/// little and let a vCPU wait that needs their first page.
const PLACED_TOGETHER: PageCount = PageCount(16);

/// The records of the main channel (wire 5.6). The one for urgent pages is the [`FaultThread`]'s.
///
/// [`FaultThread`]: limosa_postcopy::FaultThread
pub(crate) struct RamArrivals {
    sink: Arc<UffdSink>,
    counters: Arc<RamCounters>,
    channels: Option<Channels>,
    on_loss: Option<OnLoss>,
    /// Brings them.
    given: Receiver<Channels>,
    decoder: RamDecoder,
    locator: Locator,
    /// Pages whose bytes have come and which the guest cannot see yet.
    run: Option<(BlockId, PageRun)>,
}

impl RamArrivals {
    /// Reads the records of a section up to and including its end.
    pub(crate) fn read_section(&mut self, input: &mut StreamReader) -> Result<(), LoadFault> {
        while !self.read_record(input)? {}
        self.place()
    }

    /// Ends the multifd channels of a stream that is complete.
    pub(crate) fn finish(&mut self) -> Result<(), LoadFault> {
        self.look_for_channels();
        self.channels.take().map_or(Ok(()), |channels| channels.close(&self.counters))
    }

    /// Reads one record; `true` at the end of the section.
    fn read_record(&mut self, input: &mut StreamReader) -> Result<bool, LoadFault> {
        // Nobody waits for a page that is here while we wait for the next.
        if input.buffered().len() < PAGE_BYTES {
            self.place()?;
        }
        let before = input.offset();
        match input.decode(|bytes| self.decoder.next(bytes))? {
            RamItem::Zero(address) => {
                let (block, page) = self.locator.locate(address, &self.decoder, self.sink.ram().layout())?;
                self.sink.zero(block, PageRun::new(page, PageCount(1)))?;
                add(&self.counters.zero, 1);
            }
            RamItem::Page(address) => {
                let (block, page) = self.locator.locate(address, &self.decoder, self.sink.ram().layout())?;
                let bytes = input.take(PAGE_BYTES)?;
                self.take_page(block, page, bytes)?;
                add(&self.counters.normal, 1);
            }
            RamItem::EndOfSection => return Ok(true),
            RamItem::MultifdFlush => {
                self.look_for_channels();
                let Some(channels) = &self.channels else {
                    return Err(LoadFault::UnexpectedRecord { record: "multifd flush" });
                };
                match (channels.pool.wait_sync(), &self.on_loss) {
                    // The source will owe again what did not come.
                    (Err(error), Some(on_loss)) if error.is_loss() => on_loss(error),
                    (waited, _) => waited?,
                }
            }
            RamItem::Populated { .. } => {
                return Err(LoadFault::UnexpectedRecord { record: "population report" });
            }
            RamItem::Setup(_) => return Err(LoadFault::UnexpectedRecord { record: "block list" }),
            RamItem::Xbzrle { .. } => return Err(LoadFault::UnexpectedRecord { record: "XBZRLE" }),
            RamItem::MappedSetup { .. } | RamItem::MappedBlock(_) => {
                unreachable!("the decoder's context has no mapped-ram")
            }
        }
        add(&self.counters.bytes, input.offset() - before);
        Ok(false)
    }

    /// Ends the multifd channels, which others will replace.
    pub(crate) fn drop_channels(&mut self) {
        self.look_for_channels();
        self.channels = None;
    }

    fn look_for_channels(&mut self) {
        if self.channels.is_none() {
            self.channels = self.given.try_recv().ok();
        }
    }

    /// Takes the bytes of a page, and places it with its neighbours.
    fn take_page(&mut self, block: BlockId, page: PageIndex, bytes: &[u8]) -> Result<(), LoadFault> {
        let one = PageRun::new(page, PageCount(1));
        let follows =
            |(at, run): (BlockId, PageRun)| at == block && run.end() == page && run.count < PLACED_TOGETHER;
        if !self.run.is_some_and(follows) {
            self.place()?;
        }
        if self.sink.begin(block, one).is_err() {
            // It is here: the guest may have written to it since, so what comes again is older (I4).
            return Ok(());
        }
        self.sink.ram().block(block).copy_in(page.byte_offset(), bytes);
        match &mut self.run {
            Some((_, run)) => run.count += one.count,
            None => self.run = Some((block, one)),
        }
        Ok(())
    }

    /// Makes visible what has come.
    fn place(&mut self) -> Result<(), LoadFault> {
        match self.run.take() {
            Some((block, run)) => Ok(self.sink.place(block, run)?),
            None => Ok(()),
        }
    }
}

//! The source's answer to requests for pages.

use crate::error::RequestError;
use crate::hint::FaultHint;
use crate::histogram::{LatencyHistogram, LatencySummary};
use crossbeam_channel::{Receiver, Sender};
use limosa_pages::{BlockId, BlockName, ByteCount, DirtyMap, PageCount, PageIndex, PageRun};
use limosa_ram::{Gather, GuestRam};
use limosa_transport::LinkWriter;
use limosa_wire::{RamEncoder, RequestedPages};
use std::sync::Arc;
use std::time::Instant;

/// Most that one request may ask for, unless the block's host page is larger: 512 pages. QEMU asks for one host page.
pub const REQUEST_BYTES_MAX: ByteCount = ByteCount(2 << 20);

/// Requested runs that may wait for the main channel: 1024, more than a guest has vCPUs. A request beyond is not taken; its page
/// is owed all the same and comes with the others.
pub const URGENT_QUEUE: usize = 1024;

/// Pages that somebody waits for, claimed, to be sent on the main channel before everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UrgentPages {
    /// Block of the pages.
    pub block: BlockId,
    /// The pages.
    pub run: PageRun,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// So many pages were sent, or given to the main channel.
    Pages(PageCount),
    /// Every page was on its way or there already: QEMU asks again and again (wire 5.7).
    Before,
    /// The queue of the main channel is full.
    Later,
}

/// What has been measured at the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UrgentStatistics {
    /// Requests heard.
    pub requests: u64,
    /// Of these, asked before or pushed before.
    pub repeated: u64,
    /// Pages that were sent because of a request.
    pub pages: PageCount,
    /// From the request to the moment the kernel has its pages, on the preempt channel.
    pub serve: LatencySummary,
}

/// Serves requests, in the thread that hears them.
///
/// A page is claimed in the [`DirtyMap`] with one atomic operation, which the push uses too: so it leaves once, whoever is
/// faster (I1, I4), and a request for one that is claimed already costs nothing more. Claimed pages leave at once on the
/// preempt channel, or through a queue on the main one (I10).
pub struct UrgentServer {
    ram: GuestRam,
    dirty: Arc<DirtyMap>,
    hint: Arc<FaultHint>,
    path: Path,
    /// Block of the last request.
    block: Option<BlockId>,
    runs: Vec<PageRun>,
    requests: u64,
    repeated: u64,
    pages: PageCount,
    serve: LatencyHistogram,
}

/// How urgent pages leave.
enum Path {
    Preempt { link: LinkWriter, encoder: RamEncoder, spare: Gather<'static> },
    Queue(Sender<UrgentPages>),
}

impl UrgentServer {
    /// Answers on the preempt channel `link`.
    pub fn preempt(ram: GuestRam, dirty: Arc<DirtyMap>, hint: Arc<FaultHint>, link: LinkWriter) -> Self {
        let path = Path::Preempt { link, encoder: RamEncoder::new(), spare: Gather::new() };
        Self::new(ram, dirty, hint, path)
    }

    /// Hands what is to be sent to the owner of the main channel, which looks into the queue before each batch of its own.
    /// What is in the queue is claimed: it is lost with the connection, and owed again by the recovery.
    pub fn queue(ram: GuestRam, dirty: Arc<DirtyMap>, hint: Arc<FaultHint>) -> (Self, Receiver<UrgentPages>) {
        let (sender, receiver) = crossbeam_channel::bounded(URGENT_QUEUE);
        (Self::new(ram, dirty, hint, Path::Queue(sender)), receiver)
    }

    fn new(ram: GuestRam, dirty: Arc<DirtyMap>, hint: Arc<FaultHint>, path: Path) -> Self {
        Self {
            ram,
            dirty,
            hint,
            path,
            block: None,
            runs: Vec::new(),
            requests: 0,
            repeated: 0,
            pages: PageCount(0),
            serve: LatencyHistogram::new(),
        }
    }

    /// Goes on with another preempt channel: the old one was lost, alone or with everything else. Its first record and the
    /// next request name their blocks.
    pub fn reconnect(&mut self, link: LinkWriter) {
        self.path = Path::Preempt { link, encoder: RamEncoder::new(), spare: Gather::new() };
        self.block = None;
    }

    /// Serves one request: `block` is its name, or `None` for the block of the request before.
    ///
    /// # Errors
    /// A request for what cannot be asked for: end the connection. [`RequestError::Transport`] if the preempt channel is
    /// lost, and the claimed pages with it.
    pub fn serve(
        &mut self,
        block: Option<&BlockName>,
        pages: RequestedPages,
    ) -> Result<Served, RequestError> {
        let heard = Instant::now();
        self.requests += 1;
        let id = self.block_of(block)?;
        let run = self.check(id, pages)?;
        self.hint.publish(id, run.start);
        if let Path::Queue(queue) = &self.path
            && queue.is_full()
        {
            return Ok(Served::Later);
        }
        self.claim(id, run);
        if self.runs.is_empty() {
            self.repeated += 1;
            return Ok(Served::Before);
        }
        let claimed = self.runs.iter().map(|run| run.count).sum();
        self.send(id)?;
        self.pages += claimed;
        self.serve.record(heard.elapsed());
        Ok(Served::Pages(claimed))
    }

    /// Bytes of pages on the preempt channel that are not known to have arrived; 0 where they leave on the main one.
    pub fn queued(&self) -> ByteCount {
        match &self.path {
            Path::Preempt { link, .. } => ByteCount(link.queued_bytes()),
            Path::Queue(_) => ByteCount(0),
        }
    }

    /// What has been measured so far.
    pub fn statistics(&self) -> UrgentStatistics {
        UrgentStatistics {
            requests: self.requests,
            repeated: self.repeated,
            pages: self.pages,
            serve: self.serve.summary(),
        }
    }

    fn block_of(&mut self, name: Option<&BlockName>) -> Result<BlockId, RequestError> {
        if let Some(name) = name {
            let unknown = || RequestError::UnknownBlock { name: name.clone() };
            self.block = Some(self.ram.layout().find(name.as_str()).ok_or_else(unknown)?);
        }
        self.block.ok_or(RequestError::NoPreviousBlock)
    }

    fn check(&self, id: BlockId, pages: RequestedPages) -> Result<PageRun, RequestError> {
        let layout = self.ram.layout().block(id);
        let (page, length) = (layout.page_size.bytes(), u64::from(pages.length));
        let limit = REQUEST_BYTES_MAX.0.max(page);
        let run = PageRun::new(PageIndex::containing(pages.start), ByteCount(length).pages_rounded_up());
        let aligned = pages.start.is_multiple_of(page) && length.is_multiple_of(page) && length > 0;
        if !aligned || length > limit || !layout.contains(run) {
            let block = layout.name.clone();
            return Err(RequestError::Range { block, start: pages.start, length: pages.length, page, limit });
        }
        Ok(run)
    }

    /// Fills `runs` with the pages of `run` that are ours to send.
    fn claim(&mut self, id: BlockId, run: PageRun) {
        self.runs.clear();
        let (dirty, unit) = (self.dirty.block(id), self.ram.layout().block(id).page_size.target_pages());
        let mut page = run.start;
        while page < run.end() {
            let unit_run = PageRun::new(page, unit);
            let won = dirty.claim_host_page(unit_run);
            match self.runs.last_mut() {
                Some(last) if won && last.end() == page => last.count += unit,
                _ if won => self.runs.push(unit_run),
                _ => {}
            }
            page = unit_run.end();
        }
    }

    fn send(&mut self, id: BlockId) -> Result<(), RequestError> {
        match &mut self.path {
            Path::Preempt { link, encoder, spare } => {
                let block = self.ram.block(id);
                let mut gather = std::mem::take(spare).reset();
                for page in self.runs.iter().flat_map(|run| run.pages()) {
                    let offset = page.byte_offset();
                    // Nobody writes here any more; a page never touched costs this host a page, and the link nothing.
                    if block.is_zero(page) {
                        gather.header(|out| encoder.zero(id, block.name(), offset, out));
                    } else {
                        gather.header(|out| encoder.page(id, block.name(), offset, out));
                        gather.pages(block, PageRun::new(page, PageCount(1)));
                    }
                }
                let sent = link.write_gather(&mut gather);
                *spare = gather.reset();
                Ok(sent?)
            }
            Path::Queue(queue) => {
                let (dirty, unit) =
                    (self.dirty.block(id), self.ram.layout().block(id).page_size.target_pages());
                for &run in &self.runs {
                    // A request of many pages may find the queue full half way: the rest is owed again.
                    if queue.try_send(UrgentPages { block: id, run }).is_err() {
                        let host_pages = run.pages().step_by(unit.0 as usize);
                        host_pages.for_each(|page| dirty.owe_host_page(PageRun::new(page, unit)));
                    }
                }
                Ok(())
            }
        }
    }
}

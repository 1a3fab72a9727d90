//! The channel that brings the pages somebody waits for (wire 5.8).

use crate::error::{PreemptError, UffdError};
use crate::sink::UffdSink;
use limosa_pages::{BlockId, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_transport::{LinkReader, ShutdownHandle};
use limosa_wire::{BlockUse, PageAddress, RamContext, RamDecoder, RamItem, Step};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Bytes asked of the kernel at once: sixteen pages. More are seldom on their way; the buffer stays in the cache.
const READ_SIZE: usize = 16 * (PAGE_BYTES + 64);

/// The thread that reads the preempt channel. Dropping it ends the link and the thread.
pub struct PreemptReceiver {
    link: ShutdownHandle,
    thread: Option<JoinHandle<()>>,
}

struct Worker {
    link: LinkReader,
    sink: Arc<UffdSink>,
    decoder: RamDecoder,
    block: Option<BlockId>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    consumed: u64,
}

impl PreemptReceiver {
    /// Starts to read `link`. At its end `ended` is called in the thread, once: `Ok` if the peer ended it between two
    /// records.
    ///
    /// # Errors
    /// If the kernel gives no thread.
    pub fn start(
        link: LinkReader,
        sink: Arc<UffdSink>,
        ended: impl FnOnce(Result<(), PreemptError>) + Send + 'static,
    ) -> Result<Self, UffdError> {
        let handle = link.shutdown_handle();
        let mut worker = Worker {
            link,
            sink,
            decoder: RamDecoder::new(RamContext::new()),
            block: None,
            buffer: vec![0; 2 * READ_SIZE].into(),
            start: 0,
            end: 0,
            consumed: 0,
        };
        let mut guard = Guard { ended: Some(ended), outcome: Err(PreemptError::Panicked) };
        let read = move || {
            let guard = &mut guard; // As a whole: its drop tells the outcome.
            guard.outcome = worker.run();
        };
        let thread = std::thread::Builder::new()
            .name("postcopy-preempt".to_owned())
            .spawn(read)
            .map_err(UffdError::Thread)?;
        Ok(Self { link: handle, thread: Some(thread) })
    }

    /// Ends the link, and waits until the thread has ended.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for PreemptReceiver {
    fn drop(&mut self) {
        self.link.shutdown();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // Its guard has said how it ended.
        }
    }
}

/// Says how the thread ended, also when it panics.
struct Guard<F: FnOnce(Result<(), PreemptError>)> {
    ended: Option<F>,
    outcome: Result<(), PreemptError>,
}

impl<F: FnOnce(Result<(), PreemptError>)> Drop for Guard<F> {
    fn drop(&mut self) {
        if let Some(ended) = self.ended.take() {
            ended(std::mem::replace(&mut self.outcome, Ok(())));
        }
    }
}

impl Worker {
    fn run(&mut self) -> Result<(), PreemptError> {
        loop {
            match self.decoder.next(&self.buffer[self.start..self.end]) {
                Ok(Step::Item { used, item }) => {
                    self.consume(used);
                    self.take(item)?;
                }
                Ok(Step::Need(total)) => {
                    let between = self.start == self.end;
                    if !self.fill(total, between)? {
                        return Ok(());
                    }
                }
                Err(source) => return Err(PreemptError::Wire { offset: self.consumed, source }),
            }
        }
    }

    fn take(&mut self, item: RamItem) -> Result<(), PreemptError> {
        match item {
            RamItem::Page(address) => {
                let (block, page) = self.locate(address)?;
                self.fill(PAGE_BYTES, false)?;
                self.sink.put(block, page, &self.buffer[self.start..self.start + PAGE_BYTES])?;
                self.consume(PAGE_BYTES);
                Ok(())
            }
            RamItem::Zero(address) => {
                let (block, page) = self.locate(address)?;
                Ok(self.sink.zero(block, PageRun::new(page, PageCount(1)))?)
            }
            RamItem::EndOfSection => Ok(()), // The last word of machines up to 7.2.
            RamItem::Xbzrle { .. } => Err(PreemptError::Record { record: "an XBZRLE delta" }),
            RamItem::MultifdFlush => Err(PreemptError::Record { record: "a multifd flush" }),
            RamItem::Setup(_)
            | RamItem::Populated { .. }
            | RamItem::MappedSetup { .. }
            | RamItem::MappedBlock(_) => Err(PreemptError::Record { record: "a part of the block list" }),
        }
    }

    fn locate(&mut self, address: PageAddress) -> Result<(BlockId, PageIndex), PreemptError> {
        let layout = self.sink.ram().layout();
        let id = match (address.block, self.block) {
            (BlockUse::Continued, Some(id)) => id,
            _ => {
                let name = self.decoder.block_name().expect("a page record has or continues a block");
                layout.find(name).ok_or_else(|| PreemptError::UnknownBlock { name: name.to_owned() })?
            }
        };
        self.block = Some(id);
        let block = self.sink.ram().block(id);
        let outside = || PreemptError::Outside { block: block.name().clone(), offset: address.offset };
        Ok((id, block.page_at(address.offset).ok_or_else(outside)?))
    }

    /// Receives until `total` bytes are there; `false` if the stream ends before the first of them and `may_end`.
    fn fill(&mut self, total: usize, may_end: bool) -> Result<bool, PreemptError> {
        debug_assert!(total <= READ_SIZE, "the longest record without its page has 267 bytes");
        while self.end - self.start < total {
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            } else if self.buffer.len() - self.start < READ_SIZE {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            let count = self.link.read_some(&mut self.buffer[self.end..])?;
            if count == 0 {
                if may_end && self.start == self.end {
                    return Ok(false);
                }
                // The stream has ended: this says how much is missing.
                let missing = total - (self.end - self.start);
                self.link.read_exact(&mut vec![0; missing])?;
            }
            self.end += count;
        }
        Ok(true)
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        self.consumed += count as u64;
    }
}

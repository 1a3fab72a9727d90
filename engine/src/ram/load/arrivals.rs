//! Where the pages of all channels go: into memory that nobody sees, and from LISTEN on before the eyes of the guest.

use limosa_multifd::{PageSink, PlaceError, RamSink};
use limosa_pages::{BlockId, PageRun};
use limosa_postcopy::UffdSink;
use limosa_ram::GuestRam;
use std::io;
use std::sync::{Arc, OnceLock};

/// The sink of one incoming migration. It changes its ways once, behind a barrier: nothing of precopy is in flight then
/// (I5), so that no page goes the wrong way.
pub(super) struct Arrivals {
    memory: RamSink,
    watched: OnceLock<Arc<UffdSink>>,
}

impl Arrivals {
    pub(super) fn new(ram: GuestRam) -> Self {
        Self { memory: RamSink::new(ram), watched: OnceLock::new() }
    }

    /// The sink of precopy.
    pub(super) fn memory(&self) -> &RamSink {
        &self.memory
    }

    /// From now on pages go where faults are watched.
    ///
    /// # Panics
    /// If they do already.
    pub(super) fn watch(&self, sink: Arc<UffdSink>) {
        assert!(self.watched.set(sink).is_ok(), "LISTEN comes once");
    }

    fn refused(&self, block: BlockId, run: PageRun, error: limosa_postcopy::PlaceError) -> PlaceError {
        let block = self.memory.ram().block(block).name().clone();
        PlaceError { block, run, source: io::Error::other(error) }
    }
}

impl PageSink for Arrivals {
    fn ram(&self) -> &GuestRam {
        self.watched.get().map_or(self.memory.ram(), |sink| sink.ram())
    }

    #[inline]
    fn before_content(&self, block: BlockId, run: PageRun) {
        if self.watched.get().is_none() {
            self.memory.before_content(block, run);
        }
    }

    fn place(&self, block: BlockId, run: PageRun) -> Result<(), PlaceError> {
        match self.watched.get() {
            None => self.memory.place(block, run),
            Some(sink) => sink.place(block, run).map_err(|error| self.refused(block, run, error)),
        }
    }

    fn zero(&self, block: BlockId, run: PageRun) -> Result<(), PlaceError> {
        match self.watched.get() {
            None => self.memory.zero(block, run),
            Some(sink) => sink.zero(block, run).map_err(|error| self.refused(block, run, error)),
        }
    }
}

//! Pages that nobody had touched when the migration began, and that the guest writes while it is under way.

mod guest;

use guest::configuration;
use limosa_engine::{
    Incoming, IncomingConfig, NoObserver, Outgoing, OutgoingConfig, RamHandler, RunState, SaveVm, Vm, VmError,
};
use limosa_pages::{BlockId, BlockName, ByteCount, DirtyMap, PageCount, PageIndex, PageRun};
use limosa_ram::{DirtyLog, DirtyLogError, GuestRam, Populated, RamBlock};
use limosa_transport::Link;
use std::sync::Arc;

const PAGES: u64 = 64;

/// Just before what the guest writes its page.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    FirstSync,
    FirstRead,
    SecondSync,
}

/// A log of exact bits, and a guest that writes one page at one moment: what is cleared is forgotten, so a page
/// that is cleared and then not read is lost.
struct OneWrite {
    ram: GuestRam,
    moment: Moment,
    page: PageIndex,
    written: bool,
    logged: bool,
    syncs: u32,
}

impl OneWrite {
    fn at(&mut self, moment: Moment) {
        if moment == self.moment && !self.written {
            self.ram.block(BlockId(0)).copy_in(self.page.byte_offset(), b"written");
            (self.written, self.logged) = (true, true);
        }
    }
}

impl DirtyLog for OneWrite {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn populated(&mut self, block: BlockId) -> Result<Populated, DirtyLogError> {
        Ok(self.ram.block(block).populated())
    }

    fn sync_into(&mut self, dirty: &DirtyMap) -> Result<PageCount, DirtyLogError> {
        self.syncs += 1;
        self.at(if self.syncs == 1 { Moment::FirstSync } else { Moment::SecondSync });
        if std::mem::take(&mut self.logged) {
            return Ok(dirty.block(BlockId(0)).mark(PageRun::new(self.page, PageCount(1))));
        }
        Ok(PageCount(0))
    }

    fn clear_before_read(&mut self, _block: BlockId, run: PageRun) -> Result<(), DirtyLogError> {
        self.at(Moment::FirstRead);
        self.logged &= !run.contains(self.page);
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }
}

/// A guest whose writes are made by its log.
struct Driven;

impl Vm for Driven {
    fn stop(&self) -> Result<(), VmError> {
        Ok(())
    }

    fn resume(&self) -> Result<(), VmError> {
        Ok(())
    }

    fn run_state(&self) -> RunState {
        RunState::Running
    }
}

fn memory() -> GuestRam {
    let length = PageCount(PAGES).bytes();
    GuestRam::new(vec![RamBlock::memfd(BlockName::new("ram").unwrap(), ByteCount(length.0)).unwrap()])
        .unwrap()
}

fn first_bytes(ram: &GuestRam, page: PageIndex) -> [u8; 7] {
    let mut bytes = [0; 7];
    ram.block(BlockId(0)).copy_out(page.byte_offset(), &mut bytes);
    bytes
}

#[test]
fn a_first_write_at_any_moment_arrives() {
    for moment in [Moment::FirstSync, Moment::FirstRead, Moment::SecondSync] {
        let (here, there) = (memory(), memory());
        // One page has content, so that something is read at all; the other is next to it, in the same run.
        here.block(BlockId(0)).copy_in(PageIndex(20).byte_offset(), b"content");
        let page = PageIndex(21);
        let log = OneWrite { ram: here.clone(), moment, page, written: false, logged: false, syncs: 0 };
        let mut source = SaveVm::new(configuration());
        source.register_ram(RamHandler::new(here.clone(), Some(Box::new(log))));
        let mut destination = SaveVm::new(configuration());
        destination.register_ram(RamHandler::new(there.clone(), None));
        let (near, far) = Link::pair().unwrap();
        let observer = Arc::new(NoObserver);
        let incoming =
            Incoming::over(far, IncomingConfig::default(), destination, Arc::new(Driven), observer.clone())
                .unwrap();
        let outgoing =
            Outgoing::over(near, OutgoingConfig::default(), source, Arc::new(Driven), observer).unwrap();
        assert!(outgoing.wait().0.is_completed(), "{moment:?}");
        assert!(incoming.wait().0.is_completed(), "{moment:?}");
        assert_eq!(&first_bytes(&there, PageIndex(20)), b"content", "{moment:?}");
        assert_eq!(&first_bytes(&there, page), b"written", "{moment:?}");
    }
}

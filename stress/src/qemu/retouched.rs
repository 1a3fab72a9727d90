//! A guest that changes while it is sent, though nobody runs it.

use super::foreign::ForeignGuest;
use super::payload::WORKING_SET_START;
use super::setup::Setup;
use limosa::pages::{BlockId, PAGE_BYTES, PageCount};
use limosa::ram::GuestRam;
use limosa::ram::dirty_log::HostWrites;
use limosa::{MigrationStatus, Observer, RunState, Vm, VmError};
use std::sync::Arc;

/// A guest without vCPUs whose working set is wrong, one byte in each page, until it is stopped: so that every round has
/// a small difference to send, and the last one makes it right.
pub struct Retouched {
    ram: GuestRam,
    writes: Arc<HostWrites>,
    block: BlockId,
    pages: PageCount,
    /// The right byte of every page.
    right: Vec<u8>,
    /// Passes in which it goes on being touched.
    passes: u64,
}

impl Retouched {
    /// A hold on `guest`, which QEMU made of `setup`: its working set changes in each of the first `passes` rounds.
    ///
    /// # Panics
    /// If the guest has no such RAM.
    pub fn new(guest: &ForeignGuest, setup: &Setup, passes: u64) -> Self {
        let ram = guest.ram.clone();
        let block = ram.layout().find(setup.machine.ram_block()).expect("RAM");
        let pages = setup.boot.payload().working_set;
        let right = (0..pages.0).map(|page| {
            let mut byte = [0];
            ram.block(block).copy_out(Self::address(page), &mut byte);
            byte[0]
        });
        Self { right: right.collect(), passes, writes: Arc::clone(&guest.writes), ram, block, pages }
    }

    /// Pages that change in every round.
    pub fn pages(&self) -> PageCount {
        self.pages
    }

    fn address(page: u64) -> u64 {
        WORKING_SET_START + page * PAGE_BYTES as u64 + PAGE_BYTES as u64 / 3
    }

    /// Writes the right bytes plus `error`.
    fn put(&self, error: u8) {
        for (page, right) in (0..).zip(&self.right) {
            let at = Self::address(page);
            self.ram.block(self.block).copy_in(at, &[right.wrapping_add(error)]);
            self.writes.mark(self.block, at, 1);
        }
    }
}

impl Vm for Retouched {
    fn stop(&self) -> Result<(), VmError> {
        self.put(0);
        Ok(())
    }

    fn resume(&self) -> Result<(), VmError> {
        Ok(())
    }

    fn run_state(&self) -> RunState {
        RunState::Running
    }
}

impl Observer for Retouched {
    fn status(&self, _status: MigrationStatus) {}

    fn pass(&self, number: u64) {
        if number < self.passes {
            self.put(number as u8);
        }
    }
}

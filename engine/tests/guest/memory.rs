//! Guest memory as the guest sees it: what is missing there makes whoever touches it wait.
#![allow(unsafe_code, reason = "accesses through the guest's mapping, which is what faults")]

use limosa_pages::BlockId;
use limosa_ram::GuestRam;
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes the word at byte `offset` of a block.
pub(crate) fn write_word(ram: &GuestRam, block: BlockId, offset: u64, value: u64) {
    word(ram, block, offset).store(value, Ordering::Relaxed);
}

/// Reads it.
pub(crate) fn read_word(ram: &GuestRam, block: BlockId, offset: u64) -> u64 {
    word(ram, block, offset).load(Ordering::Relaxed)
}

fn word(ram: &GuestRam, block: BlockId, offset: u64) -> &AtomicU64 {
    let block = ram.block(block);
    assert!(offset.is_multiple_of(8) && offset + 8 <= block.length().0);
    let address = block.guest_address().as_ptr().wrapping_add(offset as usize).cast::<AtomicU64>();
    // SAFETY: an aligned word inside the block, by the assertion; the mapping lives as long as `ram` is borrowed, and
    // nobody holds a plain reference into it.
    unsafe { &*address }
}

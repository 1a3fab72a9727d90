//! Guest memory as the worker threads write it.
//!
//! Safety argument of the module: every access is to a word inside the block, checked here, through the block's guest
//! mapping, which lives as long as the `GuestRam` held beside the address. Other threads and the kernel access the
//! same bytes, so each access is a relaxed atomic one; what is torn by that is sent again, because it is dirty.
#![allow(unsafe_code, reason = "stores of worker threads through the guest mapping")]

use crate::content::{PAGE_WORDS, PageWords};
use limosa_pages::{BlockId, PageIndex};
use limosa_ram::GuestRam;
use std::sync::atomic::{AtomicU64, Ordering};

/// The first RAM block, word by word.
pub(crate) struct WorkerMemory {
    ram: GuestRam,
}

impl WorkerMemory {
    pub(crate) fn new(ram: GuestRam) -> Self {
        Self { ram }
    }

    /// Writes a whole page.
    pub(crate) fn write_page(&self, page: PageIndex, words: &PageWords) {
        let target = self.words(page.byte_offset(), PAGE_WORDS);
        for (target, word) in target.iter().zip(words) {
            target.store(*word, Ordering::Relaxed);
        }
    }

    /// Adds one to the word at byte `offset`. No other thread may write it.
    pub(crate) fn increment_word(&self, offset: u64) {
        let word = &self.words(offset, 1)[0];
        word.store(word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Writes the word at byte `offset`, after everything written before by this thread.
    pub(crate) fn publish_word(&self, offset: u64, value: u64) {
        self.words(offset, 1)[0].store(value, Ordering::Release);
    }

    fn words(&self, offset: u64, count: usize) -> &[AtomicU64] {
        let block = self.ram.block(BlockId(0));
        assert!(offset.is_multiple_of(8) && offset + count as u64 * 8 <= block.length().0);
        let first = block.guest_address().as_ptr().cast::<AtomicU64>();
        // SAFETY: `count` aligned words from `offset` lie inside the block, by the assertion, and the mapping begins
        // at a page. It stays mapped while `self.ram` lives, longer than the borrow. Memory that others change is what
        // atomics are for; nobody in Rust holds a plain reference to it.
        unsafe { std::slice::from_raw_parts(first.add(offset as usize / 8), count) }
    }
}

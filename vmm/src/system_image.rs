//! The first MiB of a built-in guest, byte for byte.

use crate::content::PHRASE_TABLE;
use crate::guest_map::{self, SYSTEM_PAGES, control, control_page};
use crate::kvm::{dirtier, long_mode};
use crate::workload::Workload;
use limosa_pages::{PAGE_BYTES, PageCount};

/// What executes a guest, once [`GuestKind::Auto`](crate::GuestKind::Auto) has been decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executor {
    /// vCPUs under KVM.
    Kvm,
    /// Threads of this process.
    Process,
}

/// Code, page tables and control pages as they are before the first step.
///
/// Afterwards only the [live words](guest_map::control) of the control pages differ: page tables are made with
/// their accessed and dirty bits already set, so the processor never writes them.
pub(crate) fn system_image(executor: Executor, workload: &Workload, memory: PageCount) -> Vec<u8> {
    let mut image = vec![0_u8; SYSTEM_PAGES.bytes().0 as usize];
    if executor == Executor::Kvm {
        long_mode::write_page_tables(&mut image, memory);
        put(&mut image, guest_map::CODE, &dirtier::code());
        for (entry, phrase) in PHRASE_TABLE.iter().enumerate() {
            for (word, letters) in phrase.iter().enumerate() {
                put_word(&mut image, guest_map::PHRASES + (entry * 32 + word * 8) as u64, *letters);
            }
        }
    }
    for worker in 0..workload.workers {
        for (index, word) in control_words(workload, worker).into_iter().enumerate() {
            put_word(&mut image, control_page(worker) + index as u64 * 8, word);
        }
    }
    image
}

/// Writes `word` at guest-physical `address` of the image.
pub(crate) fn put_word(image: &mut [u8], address: u64, word: u64) {
    put(image, address, &word.to_le_bytes());
}

/// Where the live words of worker `worker` are in the image.
pub(crate) fn live_bytes(worker: u32) -> std::ops::Range<usize> {
    let start = control_page(worker) as usize;
    start..start + control::LIVE_BYTES
}

fn put(image: &mut [u8], address: u64, bytes: &[u8]) {
    image[address as usize..][..bytes.len()].copy_from_slice(bytes);
}

fn control_words(workload: &Workload, worker: u32) -> [u64; control::WORDS] {
    let walk = workload.walk(worker);
    let mut words = [0; control::WORDS];
    words[control::BASE] = walk.base.0;
    words[control::LEN] = walk.len.0;
    words[control::STRIDE] = walk.stride;
    words[control::SEED] = workload.seed;
    words[control::CONTENT] = u64::from(workload.content.code());
    words[control::WRITING] = u64::from(workload.writing.code());
    words
}

const _: () = assert!(
    guest_map::CONTROL + guest_map::WORKERS_MAX as u64 * PAGE_BYTES as u64
        <= SYSTEM_PAGES.0 * PAGE_BYTES as u64,
    "the control pages end inside the first MiB"
);

//! Writing content into all of RAM, with every processor.

use crate::content::{Content, PAGE_WORDS, PageWords};
use crate::error::VmmError;
use crate::guest_map::{FIRST_CONTENT_PAGE, RAM_BLOCK};
use crate::machine::checked_memory;
use crate::workload::{Dirtier, Prefill, Workload, content_pages};
use limosa_pages::{BlockName, ByteCount, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_ram::RamBlock;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages one thread takes at a time: 2 MiB, the unit in which the kernel populates memory best.
const SHARE_PAGES: u64 = 512;

/// Makes the file at `path` the memory of a guest of `memory` bytes that is filled with `content`.
///
/// A machine that is given the file and [`Prefill::Present`] starts at once. The file is created or overwritten, and
/// is `memory` bytes long at least.
///
/// # Errors
/// A size that no guest here can have, or what the kernel says about the file.
///
/// Cost: a gigabyte a second and more, once the memory is there.
pub fn write_memory_file(
    path: &Path,
    memory: ByteCount,
    content: Content,
    seed: u64,
) -> Result<(), VmmError> {
    let pages = checked_memory(memory)?;
    let block = RamBlock::file(BlockName::new(RAM_BLOCK)?, path, memory)?;
    let dirtier = Dirtier { seed, prefill: Prefill::Write(content), ..Dirtier::default() };
    let workload = dirtier.workload(pages, 1).ok_or(VmmError::WorkingSet {
        pages: content_pages(pages),
        workers: 1,
        content: content_pages(pages),
    })?;
    fill(&block, &workload);
    Ok(())
}

/// Writes generation 0 of every content page. Pages that are to be zero are written only if they are not.
pub(crate) fn fill(block: &RamBlock, workload: &Workload) {
    let end = block.pages().0;
    for_each_share(PageRun::new(FIRST_CONTENT_PAGE, PageCount(end - FIRST_CONTENT_PAGE.0)), |share| {
        let mut words: PageWords = [0; PAGE_WORDS];
        for page in share.pages() {
            let recipe = workload.recipe(page, 0);
            if recipe.class == crate::content::PageClass::Zero {
                block.fill_zero(PageRun::new(page, PageCount(1)));
            } else {
                recipe.write_into(&mut words);
                block.copy_in(page.byte_offset(), &bytes_of(&words));
            }
        }
    });
}

/// Runs `work` over all of `run` in shares, on as many threads as there are processors.
pub(crate) fn for_each_share(run: PageRun, work: impl Fn(PageRun) + Sync) {
    let next = AtomicU64::new(run.start.0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let take_shares = || {
        loop {
            let start = next.fetch_add(SHARE_PAGES, Ordering::Relaxed);
            if start >= run.end().0 {
                return;
            }
            let count = SHARE_PAGES.min(run.end().0 - start);
            work(PageRun::new(PageIndex(start), PageCount(count)));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(take_shares);
        }
        take_shares();
    });
}

/// The page in memory order.
pub(crate) fn bytes_of(words: &PageWords) -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

//! Pages as runs.

use limosa_pages::{PageCount, PageIndex, PageRun};

/// Adds `page` to `runs`: to the last one if that ends there.
pub(crate) fn push_page(runs: &mut Vec<PageRun>, page: PageIndex) {
    match runs.last_mut() {
        Some(last) if last.end() == page => last.count += PageCount(1),
        _ => runs.push(PageRun::new(page, PageCount(1))),
    }
}

/// Bytes of all runs; a packet has at most 512 KiB.
pub(crate) fn bytes_in(runs: &[PageRun]) -> usize {
    runs.iter().map(|run| run.bytes().0 as usize).sum()
}

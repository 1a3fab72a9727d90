//! What can go wrong with guest memory.

use limosa_pages::{BlockName, ByteCount, LayoutError, PageRun};
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Guest memory that the kernel, or the list of blocks, would not give.
#[derive(Debug, Error)]
pub enum RamError {
    /// The blocks cannot be a guest's RAM.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The kernel would not make or map the memory.
    #[error("RAM block {block}: {call} of {length} bytes failed")]
    Map {
        /// Which block.
        block: BlockName,
        /// The system call.
        call: &'static str,
        /// Bytes wanted.
        length: ByteCount,
        /// Why.
        source: io::Error,
    },
    /// The file that should back a block could not be opened or sized.
    #[error("RAM block {block}: cannot use the file {path:?}")]
    File {
        /// Which block.
        block: BlockName,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An embedder's mapping does not begin at a page of the stated size.
    #[error("RAM block {block}: the mapping at {address:#x} does not begin at a page of {page_size} bytes")]
    Misaligned {
        /// Which block.
        block: BlockName,
        /// Where it begins.
        address: usize,
        /// What it must be a multiple of.
        page_size: u64,
    },
    /// The kernel refused an operation on pages of a block.
    #[error("RAM block {block}: {call} failed at page {start}, {count} pages", start = run.start, count = run.count)]
    Pages {
        /// Which block.
        block: BlockName,
        /// The system call.
        call: &'static str,
        /// The pages it was about.
        run: PageRun,
        /// Why.
        source: io::Error,
    },
}

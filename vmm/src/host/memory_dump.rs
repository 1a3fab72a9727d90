//! Guest-physical memory as a file: the command `pmemsave`.

use crate::guest_map::{RamRange, ram_ranges};
use limosa_pages::PAGE_BYTES;
use limosa_ram::RamBlock;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Bytes of guest memory copied at a time.
const CHUNK_BYTES: u64 = 1 << 20;

/// A dump that could not be made.
#[derive(Debug, Error)]
pub(super) enum DumpError {
    #[error("Invalid addr {start:#018x}/size {size} specified: guest memory ends at {end:#x}")]
    OutOfRange { start: u64, size: u64, end: u64 },
    #[error("Could not write '{path}': {source}")]
    File { path: PathBuf, source: io::Error },
}

/// Writes `size` bytes of guest-physical memory from address `start` on to a new file.
///
/// Where there is no RAM, and in pages that were never touched, the file has holes: they read as zeros, and cost nothing
/// here or there. Of a running guest every page is of its own moment.
pub(super) fn dump(block: &RamBlock, start: u64, size: u64, path: &Path) -> Result<(), DumpError> {
    let ranges = ram_ranges(block.length().0);
    let memory_end = ranges.last().expect("there is RAM").physical_end();
    let Some(end) = start.checked_add(size).filter(|end| *end <= memory_end) else {
        return Err(DumpError::OutOfRange { start, size, end: memory_end });
    };
    let write = || -> io::Result<()> {
        let mut file = File::create(path)?;
        file.set_len(size)?;
        for range in &ranges {
            let (from, to) = (start.max(range.physical), end.min(range.physical_end()));
            if from < to {
                file.seek(SeekFrom::Start(from - start))?;
                write_range(block, range, from..to, &mut file)?;
            }
        }
        Ok(())
    };
    write().map_err(|source| DumpError::File { path: path.to_owned(), source })
}

/// Writes the populated bytes at the addresses `wanted`, all of them in `range`; the file stands where they begin.
fn write_range(block: &RamBlock, range: &RamRange, wanted: Range<u64>, file: &mut File) -> io::Result<()> {
    let offset = |address| address - range.physical + range.offset;
    let (first, last) = (offset(wanted.start), offset(wanted.end));
    let base = file.stream_position()?;
    let mut bytes = vec![0; CHUNK_BYTES as usize];
    for run in block.populated().runs() {
        let from = (run.start.0 * PAGE_BYTES as u64).max(first);
        let to = (run.end().0 * PAGE_BYTES as u64).min(last);
        if from < to {
            file.seek(SeekFrom::Start(base + from - first))?;
        }
        for at in (from..to).step_by(CHUNK_BYTES as usize) {
            let chunk = &mut bytes[..(to - at).min(CHUNK_BYTES) as usize];
            block.copy_out(at, chunk);
            file.write_all(chunk)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_map::{HIGH_RAM, LOW_RAM_END};
    use limosa_pages::{BlockName, ByteCount};

    /// A block with 1 GiB of RAM behind the hole and a mark in each of the pages beside it; the rest is untouched.
    fn block_across_the_hole() -> RamBlock {
        let block = RamBlock::memfd(BlockName::new("ram").unwrap(), ByteCount(4 << 30)).unwrap();
        block.copy_in(LOW_RAM_END - 3, b"low");
        block.copy_in(LOW_RAM_END, b"high");
        block
    }

    fn dumped(start: u64, size: u64) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        dump(&block_across_the_hole(), start, size, &path).unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn addresses_behind_the_hole_lead_to_ram_behind_three_gibibytes() {
        assert_eq!(dumped(HIGH_RAM, 6), b"high\0\0");
        assert_eq!(dumped(HIGH_RAM + 1, 3), b"igh");
        assert_eq!(dumped(LOW_RAM_END - 5, 5), b"\0\0low");
    }

    #[test]
    fn the_hole_reads_as_zeros() {
        assert_eq!(dumped(LOW_RAM_END, 8), [0; 8]);
        assert_eq!(dumped(LOW_RAM_END - 1, 3), b"w\0\0");
        assert_eq!(dumped(HIGH_RAM - 2, 4), b"\0\0hi");
    }

    #[test]
    fn all_of_memory_costs_only_what_was_touched() {
        use std::os::unix::fs::MetadataExt as _;
        let block = block_across_the_hole();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        dump(&block, 0, 5 << 30, &path).unwrap();
        let file = std::fs::metadata(&path).unwrap();
        assert_eq!(file.len(), 5 << 30);
        assert!(file.blocks() * 512 <= 1 << 20, "{} bytes on disk", file.blocks() * 512);
        assert_eq!(block.populated().pages().0, 2, "reading allocated nothing");
    }

    #[test]
    fn memory_that_is_not_there_is_refused_before_a_file_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        for (start, size) in [(0, (5 << 30) + 1), (5 << 30, 1), (u64::MAX, 2)] {
            let error = dump(&block_across_the_hole(), start, size, &path).unwrap_err();
            assert!(matches!(error, DumpError::OutOfRange { end, .. } if end == 5 << 30), "{error}");
        }
        assert!(!path.exists());
    }
}

//! Dropping what precopy delivered and the guest has changed since (wire 2.1, RAM_DISCARD).
//!
//! The argument is the island's, in `uffd/mod.rs`.
#![allow(unsafe_code, reason = "madvise on guest memory")]

use crate::error::PlaceError;
use limosa_pages::{BlockId, PageRun, ReceivedMap};
use limosa_ram::{GuestRam, RamBlock};
use nix::sys::mman::{MmapAdvise, madvise};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Ranges that the kernel takes in one `process_madvise` (`IOV_MAX`).
const RANGES: usize = 1024;

/// Forgets the pages of `runs`, so that the guest's next access to each is a fault. Between a discard and the watch that begins
/// with [`UffdSink::listen`](crate::UffdSink::listen) nobody may touch the guest's mapping.
///
/// A block with alias keeps the memory and its stale bytes, out of the guest's sight; private memory is given back. Cost:
/// about 0.75 microseconds per page.
///
/// # Errors
/// A run that is not inside the block or not of whole host pages: it came from a peer. What the kernel says.
pub fn discard(
    ram: &GuestRam,
    received: &ReceivedMap,
    id: BlockId,
    runs: &[PageRun],
) -> Result<(), PlaceError> {
    let block = ram.block(id);
    for &run in runs {
        check(block, run)?;
        received.block(id).forget(run);
    }
    for part in runs.chunks(RANGES) {
        drop_together(block, part).or_else(|_| part.iter().try_for_each(|&run| drop_one(block, run)))?;
    }
    Ok(())
}

/// Refuses a run that a peer must not name.
fn check(block: &RamBlock, run: PageRun) -> Result<(), PlaceError> {
    let unit = block.layout().page_size.target_pages();
    let aligned = run.start.0.is_multiple_of(unit.0) && run.count.0.is_multiple_of(unit.0);
    if !aligned || !block.layout().contains(run) {
        return Err(PlaceError::NotHostPages {
            block: block.name().clone(),
            run,
            host_page: block.layout().page_size,
        });
    }
    Ok(())
}

/// One call for all runs, since Linux 6.13.
fn drop_together(block: &RamBlock, runs: &[PageRun]) -> io::Result<()> {
    let vectors: Vec<libc::iovec> = runs
        .iter()
        .map(|run| libc::iovec { iov_base: address(block, *run).cast(), iov_len: run.bytes().0 as usize })
        .collect();
    // SAFETY: no pointer is passed.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor, for us alone; a descriptor is an int.
    let process = unsafe { OwnedFd::from_raw_fd(number as i32) };
    let wanted = vectors.iter().map(|vector| vector.iov_len).sum::<usize>();
    // SAFETY: the vectors cover guest memory of `block`, which is data and may be any; no reference into it exists.
    let dropped = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            process.as_raw_fd(),
            vectors.as_ptr(),
            vectors.len(),
            libc::MADV_DONTNEED,
            0,
        )
    };
    match usize::try_from(dropped) {
        Ok(bytes) if bytes == wanted => Ok(()),
        // Stopped half way: the caller does all of it again, one by one.
        Ok(_) => Err(io::ErrorKind::Interrupted.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

fn drop_one(block: &RamBlock, run: PageRun) -> Result<(), PlaceError> {
    if run.is_empty() {
        return Ok(());
    }
    let start = std::ptr::NonNull::new(address(block, run)).expect("guest memory is mapped somewhere");
    // SAFETY: guest memory of `block`, which is data and may be any; no reference into it exists.
    unsafe { madvise(start.cast(), run.bytes().0 as usize, MmapAdvise::MADV_DONTNEED) }.map_err(|errno| {
        PlaceError::Kernel { block: block.name().clone(), run, call: "madvise", source: errno.into() }
    })
}

/// Where `run`, which is inside, begins in the guest's mapping.
fn address(block: &RamBlock, run: PageRun) -> *mut u8 {
    block.guest_address().as_ptr().wrapping_add(run.byte_offset() as usize)
}

//! A stretch of this process's address space that holds guest memory.
//!
//! Safety argument of the module: a [`Mapping`] is the only owner of its address range, from `mmap` to `munmap`
//! in `Drop`, so a pointer that it gives out is valid for as long as it is borrowed. It never gives out
//! references: the guest, the kernel and other threads write the same bytes at any time.
#![allow(unsafe_code, reason = "mmap, munmap and arithmetic on mapped pointers")]

use limosa_pages::PAGE_BYTES;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

/// A huge page of x86-64, and where mappings begin, so that the kernel can use them.
const HUGE_PAGE: usize = 2 << 20;

/// Readable and writable memory, `length` bytes from `base`.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length: NonZeroUsize,
    /// Whether `Drop` unmaps it; an embedder's mapping stays.
    owned: bool,
}

// SAFETY: the range belongs to the process, not to a thread, and a Mapping hands out raw pointers only; whoever
// dereferences them answers for races (volatile accesses, or system calls).
unsafe impl Send for Mapping {}
// SAFETY: as for Send: no method changes the Mapping itself.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Private memory of no file; pages appear, zero, when first touched.
    pub(crate) fn anonymous(length: NonZeroUsize) -> io::Result<Self> {
        Self::placed(length, |target| {
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED;
            // SAFETY: MAP_FIXED over `target`, which `placed` has just reserved and nobody else knows.
            unsafe { mmap_anonymous(Some(target), length, read_write(), flags) }
        })
    }

    /// `length` bytes of `file` from `offset`, shared with whoever else maps it.
    pub(crate) fn shared(file: BorrowedFd<'_>, offset: u64, length: NonZeroUsize) -> io::Result<Self> {
        let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
        Self::placed(length, |target| {
            let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED;
            // SAFETY: MAP_FIXED over `target`, which `placed` has just reserved and nobody else knows.
            unsafe { mmap(Some(target), length, read_write(), flags, file, offset) }
        })
    }

    /// An embedder's mapping, left in place on drop.
    ///
    /// # Safety
    /// `length` bytes from `base` must stay mapped, readable and writable for the life of the value.
    pub(crate) unsafe fn foreign(base: NonNull<u8>, length: NonZeroUsize) -> Self {
        Self { base, length, owned: false }
    }

    /// First byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The address of `length` bytes at `offset`.
    ///
    /// # Panics
    /// If they do not lie inside.
    pub(crate) fn at(&self, offset: u64, length: usize) -> NonNull<u8> {
        let end = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(length));
        assert!(
            end.is_some_and(|end| end <= self.length.get()),
            "{length} bytes at {offset:#x} leave a mapping of {:#x} bytes",
            self.length
        );
        // SAFETY: offset + length is inside the mapping, by the assertion above.
        unsafe { self.base.add(offset as usize) }
    }

    /// Reserves a range that begins at [`HUGE_PAGE`], and lets `map` put the memory over it.
    fn placed(
        length: NonZeroUsize,
        map: impl FnOnce(NonZeroUsize) -> nix::Result<NonNull<c_void>>,
    ) -> io::Result<Self> {
        let too_long = || io::Error::from_raw_os_error(libc::ENOMEM);
        let reserved = length.checked_add(HUGE_PAGE).ok_or_else(too_long)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let start = unsafe { mmap_anonymous(None, reserved, ProtFlags::PROT_NONE, flags) }?.cast::<u8>();
        let before = start.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: `before` is less than HUGE_PAGE, and the reservation is that much longer than `length`.
        let base = unsafe { start.add(before) };
        match map(base.addr()) {
            Ok(mapped) => assert_eq!(mapped.cast(), base, "MAP_FIXED maps where it was told to"),
            Err(errno) => {
                // SAFETY: the reservation is ours alone and nothing in it was given out.
                unsafe { munmap(start.cast(), reserved.get()) }?;
                return Err(errno.into());
            }
        }
        let mapping = Self { base, length, owned: true };
        // SAFETY: the two ends of the reservation that the mapping does not cover; ours alone, in whole pages.
        unsafe {
            if before > 0 {
                munmap(start.cast(), before)?;
            }
            munmap(base.add(length.get()).cast(), HUGE_PAGE - before)?;
        }
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: mapped by `placed` with this length; pointers into it do not outlive the Mapping.
            let unmapped = unsafe { munmap(self.base.cast(), self.length.get()) };
            debug_assert_eq!(unmapped, Ok(()), "munmap of a whole mapping of our own");
        }
    }
}

/// Allocates `length` bytes of mapped memory at `start`, in whole pages.
///
/// Every stretch that can be a huge page has its first page written to without a change. In private memory, advised as
/// it is here, that allocates the huge page; a file gets one small page, which is enough to be collapsed into a huge one
/// (an empty stretch, or one of shared zero pages, cannot be). What cannot be huge is allocated page by page.
///
/// All huge pages are asked for with one call: each call waits until every processor has emptied its lists of new pages,
/// and a busy one takes its time.
pub(crate) fn preallocate(start: NonNull<u8>, length: usize) -> io::Result<()> {
    // SAFETY: the range is mapped, by the caller; the advice changes no byte. It is refused where there are no huge pages.
    let _ = unsafe { madvise(start.cast(), length, MmapAdvise::MADV_HUGEPAGE) };
    let before = start.addr().get().next_multiple_of(HUGE_PAGE) - start.addr().get();
    let huge = length.saturating_sub(before) / HUGE_PAGE * HUGE_PAGE;
    if huge > 0 {
        // SAFETY: `before + huge` is at most `length`.
        unsafe {
            let first = start.add(before);
            for offset in (0..huge).step_by(HUGE_PAGE) {
                madvise(first.add(offset).cast(), PAGE_BYTES, MmapAdvise::MADV_POPULATE_WRITE)?;
            }
            // Where the kernel cannot, the pages that are missing are allocated below.
            let _ = libc::madvise(first.as_ptr().cast(), huge, libc::MADV_COLLAPSE);
        }
    }
    // SAFETY: mapped, by the caller, in whole pages; advice that changes no byte. What is allocated is left as it is.
    unsafe { madvise(start.cast(), length, MmapAdvise::MADV_POPULATE_WRITE) }?;
    Ok(())
}

fn read_write() -> ProtFlags {
    ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
}

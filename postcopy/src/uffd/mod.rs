//! Faults on guest memory, and the calls that end them.
//!
//! A userfaultfd watches the guest's mapping of every block. A thread that touches a missing page sleeps in the kernel until
//! the page is placed: by CONTINUE where the block has an alias, by COPY or ZEROPAGE in private memory. Placing maps whole
//! pages in one step, so no thread ever sees half of one.
//!
//! **Why MINOR is not optional with an alias.** Bytes that are received through the alias are in the page cache at once. If the
//! guest's mapping were watched for missing pages only, a fault on a page that the cache holds would be resolved by the
//! kernel itself: with half a received page, or with a stale one that the discard unmapped and left in the cache. With MINOR
//! such a fault comes to us too, and only CONTINUE, after the last byte, makes the page visible (I3, I4).
//!
//! Safety argument of the island: [`Uffd`] keeps the `GuestRam` whose mappings it watches, so every address that it gives the
//! kernel stays mapped. The kernel writes to missing pages only, never over one that the guest can see. No fault may wait for
//! the thread that would end it: sources of copies are buffers of ours or landing memory, which is never registered.
#![allow(
    unsafe_code,
    reason = "gives addresses of guest memory to the kernel, and lends mappings to landing blocks"
)]

mod abi;
mod discard;
mod landing;

pub use discard::discard;
pub(crate) use landing::landing_ram;

use crate::error::{PlaceError, UffdError};
use abi::Placed;
use limosa_pages::{BlockId, PAGE_BYTES, PageCount, PageIndex, PageRun, PageSize};
use limosa_protocol::KernelThread;
use limosa_ram::{Backing, GuestRam, RamBlock};
use nix::fcntl::{FallocateFlags, fallocate};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use userfaultfd::{Event, EventBuffer, FeatureFlags, RegisterMode, UffdBuilder};

/// Faults that are read from the kernel at once. More wait for the next call, which costs less than a microsecond.
const EVENTS: usize = 64;

/// Tries of a placing call that the kernel puts off (EAGAIN without progress) because the address space changes at that
/// moment: by a fork or an `mremap` of this process, which take microseconds.
const TRIES_MAX: u32 = 1000;

/// A userfaultfd that watches the guest mappings of all blocks.
pub(crate) struct Uffd {
    descriptor: userfaultfd::Uffd,
    ram: GuestRam,
    /// First address, end and block of each guest mapping, by address.
    ranges: Vec<(usize, usize, BlockId)>,
    /// Set before the watch ends: the fault thread may be about to map a page that is visible by then.
    ended: AtomicBool,
}

/// A fault as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FaultEvent {
    pub(crate) block: BlockId,
    /// First target page of the missing host page.
    pub(crate) page: PageIndex,
    pub(crate) thread: KernelThread,
}

/// Reads faults; kept for its allocation.
pub(crate) struct FaultReader {
    buffer: EventBuffer,
}

/// Whether this process may have its faults on `ram` handled here: opens a userfaultfd with all that a postcopy of these
/// blocks needs, and closes it again.
///
/// # Errors
/// [`UffdError`], with what to do about it. Ask before anything moves.
pub fn probe(ram: &GuestRam) -> Result<(), UffdError> {
    let descriptor = open(features(ram))?;
    // A file system that userfaultfd does not know refuses only here. Nothing is resolved through this descriptor, so
    // nobody may touch the memory meanwhile; it is registered for no longer than the call.
    ram.iter().try_for_each(|(_, block)| register(&descriptor, block))
}

impl Uffd {
    /// Watches the guest mappings of all blocks: for missing pages, and with an alias for unmapped ones too. Faults of the
    /// kernel count, because a vCPU faults inside of `KVM_RUN`.
    pub(crate) fn watch(ram: GuestRam) -> Result<Self, UffdError> {
        let descriptor = open(features(&ram))?;
        ram.iter().try_for_each(|(_, block)| register(&descriptor, block))?;
        let range = |(id, block): (BlockId, &RamBlock)| {
            let start = block.guest_address().addr().get();
            (start, start + block.length().0 as usize, id)
        };
        let mut ranges: Vec<_> = ram.iter().map(range).collect();
        ranges.sort_unstable();
        Ok(Self { descriptor, ram, ranges, ended: AtomicBool::new(false) })
    }

    /// Watches no longer: what is missing now is whatever the kernel gives, and all who wait are woken.
    pub(crate) fn unwatch(&self) -> Result<(), UffdError> {
        self.ended.store(true, Ordering::Release);
        self.ram.iter().try_for_each(|(_, block)| {
            let (start, length) = (block.guest_address().as_ptr(), block.length().0 as usize);
            self.descriptor.unregister(start.cast(), length).map_err(|error| UffdError::Unregister {
                block: block.name().clone(),
                source: io_error(error),
            })
        })
    }

    /// Adds the faults that have come to `faults`; returns at once if there are none.
    pub(crate) fn read(
        &self,
        reader: &mut FaultReader,
        faults: &mut Vec<FaultEvent>,
    ) -> Result<(), UffdError> {
        let events = match self.descriptor.read_events(&mut reader.buffer) {
            Err(userfaultfd::Error::SystemError(errno)) if errno as i32 == libc::EINTR => return Ok(()),
            other => other.map_err(|error| UffdError::Read { source: io_error(error) })?,
        };
        for event in events {
            let event = event.map_err(|error| UffdError::Read { source: io_error(error) })?;
            // Nothing else was asked for.
            let Event::Pagefault { addr, thread_id, .. } = event else { continue };
            let (block, page) = self.locate(addr.addr())?;
            let thread = KernelThread(thread_id.as_raw() as u32);
            faults.push(FaultEvent { block, page, thread });
        }
        Ok(())
    }

    /// Makes the bytes that the page cache holds for `run` visible, and wakes who waits for them.
    ///
    /// Success if a page was visible before, and where the cache holds nothing: that page stays missing.
    pub(crate) fn map_cached(&self, id: BlockId, run: PageRun) -> Result<(), PlaceError> {
        self.for_each_stretch(id, run, "UFFDIO_CONTINUE", |uffd, start, length| {
            skip_hole(abi::minor_continue(uffd, start, length))
        })
    }

    /// Copies `bytes` to the missing pages of `run`, in memory without alias. Success if a page was visible before.
    pub(crate) fn copy(&self, id: BlockId, run: PageRun, bytes: &[u8]) -> Result<(), PlaceError> {
        assert_eq!(run.bytes().0, bytes.len() as u64, "bytes of another run than {run:?}");
        let base = self.address(id, run);
        self.for_each_stretch(id, run, "UFFDIO_COPY", |uffd, start, length| {
            // SAFETY: inside `bytes`, which is ours: `start` is `start - base` bytes into the run.
            unsafe { abi::copy(uffd, start, bytes.as_ptr().add(start - base), length) }
        })
    }

    /// As [`Self::copy`], from the pages of `run` in a block of landing memory.
    pub(crate) fn copy_from_landing(
        &self,
        id: BlockId,
        run: PageRun,
        landing: &RamBlock,
    ) -> Result<(), PlaceError> {
        assert!(landing.layout().contains(run), "{run:?} leaves the landing block");
        let base = self.address(id, run);
        let source = landing.engine_address().as_ptr().wrapping_add(run.byte_offset() as usize);
        self.for_each_stretch(id, run, "UFFDIO_COPY", |uffd, start, length| {
            // SAFETY: inside the run, by `for_each_stretch`, which is inside the landing block, by the assertion;
            // landing memory without alias is never registered.
            unsafe { abi::copy(uffd, start, source.add(start - base), length) }
        })
    }

    /// Makes the missing pages of `run` zero and wakes who waits for them. Success if a page was visible before.
    ///
    /// In memory with alias the page cache must hold zeros or nothing for `run`; it gets memory where it has none.
    pub(crate) fn place_zero(&self, id: BlockId, run: PageRun) -> Result<(), PlaceError> {
        let block = self.ram.block(id);
        match block.backing() {
            Backing::SharedFile { file, offset } if block.has_alias() => {
                // Allocating in the file changes no byte that somebody else may have put there by now.
                let (start, length) = ((offset + run.byte_offset()) as i64, run.bytes().0 as i64);
                fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, start, length).map_err(|errno| {
                    PlaceError::Kernel {
                        block: block.name().clone(),
                        run,
                        call: "fallocate",
                        source: errno.into(),
                    }
                })?;
                self.map_cached(id, run)
            }
            _ if block.layout().page_size == PageSize::FOUR_KIB => {
                self.for_each_stretch(id, run, "UFFDIO_ZEROPAGE", abi::zeropage)
            }
            // Private huge pages have no shared page of zeros.
            _ => self.copy(id, run, &vec![0; run.bytes().0 as usize]),
        }
    }

    /// Wakes who waits for a page of `run`, whatever is there.
    pub(crate) fn wake(&self, id: BlockId, run: PageRun) -> Result<(), PlaceError> {
        let start = self.address(id, run) as *mut libc::c_void;
        self.descriptor
            .wake(start, run.bytes().0 as usize)
            .map_err(|error| self.refused(id, run, "UFFDIO_WAKE", io_error(error)))
    }

    /// Repeats a placing call until it has been through `run`: it goes on after partial progress, steps over pages that are
    /// visible already, and wakes who waits for them.
    fn for_each_stretch(
        &self,
        id: BlockId,
        run: PageRun,
        call: &'static str,
        place: impl Fn(BorrowedFd<'_>, usize, usize) -> Placed,
    ) -> Result<(), PlaceError> {
        let (mut at, end) = (self.address(id, run), self.address(id, run) + run.bytes().0 as usize);
        let step = self.ram.block(id).layout().page_size.bytes() as usize;
        let mut tries = 0;
        while at < end {
            match place(self.descriptor.as_fd(), at, end - at) {
                Ok(0) => {
                    at += step; // A hole.
                    tries = 0;
                }
                Ok(bytes) => {
                    at += bytes;
                    tries = 0;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EEXIST) => {
                        // Whoever placed it woke those that waited then. One that faulted before and was queued after is
                        // woken here.
                        self.wake(id, page_run(run, at - self.address(id, run), step))?;
                        at += step;
                        tries = 0;
                    }
                    // Not watched any more: the kernel maps what is there itself.
                    Some(libc::ENOENT) if self.ended.load(Ordering::Acquire) => return Ok(()),
                    Some(libc::EAGAIN | libc::EINTR) if tries < TRIES_MAX => tries += 1,
                    _ => return Err(self.refused(id, run, call, error)),
                },
            }
        }
        Ok(())
    }

    fn refused(&self, id: BlockId, run: PageRun, call: &'static str, source: io::Error) -> PlaceError {
        PlaceError::Kernel { block: self.ram.block(id).name().clone(), run, call, source }
    }

    /// Where `run` begins in the guest's mapping.
    fn address(&self, id: BlockId, run: PageRun) -> usize {
        let block = self.ram.block(id);
        assert!(block.layout().contains(run), "{run:?} leaves {} of {} pages", block.name(), block.pages());
        block.guest_address().addr().get() + run.byte_offset() as usize
    }

    fn locate(&self, address: usize) -> Result<(BlockId, PageIndex), UffdError> {
        let after = self.ranges.partition_point(|(start, ..)| *start <= address);
        match self.ranges[..after].last() {
            Some(&(start, end, id)) if address < end => {
                let size = self.ram.block(id).layout().page_size.bytes();
                let offset = (address - start) as u64;
                Ok((id, PageIndex::containing(offset - offset % size)))
            }
            _ => Err(UffdError::StrangeAddress { address }),
        }
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl FaultReader {
    pub(crate) fn new() -> Self {
        Self { buffer: EventBuffer::new(EVENTS) }
    }
}

/// The page of `step` bytes at `offset` bytes into `run`.
fn page_run(run: PageRun, offset: usize, step: usize) -> PageRun {
    PageRun::new(run.start + PageCount((offset / PAGE_BYTES) as u64), PageCount((step / PAGE_BYTES) as u64))
}

/// CONTINUE says EFAULT of a page that the cache does not hold.
fn skip_hole(placed: Placed) -> Placed {
    match placed {
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Ok(0),
        other => other,
    }
}

fn open(features: u64) -> Result<userfaultfd::Uffd, UffdError> {
    let opened = UffdBuilder::new()
        .close_on_exec(true)
        .non_blocking(true)
        .user_mode_only(false)
        .require_features(FeatureFlags::from_bits_retain(features))
        .create();
    match opened {
        Ok(uffd) => Ok(uffd),
        // A device that we may not open says nothing about the system call.
        Err(userfaultfd::Error::OpenDevUserfaultfd(source))
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            abi::open_by_system_call(features).map_err(UffdError::unavailable)
        }
        Err(error) => Err(UffdError::unavailable(io_error(error))),
    }
}

fn register(uffd: &userfaultfd::Uffd, block: &RamBlock) -> Result<(), UffdError> {
    let mode =
        if block.has_alias() { RegisterMode::MISSING | RegisterMode::MINOR } else { RegisterMode::MISSING };
    uffd.register_with_mode(block.guest_address().as_ptr().cast(), block.length().0 as usize, mode)
        .map(drop)
        .map_err(|error| UffdError::Register { block: block.name().clone(), source: io_error(error) })
}

/// What a postcopy of these blocks needs of the kernel.
fn features(ram: &GuestRam) -> u64 {
    ram.iter().fold(abi::FEATURE_THREAD_ID, |features, (_, block)| {
        let huge = block.layout().page_size != PageSize::FOUR_KIB;
        features
            | match (block.has_alias(), huge) {
                (true, false) => abi::FEATURE_MISSING_SHMEM | abi::FEATURE_MINOR_SHMEM,
                (true, true) => abi::FEATURE_MISSING_HUGETLBFS | abi::FEATURE_MINOR_HUGETLBFS,
                (false, true) => abi::FEATURE_MISSING_HUGETLBFS,
                (false, false) => 0,
            }
    })
}

fn io_error(error: userfaultfd::Error) -> io::Error {
    match error {
        userfaultfd::Error::OpenDevUserfaultfd(source) => source,
        userfaultfd::Error::SystemError(errno) => io::Error::from_raw_os_error(errno as i32),
        other => io::Error::other(other),
    }
}

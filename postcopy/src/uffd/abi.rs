//! The kernel's interface, as far as the `userfaultfd` crate does not have it or loses what it says.
//!
//! Source: `linux/userfaultfd.h`, `ioctl_userfaultfd(2)`.
//!
//! Safety argument of the module: every call passes one structure of the kernel's layout, which outlives it, and hands
//! the kernel addresses as numbers. What the kernel does there is the caller's affair: it writes only to missing pages of
//! a registered range.
#![allow(unsafe_code, reason = "ioctls, and the system call that opens a userfaultfd")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};

pub(super) const FEATURE_MISSING_HUGETLBFS: u64 = 1 << 4;
pub(super) const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
pub(super) const FEATURE_THREAD_ID: u64 = 1 << 8;
pub(super) const FEATURE_MINOR_HUGETLBFS: u64 = 1 << 9;
pub(super) const FEATURE_MINOR_SHMEM: u64 = 1 << 10;

const API: u64 = 0xaa;

#[repr(C)]
struct ApiArguments {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct CopyArguments {
    destination: u64,
    source: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

/// Of CONTINUE and ZEROPAGE.
#[repr(C)]
struct RangeArguments {
    start: u64,
    length: u64,
    mode: u64,
    done: i64,
}

mod raw {
    use super::{ApiArguments, CopyArguments, RangeArguments};

    nix::ioctl_readwrite!(api, 0xaa, 0x3f, ApiArguments);
    nix::ioctl_readwrite!(copy, 0xaa, 0x03, CopyArguments);
    nix::ioctl_readwrite!(zeropage, 0xaa, 0x04, RangeArguments);
    nix::ioctl_readwrite!(minor_continue, 0xaa, 0x07, RangeArguments);
}

/// What a placing call did: bytes from the start of the range, or why not even the first page.
pub(super) type Placed = Result<usize, io::Error>;

/// A userfaultfd by the system call, for a process that may not open the device.
pub(super) fn open_by_system_call(features: u64) -> io::Result<userfaultfd::Uffd> {
    // SAFETY: the call takes flags and no pointer.
    let number = unsafe {
        libc::syscall(libc::SYS_userfaultfd, libc::c_long::from(libc::O_CLOEXEC | libc::O_NONBLOCK))
    };
    let number = i32::try_from(number).expect("a descriptor is an int");
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor, for us alone.
    let uffd = unsafe { userfaultfd::Uffd::from_raw_fd(number) };
    let mut arguments = ApiArguments { api: API, features, ioctls: 0 };
    // SAFETY: see the module.
    unsafe { raw::api(uffd.as_raw_fd(), &mut arguments) }?;
    Ok(uffd)
}

/// Maps what the page cache holds behind `length` bytes at `start`, and wakes who waits there.
pub(super) fn minor_continue(uffd: BorrowedFd<'_>, start: usize, length: usize) -> Placed {
    let mut arguments = RangeArguments { start: start as u64, length: length as u64, mode: 0, done: 0 };
    // SAFETY: see the module.
    let result = unsafe { raw::minor_continue(uffd.as_raw_fd(), &mut arguments) };
    outcome(result, arguments.done)
}

/// Maps `length` bytes of zeros at `start`, in private memory, and wakes who waits there.
pub(super) fn zeropage(uffd: BorrowedFd<'_>, start: usize, length: usize) -> Placed {
    let mut arguments = RangeArguments { start: start as u64, length: length as u64, mode: 0, done: 0 };
    // SAFETY: see the module.
    let result = unsafe { raw::zeropage(uffd.as_raw_fd(), &mut arguments) };
    outcome(result, arguments.done)
}

/// Copies `length` bytes from `source` to missing pages at `start`, and wakes who waits there.
///
/// # Safety
/// `length` bytes at `source` must be mapped and readable, and no fault on them may wait for this thread.
pub(super) unsafe fn copy(uffd: BorrowedFd<'_>, start: usize, source: *const u8, length: usize) -> Placed {
    let mut arguments = CopyArguments {
        destination: start as u64,
        source: source as u64,
        length: length as u64,
        mode: 0,
        copied: 0,
    };
    // SAFETY: see the module; the caller vouches for the source.
    let result = unsafe { raw::copy(uffd.as_raw_fd(), &mut arguments) };
    outcome(result, arguments.copied)
}

/// A call that stops in the middle fails with EAGAIN and says how far it came; one that fails at once leaves the negated
/// error there.
fn outcome(result: nix::Result<i32>, done: i64) -> Placed {
    match (result, usize::try_from(done)) {
        (_, Ok(bytes)) if bytes > 0 => Ok(bytes),
        (Err(errno), _) => Err(errno.into()),
        (Ok(_), _) => Ok(0),
    }
}

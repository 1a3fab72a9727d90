//! Bringing a vCPU out of the guest, without ever losing the request.
//!
//! A signal alone is lost if it arrives between the vCPU thread's last look and its `KVM_RUN`. So the request is first
//! written into the `immediate_exit` byte that KVM looks at whenever it is about to enter the guest, then signalled: either the
//! vCPU sees the byte, or it is in the guest already and the signal ends that.
//!
//! Safety argument of the module: the byte is accessed through a mapping of its own of the vCPU's shared page, made and
//! unmapped here, and only atomically. The signal handler does nothing. A thread is named by its id within this
//! process; a stale id reaches nobody or a thread that takes the signal for a spurious wake.
#![allow(unsafe_code, reason = "mmap of the vCPU's page, signal handler, tgkill")]

use crate::error::VmmError;
use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// One vCPU's way out of the guest.
pub(crate) struct Kick {
    page: NonNull<c_void>,
    /// The thread that runs the vCPU, once it has begun.
    thread: OnceLock<libc::pid_t>,
}

// SAFETY: the page is accessed only through atomics, from any thread.
unsafe impl Send for Kick {}
// SAFETY: as for Send.
unsafe impl Sync for Kick {}

/// The header of `kvm_run`, where `immediate_exit` is, lies in its first page.
const MAPPED: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
const IMMEDIATE_EXIT: usize = std::mem::offset_of!(kvm_run, immediate_exit);
const _: () = assert!(IMMEDIATE_EXIT < MAPPED.get());

impl Kick {
    /// For the vCPU `fd`. Installs the signal's handler for the whole process.
    ///
    /// # Errors
    /// What the kernel says to the mapping or the handler.
    pub(crate) fn new(fd: &VcpuFd) -> Result<Self, VmmError> {
        install_handler().map_err(|errno| VmmError::Kvm { call: "sigaction", source: errno.into() })?;
        // SAFETY: the descriptor is open while `fd` is borrowed.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing is replaced.
        let page = unsafe { mmap(None, MAPPED, access, MapFlags::MAP_SHARED, borrowed, 0) }
            .map_err(|errno| VmmError::Kvm { call: "mmap of a vCPU", source: errno.into() })?;
        Ok(Self { page, thread: OnceLock::new() })
    }

    /// For the vCPU's thread, once, before its first run: kicks go to the calling thread.
    pub(crate) fn adopt_this_thread(&self) {
        let thread = nix::unistd::gettid().as_raw();
        assert!(self.thread.set(thread).is_ok(), "a vCPU has one thread");
    }

    /// Makes the vCPU's current or next `KVM_RUN` return `EINTR`, until [`Self::forget`].
    pub(crate) fn kick(&self) {
        self.immediate_exit().store(1, Ordering::SeqCst);
        if let Some(thread) = self.thread.get() {
            // SAFETY: sends a signal whose handler does nothing; touches no memory.
            unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), *thread, libc::SIGRTMIN()) };
        }
    }

    /// Lets the vCPU run again.
    pub(crate) fn forget(&self) {
        self.immediate_exit().store(0, Ordering::SeqCst);
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the byte lies in the page, which stays mapped while `self` lives; the kernel reads it whole.
        unsafe { self.page.cast::<AtomicU8>().add(IMMEDIATE_EXIT).as_ref() }
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.page, MAPPED.get()) };
        debug_assert_eq!(unmapped, Ok(()), "munmap of a mapping of our own");
    }
}

/// Gives the kick's signal a handler that does nothing, and no restart of system calls.
fn install_handler() -> Result<(), Errno> {
    extern "C" fn ignore(_signal: libc::c_int) {}
    // SAFETY: an all-zero sigaction is a valid value: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler only returns, so it may interrupt anything.
    Errno::result(unsafe { libc::sigaction(libc::SIGRTMIN(), &action, std::ptr::null_mut()) }).map(drop)
}

//! The calls that no crate wraps safely.
//!
//! Unsafe island: an `ioctl`, a `setsockopt` and a `getsockopt` with a pointer to integers of our own, and the adoption of a
//! descriptor that the process inherited.
#![allow(unsafe_code, reason = "one ioctl, two socket options, and the adoption of an inherited descriptor")]

use crate::error::Failure;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// `SO_ZEROCOPY` of `asm-generic/socket.h`.
const SO_ZEROCOPY: libc::c_int = 60;

/// Allows `MSG_ZEROCOPY` on a socket; refused by kinds of sockets that do not have it.
pub(crate) fn allow_zero_copy(fd: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the kernel reads one integer at the pointer, which is ours and outlives the call; the descriptor is open
    // while borrowed.
    let result = unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, SO_ZEROCOPY, (&raw const on).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Words of `struct tcp_info` (`linux/tcp.h`) up to the shortest round trip, which is the last of them, in microseconds.
const TCP_INFO_WORDS: usize = 38;

/// The shortest time in which the peer has acknowledged anything (`TCP_INFO`); `None` if this is no TCP socket, or nothing
/// was sent on it yet.
pub(crate) fn shortest_round_trip(fd: BorrowedFd<'_>) -> Option<Duration> {
    let mut words = [0_u32; TCP_INFO_WORDS];
    let mut length = size_of_val(&words) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to the pointer, which is ours and outlives the call, as is `length`;
    // any bytes are integers. The descriptor is open while borrowed.
    let result = unsafe {
        let out = words.as_mut_ptr().cast();
        libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, out, &raw mut length)
    };
    let told = result == 0 && length as usize == size_of_val(&words);
    let microseconds = words[TCP_INFO_WORDS - 1];
    (told && ![0, u32::MAX].contains(&microseconds)).then(|| Duration::from_micros(microseconds.into()))
}

/// `SIOCOUTQ`, which has the number of `TIOCOUTQ`: bytes written that the peer has not acknowledged (`tcp(7)`,
/// `unix(7)`: not received).
pub(crate) fn socket_queue(fd: BorrowedFd<'_>) -> u64 {
    ask(fd, libc::TIOCOUTQ)
}

/// `FIONREAD` of a pipe's writing end: bytes that nobody has read yet (`pipe(7)`).
pub(crate) fn pipe_queue(fd: BorrowedFd<'_>) -> u64 {
    ask(fd, libc::FIONREAD)
}

/// A question that is answered with a count in an `int`; 0 if this descriptor knows no answer.
fn ask(fd: BorrowedFd<'_>, request: libc::Ioctl) -> u64 {
    let mut count: libc::c_int = 0;
    // SAFETY: both requests write one `int` to the pointer, which is ours and outlives the call; the descriptor is
    // open while borrowed.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut count) };
    if result == 0 { u64::try_from(count).unwrap_or(0) } else { 0 }
}

/// Takes over the inherited descriptor `number`, once.
///
/// A descriptor that came through `execve` cannot have the close-on-exec flag, and everything that this process opens
/// itself does have it. So a clear flag proves that the number is nobody's here; setting it makes the proof fail
/// for whoever asks a second time.
pub(crate) fn adopt_inherited(number: i32) -> Result<OwnedFd, Failure> {
    let refuse = |reason| Failure::Descriptor { number, reason };
    if number < 0 {
        return Err(refuse("not a descriptor"));
    }
    // SAFETY: borrowed for two `fcntl` calls only, which answer EBADF if the number is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl(borrowed, FcntlArg::F_GETFD).map_err(|_| refuse("not open"))?;
    if FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC) {
        return Err(refuse("not inherited, or taken already"));
    }
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: open, and owned by nobody in this process, by the argument above.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

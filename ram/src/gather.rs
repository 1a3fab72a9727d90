//! Vectored sends straight from guest RAM.
#![allow(unsafe_code, reason = "hands addresses of guest memory to sendmsg and writev, and copies from them")]

use crate::block::RamBlock;
use crate::volatile;
use limosa_pages::{ByteCount, PageRun};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Vectors that the kernel takes per call.
pub(crate) const IOV_MAX: usize = 1024;

/// An ordered list of bytes to send: headers, borrowed or written here, and guest pages where they lie.
///
/// Neighbouring pages become one vector, whatever the calls that added them. Progress is kept: after a partial
/// write the next call goes on behind it.
///
/// The list keeps its allocations through [`Self::reset`], so a sender that reuses one allocates nothing per batch:
///
/// ```
/// use limosa_ram::Gather;
///
/// let mut spare = Gather::new(); // kept by the sender between batches
/// for payload in [b"first".as_slice(), b"second"] {
///     let mut gather = std::mem::take(&mut spare).reset();
///     gather.header(|out| out.extend_from_slice(&(payload.len() as u64).to_be_bytes()));
///     gather.bytes(payload);
///     let mut sent = [0; 64];
///     assert_eq!(gather.copy_to(&mut sent), 8 + payload.len());
///     spare = gather.reset();
/// }
/// ```
#[derive(Default)]
pub struct Gather<'a> {
    pieces: Vec<Piece>,
    /// Bytes of headers that were written here; pieces refer to them by position, because the vector moves.
    headers: Vec<u8>,
    /// First piece with something left.
    next: usize,
    /// Bytes of that piece which are gone.
    done: usize,
    remaining: u64,
    /// Scratch of one system call.
    vectors: Vec<libc::iovec>,
    borrows: PhantomData<&'a [u8]>,
}

#[derive(Clone, Copy)]
struct Piece {
    source: Source,
    length: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Position in `headers`.
    Header(usize),
    /// A borrowed slice.
    Slice(*const u8),
    /// Guest memory; others may write it.
    Guest(*const u8),
}

// SAFETY: the pointers stand for shared borrows of `[u8]` and `RamBlock`, both Sync, for the lifetime 'a; `vectors` is
// dead between calls.
unsafe impl Send for Gather<'_> {}

impl<'a> Gather<'a> {
    /// Nothing to send. Allocates when first filled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties the list, whatever was left, and keeps its allocations, for borrows of another lifetime.
    #[must_use]
    pub fn reset<'b>(mut self) -> Gather<'b> {
        self.pieces.clear();
        self.headers.clear();
        self.vectors.clear();
        let Gather { pieces, headers, vectors, .. } = self;
        Gather { pieces, headers, vectors, next: 0, done: 0, remaining: 0, borrows: PhantomData }
    }

    /// Adds borrowed bytes.
    pub fn bytes(&mut self, bytes: &'a [u8]) {
        self.push(Source::Slice(bytes.as_ptr()), bytes.len());
    }

    /// Adds what `write` appends to a buffer of the list: a header of a few bytes, encoded in place.
    pub fn header(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.headers.len();
        write(&mut self.headers);
        let length = self.headers.len().checked_sub(start).expect("a header is appended, nothing is removed");
        self.push(Source::Header(start), length);
    }

    /// Adds guest pages, to be read when they are sent.
    ///
    /// # Panics
    /// If the run leaves the block.
    pub fn pages(&mut self, block: &'a RamBlock, run: PageRun) {
        let (address, length) = block.engine_range(run);
        self.push(Source::Guest(address.as_ptr()), length);
    }

    /// Bytes not yet sent.
    pub fn remaining(&self) -> ByteCount {
        ByteCount(self.remaining)
    }

    /// Whether everything is sent.
    pub fn is_empty(&self) -> bool {
        self.remaining == 0
    }

    /// Sends with one system call: at most 1024 vectors, less if the descriptor takes less. Returns the bytes gone.
    ///
    /// Sockets get `sendmsg` without `SIGPIPE`, everything else `writev`. An interrupted call is made again.
    ///
    /// # Errors
    /// What the kernel says; `WouldBlock` on a full nonblocking descriptor, `WriteZero` if it takes nothing.
    pub fn write_to(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        if self.remaining == 0 {
            return Ok(0);
        }
        self.fill_vectors(self.pieces.len());
        self.write_vectors(fd, 0)
    }

    /// As [`Self::write_to`] for a TCP socket that allows `MSG_ZEROCOPY`: one call for the first pieces that are alike,
    /// guest pages without a copy, anything else with one. Returns also whether it was without.
    ///
    /// The kernel may hold the guest pages after the call, and says in the socket's error queue when it is done with
    /// them. Their memory may be unmapped before; what is written to it may be what is sent.
    ///
    /// # Errors
    /// As [`Self::write_to`]; `ENOBUFS` if the kernel may not hold more.
    pub fn write_in_place_to(&mut self, fd: BorrowedFd<'_>) -> io::Result<(usize, bool)> {
        if self.remaining == 0 {
            return Ok((0, false));
        }
        let is_guest = |piece: &Piece| matches!(piece.source, Source::Guest(_));
        let left = &self.pieces[self.next..];
        let guest = is_guest(&left[0]);
        let alike = left.iter().take_while(|piece| is_guest(piece) == guest).count();
        self.fill_vectors(self.next + alike);
        // Headers and buffers of ours are used again, so those must be copied.
        let written = self.write_vectors(fd, if guest { libc::MSG_ZEROCOPY } else { 0 })?;
        Ok((written, guest))
    }

    /// Copies the next bytes into `out`, for streams that cannot take vectors. Returns how many: `out.len()`, or
    /// what was left.
    pub fn copy_to(&mut self, out: &mut [u8]) -> usize {
        let mut filled = 0;
        while filled < out.len() && self.next < self.pieces.len() {
            let (from, left, source) = self.current();
            let take = left.min(out.len() - filled);
            let target = &mut out[filled..filled + take];
            match source {
                // SAFETY: `take` bytes of guest memory, mapped while the block is borrowed, for 'a.
                Source::Guest(_) => unsafe { volatile::copy_out(from, target) },
                // SAFETY: `take` bytes of a slice that is borrowed for 'a, or of `headers`; `out` is neither,
                // because it is borrowed mutably.
                Source::Slice(_) | Source::Header(_) => unsafe {
                    target.as_mut_ptr().copy_from_nonoverlapping(from, take);
                },
            }
            filled += take;
            self.advance(take);
        }
        filled
    }

    fn push(&mut self, source: Source, length: usize) {
        if length == 0 {
            return;
        }
        self.remaining += length as u64;
        if let Some(last) = self.pieces.last_mut().filter(|last| last.source.reaches(last.length, source)) {
            last.length += length;
        } else {
            self.pieces.push(Piece { source, length });
        }
    }

    /// Address and length of what is left of the first piece with something left.
    fn current(&self) -> (*const u8, usize, Source) {
        let piece = self.pieces[self.next];
        (self.address(piece).wrapping_add(self.done), piece.length - self.done, piece.source)
    }

    fn address(&self, Piece { source, length }: Piece) -> *const u8 {
        match source {
            Source::Header(start) => self.headers[start..start + length].as_ptr(),
            Source::Slice(address) | Source::Guest(address) => address,
        }
    }

    /// Makes one system call; an interrupted one is made again.
    fn write_vectors(&mut self, fd: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<usize> {
        let written = loop {
            match send(fd, &self.vectors, flags) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.advance(written);
        Ok(written)
    }

    /// Vectors of what is left before piece `end`.
    fn fill_vectors(&mut self, end: usize) {
        let mut vectors = std::mem::take(&mut self.vectors);
        vectors.clear();
        vectors.reserve_exact(IOV_MAX.min(end - self.next));
        let (first, left, _) = self.current();
        vectors.push(vector(first, left));
        for &piece in self.pieces[self.next + 1..end].iter().take(IOV_MAX - 1) {
            vectors.push(vector(self.address(piece), piece.length));
        }
        self.vectors = vectors;
    }

    fn advance(&mut self, bytes: usize) {
        self.remaining -= bytes as u64;
        self.done += bytes;
        while let Some(piece) = self.pieces.get(self.next).filter(|piece| piece.length <= self.done) {
            self.done -= piece.length;
            self.next += 1;
        }
    }
}

impl Source {
    /// Whether `next` is of the same kind and begins where `length` bytes of this end.
    fn reaches(self, length: usize, next: Self) -> bool {
        match (self, next) {
            (Self::Header(start), Self::Header(next)) => start + length == next,
            // Two slices that happen to touch are left alone: they may be of two allocations.
            (Self::Guest(start), Self::Guest(next)) => start.wrapping_add(length) == next,
            _ => false,
        }
    }
}

fn vector(address: *const u8, length: usize) -> libc::iovec {
    libc::iovec { iov_base: address.cast_mut().cast(), iov_len: length }
}

/// One `sendmsg`, or one `writev` where the descriptor is no socket.
fn send(fd: BorrowedFd<'_>, vectors: &[libc::iovec], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: all zeros is a message without address, vectors and control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_ptr().cast_mut();
    message.msg_iovlen = vectors.len() as _;
    // SAFETY: the vectors cover borrowed bytes or mapped guest memory; the kernel only reads them, and copies what
    // it finds, also while the guest writes. With MSG_ZEROCOPY all of them are guest memory, and the kernel holds the
    // pages themselves, not the addresses.
    match result(unsafe { libc::sendmsg(fd.as_raw_fd(), &message, libc::MSG_NOSIGNAL | flags) }) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => {}
        other => return other,
    }
    // SAFETY: as for sendmsg; at most IOV_MAX vectors, so the count fits an int.
    result(unsafe { libc::writev(fd.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) })
}

/// A byte count of the kernel, or its error.
pub(crate) fn result(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

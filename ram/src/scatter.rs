//! Vectored receives straight into guest RAM.
#![allow(unsafe_code, reason = "hands addresses of guest memory to readv, and copies to them")]

use crate::block::RamBlock;
use crate::gather::{IOV_MAX, result};
use crate::volatile;
use limosa_pages::{ByteCount, PageRun};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

/// An ordered list of places for the bytes that come next: buffers of ours and guest pages.
///
/// The receiving twin of [`Gather`](crate::Gather): neighbouring pages become one vector, progress is kept, and
/// [`Self::reset`] keeps the allocations. Received bytes become visible to the guest at once and in no order: this is
/// for precopy, where the guest does not run.
#[derive(Default)]
pub struct Scatter<'a> {
    /// What is left to fill; the first `next` are full.
    vectors: Vec<Place>,
    next: usize,
    remaining: u64,
    /// Scratch of one system call.
    scratch: Vec<libc::iovec>,
    borrows: PhantomData<&'a mut [u8]>,
}

#[derive(Clone, Copy)]
struct Place {
    address: *mut u8,
    length: usize,
    guest: bool,
}

// SAFETY: the pointers stand for exclusive borrows of `[u8]` and shared ones of `RamBlock`, which is Sync, for 'a;
// `scratch` is dead between calls.
unsafe impl Send for Scatter<'_> {}

impl<'a> Scatter<'a> {
    /// No place yet. Allocates when first filled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties the list, whatever was left, and keeps its allocations, for borrows of another lifetime.
    #[must_use]
    pub fn reset<'b>(mut self) -> Scatter<'b> {
        self.vectors.clear();
        self.scratch.clear();
        let Scatter { vectors, scratch, .. } = self;
        Scatter { vectors, scratch, next: 0, remaining: 0, borrows: PhantomData }
    }

    /// Adds a buffer of ours.
    pub fn bytes(&mut self, buffer: &'a mut [u8]) {
        self.push(Place { address: buffer.as_mut_ptr(), length: buffer.len(), guest: false });
    }

    /// Adds guest pages.
    ///
    /// # Panics
    /// If the run leaves the block.
    pub fn pages(&mut self, block: &'a RamBlock, run: PageRun) {
        let (address, length) = block.engine_range(run);
        self.push(Place { address: address.as_ptr(), length, guest: true });
    }

    /// Bytes not yet received.
    pub fn remaining(&self) -> ByteCount {
        ByteCount(self.remaining)
    }

    /// Whether every place is full.
    pub fn is_empty(&self) -> bool {
        self.remaining == 0
    }

    /// Receives with one `readv` of at most 1024 vectors. Returns the bytes that came; 0 is the end of the stream, or
    /// that nothing was asked for.
    ///
    /// An interrupted call is made again.
    ///
    /// # Errors
    /// What the kernel says; `WouldBlock` on an empty nonblocking descriptor.
    pub fn read_from(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        if self.remaining == 0 {
            return Ok(0);
        }
        self.scratch.clear();
        self.scratch.extend(
            self.vectors[self.next..]
                .iter()
                .take(IOV_MAX)
                .map(|place| libc::iovec { iov_base: place.address.cast(), iov_len: place.length }),
        );
        let received = loop {
            let count = self.scratch.len() as libc::c_int; // At most IOV_MAX.
            // SAFETY: the vectors cover exclusively borrowed buffers, and mapped guest memory to which no Rust
            // reference exists; both for 'a.
            match result(unsafe { libc::readv(fd.as_raw_fd(), self.scratch.as_ptr(), count) }) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.advance(received);
        Ok(received)
    }

    /// Copies `bytes` into the next places, for streams that cannot take vectors. Returns how many fitted.
    pub fn copy_from(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() && self.next < self.vectors.len() {
            let Place { address, length, guest } = self.vectors[self.next];
            let source = &bytes[taken..taken + length.min(bytes.len() - taken)];
            if guest {
                // SAFETY: guest memory, mapped while the block is borrowed, for 'a.
                unsafe { volatile::copy_in(address, source) }
            } else {
                // SAFETY: a buffer that is borrowed exclusively for 'a; so `bytes` is not in it.
                unsafe { address.copy_from_nonoverlapping(source.as_ptr(), source.len()) }
            }
            taken += source.len();
            self.advance(source.len());
        }
        taken
    }

    fn push(&mut self, place: Place) {
        if place.length == 0 {
            return;
        }
        self.remaining += place.length as u64;
        match self.vectors[self.next..].last_mut() {
            Some(last)
                if last.guest && place.guest && last.address.wrapping_add(last.length) == place.address =>
            {
                last.length += place.length;
            }
            _ => self.vectors.push(place),
        }
    }

    fn advance(&mut self, bytes: usize) {
        self.remaining -= bytes as u64;
        let mut left = bytes;
        while let Some(place) = self.vectors.get_mut(self.next) {
            if left < place.length {
                place.address = place.address.wrapping_add(left);
                place.length -= left;
                return;
            }
            left -= place.length;
            self.next += 1;
        }
    }
}

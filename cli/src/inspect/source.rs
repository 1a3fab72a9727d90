//! Sequential input with a bounded look ahead, which knows its offset.

use std::io::{self, Read};

/// Bytes read at a time: large enough that a page record costs no system call.
const READ_BYTES: usize = 1 << 20;

/// Input that is read once, from front to back.
///
/// It holds what was last asked for with [`Self::peek`] or [`READ_BYTES`], whichever is more.
pub(super) struct Source<R> {
    input: R,
    buffer: Vec<u8>,
    /// What of the buffer has been consumed.
    start: usize,
    /// Bytes consumed since the input's start.
    offset: u64,
    ended: bool,
}

impl<R: Read> Source<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, buffer: Vec::new(), start: 0, offset: 0, ended: false }
    }

    /// Bytes consumed since the input's start.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Everything that is buffered, at least `wanted` bytes unless the input ends before.
    ///
    /// Memory grows with what arrives, not with what is wanted.
    #[inline]
    pub(super) fn peek(&mut self, wanted: usize) -> io::Result<&[u8]> {
        if self.buffer.len() - self.start < wanted && !self.ended {
            self.fill(wanted)?;
        }
        Ok(self.buffered())
    }

    /// What is buffered.
    pub(super) fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Whether there is nothing behind what is buffered.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Passes over `count` bytes that have been peeked.
    ///
    /// # Panics
    /// If they are not buffered.
    #[inline]
    pub(super) fn consume(&mut self, count: usize) {
        assert!(count <= self.buffer.len() - self.start, "{count} bytes that were not peeked");
        self.start += count;
        self.offset += count as u64;
    }

    /// Passes over `count` bytes; returns how many there were, fewer only if the input ended.
    #[inline]
    pub(super) fn skip(&mut self, count: u64) -> io::Result<u64> {
        let mut left = count;
        while left > 0 {
            let buffered = self.peek(1)?.len();
            if buffered == 0 {
                break;
            }
            let step = left.min(buffered as u64);
            self.consume(step as usize);
            left -= step;
        }
        Ok(count - left)
    }

    #[inline(never)]
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let wanted = wanted.max(READ_BYTES);
        if self.buffer.capacity() > 2 * wanted {
            // What a large peek needed is not needed for ever.
            self.buffer.shrink_to(wanted);
        }
        let missing = wanted - self.buffer.len();
        self.buffer.reserve(missing.min(READ_BYTES));
        let got = self.input.by_ref().take(missing as u64).read_to_end(&mut self.buffer)?;
        self.ended = got < missing;
        Ok(())
    }
}

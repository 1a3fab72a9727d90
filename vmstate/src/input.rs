//! Where a device's bytes come from.

use thiserror::Error;

/// Most bytes that a caller may [`Input::peek`] at: a subsection's announcement needs
/// 1 (tag) + 1 (length) + 255 (name) = 257, rounded up to a power of two.
pub const PEEK_MAX: usize = 512;

/// A stream that a device is read from, in pull style: the body has no length, so only its reader knows its end.
pub trait Input {
    /// Fills `out` and moves past it.
    ///
    /// # Errors
    /// [`InputError`] if the stream ends or fails first. The position is unspecified afterwards.
    fn read(&mut self, out: &mut [u8]) -> Result<(), InputError>;

    /// The next `count` bytes without moving past them; fewer only at the end of the stream.
    ///
    /// # Errors
    /// [`InputError::Failed`] if the stream fails; its end is not an error here.
    ///
    /// # Panics
    /// May panic if `count` is over [`PEEK_MAX`].
    fn peek(&mut self, count: usize) -> Result<&[u8], InputError>;

    /// Bytes of the stream before the next one to be read. Errors quote it.
    fn offset(&self) -> u64;
}

/// A stream that gave no more bytes.
#[derive(Debug, Error)]
pub enum InputError {
    /// The stream is over.
    #[error("the stream ends here; bytes missing: {missing}")]
    Ended {
        /// Bytes that were asked for and not there.
        missing: usize,
    },
    /// The stream broke, or its owner gave up on it.
    #[error("{0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// An [`Input`] over bytes in memory.
#[derive(Clone, Debug)]
pub struct SliceInput<'a> {
    bytes: &'a [u8],
    used: usize,
    base: u64,
}

impl<'a> SliceInput<'a> {
    /// Reads `bytes`, counting offsets from 0.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self::at(0, bytes)
    }

    /// Reads `bytes`, the first of which is at `offset` of some longer stream.
    pub fn at(offset: u64, bytes: &'a [u8]) -> Self {
        Self { bytes, used: 0, base: offset }
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        &self.bytes[self.used..]
    }
}

impl Input for SliceInput<'_> {
    fn read(&mut self, out: &mut [u8]) -> Result<(), InputError> {
        let rest = self.rest();
        if rest.len() < out.len() {
            return Err(InputError::Ended { missing: out.len() - rest.len() });
        }
        out.copy_from_slice(&rest[..out.len()]);
        self.used += out.len();
        Ok(())
    }

    fn peek(&mut self, count: usize) -> Result<&[u8], InputError> {
        assert!(count <= PEEK_MAX, "peek at {count} bytes, over the limit of {PEEK_MAX}");
        let rest = self.rest();
        Ok(&rest[..count.min(rest.len())])
    }

    fn offset(&self) -> u64 {
        self.base + self.used as u64
    }
}

//! What a thread needs that waits for several things: operations that never wait, and what to wait for.

use super::{LinkReader, LinkWriter};
use crate::error::{Failure, TransportError};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

impl LinkReader {
    /// As [`Self::read_some`], but never waits: `None` if no byte is here. For a thread that waits for several things, with
    /// [`Self::descriptor`].
    ///
    /// # Errors
    /// If the link is lost or shut down.
    ///
    /// # Panics
    /// As [`Self::read_some`].
    pub fn read_ready(&mut self, out: &mut [u8]) -> Result<Option<usize>, TransportError> {
        if !self.peeked.is_empty() {
            return self.read_some(out).map(Some);
        }
        assert!(!out.is_empty(), "asked for nothing");
        self.half.descriptor()?.read_ready(out).map_err(|failure| self.half.error(failure))
    }

    /// What becomes readable when [`Self::read_ready`] has something, or an error, to say. Bytes that were peeked at are not
    /// seen in it.
    ///
    /// # Errors
    /// If the link has no such direction.
    pub fn descriptor(&self) -> Result<BorrowedFd<'_>, TransportError> {
        self.half.descriptor().map(AsFd::as_fd)
    }
}

impl LinkWriter {
    /// Sends as much of `bytes` as the kernel takes without waiting; returns how many that were. For a thread that waits for
    /// several things, with [`Self::descriptor`].
    ///
    /// # Errors
    /// If the link is lost or shut down; if it has taken nothing for as long as its deadline, in this and earlier calls.
    ///
    /// # Panics
    /// If `bytes` is empty.
    pub fn write_ready(&mut self, bytes: &[u8]) -> Result<usize, TransportError> {
        assert!(!bytes.is_empty(), "asked to send nothing");
        let sent = self.half.descriptor()?.write_ready(bytes).map_err(|failure| self.half.error(failure))?;
        let Some(sent) = sent else {
            let since = *self.full_since.get_or_insert_with(Instant::now);
            return match self.half.patience {
                Some(after) if since.elapsed() >= after => Err(self.half.error(Failure::TimedOut { after })),
                _ => Ok(0),
            };
        };
        self.full_since = None;
        Ok(sent)
    }

    /// What becomes writable when [`Self::write_ready`] can send, or has an error to say.
    ///
    /// # Errors
    /// If the link has no such direction.
    pub fn descriptor(&self) -> Result<BorrowedFd<'_>, TransportError> {
        self.half.descriptor().map(AsFd::as_fd)
    }

    /// How long an operation may wait without sending a byte; `None` is for ever.
    pub fn deadline(&self) -> Option<Duration> {
        self.half.patience
    }
}

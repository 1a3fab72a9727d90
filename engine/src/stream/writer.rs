//! The sending end: small messages are collected, guest pages leave straight from guest RAM.

use limosa_pages::ByteCount;
use limosa_ram::Gather;
use limosa_transport::{LinkWriter, TransportError};

/// Collected bytes leave when there are this many: 64 KiB, one segment of loopback, a few of a real NIC.
const FLUSH_AT: usize = 64 << 10;

/// Writes a stream to a link, in order, and counts what it writes.
pub struct StreamWriter {
    link: LinkWriter,
    buffer: Vec<u8>,
    written: u64,
}

impl StreamWriter {
    /// A writer that owns the sending half of `link`.
    pub fn new(link: LinkWriter) -> Self {
        Self { link, buffer: Vec::with_capacity(2 * FLUSH_AT), written: 0 }
    }

    /// The bytes collected so far, to append a message to. Call [`Self::flush`] or [`Self::flush_if_full`] later.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Hands the collected bytes to the kernel if there are many.
    ///
    /// # Errors
    /// If the link fails or its deadline passes.
    pub fn flush_if_full(&mut self) -> Result<(), TransportError> {
        if self.buffer.len() >= FLUSH_AT { self.flush() } else { Ok(()) }
    }

    /// Hands the collected bytes to the kernel.
    ///
    /// # Errors
    /// If the link fails or its deadline passes. What was collected is then gone: it dies with its
    /// connection (invariant I8).
    pub fn flush(&mut self) -> Result<(), TransportError> {
        if !self.buffer.is_empty() {
            self.written += self.buffer.len() as u64;
            let sent = self.link.write_all(&self.buffer);
            self.buffer.clear();
            sent?;
        }
        Ok(())
    }

    /// Sends the collected bytes and then `gather`, without copying guest pages.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn send(&mut self, gather: &mut Gather<'_>) -> Result<(), TransportError> {
        self.flush()?;
        self.written += gather.remaining().0;
        self.link.write_gather(gather)
    }

    /// Sends what is collected and ends the stream; of a command, waits for its end.
    ///
    /// # Errors
    /// As [`Self::flush`], and a command that failed.
    pub(crate) fn finish(&mut self) -> Result<(), TransportError> {
        self.flush()?;
        self.link.finish_and_wait()
    }

    /// Bytes that were collected or sent since the beginning.
    pub fn offset(&self) -> ByteCount {
        ByteCount(self.written + self.buffer.len() as u64)
    }

    /// As [`LinkWriter::limit_queue`].
    pub(crate) fn limit_queue(&mut self, least: usize) -> Result<(), TransportError> {
        self.link.limit_queue(least)
    }

    /// Bytes that the peer's kernel has not acknowledged yet, as far as the transport can tell.
    pub fn queued(&self) -> ByteCount {
        ByteCount(self.link.queued_bytes())
    }

    /// Goes on over another link. What was collected for the old one is gone (invariant I8); the count goes on.
    pub(crate) fn replace_link(&mut self, link: LinkWriter) {
        self.buffer.clear();
        self.link = link;
    }

    /// Gives the link back; collected bytes are dropped.
    pub fn into_link(self) -> LinkWriter {
        self.link
    }
}

//! The receiving end: one buffer, from which decoders take messages and handlers take bytes.

use crate::error::LoadFault;
use limosa_transport::{LinkReader, TransportError};
use limosa_vmstate::{Input, InputError};
use limosa_wire::{Step, WireError};

/// The kernel is asked for this much at a time. Receiving into a warm buffer and copying on measures faster
/// than receiving into guest RAM (6.1 to 6.5 against 5.1 to 5.4 GB/s), and 1 MiB faster than less.
const READ_SIZE: usize = 1 << 20;

/// No single item is ever larger: the longest is a vmdescription (99 KiB for an ordinary PC, a limit of
/// 64 MiB in the decoder), and some room for its frame.
const ITEM_MAX: usize = (64 << 20) + READ_SIZE;

/// Reads a stream from a link, or from memory, and knows how far it has come.
pub struct StreamReader {
    /// `None` if all there will be is in the buffer.
    link: Option<LinkReader>,
    buffer: Vec<u8>,
    read_size: usize,
    start: usize,
    end: usize,
    consumed: u64,
}

impl StreamReader {
    /// A reader of a stream with guest RAM in it.
    pub fn new(link: LinkReader) -> Self {
        Self::with_read_size(link, READ_SIZE)
    }

    /// A reader of small messages, which asks the kernel for `read_size` bytes at a time.
    pub(crate) fn with_read_size(link: LinkReader, read_size: usize) -> Self {
        let buffer = vec![0; 2 * read_size];
        Self { link: Some(link), buffer, read_size, start: 0, end: 0, consumed: 0 }
    }

    /// A reader of a stream that has arrived already: the package of postcopy (wire 2.1).
    pub(crate) fn of_package(package: Vec<u8>) -> Self {
        let end = package.len();
        Self { link: None, buffer: package, read_size: 0, start: 0, end, consumed: 0 }
    }

    /// The next `count` bytes in memory of their own. It grows with what arrives, not with what was announced.
    pub(crate) fn take_package(&mut self, count: usize) -> Result<Vec<u8>, LoadFault> {
        let mut package = Vec::new();
        while package.len() < count {
            let piece = (count - package.len()).min(READ_SIZE);
            package.extend_from_slice(self.take(piece)?);
        }
        Ok(package)
    }

    /// Bytes consumed since the beginning of the stream.
    pub fn offset(&self) -> u64 {
        self.consumed
    }

    /// Runs an incremental decoder until it has an item.
    ///
    /// # Errors
    /// What the decoder says, with the link's failure or end where it needs more bytes than come.
    pub fn decode<T>(
        &mut self,
        mut next: impl FnMut(&[u8]) -> Result<Step<T>, WireError>,
    ) -> Result<T, LoadFault> {
        loop {
            match next(&self.buffer[self.start..self.end])? {
                Step::Item { used, item } => {
                    self.consume(used);
                    return Ok(item);
                }
                Step::Need(total) => self.fill(total)?,
            }
        }
    }

    /// The next `count` bytes, consumed. `count` is ours or has been checked against a limit.
    ///
    /// # Errors
    /// If the link fails or ends first.
    pub fn take(&mut self, count: usize) -> Result<&[u8], LoadFault> {
        if self.end - self.start < count {
            self.fill(count)?;
        }
        let from = self.start;
        self.consume(count);
        Ok(&self.buffer[from..from + count])
    }

    /// Bytes that have arrived and were not consumed.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Waits for at least one more byte; `false` at the end of the connection.
    ///
    /// # Errors
    /// If the link fails, or the buffer has reached its limit.
    pub fn wait_for_more(&mut self) -> Result<bool, LoadFault> {
        Ok(self.receive(self.end - self.start + 1)? > 0)
    }

    /// Marks `count` buffered bytes as consumed.
    ///
    /// # Panics
    /// If fewer are buffered.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "consumed more than was there");
        self.start += count;
        self.consumed += count as u64;
    }

    /// Gives the link back; buffered bytes are dropped.
    ///
    /// # Panics
    /// If the stream is a package.
    pub fn into_link(self) -> LinkReader {
        self.link.expect("a package comes from no link")
    }

    /// As [`LinkReader::limit_queue`]; a package waits in no kernel.
    pub(crate) fn limit_queue(&mut self, least: usize) -> Result<(), TransportError> {
        self.link.as_mut().map_or(Ok(()), |link| link.limit_queue(least))
    }

    /// Reads until `total` bytes are buffered.
    fn fill(&mut self, total: usize) -> Result<(), LoadFault> {
        while self.end - self.start < total {
            let have = self.end - self.start;
            if self.receive(total)? == 0 {
                return Err(LoadFault::Ended { wanted: total - have });
            }
        }
        Ok(())
    }

    /// Receives what has come, with room for `total` unconsumed bytes; 0 at the end.
    fn receive(&mut self, total: usize) -> Result<usize, LoadFault> {
        if self.link.is_some() {
            self.make_room(total)?;
        }
        let Some(link) = &mut self.link else { return Ok(0) };
        let count = link.read_some(&mut self.buffer[self.end..])?;
        self.end += count;
        Ok(count)
    }

    /// Makes the buffer able to hold `total` unconsumed bytes with free space behind them.
    fn make_room(&mut self, total: usize) -> Result<(), LoadFault> {
        if total > ITEM_MAX {
            return Err(LoadFault::ItemTooLong { needed: total, limit: ITEM_MAX });
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < self.read_size {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.buffer.len() - self.end < self.read_size {
            // Grows with what has arrived, not with what was announced: twice what is held, at most.
            self.buffer.resize(2 * self.buffer.len(), 0);
        }
        Ok(())
    }
}

impl Input for StreamReader {
    fn read(&mut self, out: &mut [u8]) -> Result<(), InputError> {
        let mut done = 0;
        while done < out.len() {
            let count = (out.len() - done).min(READ_SIZE);
            let bytes = self.take(count).map_err(input_error)?;
            out[done..done + count].copy_from_slice(bytes);
            done += count;
        }
        Ok(())
    }

    fn peek(&mut self, count: usize) -> Result<&[u8], InputError> {
        match self.fill(count) {
            Ok(()) | Err(LoadFault::Ended { .. }) => {
                let have = (self.end - self.start).min(count);
                Ok(&self.buffer[self.start..self.start + have])
            }
            Err(fault) => Err(input_error(fault)),
        }
    }

    fn offset(&self) -> u64 {
        self.consumed
    }
}

fn input_error(fault: LoadFault) -> InputError {
    match fault {
        LoadFault::Ended { wanted } => InputError::Ended { missing: wanted },
        fault => InputError::Failed(Box::new(fault)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_ends_where_its_bytes_do() {
        let mut package = StreamReader::of_package(b"abc".to_vec());
        assert_eq!(package.take(2).unwrap(), b"ab");
        assert!(matches!(package.take(4), Err(LoadFault::Ended { wanted: 3 })));
        assert!(!package.wait_for_more().unwrap());
        assert_eq!(package.take(1).unwrap(), b"c");
        assert_eq!(package.offset(), 3);
    }

    #[test]
    fn a_package_is_taken_out_of_its_stream_whole_or_not_at_all() {
        let mut stream = StreamReader::of_package(vec![7; READ_SIZE + 3]);
        assert_eq!(stream.take_package(READ_SIZE + 2).unwrap(), vec![7; READ_SIZE + 2]);
        assert!(matches!(stream.take_package(2), Err(LoadFault::Ended { wanted: 1 })));
    }
}

//! What comes in on a link, small things several at a time.

use limosa_ram::Scatter;
use limosa_transport::{LinkReader, TransportError};

/// Asked of the kernel at a time for what is small: the headers of twelve packets of zero pages.
///
/// The bytes of pages go straight into guest RAM, but for the first few that come with their header. Receiving
/// everything into a buffer and copying on measures no better: between huge folios over TCP loopback, median of
/// interleaved runs of 512 MiB in GB/s, direct 3.7, a buffer of 1 MiB 2.8, of 256 KiB 2.1 with one channel; 3.7, 4.2 and
/// 2.9 with two, where every single figure is uncertain by a quarter.
const BUFFER_BYTES: usize = 16 << 10;

/// A link with a buffer before it.
pub(super) struct Intake {
    reader: LinkReader,
    buffer: Box<[u8]>,
    /// What has come and was not taken: `buffer[start..end]`.
    start: usize,
    end: usize,
}

impl Intake {
    pub(super) fn new(reader: LinkReader) -> Self {
        Self { reader, buffer: vec![0; BUFFER_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// As [`LinkReader::read_some`].
    pub(super) fn read_some(&mut self, out: &mut [u8]) -> Result<usize, TransportError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.end = self.reader.read_some(&mut self.buffer)?;
        }
        Ok(self.take(out))
    }

    /// As [`LinkReader::read_exact`].
    pub(super) fn read_exact(&mut self, out: &mut [u8]) -> Result<(), TransportError> {
        let taken = self.take(out);
        self.reader.read_exact(&mut out[taken..])
    }

    /// As [`LinkReader::read_scatter`].
    pub(super) fn read_scatter(&mut self, scatter: &mut Scatter<'_>) -> Result<(), TransportError> {
        self.start += scatter.copy_from(&self.buffer[self.start..self.end]);
        self.reader.read_scatter(scatter)
    }

    /// Takes what is in the buffer, as much as fits.
    fn take(&mut self, out: &mut [u8]) -> usize {
        let count = out.len().min(self.end - self.start);
        out[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
        self.start += count;
        count
    }
}

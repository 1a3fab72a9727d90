//! zlib: one stream, with header and without end, Z_SYNC_FLUSH after every packet.

use super::{PacketError, Progress};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

#[derive(Debug)]
pub(super) struct Encoder {
    stream: Compress,
}

#[derive(Debug)]
pub(super) struct Decoder {
    stream: Decompress,
}

impl Encoder {
    pub(super) fn new(level: u8) -> Self {
        Self { stream: Compress::new(Compression::new(u32::from(level)), true) }
    }

    /// Writes into the spare capacity of `payload`.
    pub(super) fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Result<(), PacketError> {
        let before = self.stream.total_in();
        self.stream
            .compress_vec(pages, payload, FlushCompress::Sync)
            .unwrap_or_else(|error| unreachable!("a stream that is never finished takes all: {error}"));
        let taken = (self.stream.total_in() - before) as usize;
        // A flush that has filled the output may have more to say.
        if taken < pages.len() || payload.len() == payload.capacity() {
            return Err(PacketError::TooLong { got: payload.len() });
        }
        Ok(())
    }
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { stream: Decompress::new(true) }
    }

    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Progress, PacketError> {
        let (taken, made) = (self.stream.total_in(), self.stream.total_out());
        let status = self.stream.decompress(input, output, FlushDecompress::Sync);
        let status = status.map_err(|_| PacketError::Zlib)?;
        Ok(Progress {
            taken: (self.stream.total_in() - taken) as usize,
            made: (self.stream.total_out() - made) as usize,
            ended: status == Status::StreamEnd,
        })
    }
}

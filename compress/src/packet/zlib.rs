//! zlib: one stream, with header and without end, Z_SYNC_FLUSH after every packet.

use super::{PacketError, Progress};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use limosa_pages::PAGE_BYTES;

/// Every so many bytes of a page are looked at: 512 of them.
const SAMPLE_STEP: usize = 8;

const SAMPLES: usize = PAGE_BYTES / SAMPLE_STEP;

/// The sum of squared counts of a page's samples up to which the page is noise. Even counts of 512 samples in 256
/// values, as noise has them, make 512 + 512^2 / 256 = 1536 with a deviation of 45; text makes 8000 and more. At
/// the limit the samples have 7.2 bits each.
const NOISE_MAX: u32 = 1800;

/// Longest stored block of deflate: its length has 16 bits.
const STORED_BYTES_MAX: usize = 0xffff;

#[derive(Debug)]
pub(super) struct Encoder {
    stream: Compress,
    /// Level 0 stores everything by itself.
    stores_all: bool,
    /// The compressor refers to nothing that it has seen, so that blocks can be put behind it which it does not
    /// know.
    forgetful: bool,
}

#[derive(Debug)]
pub(super) struct Decoder {
    stream: Decompress,
}

impl Encoder {
    pub(super) fn new(level: u8) -> Self {
        let stream = Compress::new(Compression::new(u32::from(level)), true);
        Self { stream, stores_all: level == 0, forgetful: false }
    }

    /// Writes into the spare capacity of `payload`.
    ///
    /// Pages of noise are stored: compressed they would be larger, by one byte in sixteen at level 1, and take
    /// most of the time.
    pub(super) fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Result<(), PacketError> {
        let mut rest = pages;
        while !rest.is_empty() {
            let store = !self.stores_all && is_noise(&rest[..PAGE_BYTES]);
            let alike = |page: &&[u8]| self.stores_all || is_noise(page) == store;
            let count = rest.chunks(PAGE_BYTES).take_while(alike).count();
            let (group, behind) = rest.split_at(count * PAGE_BYTES);
            if store {
                self.store(group, payload)?;
            } else {
                self.compress(group, FlushCompress::Sync, payload)?;
            }
            rest = behind;
        }
        Ok(())
    }

    /// Appends stored blocks, past the compressor. They begin at a byte, because every flush ends at one.
    fn store(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Result<(), PacketError> {
        if !self.forgetful {
            self.compress(&[], FlushCompress::Full, payload)?;
            self.forgetful = true;
        }
        for block in pages.chunks(STORED_BYTES_MAX) {
            if payload.len() + block.len() + 5 >= payload.capacity() {
                return Err(PacketError::TooLong { got: payload.len() + block.len() });
            }
            let length = block.len() as u16;
            payload.push(0); // Not the last block, and stored.
            payload.extend_from_slice(&length.to_le_bytes());
            payload.extend_from_slice(&(!length).to_le_bytes());
            payload.extend_from_slice(block);
        }
        Ok(())
    }

    fn compress(
        &mut self,
        pages: &[u8],
        flush: FlushCompress,
        payload: &mut Vec<u8>,
    ) -> Result<(), PacketError> {
        self.forgetful = false;
        let before = self.stream.total_in();
        self.stream
            .compress_vec(pages, payload, flush)
            .unwrap_or_else(|error| unreachable!("a stream that is never finished takes all: {error}"));
        let taken = (self.stream.total_in() - before) as usize;
        // A flush that has filled the output may have more to say.
        if taken < pages.len() || payload.len() == payload.capacity() {
            return Err(PacketError::TooLong { got: payload.len() });
        }
        Ok(())
    }
}

/// Whether the bytes of a page are spread so evenly that codes cannot shorten them. Repetition is not looked for:
/// what repeats noise is rare, and still sent.
fn is_noise(page: &[u8]) -> bool {
    let mut counts = [0_u32; 256];
    for byte in page.iter().step_by(SAMPLE_STEP) {
        counts[usize::from(*byte)] += 1;
    }
    const { assert!(SAMPLES + SAMPLES * SAMPLES / 256 < NOISE_MAX as usize) };
    counts.iter().map(|count| count * count).sum::<u32>() <= NOISE_MAX
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

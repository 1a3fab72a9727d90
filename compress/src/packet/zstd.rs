//! zstd: one frame, never ended, flushed after every packet.

use super::{PACKET_PAGES_MAX, PacketError, Progress};
use limosa_pages::PAGE_BYTES;
use std::fmt;
use zstd_safe::zstd_sys::ZSTD_EndDirective::ZSTD_e_flush;
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

/// How far back a frame may refer, as a power of two: 32 MiB, the window of level 20, the highest that QEMU has.
/// zstd's own limit of 128 MiB would be a peer's to fill, once for each channel.
pub const WINDOW_LOG_MAX: u32 = 25;

pub(super) struct Encoder {
    context: CCtx<'static>,
}

pub(super) struct Decoder {
    context: DCtx<'static>,
}

impl Encoder {
    pub(super) fn new(level: u8) -> Result<Self, PacketError> {
        let mut context = CCtx::try_create().ok_or(PacketError::Zstd("no memory"))?;
        context.set_parameter(CParameter::CompressionLevel(i32::from(level))).map_err(said)?;
        Ok(Self { context })
    }

    /// Writes into the spare capacity of `payload`, which is empty.
    pub(super) fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Result<(), PacketError> {
        let mut input = InBuffer::around(pages);
        let mut output = OutBuffer::around(payload);
        // One call for all pages: the frame is the same as with a call per page. It is over when zstd has taken
        // all and has nothing left to flush.
        loop {
            let before = (input.pos(), output.pos());
            let left = self.context.compress_stream2(&mut output, &mut input, ZSTD_e_flush).map_err(said)?;
            if left == 0 && input.pos() == pages.len() {
                return Ok(());
            }
            if before == (input.pos(), output.pos()) {
                return Err(PacketError::TooLong { got: output.pos() });
            }
        }
    }
}

impl Decoder {
    pub(super) fn new() -> Result<Self, PacketError> {
        const { assert!(1 << WINDOW_LOG_MAX >= PACKET_PAGES_MAX * PAGE_BYTES) };
        let mut context = DCtx::try_create().ok_or(PacketError::Zstd("no memory"))?;
        context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(said)?;
        Ok(Self { context })
    }

    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Progress, PacketError> {
        let mut input = InBuffer::around(input);
        let mut output = OutBuffer::around(output);
        let hint = self.context.decompress_stream(&mut output, &mut input);
        let (taken, made) = (input.pos(), output.pos());
        match hint {
            Ok(hint) => Ok(Progress { taken, made, ended: hint == 0 }),
            Err(code) => Err(said(code)),
        }
    }
}

fn said(code: usize) -> PacketError {
    PacketError::Zstd(get_error_name(code))
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

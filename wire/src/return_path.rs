//! The return path: what the destination tells the source (wire 2.2, 14.1).

use crate::cursor::{Cursor, Halt, Step, aligned, at_most, expect, step};
use crate::encode;
use crate::error::{Field, WireError};
use crate::extensions::{HELLO_BYTES, Hello, MAX_REFUSAL_BYTES, RefusalReason};
use limosa_pages::{BlockName, ByteCount, PAGE_BYTES};

/// Longest payload of a message of QEMU's, as in QEMU. A received bitmap follows outside of it.
pub const MAX_RETURN_PAYLOAD_BYTES: u16 = 512;

/// Longest received bitmap accepted unless told otherwise: 64 MiB x 8 pages x 4 KiB is a block of 2 TiB.
pub const MAX_RECEIVED_BITMAP_BYTES: u64 = 64 << 20;

const SHUT: u16 = 1;
const PONG: u16 = 2;
const REQUEST_PAGES_NAMED: u16 = 3;
const REQUEST_PAGES: u16 = 4;
const RECV_BITMAP: u16 = 5;
const RESUME_ACK: u16 = 6;
const SWITCHOVER_ACK: u16 = 7;
// Ours.
const HELLO: u16 = 0x4c00;
const REFUSED: u16 = 0x4c01;
const RUNNING: u16 = 0x4c02;
const NEVER_RAN: u16 = 0x4c03;
const LINK_LOST: u16 = 0x4c04;

const BITMAP_END_MARK: u64 = 0x0123_4567_89ab_cdef;
const RESUME_ACK_VALUE: u32 = 1;

/// Bytes of a page request before the block's name.
const REQUEST_BYTES: usize = 12;

/// What the destination tells the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReturnMessage {
    /// The destination is done; 0 is success. The last message.
    Shut(u32),
    /// Answer to a PING, with its value.
    Pong(u32),
    /// Send these pages first.
    RequestPages {
        /// Name of the block; `None` means the block of the request before.
        block: Option<BlockName>,
        /// What is missing.
        pages: RequestedPages,
    },
    /// What the destination holds of a block, for a recovery.
    RecvBitmap(ReceivedPages),
    /// The destination goes on with a postcopy that was lost.
    ResumeAck,
    /// The destination is ready for the switchover.
    SwitchoverAck,
    /// The guest runs on the destination (wire 14.1).
    Running,
    /// The guest never ran on the destination and never will (wire 14.1).
    NeverRan,
    /// A link beside the main one is lost there (wire 14.4).
    LinkLost,
    /// The destination knows extensions; the answer to a PING of the value [`GREETING`](crate::GREETING), before its
    /// PONG.
    Hello(Hello),
    /// Why the destination will say SHUT with another code than 0. Only to a source that has greeted.
    Refused(RefusalReason),
}

/// A stretch of a block that a vCPU waits for, in bytes, both multiples of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestedPages {
    /// Byte offset in the block.
    pub start: u64,
    /// Bytes; positive, and `start + length` does not overflow.
    pub length: u32,
}

/// The received pages of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedPages {
    /// The RAM block.
    pub block: BlockName,
    /// One bit per 4 KiB page, least significant bit of byte 0 first; set means received. A multiple of
    /// 8 bytes long.
    pub bitmap: Vec<u8>,
}

/// Decodes the return path.
#[derive(Clone, Debug)]
pub struct ReturnDecoder {
    bitmap_limit: u64,
}

impl Default for ReturnDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl ReturnDecoder {
    /// With the limit [`MAX_RECEIVED_BITMAP_BYTES`].
    pub fn new() -> Self {
        Self { bitmap_limit: MAX_RECEIVED_BITMAP_BYTES }
    }

    /// Accepts received bitmaps of blocks up to `length` bytes, and no longer ones: a source knows its own RAM.
    pub fn for_blocks_up_to(length: ByteCount) -> Self {
        Self { bitmap_limit: received_bitmap_bytes(length).0 }
    }

    /// The next message at the start of `input`.
    ///
    /// # Errors
    /// Bytes that cannot be a message; the return path cannot be read on.
    pub fn next(&mut self, input: &[u8]) -> Result<Step<ReturnMessage>, WireError> {
        step(input, |cursor| self.read(cursor))
    }

    fn read(&self, cursor: &mut Cursor<'_>) -> Result<ReturnMessage, Halt> {
        let at = cursor.at();
        let kind = cursor.u16()?;
        let length_at = cursor.at();
        let length = cursor.u16()?;
        let limit = match kind {
            SHUT..=SWITCHOVER_ACK | HELLO | RUNNING | NEVER_RAN | LINK_LOST => MAX_RETURN_PAYLOAD_BYTES,
            REFUSED => MAX_REFUSAL_BYTES,
            _ => return Err(WireError::Unknown { at, field: Field::ReturnType, got: u64::from(kind) }.into()),
        };
        at_most(length_at, Field::ReturnLength, u64::from(length), u64::from(limit))?;
        let fixed = |expected: usize| {
            expect(length_at, Field::ReturnLength, expected as u64, u64::from(length)).map_err(Halt::from)
        };
        match kind {
            SHUT => fixed(4).and_then(|()| cursor.u32()).map(ReturnMessage::Shut),
            PONG => fixed(4).and_then(|()| cursor.u32()).map(ReturnMessage::Pong),
            REQUEST_PAGES => {
                fixed(REQUEST_BYTES)?;
                Ok(ReturnMessage::RequestPages { block: None, pages: RequestedPages::read(cursor)? })
            }
            REQUEST_PAGES_NAMED => {
                let pages = RequestedPages::read(cursor)?;
                let block = cursor.block_name()?;
                fixed(REQUEST_BYTES + 1 + block.as_str().len())?;
                Ok(ReturnMessage::RequestPages { block: Some(block), pages })
            }
            RECV_BITMAP => {
                let block = cursor.block_name()?;
                fixed(1 + block.as_str().len())?;
                let bitmap = self.read_bitmap(cursor)?;
                Ok(ReturnMessage::RecvBitmap(ReceivedPages { block, bitmap }))
            }
            RESUME_ACK => {
                fixed(4)?;
                cursor.expect_u32(Field::ResumeAckValue, RESUME_ACK_VALUE)?;
                Ok(ReturnMessage::ResumeAck)
            }
            RUNNING => fixed(0).map(|()| ReturnMessage::Running),
            NEVER_RAN => fixed(0).map(|()| ReturnMessage::NeverRan),
            LINK_LOST => fixed(0).map(|()| ReturnMessage::LinkLost),
            HELLO => fixed(HELLO_BYTES).and_then(|()| Hello::read(cursor)).map(ReturnMessage::Hello),
            REFUSED => RefusalReason::read(length, cursor).map(ReturnMessage::Refused),
            _ => fixed(0).map(|()| ReturnMessage::SwitchoverAck),
        }
    }

    /// The part of a received bitmap that the message's length does not cover.
    fn read_bitmap(&self, cursor: &mut Cursor<'_>) -> Result<Vec<u8>, Halt> {
        let at = cursor.at();
        let size = cursor.u64()?;
        at_most(at, Field::BitmapLength, size, self.bitmap_limit)?;
        aligned(at, Field::BitmapLength, size, 8)?;
        let bitmap = cursor.take(size as usize)?;
        let at = cursor.at();
        expect(at, Field::BitmapEndMark, BITMAP_END_MARK, cursor.u64()?)?;
        Ok(bitmap.to_vec())
    }
}

impl ReturnMessage {
    /// Appends the message.
    ///
    /// # Panics
    /// If a received bitmap is no multiple of 8 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Shut(value) => word(SHUT, *value, out),
            Self::Pong(value) => word(PONG, *value, out),
            Self::RequestPages { block: None, pages } => {
                head(REQUEST_PAGES, REQUEST_BYTES, out);
                pages.encode(out);
            }
            Self::RequestPages { block: Some(block), pages } => {
                head(REQUEST_PAGES_NAMED, REQUEST_BYTES + 1 + block.as_str().len(), out);
                pages.encode(out);
                encode::str8(block.as_str(), out);
            }
            Self::RecvBitmap(ReceivedPages { block, bitmap }) => {
                assert!(bitmap.len().is_multiple_of(8), "a received bitmap of {} bytes", bitmap.len());
                head(RECV_BITMAP, 1 + block.as_str().len(), out);
                encode::str8(block.as_str(), out);
                encode::u64(bitmap.len() as u64, out);
                out.extend_from_slice(bitmap);
                encode::u64(BITMAP_END_MARK, out);
            }
            Self::ResumeAck => word(RESUME_ACK, RESUME_ACK_VALUE, out),
            Self::SwitchoverAck => head(SWITCHOVER_ACK, 0, out),
            Self::Running => head(RUNNING, 0, out),
            Self::NeverRan => head(NEVER_RAN, 0, out),
            Self::LinkLost => head(LINK_LOST, 0, out),
            Self::Hello(hello) => {
                head(HELLO, HELLO_BYTES, out);
                hello.encode(out);
            }
            Self::Refused(reason) => {
                head(REFUSED, reason.as_str().len(), out);
                out.extend_from_slice(reason.as_str().as_bytes());
            }
        }
    }
}

impl RequestedPages {
    fn encode(&self, out: &mut Vec<u8>) {
        encode::u64(self.start, out);
        encode::u32(self.length, out);
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Halt> {
        let at = cursor.at();
        let pages = Self { start: cursor.u64()?, length: cursor.u32()? };
        if pages.length == 0 {
            return Err(WireError::Empty { at: at + 8, field: Field::RequestedPages }.into());
        }
        aligned(at, Field::RequestedPages, pages.start, PAGE_BYTES as u64)?;
        aligned(at + 8, Field::RequestedPages, u64::from(pages.length), PAGE_BYTES as u64)?;
        at_most(at, Field::RequestedPages, pages.start, u64::MAX - u64::from(pages.length))?;
        Ok(pages)
    }
}

/// Bytes of the received bitmap of a block of `length` bytes: one bit per page, rounded up to 8 bytes.
pub fn received_bitmap_bytes(length: ByteCount) -> ByteCount {
    ByteCount(length.pages_rounded_up().0.div_ceil(8).next_multiple_of(8))
}

fn head(kind: u16, length: usize, out: &mut Vec<u8>) {
    encode::u16(kind, out);
    encode::u16(length as u16, out);
}

fn word(kind: u16, value: u32, out: &mut Vec<u8>) {
    head(kind, 4, out);
    encode::u32(value, out);
}

//! Commands: what the source tells the destination between sections (wire 2.1, 14.1).

use crate::cursor::{Cursor, Halt, at_most, expect};
use crate::encode;
use crate::error::{Field, WireError};
use crate::extensions::{AGREEMENT_BYTES, Agreement};
use crate::stream;
use limosa_pages::{BlockName, PAGE_BYTES};

/// Largest package accepted. The blob is held in memory before it is loaded: the device state of a small
/// guest has 4 to 40 KiB, a vCPU adds up to 12 KiB, and 4096 vCPUs x 16 KiB = 64 MiB; four times that.
pub const MAX_PACKAGE_BYTES: u32 = 256 << 20;

/// Most ranges in one discard: the payload length has 16 bits, (65535 - 3 - 1) / 16 = 4095.
pub const MAX_DISCARD_RANGES: usize = 4095;

const OPEN_RETURN_PATH: u16 = 1;
const PING: u16 = 2;
const POSTCOPY_ADVISE: u16 = 3;
const POSTCOPY_LISTEN: u16 = 4;
const POSTCOPY_RUN: u16 = 5;
const POSTCOPY_RAM_DISCARD: u16 = 6;
const PACKAGED: u16 = 7;
const ENABLE_COLO: u16 = 8;
const POSTCOPY_RESUME: u16 = 9;
const RECV_BITMAP: u16 = 10;
const SWITCHOVER_START: u16 = 11;
/// Ours: "L" and a zero, far from any number that QEMU will give out.
const FEATURES: u16 = 0x4c00;
const REPLACE_LINKS: u16 = 0x4c01;

const DISCARD_VERSION: u8 = 0;
/// Version byte, name length byte and terminator byte.
const DISCARD_FIXED_BYTES: usize = 3;
const DISCARD_RANGE_BYTES: usize = 16;

/// What the source tells the destination between sections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The reverse direction of this channel is the return path from now on.
    OpenReturnPath,
    /// Answer with a PONG of the same value.
    Ping(u32),
    /// Postcopy may follow; `None` if only block dirty bitmaps will take part in it.
    PostcopyAdvise(Option<PostcopyAdvice>),
    /// Watch for faults, and read the main channel beside the device state.
    PostcopyListen,
    /// The guest runs on the destination from now on.
    PostcopyRun,
    /// These ranges are stale: drop them, they will come again.
    PostcopyRamDiscard {
        /// The RAM block.
        block: BlockName,
        /// What to drop; 1 to [`MAX_DISCARD_RANGES`].
        ranges: Vec<DiscardRange>,
    },
    /// A nested stream of `length` bytes follows, to be read whole before it is loaded. The caller takes these
    /// bytes and decodes them with
    /// [`StreamDecoder::without_header`](crate::StreamDecoder::without_header).
    Packaged {
        /// Bytes of the blob; at most [`MAX_PACKAGE_BYTES`].
        length: u32,
    },
    /// Continuous checkpointing follows.
    EnableColo,
    /// A lost postcopy goes on over this channel.
    PostcopyResume,
    /// Answer with the received pages of this block.
    RecvBitmap {
        /// The RAM block.
        block: BlockName,
    },
    /// The guest has stopped; only final state follows.
    SwitchoverStart,
    /// These extensions are in use. Only to a destination that said HELLO (wire 14.1).
    Features(Agreement),
    /// The links beside this one are given up: say what has come, and take others in their place (wire 14.4).
    ReplaceLinks,
}

/// Facts about the source's pages that must hold on the destination too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PostcopyAdvice {
    /// All host page sizes in use, ORed.
    pub page_size_summary: u64,
    /// Size of the target's pages.
    pub target_page_size: u64,
}

/// A stretch of one RAM block, in bytes, both multiples of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardRange {
    /// Byte offset in the block.
    pub start: u64,
    /// Bytes; `start + length` does not overflow.
    pub length: u64,
}

impl Command {
    /// The command's name in the protocol (wire 2.1).
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::OpenReturnPath => "OPEN_RETURN_PATH",
            Self::Ping(_) => "PING",
            Self::PostcopyAdvise(_) => "POSTCOPY_ADVISE",
            Self::PostcopyListen => "POSTCOPY_LISTEN",
            Self::PostcopyRun => "POSTCOPY_RUN",
            Self::PostcopyRamDiscard { .. } => "POSTCOPY_RAM_DISCARD",
            Self::Packaged { .. } => "PACKAGED",
            Self::EnableColo => "ENABLE_COLO",
            Self::PostcopyResume => "POSTCOPY_RESUME",
            Self::RecvBitmap { .. } => "RECV_BITMAP",
            Self::SwitchoverStart => "SWITCHOVER_START",
            Self::Features(_) => "FEATURES",
            Self::ReplaceLinks => "REPLACE_LINKS",
        }
    }

    /// Appends the command, its type byte included. The blob of [`Command::Packaged`] is the caller's.
    ///
    /// # Panics
    /// If there are no discard ranges or more than the payload length can tell, or a package is over its limit.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::OpenReturnPath => head(OPEN_RETURN_PATH, 0, out),
            Self::Ping(value) => {
                head(PING, 4, out);
                encode::u32(*value, out);
            }
            Self::PostcopyAdvise(None) => head(POSTCOPY_ADVISE, 0, out),
            Self::PostcopyAdvise(Some(advice)) => {
                head(POSTCOPY_ADVISE, 16, out);
                encode::u64(advice.page_size_summary, out);
                encode::u64(advice.target_page_size, out);
            }
            Self::PostcopyListen => head(POSTCOPY_LISTEN, 0, out),
            Self::PostcopyRun => head(POSTCOPY_RUN, 0, out),
            Self::PostcopyRamDiscard { block, ranges } => encode_discard(block, ranges, out),
            Self::Packaged { length } => {
                assert!(*length <= MAX_PACKAGE_BYTES, "package of {length} bytes");
                head(PACKAGED, 4, out);
                encode::u32(*length, out);
            }
            Self::EnableColo => head(ENABLE_COLO, 0, out),
            Self::PostcopyResume => head(POSTCOPY_RESUME, 0, out),
            Self::RecvBitmap { block } => {
                head(RECV_BITMAP, 1 + block.as_str().len(), out);
                encode::str8(block.as_str(), out);
            }
            Self::SwitchoverStart => head(SWITCHOVER_START, 0, out),
            Self::Features(agreement) => {
                head(FEATURES, AGREEMENT_BYTES, out);
                agreement.encode(out);
            }
            Self::ReplaceLinks => head(REPLACE_LINKS, 0, out),
        }
    }

    /// Reads what follows the type byte.
    pub(crate) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Halt> {
        let at = cursor.at();
        let number = cursor.u16()?;
        let length_at = cursor.at();
        let length = cursor.u16()?;
        let fixed =
            |expected: u16| expect(length_at, Field::CommandLength, u64::from(expected), u64::from(length));
        match number {
            OPEN_RETURN_PATH => fixed(0).map(|()| Self::OpenReturnPath),
            PING => {
                fixed(4)?;
                return cursor.u32().map(Self::Ping);
            }
            POSTCOPY_ADVISE if length == 0 => Ok(Self::PostcopyAdvise(None)),
            POSTCOPY_ADVISE => {
                fixed(16)?;
                let (page_size_summary, target_page_size) = (cursor.u64()?, cursor.u64()?);
                Ok(Self::PostcopyAdvise(Some(PostcopyAdvice { page_size_summary, target_page_size })))
            }
            POSTCOPY_LISTEN => fixed(0).map(|()| Self::PostcopyListen),
            POSTCOPY_RUN => fixed(0).map(|()| Self::PostcopyRun),
            POSTCOPY_RAM_DISCARD => return read_discard(length_at, usize::from(length), cursor),
            PACKAGED => {
                fixed(4)?;
                let at = cursor.at();
                let length = cursor.u32()?;
                at_most(at, Field::PackageLength, u64::from(length), u64::from(MAX_PACKAGE_BYTES))?;
                Ok(Self::Packaged { length })
            }
            ENABLE_COLO => fixed(0).map(|()| Self::EnableColo),
            POSTCOPY_RESUME => fixed(0).map(|()| Self::PostcopyResume),
            RECV_BITMAP => {
                let block = cursor.block_name()?;
                fixed(1 + block.as_str().len() as u16).map(|()| Self::RecvBitmap { block })
            }
            SWITCHOVER_START => fixed(0).map(|()| Self::SwitchoverStart),
            FEATURES => {
                fixed(AGREEMENT_BYTES as u16)?;
                return Agreement::read(cursor).map(Self::Features);
            }
            REPLACE_LINKS => fixed(0).map(|()| Self::ReplaceLinks),
            _ => Err(WireError::Unknown { at, field: Field::CommandNumber, got: u64::from(number) }),
        }
        .map_err(Halt::from)
    }
}

fn head(number: u16, length: usize, out: &mut Vec<u8>) {
    let length = u16::try_from(length).expect("a command's payload length has 16 bits");
    out.push(stream::COMMAND);
    encode::u16(number, out);
    encode::u16(length, out);
}

fn encode_discard(block: &BlockName, ranges: &[DiscardRange], out: &mut Vec<u8>) {
    assert!(!ranges.is_empty(), "a discard of nothing");
    let name = block.as_str();
    head(POSTCOPY_RAM_DISCARD, DISCARD_FIXED_BYTES + name.len() + ranges.len() * DISCARD_RANGE_BYTES, out);
    out.push(DISCARD_VERSION);
    encode::str8(name, out);
    out.push(0);
    for range in ranges {
        encode::u64(range.start, out);
        encode::u64(range.length, out);
    }
}

fn read_discard(length_at: usize, length: usize, cursor: &mut Cursor<'_>) -> Result<Command, Halt> {
    cursor.expect_u8(Field::DiscardVersion, DISCARD_VERSION)?;
    let block = cursor.block_name()?;
    cursor.expect_u8(Field::DiscardTerminator, 0)?;
    let fixed = DISCARD_FIXED_BYTES + block.as_str().len();
    let count = length.saturating_sub(fixed) / DISCARD_RANGE_BYTES;
    let whole = fixed + count.max(1) * DISCARD_RANGE_BYTES;
    expect(length_at, Field::CommandLength, whole as u64, length as u64)?;
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let at = cursor.at();
        let range = DiscardRange { start: cursor.u64()?, length: cursor.u64()? };
        for value in [range.start, range.length] {
            crate::cursor::aligned(at, Field::DiscardRange, value, PAGE_BYTES as u64)?;
        }
        at_most(at, Field::DiscardRange, range.length, u64::MAX - range.start)?;
        ranges.push(range);
    }
    Ok(Command::PostcopyRamDiscard { block, ranges })
}

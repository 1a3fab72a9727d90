//! The section `dirty-bitmap`: dirty bitmaps of block devices, chunk by chunk (wire 3.6).

use crate::cursor::{Cursor, Halt, Step, at_most, step};
use crate::encode;
use crate::error::{Field, WireError};

/// idstr of the section.
pub const DIRTY_BITMAP_IDSTR: &str = "dirty-bitmap";

/// The only version of the section's format in use.
pub const DIRTY_BITMAP_VERSION: u32 = 1;

/// Most bitmap bytes in a chunk: a source sends 1 KiB, a destination refuses more than 10.
pub const MAX_DIRTY_BITMAP_BYTES: u64 = 10 << 10;

const END_OF_SECTION: u8 = 0x01;
const ZEROES: u8 = 0x02;
const BITMAP_NAME: u8 = 0x04;
const NODE_NAME: u8 = 0x08;
const START: u8 = 0x10;
const COMPLETE: u8 = 0x20;
const BITS: u8 = 0x40;

const START_ENABLED: u8 = 1;
const START_PERSISTENT: u8 = 2;
/// A flag that older sources set and nobody looks at.
const START_IGNORED: u8 = 4;

/// One chunk of the section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyBitmapChunk {
    /// Alias of the block node, when it changed.
    pub node: Option<String>,
    /// Alias of the bitmap, when it changed.
    pub bitmap: Option<String>,
    /// What the chunk says about that bitmap.
    pub kind: DirtyBitmapItem,
}

/// What a chunk says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirtyBitmapItem {
    /// A bitmap begins.
    Start {
        /// Bytes of disk per bit.
        granularity: u32,
        /// Whether it records writes.
        enabled: bool,
        /// Whether it is stored in the image.
        persistent: bool,
    },
    /// Bits of a stretch of the disk.
    Bits {
        /// First sector of 512 bytes.
        first_sector: u64,
        /// Sectors.
        sectors: u32,
        /// The serialised bits; `None` if all are clear. At most [`MAX_DIRTY_BITMAP_BYTES`].
        data: Option<Vec<u8>>,
    },
    /// The bitmap is complete.
    Complete,
    /// The section's body ends.
    EndOfSection,
}

impl DirtyBitmapChunk {
    /// Appends the chunk.
    ///
    /// # Panics
    /// If a name has not 1 to 255 bytes or there are more than [`MAX_DIRTY_BITMAP_BYTES`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        let names = if self.node.is_some() { NODE_NAME } else { 0 }
            | if self.bitmap.is_some() { BITMAP_NAME } else { 0 };
        out.push(names | self.kind.flags());
        for name in self.node.iter().chain(&self.bitmap) {
            encode::str8(name, out);
        }
        match &self.kind {
            DirtyBitmapItem::Start { granularity, enabled, persistent } => {
                encode::u32(*granularity, out);
                out.push(u8::from(*enabled) * START_ENABLED + u8::from(*persistent) * START_PERSISTENT);
            }
            DirtyBitmapItem::Bits { first_sector, sectors, data } => {
                encode::u64(*first_sector, out);
                encode::u32(*sectors, out);
                if let Some(data) = data {
                    assert!(data.len() as u64 <= MAX_DIRTY_BITMAP_BYTES, "{} bitmap bytes", data.len());
                    encode::u64(data.len() as u64, out);
                    out.extend_from_slice(data);
                }
            }
            DirtyBitmapItem::Complete | DirtyBitmapItem::EndOfSection => {}
        }
    }

    /// The chunk at the start of `input`.
    ///
    /// # Errors
    /// Flags that name no chunk or several, names and data over their limits.
    pub fn decode(input: &[u8]) -> Result<Step<Self>, WireError> {
        step(input, Self::read)
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Halt> {
        let at = cursor.at();
        let flags = cursor.u8()?;
        let mut name = |flag, field| {
            if flags & flag == 0 { Ok(None) } else { cursor.str8(field).map(|name| Some(name.to_owned())) }
        };
        let node = name(NODE_NAME, Field::DirtyBitmapNodeName)?;
        let bitmap = name(BITMAP_NAME, Field::DirtyBitmapName)?;
        let kind = match flags & !(NODE_NAME | BITMAP_NAME) {
            START => read_start(cursor)?,
            BITS => read_bits(cursor, true)?,
            kind if kind == BITS | ZEROES => read_bits(cursor, false)?,
            COMPLETE => DirtyBitmapItem::Complete,
            END_OF_SECTION => DirtyBitmapItem::EndOfSection,
            _ => {
                let got = u64::from(flags);
                return Err(WireError::Unknown { at, field: Field::DirtyBitmapFlags, got }.into());
            }
        };
        Ok(Self { node, bitmap, kind })
    }
}

impl DirtyBitmapItem {
    fn flags(&self) -> u8 {
        match self {
            Self::Start { .. } => START,
            Self::Bits { data: Some(_), .. } => BITS,
            Self::Bits { data: None, .. } => BITS | ZEROES,
            Self::Complete => COMPLETE,
            Self::EndOfSection => END_OF_SECTION,
        }
    }
}

fn read_start(cursor: &mut Cursor<'_>) -> Result<DirtyBitmapItem, Halt> {
    let granularity = cursor.u32()?;
    let at = cursor.at();
    let flags = cursor.u8()?;
    if flags & !(START_ENABLED | START_PERSISTENT | START_IGNORED) != 0 {
        let got = u64::from(flags);
        return Err(WireError::Unknown { at, field: Field::DirtyBitmapStartFlags, got }.into());
    }
    let (enabled, persistent) = (flags & START_ENABLED != 0, flags & START_PERSISTENT != 0);
    Ok(DirtyBitmapItem::Start { granularity, enabled, persistent })
}

fn read_bits(cursor: &mut Cursor<'_>, with_data: bool) -> Result<DirtyBitmapItem, Halt> {
    let (first_sector, sectors) = (cursor.u64()?, cursor.u32()?);
    let mut data = None;
    if with_data {
        let at = cursor.at();
        let length = cursor.u64()?;
        at_most(at, Field::DirtyBitmapDataLength, length, MAX_DIRTY_BITMAP_BYTES)?;
        data = Some(cursor.take(length as usize)?.to_vec());
    }
    Ok(DirtyBitmapItem::Bits { first_sector, sectors, data })
}

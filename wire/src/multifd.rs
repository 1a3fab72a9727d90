//! Multifd channels: additional connections that carry pages in packets (wire 4).
//!
//! A channel opens with an [`InitPacket`]; after it come packets, each a header of fixed size and a payload of
//! the announced length. [`decode`] reads the header; the payload is the caller's.

mod device_state;
mod init;
mod pages;
mod per_packet;

pub use device_state::{DeviceStateHeader, MAX_DEVICE_STATE_BYTES};
pub use init::InitPacket;
pub use pages::{Compression, MAX_COMPRESSED_BYTES, PACKET_PAGES, PagesHeader, PagesPacket};
pub use per_packet::{
    BlockMethod, MAX_DELTA_BYTES, MIN_DELTA_BYTES, PageMap, PerPacketHead, max_per_packet_bytes,
};

use crate::cursor::{Halt, Step, step};
use crate::error::{Field, WireError};

/// First word of every packet.
pub const MULTIFD_MAGIC: u32 = 0x1122_3344;

/// The only version in use.
pub const MULTIFD_VERSION: u32 = 1;

// Flags of a packet.
const SYNC: u32 = 0x01;
const METHOD: u32 = 0x3e;
const DEVICE_STATE: u32 = 0x40;

/// A packet's header; its payload follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Pages of one block, a synchronisation point, or both.
    Pages(PagesHeader<'a>),
    /// State of a device that the main channel does not wait for.
    DeviceState(DeviceStateHeader<'a>),
}

impl Packet<'_> {
    /// Bytes that follow the header.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::Pages(header) => header.payload_bytes(),
            Self::DeviceState(header) => header.payload_bytes as usize,
        }
    }
}

/// The packet header at the start of `input`. The largest [`Step::Need`] is [`PagesHeader::BYTES`].
///
/// The result borrows from `input`: nothing is copied or allocated.
///
/// # Errors
/// Bytes that cannot be a packet: the channel cannot be read on.
pub fn decode(input: &[u8]) -> Result<Step<Packet<'_>>, WireError> {
    step(input, |cursor| {
        cursor.expect_u32(Field::MultifdMagic, MULTIFD_MAGIC)?;
        cursor.expect_u32(Field::MultifdVersion, MULTIFD_VERSION)?;
        let at = cursor.at();
        let flags = cursor.u32()?;
        if flags == DEVICE_STATE {
            return DeviceStateHeader::read(cursor).map(Packet::DeviceState);
        }
        if flags & !(SYNC | METHOD) != 0 {
            return Err(Halt::Wrong(WireError::Unknown {
                at,
                field: Field::MultifdFlags,
                got: u64::from(flags),
            }));
        }
        PagesHeader::read(at, flags, cursor).map(Packet::Pages)
    })
}

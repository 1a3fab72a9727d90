//! The first bytes of a channel.

use crate::cursor::{Step, step};
use crate::encode;
use crate::error::{Field, WireError};
use crate::multifd::{MULTIFD_MAGIC, MULTIFD_VERSION};

const RESERVED_BYTES: usize = 7 + 32;

/// Who a channel belongs to: the first packet on it (wire 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitPacket {
    /// UUID of the virtual machine; zeros if it has none. Must be the same on both sides.
    pub uuid: [u8; 16],
    /// Channel number from 0; whether it is in range and free is for the owner of the channels to check.
    pub channel: u8,
}

impl InitPacket {
    /// Bytes on the wire.
    pub const BYTES: usize = 64;

    /// Appends the packet.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode::u32(MULTIFD_MAGIC, out);
        encode::u32(MULTIFD_VERSION, out);
        out.extend_from_slice(&self.uuid);
        out.push(self.channel);
        out.extend_from_slice(&[0; RESERVED_BYTES]);
    }

    /// The packet at the start of `input`. The reserved bytes are not looked at, as in QEMU.
    ///
    /// # Errors
    /// Another magic or version.
    pub fn decode(input: &[u8]) -> Result<Step<Self>, WireError> {
        step(input, |cursor| {
            cursor.expect_u32(Field::MultifdMagic, MULTIFD_MAGIC)?;
            cursor.expect_u32(Field::MultifdVersion, MULTIFD_VERSION)?;
            let packet = Self { uuid: cursor.uuid()?, channel: cursor.u8()? };
            cursor.take(RESERVED_BYTES)?;
            Ok(packet)
        })
    }
}

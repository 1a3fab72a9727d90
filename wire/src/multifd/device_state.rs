//! Packets that carry device state beside the main channel.

use crate::cursor::{Cursor, Halt, at_most};
use crate::encode;
use crate::error::{Field, WireError};
use crate::multifd::{DEVICE_STATE, MULTIFD_MAGIC, MULTIFD_VERSION};

/// Longest payload accepted. QEMU's VFIO sends buffers of 1 MiB and a configuration of a few KiB.
pub const MAX_DEVICE_STATE_BYTES: u32 = 64 << 20;

const NAME_BYTES: usize = 256;

/// Header of a device-state packet (wire 4.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceStateHeader<'a> {
    /// idstr of the device's section; 1 to 255 bytes.
    pub idstr: &'a str,
    /// Which of several devices with this name.
    pub instance_id: u32,
    /// Bytes that follow the header; 1 to [`MAX_DEVICE_STATE_BYTES`].
    pub payload_bytes: u32,
}

impl<'a> DeviceStateHeader<'a> {
    /// Bytes on the wire.
    pub const BYTES: usize = 276;

    /// Appends the header; the payload follows.
    ///
    /// # Panics
    /// If the idstr has not 1 to 255 bytes or contains NUL, or the payload is empty or above its limit.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(
            (1..=MAX_DEVICE_STATE_BYTES).contains(&self.payload_bytes),
            "payload of {}",
            self.payload_bytes
        );
        encode::u32(MULTIFD_MAGIC, out);
        encode::u32(MULTIFD_VERSION, out);
        encode::u32(DEVICE_STATE, out);
        encode_padded_name(self.idstr, out);
        encode::u32(self.instance_id, out);
        encode::u32(self.payload_bytes, out);
    }

    /// Reads what follows the flags.
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, Halt> {
        let idstr = padded_name(Field::DeviceName, cursor)?;
        let instance_id = cursor.u32()?;
        let at = cursor.at();
        let payload_bytes = cursor.u32()?;
        at_most(at, Field::PayloadLength, u64::from(payload_bytes), u64::from(MAX_DEVICE_STATE_BYTES))?;
        if payload_bytes == 0 {
            return Err(WireError::Empty { at, field: Field::PayloadLength }.into());
        }
        Ok(Self { idstr, instance_id, payload_bytes })
    }
}

/// Appends `name` and zeros up to 256 bytes.
pub(super) fn encode_padded_name(name: &str, out: &mut Vec<u8>) {
    assert!((1..NAME_BYTES).contains(&name.len()), "a name of {} bytes", name.len());
    assert!(!name.contains('\0'), "a name with NUL inside");
    let end = out.len() + NAME_BYTES;
    out.extend_from_slice(name.as_bytes());
    out.resize(end, 0);
}

/// A name of 1 to 255 bytes in a field of 256, closed by NUL.
pub(super) fn padded_name<'a>(field: Field, cursor: &mut Cursor<'a>) -> Result<&'a str, Halt> {
    let at = cursor.at();
    let bytes = cursor.take(NAME_BYTES)?;
    let limit = NAME_BYTES as u64 - 1;
    let end = bytes.iter().position(|&byte| byte == 0);
    let end = end.ok_or(WireError::TooLarge { at, field, got: NAME_BYTES as u64, limit })?;
    if end == 0 {
        return Err(WireError::Empty { at, field }.into());
    }
    std::str::from_utf8(&bytes[..end]).map_err(|_| WireError::NotText { at, field }.into())
}

//! The configuration block: what must be equal on both sides before anything else is said (wire 1.3).

use crate::cursor::{Cursor, Halt, at_most, expect};
use crate::encode;
use crate::error::{Field, WireError};
use crate::stream::{CONFIGURATION, SUBSECTION};

/// Longest machine name accepted. QEMU's longest is under 40 bytes; the length field itself has 32 bits.
pub const MAX_MACHINE_NAME_BYTES: usize = 255;

/// Most capabilities in the subsection. QEMU 10 has 22 in all and lists two of them here.
pub const MAX_CAPABILITIES: usize = 64;

/// Largest page-bits value accepted: 1 GiB pages.
pub const MAX_TARGET_PAGE_BITS: u32 = 30;

const SUBSECTION_VERSION: u32 = 1;
const TARGET_PAGE_BITS: &str = "configuration/target-page-bits";
const CAPABILITIES: &str = "configuration/capabilities";
const UUID: &str = "configuration/uuid";

/// What the source says about itself, directly after the stream's header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Machine class name, for example `pc-q35-10.0`. QEMU accepts any prefix of its own, also the empty one.
    pub machine: String,
    /// log2 of the target's page size; absent on x86-64, whose page size is fixed.
    pub target_page_bits: Option<u32>,
    /// Names of the capabilities in force that both sides must share; `None` when the subsection is absent,
    /// which means the same as an empty list.
    pub capabilities: Option<Vec<String>>,
    /// UUID of the virtual machine, when the source wants it compared.
    pub uuid: Option<[u8; 16]>,
}

impl Configuration {
    /// Appends the block, its type byte included.
    ///
    /// # Panics
    /// If a text or list is longer than its limit in this module.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.machine.len() <= MAX_MACHINE_NAME_BYTES, "machine name of {} bytes", self.machine.len());
        out.push(CONFIGURATION);
        encode::u32(self.machine.len() as u32, out);
        out.extend_from_slice(self.machine.as_bytes());
        if let Some(bits) = self.target_page_bits {
            assert!(bits <= MAX_TARGET_PAGE_BITS, "target page bits {bits}");
            subsection(TARGET_PAGE_BITS, out);
            encode::u32(bits, out);
        }
        if let Some(names) = &self.capabilities {
            assert!(names.len() <= MAX_CAPABILITIES, "{} capabilities", names.len());
            subsection(CAPABILITIES, out);
            encode::u32(names.len() as u32, out);
            for name in names {
                encode::str8(name, out);
            }
        }
        if let Some(uuid) = &self.uuid {
            subsection(UUID, out);
            out.extend_from_slice(uuid);
        }
    }

    /// Whether the source names `capability` in its configuration.
    pub fn has_capability(&self, capability: &str) -> bool {
        self.capabilities.iter().flatten().any(|name| name == capability)
    }

    /// Reads what follows the type byte. Needs one byte more than the block has: only the next byte tells
    /// whether another subsection follows.
    pub(crate) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Halt> {
        let at = cursor.at();
        let length = cursor.u32()?;
        at_most(at, Field::MachineName, u64::from(length), MAX_MACHINE_NAME_BYTES as u64)?;
        let at = cursor.at();
        let machine = std::str::from_utf8(cursor.take(length as usize)?)
            .map_err(|_| WireError::NotText { at, field: Field::MachineName })?;
        let mut configuration = Self { machine: machine.to_owned(), ..Self::default() };
        // Each subsection may come once, and the order is fixed.
        let mut order = 0;
        while cursor.peek()? == SUBSECTION {
            order = configuration.read_subsection(cursor, order)?;
        }
        Ok(configuration)
    }

    fn read_subsection(&mut self, cursor: &mut Cursor<'_>, order: u8) -> Result<u8, Halt> {
        let at = cursor.at();
        cursor.u8()?;
        let name_at = cursor.at();
        let name = cursor.str8(Field::SubsectionName)?;
        let position = match name {
            TARGET_PAGE_BITS => 1,
            CAPABILITIES => 2,
            UUID => 3,
            _ => {
                return Err(WireError::UnknownName { at: name_at, field: Field::SubsectionName }.into());
            }
        };
        if position <= order {
            let got = u64::from(SUBSECTION);
            return Err(WireError::Misplaced { at, field: Field::Subsection, got }.into());
        }
        let at = cursor.at();
        expect(at, Field::SubsectionVersion, u64::from(SUBSECTION_VERSION), u64::from(cursor.u32()?))?;
        match position {
            1 => {
                let at = cursor.at();
                let bits = cursor.u32()?;
                at_most(at, Field::TargetPageBits, u64::from(bits), u64::from(MAX_TARGET_PAGE_BITS))?;
                self.target_page_bits = Some(bits);
            }
            2 => self.capabilities = Some(read_capabilities(cursor)?),
            _ => self.uuid = Some(cursor.uuid()?),
        }
        Ok(position)
    }
}

fn read_capabilities(cursor: &mut Cursor<'_>) -> Result<Vec<String>, Halt> {
    let at = cursor.at();
    let count = cursor.u32()?;
    at_most(at, Field::CapabilityCount, u64::from(count), MAX_CAPABILITIES as u64)?;
    (0..count).map(|_| cursor.str8(Field::CapabilityName).map(str::to_owned)).collect()
}

fn subsection(name: &str, out: &mut Vec<u8>) {
    out.push(SUBSECTION);
    encode::str8(name, out);
    encode::u32(SUBSECTION_VERSION, out);
}

//! The JSON text behind a precopy stream, reduced to the sizes of the device sections.
//!
//! It is read without building a tree: a hostile text cannot make more of itself in memory than the names it
//! lists, and nesting ends at the JSON parser's own depth of 128.

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use thiserror::Error;

/// Most devices in a description. A large guest has 4096 vCPUs with four sections each.
pub const MAX_DESCRIBED_DEVICES: usize = 65_536;

/// Longest name in a description: an idstr has at most 255 bytes, and so has a subsection's name.
pub const MAX_DESCRIPTION_NAME_BYTES: usize = 255;

/// Deepest nesting of subsections. QEMU's own devices stay below 5.
pub const MAX_SUBSECTION_DEPTH: usize = 16;

/// Bytes that a subsection has before its fields, without its name: mark, name length, version.
const SUBSECTION_HEAD_BYTES: u64 = 1 + 1 + 4;

/// The vmdescription: which device sections a stream has, and how long each body is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmDescription {
    /// Size of the target's pages in bytes, if told.
    pub page_size: Option<u64>,
    /// One entry per FULL section, in stream order. Sections with live state, such as `ram`, have none.
    pub devices: Vec<DescribedDevice>,
}

/// One device section, as the vmdescription tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DescribedDevice {
    /// idstr of the section.
    pub idstr: String,
    /// Which of several devices with this name.
    pub instance_id: u32,
    /// Name of the format, which differs from the idstr for devices on a bus; absent for devices whose
    /// state is an opaque buffer.
    pub vmsd_name: Option<String>,
    /// Version of the format, likewise.
    pub version: Option<u32>,
    /// Bytes in the section's body.
    pub body_bytes: u64,
}

/// A text that is no vmdescription.
#[derive(Debug, Error)]
#[error("the vmdescription cannot be read")]
pub struct DescriptionError(#[from] serde_json::Error);

impl VmDescription {
    /// Reads the JSON text.
    ///
    /// # Errors
    /// No JSON, another shape, a size that overflows, or more than the limits of this module.
    pub fn parse(json: &[u8]) -> Result<Self, DescriptionError> {
        Ok(serde_json::from_slice(json)?)
    }
}

/// The keys that matter. The others, and with them everything inside a field, are passed over.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Key {
    PageSize,
    Devices,
    Name,
    InstanceId,
    VmsdName,
    Version,
    Fields,
    Subsections,
    Size,
    ArrayLen,
    #[serde(other)]
    Other,
}

impl<'de> Deserialize<'de> for VmDescription {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DescriptionVisitor)
    }
}

struct DescriptionVisitor;

impl<'de> Visitor<'de> for DescriptionVisitor {
    type Value = VmDescription;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vmdescription")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VmDescription, A::Error> {
        let mut description = VmDescription::default();
        while let Some(key) = map.next_key()? {
            match key {
                Key::PageSize => description.page_size = Some(map.next_value()?),
                Key::Devices => description.devices = map.next_value_seed(Devices)?,
                _ => pass_over(&mut map)?,
            }
        }
        Ok(description)
    }
}

/// The list of devices.
struct Devices;

impl<'de> DeserializeSeed<'de> for Devices {
    type Value = Vec<DescribedDevice>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Devices {
    type Value = Vec<DescribedDevice>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of devices")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut devices = Vec::new();
        while let Some(object) = list.next_element_seed(Described { depth: 0 })? {
            if devices.len() == MAX_DESCRIBED_DEVICES {
                return Err(A::Error::invalid_length(devices.len() + 1, &"at most 65536 devices"));
            }
            devices.push(object);
        }
        Ok(devices)
    }
}

/// A device, or a subsection at `depth`: both are a named list of fields, and of subsections.
struct Described {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Described {
    type Value = DescribedDevice;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Described {
    type Value = DescribedDevice;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a device or a subsection")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut device = DescribedDevice::default();
        let (mut fields, mut subsections) = (0, 0);
        while let Some(key) = map.next_key()? {
            match key {
                Key::Name => device.idstr = map.next_value::<Name>()?.0,
                Key::InstanceId => device.instance_id = map.next_value()?,
                Key::VmsdName => device.vmsd_name = Some(map.next_value::<Name>()?.0),
                Key::Version => device.version = Some(map.next_value()?),
                Key::Fields => fields = map.next_value_seed(Sum::Fields)?,
                Key::Subsections => {
                    subsections = map.next_value_seed(Sum::Subsections { depth: self.depth + 1 })?
                }
                _ => pass_over(&mut map)?,
            }
        }
        device.body_bytes = checked_sum::<A::Error>(fields, subsections)?;
        Ok(device)
    }
}

/// A list of which only the bytes on the wire matter.
#[derive(Clone, Copy)]
enum Sum {
    Fields,
    Subsections { depth: usize },
}

impl<'de> DeserializeSeed<'de> for Sum {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Sum {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of fields or subsections")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<u64, A::Error> {
        let mut sum = 0;
        loop {
            let next = match self {
                Self::Fields => list.next_element::<FieldBytes>()?.map(|field| field.0),
                Self::Subsections { depth } if depth > MAX_SUBSECTION_DEPTH => {
                    return Err(A::Error::invalid_length(depth, &"at most 16 levels of subsections"));
                }
                Self::Subsections { depth } => {
                    let subsection = list.next_element_seed(Described { depth })?;
                    subsection.as_ref().map(subsection_bytes).transpose()?
                }
            };
            let Some(bytes) = next else { return Ok(sum) };
            sum = checked_sum(sum, bytes)?;
        }
    }
}

/// A field's bytes. An array is described by its first element, so a count multiplies it.
struct FieldBytes(u64);

impl<'de> Deserialize<'de> for FieldBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = FieldBytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FieldBytes, A::Error> {
        let (mut size, mut count) = (None, 1);
        while let Some(key) = map.next_key()? {
            match key {
                Key::Size => size = Some(map.next_value::<u64>()?),
                Key::ArrayLen => count = map.next_value::<u64>()?,
                _ => pass_over(&mut map)?,
            }
        }
        let size = size.ok_or_else(|| A::Error::missing_field("size"))?;
        size.checked_mul(count).map(FieldBytes).ok_or_else(too_many_bytes)
    }
}

/// A name within the limit of the wire.
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name of at most 255 bytes")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Name, E> {
        if name.len() > MAX_DESCRIPTION_NAME_BYTES {
            return Err(E::invalid_length(name.len(), &self));
        }
        Ok(Name(name.to_owned()))
    }
}

fn subsection_bytes<E: serde::de::Error>(subsection: &DescribedDevice) -> Result<u64, E> {
    let name = subsection.vmsd_name.as_ref().ok_or_else(|| E::missing_field("vmsd_name"))?;
    checked_sum(SUBSECTION_HEAD_BYTES + name.len() as u64, subsection.body_bytes)
}

fn checked_sum<E: serde::de::Error>(left: u64, right: u64) -> Result<u64, E> {
    left.checked_add(right).ok_or_else(too_many_bytes)
}

fn too_many_bytes<E: serde::de::Error>() -> E {
    E::custom("a device section of more than 2^64 bytes")
}

fn pass_over<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(|_| ())
}

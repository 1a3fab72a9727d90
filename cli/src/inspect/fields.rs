//! The vmdescription's fields, as a tree.
//!
//! `limosa_wire::devices` reads the same text for the sizes of the sections alone. Here the names and types are kept, and
//! only when somebody asked for them. Every object must have its name, so the tree is at most some eight times as
//! large as the text, which has a limit.

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::fmt;
use thiserror::Error;

/// Fields that cannot be read with their description.
#[derive(Debug, Error)]
pub(crate) enum FieldsError {
    #[error("the description cannot be read")]
    Description(#[from] serde_json::Error),
    #[error("field {field:?} has {size} bytes from byte {at} on; the body has {body}")]
    BehindTheBody { field: String, at: usize, size: u64, body: usize },
    #[error("at byte {at} of the body there is no subsection {subsection:?}")]
    NoSubsection { at: usize, subsection: String },
    #[error("the description ends at byte {at} of the body, which has {body}")]
    NotAll { at: usize, body: usize },
}

/// The description, as far as it matters here.
#[derive(Deserialize)]
pub(super) struct Description {
    pub(super) devices: Vec<DescribedFields>,
}

/// One device.
#[derive(Deserialize)]
pub(super) struct DescribedFields {
    #[allow(dead_code, reason = "required, so that an entry cannot be shorter than what it becomes")]
    name: String,
    #[serde(default)]
    pub(super) fields: Vec<Field>,
    #[serde(default)]
    pub(super) subsections: Vec<Structure>,
}

/// A structure or a subsection.
#[derive(Deserialize)]
pub(super) struct Structure {
    pub(super) vmsd_name: String,
    #[serde(default)]
    pub(super) version: u32,
    #[serde(default)]
    pub(super) fields: Vec<Field>,
    #[serde(default)]
    pub(super) subsections: Vec<Structure>,
}

/// One field.
#[derive(Default)]
pub(super) struct Field {
    pub(super) name: String,
    /// Name of the type in QEMU.
    pub(super) kind: String,
    /// Bytes of the field; of one element, if it is an array.
    pub(super) size: u64,
    /// Elements, of which the first is described.
    pub(super) array_len: Option<u64>,
    /// Place in an array whose elements are described one by one.
    pub(super) index: Option<u64>,
    pub(super) structure: Option<Box<Structure>>,
    /// Elements of a list, whose keys stand directly in the field, again for each element.
    pub(super) elements: Vec<Structure>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Key {
    Name,
    Type,
    Size,
    ArrayLen,
    Index,
    Struct,
    VmsdName,
    Version,
    Fields,
    Subsections,
    #[serde(other)]
    Other,
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field, A::Error> {
        let mut field = Field::default();
        let mut named = false;
        while let Some(key) = map.next_key()? {
            match (key, field.elements.last_mut()) {
                (Key::Name, _) => {
                    field.name = map.next_value()?;
                    named = true;
                }
                (Key::Type, _) => field.kind = map.next_value()?,
                (Key::Size, _) => field.size = map.next_value()?,
                (Key::ArrayLen, _) => field.array_len = Some(map.next_value()?),
                (Key::Index, _) => field.index = Some(map.next_value()?),
                (Key::Struct, _) => field.structure = Some(Box::new(map.next_value()?)),
                (Key::VmsdName, _) => field.elements.push(Structure {
                    vmsd_name: map.next_value()?,
                    version: 0,
                    fields: Vec::new(),
                    subsections: Vec::new(),
                }),
                (Key::Version, Some(element)) => element.version = map.next_value()?,
                (Key::Fields, Some(element)) => element.fields = map.next_value()?,
                (Key::Subsections, Some(element)) => element.subsections = map.next_value()?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if named { Ok(field) } else { Err(serde::de::Error::missing_field("name")) }
    }
}

//! Device state, decoded by its description.

use crate::inspect::error::InspectError;
use crate::inspect::fields::{DescribedFields, Description, Field, FieldsError, Structure};
use crate::inspect::report::hexadecimal;
use limosa_wire::SectionHeader;
use serde::Serialize;

/// First byte of a subsection.
const SUBSECTION: u8 = 0x05;

/// Types of fields whose elements are described inside of the field, each behind a byte 1, with a byte 0 at the end.
const LISTS: [&str; 2] = ["qtailq", "qlist"];

/// The type of a field that inlines one structure.
const INLINED: &str = "tmp";

/// The body of a device section that somebody asked for.
pub(super) struct KeptBody {
    /// Which of the stream's device sections.
    pub(super) device: usize,
    pub(super) body: Vec<u8>,
}

/// One device with its values.
#[derive(Debug, Serialize)]
pub(super) struct DeviceValues {
    pub(super) idstr: String,
    pub(super) instance_id: u32,
    pub(super) fields: Vec<FieldValue>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) subsections: Vec<StructureValue>,
}

/// A structure or a subsection with its values.
#[derive(Debug, Serialize)]
pub(super) struct StructureValue {
    pub(super) vmsd_name: String,
    pub(super) version: u32,
    pub(super) fields: Vec<FieldValue>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) subsections: Vec<StructureValue>,
}

/// One field with its value.
#[derive(Debug, Serialize)]
pub(super) struct FieldValue {
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<u64>,
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// Offset in the body.
    pub(super) offset: usize,
    pub(super) bytes: usize,
    pub(super) value: Value,
}

/// A value. Bytes of unknown type are hexadecimal text in JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Scalar {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    #[serde(serialize_with = "hexadecimal")]
    Bytes(Vec<u8>),
}

/// What a field holds.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Value {
    One(Scalar),
    Array(Vec<Scalar>),
    Structure(StructureValue),
    Structures(Vec<StructureValue>),
}

/// Decodes the bodies in `kept` by the description `json`, which has one entry for each of `headers`.
pub(super) fn decode(
    json: &[u8],
    headers: &[SectionHeader],
    kept: &[KeptBody],
) -> Result<Vec<DeviceValues>, InspectError> {
    if kept.is_empty() {
        return Ok(Vec::new());
    }
    let device = headers[kept[0].device].idstr.clone();
    let description: Description = serde_json::from_slice(json)
        .map_err(|error| InspectError::Fields { device, source: FieldsError::Description(error) })?;
    let decode = |kept: &KeptBody| {
        let header = &headers[kept.device];
        decode_device(&description.devices[kept.device], header, &kept.body)
            .map_err(|source| InspectError::Fields { device: header.idstr.clone(), source })
    };
    kept.iter().map(decode).collect()
}

fn decode_device(
    described: &DescribedFields,
    header: &SectionHeader,
    body: &[u8],
) -> Result<DeviceValues, FieldsError> {
    let mut reader = Reader { body, at: 0 };
    let fields = reader.fields(&described.fields)?;
    let subsections = reader.subsections(&described.subsections)?;
    if reader.at < body.len() {
        return Err(FieldsError::NotAll { at: reader.at, body: body.len() });
    }
    Ok(DeviceValues { idstr: header.idstr.clone(), instance_id: header.instance_id, fields, subsections })
}

/// Reads a body field by field. Recursion ends where the JSON parser's did, at a depth of 128.
struct Reader<'a> {
    body: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn structure(&mut self, described: &Structure) -> Result<StructureValue, FieldsError> {
        Ok(StructureValue {
            vmsd_name: described.vmsd_name.clone(),
            version: described.version,
            fields: self.fields(&described.fields)?,
            subsections: self.subsections(&described.subsections)?,
        })
    }

    fn subsections(&mut self, described: &[Structure]) -> Result<Vec<StructureValue>, FieldsError> {
        let read = |subsection: &Structure| {
            let name = subsection.vmsd_name.as_bytes();
            let at = self.at;
            let head = [&[SUBSECTION, name.len() as u8], name, &subsection.version.to_be_bytes()].concat();
            if !self.body[at..].starts_with(&head) {
                let subsection = subsection.vmsd_name.clone();
                return Err(FieldsError::NoSubsection { at, subsection });
            }
            self.at += head.len();
            self.structure(subsection)
        };
        described.iter().map(read).collect()
    }

    fn fields(&mut self, described: &[Field]) -> Result<Vec<FieldValue>, FieldsError> {
        described.iter().map(|field| self.field(field)).collect()
    }

    /// Reads one field; its size in the description says where the next one begins.
    fn field(&mut self, described: &Field) -> Result<FieldValue, FieldsError> {
        let offset = self.at;
        let behind = || FieldsError::BehindTheBody {
            field: described.name.clone(),
            at: offset,
            size: described.size.saturating_mul(described.array_len.unwrap_or(1)),
            body: self.body.len(),
        };
        let bytes = described.size.checked_mul(described.array_len.unwrap_or(1));
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(behind)?;
        let end = offset.checked_add(bytes).filter(|end| *end <= self.body.len()).ok_or_else(behind)?;
        let mut inner = Reader { body: &self.body[..end], at: offset };
        let value = inner.value(described).filter(|_| inner.at == end);
        // What does not decode as described is shown as it is: the sizes around it are right all the same.
        let value = value.unwrap_or_else(|| Value::One(Scalar::Bytes(self.body[offset..end].to_vec())));
        self.at = end;
        let Field { name, kind, index, .. } = described;
        Ok(FieldValue { name: name.clone(), index: *index, kind: kind.clone(), offset, bytes, value })
    }

    /// The value of a field that reaches to the end of this reader; `None` if that cannot be.
    fn value(&mut self, described: &Field) -> Option<Value> {
        if let Some(structure) = &described.structure {
            if described.array_len.is_none() {
                return self.structure(structure).ok().map(Value::Structure);
            }
            return self.structures(structure).map(Value::Structures);
        }
        if described.kind == INLINED
            && let [element] = described.elements.as_slice()
        {
            return self.structure(element).ok().map(Value::Structure);
        }
        if LISTS.contains(&described.kind.as_str()) {
            return self.list(&described.elements).map(Value::Structures);
        }
        let size = usize::try_from(described.size).ok().filter(|size| *size > 0)?;
        let rest = &self.body[self.at..];
        self.at = self.body.len();
        let mut scalars = rest.chunks_exact(size).map(|bytes| scalar(&described.kind, bytes));
        match described.array_len {
            None => scalars.next().map(Value::One),
            Some(_) => Some(Value::Array(scalars.collect())),
        }
    }

    /// Elements of one kind up to the end.
    fn structures(&mut self, described: &Structure) -> Option<Vec<StructureValue>> {
        let mut values = Vec::new();
        while self.at < self.body.len() {
            let at = self.at;
            values.push(self.structure(described).ok()?);
            if self.at == at {
                return None;
            }
        }
        Some(values)
    }

    fn list(&mut self, described: &[Structure]) -> Option<Vec<StructureValue>> {
        let mut values = Vec::new();
        for element in described {
            self.mark(1)?;
            values.push(self.structure(element).ok()?);
        }
        self.mark(0)?;
        Some(values)
    }

    fn mark(&mut self, mark: u8) -> Option<()> {
        let found = *self.body.get(self.at)? == mark;
        self.at += 1;
        found.then_some(())
    }
}

/// One value of a type that QEMU calls `kind`; bytes if the type is not a number or has an odd size.
fn scalar(kind: &str, bytes: &[u8]) -> Scalar {
    let kind = kind.strip_suffix(" equal").unwrap_or(kind);
    match (kind, bytes) {
        ("bool", [byte @ (0 | 1)]) => Scalar::Bool(*byte == 1),
        ("uint8" | "uint16" | "uint32" | "uint64", _) if bytes.len() <= 8 => {
            Scalar::Unsigned(unsigned(bytes))
        }
        // The name is of QEMU's reader, which limits the value; the bytes are big-endian like any other.
        ("int8" | "int16" | "int32" | "int64" | "int32 le" | "timer", _) if bytes.len() <= 8 => {
            let shift = 64 - 8 * bytes.len() as u32;
            Scalar::Signed(((unsigned(bytes) << shift) as i64) >> shift)
        }
        ("CPU_Double_U" | "float64", [_, _, _, _, _, _, _, _]) => Scalar::Unsigned(unsigned(bytes)),
        _ => Scalar::Bytes(bytes.to_vec()),
    }
}

/// At most eight big-endian bytes.
fn unsigned(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(json: &str, body: &[u8]) -> Result<DeviceValues, FieldsError> {
        let described: DescribedFields = serde_json::from_str(json).expect("the test's JSON");
        let header = SectionHeader {
            kind: limosa_wire::StartKind::Full,
            id: limosa_wire::SectionId(3),
            idstr: "device".into(),
            instance_id: 0,
            version_id: 1,
        };
        decode_device(&described, &header, body)
    }

    #[test]
    fn a_list_with_its_elements_in_the_field_is_decoded_element_by_element() {
        let element =
            r#""vmsd_name": "e", "version": 1, "fields": [{"name": "x", "type": "uint16", "size": 2}]"#;
        let json = format!(
            r#"{{"name": "device", "fields": [{{"name": "list", "type": "qtailq", {element}, {element}, "size": 7}}]}}"#
        );
        let values = decoded(&json, &[1, 0, 7, 1, 0, 8, 0]).unwrap();
        let Value::Structures(elements) = &values.fields[0].value else { panic!("{values:?}") };
        let xs: Vec<String> =
            elements.iter().map(|element| format!("{:?}", element.fields[0].value)).collect();
        assert_eq!(xs, ["One(Unsigned(7))", "One(Unsigned(8))"]);
    }

    #[test]
    fn a_structure_that_is_not_as_described_is_shown_as_bytes_and_the_rest_decodes() {
        let json = r#"{"name": "device", "fields": [
            {"name": "odd", "type": "struct", "struct": {"vmsd_name": "s", "fields": [
                {"name": "x", "type": "uint8", "size": 1}]}, "size": 3},
            {"name": "after", "type": "int16", "size": 2}]}"#;
        let values = decoded(json, &[1, 2, 3, 0xff, 0xfe]).unwrap();
        assert!(matches!(&values.fields[0].value, Value::One(Scalar::Bytes(bytes)) if bytes == &[1, 2, 3]));
        assert!(matches!(values.fields[1].value, Value::One(Scalar::Signed(-2))));
    }

    #[test]
    fn fields_behind_the_body_and_bytes_behind_the_fields_are_errors() {
        let json =
            r#"{"name": "device", "fields": [{"name": "x", "type": "uint32", "size": 4, "array_len": 2}]}"#;
        assert!(matches!(decoded(json, &[0; 7]), Err(FieldsError::BehindTheBody { at: 0, size: 8, .. })));
        assert!(matches!(decoded(json, &[0; 9]), Err(FieldsError::NotAll { at: 8, body: 9 })));
        let huge = r#"{"name": "d", "fields": [{"name": "x", "type": "buffer", "size": 18446744073709551615,
            "array_len": 18446744073709551615}]}"#;
        assert!(matches!(decoded(huge, &[0; 9]), Err(FieldsError::BehindTheBody { .. })));
    }

    #[test]
    fn an_empty_element_that_is_said_to_repeat_does_not_repeat_for_ever() {
        let json = r#"{"name": "device", "fields": [{"name": "x", "type": "struct", "array_len": 4,
            "struct": {"vmsd_name": "s", "fields": []}, "size": 1}]}"#;
        let values = decoded(json, &[0; 4]).unwrap();
        assert!(matches!(&values.fields[0].value, Value::One(Scalar::Bytes(bytes)) if bytes.len() == 4));
    }
}

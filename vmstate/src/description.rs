//! What a vmdescription says about the length of a body.

use serde_json::{Map, Value};
use thiserror::Error;

/// Bytes of a subsection before its first field, without its name: tag, length of the name, version.
const ANNOUNCEMENT_BYTES: u64 = 1 + 1 + 4;

/// A description that does not say how long its body is.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DescriptionError {
    /// Something that must be there and is not, or is of another type.
    #[error("a description of {vmsd_name:?} has no {key:?} of the expected type")]
    Missing {
        /// The description's name, empty if it has none.
        vmsd_name: String,
        /// What is missing.
        key: &'static str,
    },
    /// A length beyond 64 bits.
    #[error("the fields of {vmsd_name:?} add up to more than 64 bits can count")]
    Overflow {
        /// The description's name.
        vmsd_name: String,
    },
}

/// Bytes of the body that `description` describes: a device's entry in a vmdescription, a nested struct's or a
/// subsection's (wire 8, method 1).
///
/// This is how a body can be split from a stream without knowing its device. QEMU describes only the first
/// element of some arrays whose elements differ in length; their result is wrong, and only the section's footer
/// tells. Descriptions made by this crate always add up.
///
/// # Errors
/// [`DescriptionError`] if a size is missing or absurd.
pub fn body_length(description: &Map<String, Value>) -> Result<u64, DescriptionError> {
    let vmsd_name = || description.get("vmsd_name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let missing = |key| move || DescriptionError::Missing { vmsd_name: vmsd_name(), key };
    let overflow = || DescriptionError::Overflow { vmsd_name: vmsd_name() };

    let mut length = 0_u64;
    for field in description.get("fields").and_then(Value::as_array).ok_or_else(missing("fields"))? {
        let size = field.get("size").and_then(Value::as_u64).ok_or_else(missing("size"))?;
        let elements = match field.get("array_len") {
            Some(elements) => elements.as_u64().ok_or_else(missing("array_len"))?,
            None => 1,
        };
        let bytes = size.checked_mul(elements).ok_or_else(overflow)?;
        length = length.checked_add(bytes).ok_or_else(overflow)?;
    }
    let subsections = match description.get("subsections") {
        Some(subsections) => subsections.as_array().ok_or_else(missing("subsections"))?.as_slice(),
        None => &[],
    };
    for subsection in subsections {
        let subsection = subsection.as_object().ok_or_else(missing("subsections"))?;
        let name = subsection.get("vmsd_name").and_then(Value::as_str).ok_or_else(missing("vmsd_name"))?;
        let bytes = ANNOUNCEMENT_BYTES + name.len() as u64;
        length = bytes
            .checked_add(body_length(subsection)?)
            .and_then(|bytes| length.checked_add(bytes))
            .ok_or_else(overflow)?;
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn length_of(description: Value) -> Result<u64, String> {
        body_length(description.as_object().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn fields_arrays_and_subsections_add_up() {
        let description = json!({"vmsd_name": "a", "fields": [{"size": 4}, {"size": 42, "array_len": 3}],
            "subsections": [{"vmsd_name": "a/bc", "version": 0, "fields": [{"size": 1}]}]});
        assert_eq!(length_of(description), Ok(4 + 126 + (1 + 1 + 4 + 4 + 1)));
    }

    #[test]
    fn an_array_of_no_elements_is_empty() {
        assert_eq!(length_of(json!({"fields": [{"size": 9, "array_len": 0}]})), Ok(0));
    }

    #[test]
    fn a_description_without_sizes_is_refused_by_name() {
        for (description, expected) in [
            (json!({"vmsd_name": "a"}), "a description of \"a\" has no \"fields\" of the expected type"),
            (json!({"fields": [{}]}), "a description of \"\" has no \"size\" of the expected type"),
            (json!({"fields": [{"size": -1}]}), "a description of \"\" has no \"size\" of the expected type"),
            (
                json!({"fields": [{"size": 1, "array_len": "2"}]}),
                "a description of \"\" has no \"array_len\" of the expected type",
            ),
            (
                json!({"vmsd_name": "a", "fields": [], "subsections": [{"fields": []}]}),
                "a description of \"a\" has no \"vmsd_name\" of the expected type",
            ),
        ] {
            assert_eq!(length_of(description), Err(expected.to_owned()));
        }
    }

    #[test]
    fn absurd_sizes_are_refused_instead_of_wrapping() {
        let expected = Err("the fields of \"a\" add up to more than 64 bits can count".to_owned());
        let fields = json!([{"size": u64::MAX}, {"size": 1}]);
        assert_eq!(length_of(json!({"vmsd_name": "a", "fields": fields})), expected);
        let fields = json!([{"size": u64::MAX, "array_len": 2}]);
        assert_eq!(length_of(json!({"vmsd_name": "a", "fields": fields})), expected);
    }
}

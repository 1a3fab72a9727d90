//! A reader that knows nothing but a description: what QEMU's own analysis tool does with a stream.
//!
//! It shares no code with the crate, so that a description and a body which are wrong together do not pass.

use limosa_vmstate::SavedDevice;
use serde_json::{Map, Value, json};

/// Reads `saved` with the help of its description alone, through JSON text; all of the body must be used.
pub(crate) fn read(saved: SavedDevice) -> Value {
    let body = saved.body.clone();
    let text = saved.into_entry("0000:00:02.0/device", 3).to_string();
    let entry: Value = serde_json::from_str(&text).expect("the description is JSON");
    let keys: Vec<&String> = entry.as_object().unwrap().keys().take(5).collect();
    assert_eq!(keys, ["name", "instance_id", "vmsd_name", "version", "fields"]);
    let mut reader = Reader { bytes: &body };
    let values = reader.structure(&entry);
    assert_eq!(reader.bytes, [0; 0], "bytes that no field describes");
    values
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: u64) -> &'a [u8] {
        let (taken, rest) =
            self.bytes.split_at_checked(count as usize).expect("the body has what is described");
        self.bytes = rest;
        taken
    }

    fn structure(&mut self, description: &Value) -> Value {
        let mut values = Map::new();
        for field in description["fields"].as_array().expect("fields are a list") {
            let name = field["name"].as_str().expect("a field has a name");
            if let Some(length) = field.get("array_len") {
                let elements = (0..length.as_u64().unwrap()).map(|_| self.field(field)).collect();
                let earlier = values.insert(name.to_owned(), Value::Array(elements));
                assert_eq!(earlier, None, "two fields are called {name}");
            } else if let Some(index) = field.get("index") {
                let value = self.field(field);
                let elements = values.entry(name).or_insert_with(|| json!([])).as_array_mut().unwrap();
                assert_eq!(index.as_u64(), Some(elements.len() as u64), "an element of {name} out of order");
                elements.push(value);
            } else {
                let value = self.field(field);
                let earlier = values.insert(name.to_owned(), value);
                assert_eq!(earlier, None, "two fields are called {name}");
            }
        }
        for subsection in description.get("subsections").and_then(Value::as_array).into_iter().flatten() {
            let name = subsection["vmsd_name"].as_str().unwrap();
            assert_eq!(self.take(1), [5], "subsection {name}");
            let length = u64::from(self.take(1)[0]);
            assert_eq!(self.take(length), name.as_bytes());
            assert_eq!(number(self.take(4)), subsection["version"].as_u64().unwrap());
            let earlier = values.insert(name.to_owned(), self.structure(subsection));
            assert_eq!(earlier, None, "two subsections are called {name}");
        }
        Value::Object(values)
    }

    fn field(&mut self, field: &Value) -> Value {
        let size = field["size"].as_u64().expect("a field has a size");
        let type_name = field["type"].as_str().expect("a field has a type");
        let before = self.bytes.len();
        let value = match type_name {
            "struct" => self.structure(&field["struct"]),
            "bool" => json!(self.take(size) == [1]),
            "timer" => json!(number(self.take(size))),
            _ if type_name.starts_with("uint") => json!(number(self.take(size))),
            // The 64-bit comparison is of unsigned values in spite of its name.
            "int64 equal" => json!(number(self.take(size))),
            _ if type_name.starts_with("int") => {
                let shift = 64 - 8 * size;
                json!((number(self.take(size)) << shift).cast_signed() >> shift)
            }
            "buffer" | "unused_buffer" | "bitmap" => json!(self.take(size)),
            other => panic!("unknown type {other}"),
        };
        assert_eq!((before - self.bytes.len()) as u64, size, "the size of {field}");
        value
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

//! The JSON text that follows a precopy stream and tells what its device sections are made of (wire 1.9).

use limosa_pages::PAGE_BYTES;
use limosa_wire::Configuration;
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use serde_json::{Value, json};
use std::io::{self, Write};

/// Collects the description while devices are saved.
#[derive(Debug)]
pub struct VmDescription {
    configuration: Value,
    devices: Vec<Value>,
}

impl VmDescription {
    /// Describes a stream that began with `configuration`.
    pub fn new(configuration: &Configuration) -> Self {
        Self { configuration: describe(configuration), devices: Vec::new() }
    }

    /// Adds the entry of one FULL section, in the order of the sections.
    pub fn push(&mut self, device: Value) {
        self.devices.push(device);
    }

    /// The text: one line, no end of line, with blanks behind `,` and `:` as QEMU's readers know it.
    pub fn into_json(self) -> Vec<u8> {
        let document =
            json!({"configuration": self.configuration, "page_size": PAGE_BYTES, "devices": self.devices});
        let mut text = Vec::new();
        document
            .serialize(&mut Serializer::with_formatter(&mut text, OneLine))
            .expect("a Value has string keys, and a Vec takes every byte");
        text
    }
}

fn describe(configuration: &Configuration) -> Value {
    let mut described = json!({
        "vmsd_name": "configuration",
        "version": 1,
        "fields": [
            {"name": "len", "type": "uint32", "size": 4},
            {"name": "name", "type": "buffer", "size": configuration.machine.len()},
        ],
    });
    let mut subsections = Vec::new();
    if configuration.target_page_bits.is_some() {
        let fields = json!([{"name": "target_page_bits", "type": "uint32", "size": 4}]);
        subsections
            .push(json!({"vmsd_name": "configuration/target-page-bits", "version": 1, "fields": fields}));
    }
    if let Some(names) = &configuration.capabilities {
        let size: usize = names.iter().map(|name| 1 + name.len()).sum();
        let fields = json!([
            {"name": "caps_count", "type": "uint32", "size": 4},
            {"name": "capabilities", "type": "buffer", "size": size},
        ]);
        subsections.push(json!({"vmsd_name": "configuration/capabilities", "version": 1, "fields": fields}));
    }
    if configuration.uuid.is_some() {
        let fields = json!([{"name": "uuid", "type": "buffer", "size": 16}]);
        subsections.push(json!({"vmsd_name": "configuration/uuid", "version": 1, "fields": fields}));
    }
    if !subsections.is_empty() {
        described["subsections"] = subsections.into();
    }
    described
}

/// `", "` and `": "`, nothing else.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_stream_is_described_as_qemu_does() {
        let configuration = Configuration { machine: "microvm".to_owned(), ..Configuration::default() };
        let text = String::from_utf8(VmDescription::new(&configuration).into_json()).unwrap();
        assert_eq!(
            text,
            "{\"configuration\": {\"vmsd_name\": \"configuration\", \"version\": 1, \"fields\": [\
             {\"name\": \"len\", \"type\": \"uint32\", \"size\": 4}, \
             {\"name\": \"name\", \"type\": \"buffer\", \"size\": 7}]}, \"page_size\": 4096, \"devices\": []}"
        );
    }
}

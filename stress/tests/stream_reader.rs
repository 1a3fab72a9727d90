//! The independent reader and our decoders say the same about the same streams, and it refuses damaged ones.

use limosa_stress::qemu::{IndependentReader, ReaderError, receive};
use limosa_wire::devices::{VmDescription, split_by_sizes};
use serde_json::Value;
use std::fs;
use std::io::{self, Cursor, Read, Write};
use std::path::Path;
use tempfile::TempDir;

fn load(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("corpora/{name}.0.zst"));
    zstd::decode_all(fs::read(path).expect("a recording").as_slice()).expect("zstd")
}

/// A recording, to whose reader's answers nobody listens.
struct Recording(Cursor<Vec<u8>>);

impl Read for Recording {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

impl Write for Recording {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read(reader: IndependentReader, bytes: &[u8], ram: &Path) -> Result<Value, ReaderError> {
    let path = ram.join("stream");
    fs::write(&path, bytes).expect("write");
    reader.read(&path, ram)
}

#[test]
fn it_finds_the_same_ram_and_devices_as_our_decoders() {
    let Some(reader) = IndependentReader::require() else { return };
    for name in ["precopy-microvm-tcg", "precopy-microvm-kvm", "precopy-pc-tcg", "xbzrle-microvm"] {
        let bytes = load(name);
        let folder = TempDir::new().expect("a folder");
        let summary = read(reader, &bytes, folder.path()).unwrap_or_else(|error| panic!("{error}"));
        let guest = receive(Recording(Cursor::new(bytes))).expect("a guest");

        assert_eq!(summary["machine"], guest.configuration.machine, "{name}");
        for block in &guest.blocks {
            let file = block.name.as_str().replace('/', "_");
            let content = fs::read(folder.path().join(file)).expect("a block");
            assert!(content == block.bytes, "{name}: {}", block.name);
        }
        let description = VmDescription::parse(&guest.description).expect("a description");
        let sections = split_by_sizes(&guest.devices, &description).expect("sections");
        let devices = summary["devices"].as_array().expect("devices");
        assert_eq!(devices.len(), sections.len(), "{name}");
        for (device, section) in devices.iter().zip(sections) {
            assert_eq!(device["name"], section.header.idstr, "{name}");
            assert_eq!(device["section"], section.header.id.0, "{name}");
            assert_eq!(device["bytes"], section.body.len(), "{name}");
        }
    }
}

#[test]
fn it_reads_the_fields_of_devices_by_their_description() {
    let Some(reader) = IndependentReader::require() else { return };
    let folder = TempDir::new().expect("a folder");
    let summary = read(reader, &load("precopy-pc-tcg"), folder.path()).expect("a summary");
    let devices = summary["devices"].as_array().expect("devices");
    let device = |name: &str| devices.iter().find(|device| device["name"] == name).expect(name);
    let serial = &device("serial")["values"];
    // What the payload has set: eight bits, no parity.
    assert_eq!(serial["state"]["lcr"], 3, "{serial}");
    assert_eq!(device("cpu")["vmsd_name"], "cpu");
}

#[test]
fn it_refuses_a_stream_that_is_cut_or_changed_anywhere_it_looks() {
    let Some(reader) = IndependentReader::require() else { return };
    let bytes = load("precopy-microvm-tcg");
    let folder = TempDir::new().expect("a folder");
    let end = limosa_wire::devices::find_end(&bytes).expect("a description");
    let mut damaged: Vec<(&str, Vec<u8>)> = vec![
        ("cut in the description", bytes[..bytes.len() - 1].to_vec()),
        ("cut before the description", bytes[..end.end_of_stream + 1].to_vec()),
        ("one byte more", [bytes.as_slice(), &[0]].concat()),
        ("an empty file", Vec::new()),
    ];
    let mut change = |what, at: usize, bit: u8| {
        let mut copy = bytes.clone();
        copy[at] ^= bit;
        damaged.push((what, copy));
    };
    change("magic", 0, 1);
    change("version", 7, 1);
    change("machine name length", 12, 1);
    change("last footer", end.end_of_stream - 1, 1);
    change("last footer's mark", end.end_of_stream - 5, 1);
    let size = bytes.windows(9).rposition(|window| window == b"\"size\": 4").expect("a size") + 8;
    change("a size in the description", size, 1);
    for (what, stream) in damaged {
        match read(reader, &stream, folder.path()) {
            Err(ReaderError::Refused { words }) => assert!(words.contains(": "), "{what}: {words}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

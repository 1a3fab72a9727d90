//! The independent reader and our decoders say the same about the same streams, and it refuses damaged ones.

use limosa::CapturedGuest;
use limosa::transport::Link;
use limosa_stress::qemu::{IndependentReader, ReaderError};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::thread;
use tempfile::TempDir;

fn load(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("corpora/{name}.0.zst"));
    zstd::decode_all(fs::read(path).expect("a recording").as_slice()).expect("zstd")
}

/// The guest in a recording, as the engine captures it.
fn capture(bytes: &[u8]) -> CapturedGuest {
    let (near, far) = Link::pair().expect("a pair");
    thread::scope(|scope| {
        let (_answers, mut writer) = far.split();
        scope.spawn(move || writer.write_all(bytes).expect("the engine reads all of it"));
        CapturedGuest::receive(near).expect("a guest")
    })
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
        let guest = capture(&bytes);

        assert_eq!(summary["machine"], guest.configuration.machine, "{name}");
        for (_, block) in guest.ram.iter() {
            let file = block.name().as_str().replace('/', "_");
            let content = fs::read(folder.path().join(file)).expect("a block");
            let mut ours = vec![0; block.length().0 as usize];
            block.copy_out(0, &mut ours);
            assert!(content == ours, "{name}: {}", block.name());
        }
        let devices = summary["devices"].as_array().expect("devices");
        assert_eq!(devices.len(), guest.devices.len(), "{name}");
        for (device, ours) in devices.iter().zip(&guest.devices) {
            assert_eq!(device["name"], ours.idstr, "{name}");
            assert_eq!(device["instance"], ours.instance_id, "{name}");
            assert_eq!(device["version"], ours.section.version, "{name}");
            assert_eq!(device["bytes"], ours.section.body.len(), "{name}");
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

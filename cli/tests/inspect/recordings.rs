//! Recordings of an unmodified QEMU, our own guest's and those outside of this repository.

use crate::command::{inspect, inspect_json};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::{env, fs, io, io::Write as _};

fn folder() -> PathBuf {
    env::var_os("LIMOSA_CAPTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures"), PathBuf::from)
}

/// The capture called `name`; `None` (said aloud) when the captures are not on this machine.
fn capture(name: &str) -> Option<Vec<u8>> {
    let folder = folder();
    if !folder.is_dir() {
        let reason = format!("no recordings at {} (set LIMOSA_CAPTURES)", folder.display());
        assert!(
            env::var("LIMOSA_REQUIRE_ALL_RINGS").as_deref() != Ok("1"),
            "captures ring required, but {reason}"
        );
        // Not eprintln: the test harness would keep that to itself when the test passes.
        writeln!(io::stderr(), "LEFT OUT: captures ring: {reason}").expect("stderr takes a line");
        return None;
    }
    Some(decompress(&folder.join(format!("{name}.zst"))))
}

/// The recording of our own guest called `name`; it lies in the repository.
fn corpus(name: &str) -> Vec<u8> {
    decompress(&Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../stress/corpora/{name}.zst")))
}

fn decompress(path: &Path) -> Vec<u8> {
    let compressed = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    zstd::decode_all(compressed.as_slice()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn blocks(report: &Value) -> Vec<(&str, u64)> {
    list(report, "ram").map(|block| (text(block, "name"), number(block, "length"))).collect()
}

/// Devices as `id idstr/instance vVersion bytes`.
fn devices(report: &Value) -> Vec<String> {
    let device = |device: &Value| {
        let [id, instance, version, bytes] =
            ["id", "instance_id", "version_id", "bytes"].map(|key| number(device, key));
        assert_eq!(number(device, "described_bytes"), bytes, "{device}");
        format!("{id} {}/{instance} v{version} {bytes}", text(device, "idstr"))
    };
    list(report, "devices").map(device).collect()
}

fn list<'a>(report: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    report[key].as_array().expect("a list").iter()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect("a text")
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().expect("a number")
}

/// Elements lie side by side, and every page of RAM came once at least.
fn is_whole(report: &Value, bytes: &[u8]) {
    let end = list(report, "elements").fold(0, |at, row| {
        assert_eq!(number(row, "offset"), at, "{row}");
        at + number(row, "bytes")
    });
    assert_eq!(end, bytes.len() as u64);
    for block in list(report, "ram") {
        assert_eq!(number(block, "untouched"), 0, "{block}");
        let records = number(block, "zero") + number(block, "normal") + number(block, "xbzrle");
        assert_eq!(records - number(block, "repeated"), number(block, "pages"), "{block}");
    }
}

#[test]
fn pc_has_the_blocks_and_devices_it_is_known_to_have() {
    let Some(bytes) = capture("precopy-pc-16M.mig") else { return };
    let report = inspect_json(&bytes, &[]);
    is_whole(&report, &bytes);
    assert_eq!(report["configuration"]["machine"], "pc-i440fx-10.0");
    assert_eq!(
        blocks(&report),
        [
            ("pc.ram", 0x100_0000),
            ("/rom@etc/acpi/tables", 0x2_0000),
            ("pc.bios", 0x4_0000),
            ("pc.rom", 0x2_0000),
            ("/rom@etc/table-loader", 0x1000),
            ("/rom@etc/acpi/rsdp", 0x1000),
        ]
    );
    let expected = "0 timer/0 v2 24 · 3 cpu_common/0 v1 8 · 4 cpu/0 v12 1842 · 5 kvm-tpr-opt/0 v1 144 · \
        6 apic/0 v3 181 · 7 kvmclock/0 v1 41 · 8 0000:00:00.0/I440FX/0 v3 277 · 9 PCIHost/0 v1 4 · \
        10 PCIBUS/0 v1 20 · 11 fw_cfg/0 v2 74 · 12 dma/0 v1 75 · 13 dma/1 v1 75 · 14 mc146818rtc/0 v3 245 · \
        15 0000:00:01.1/ide/0 v3 430 · 16 i2c_bus/0 v1 1 · 17 0000:00:01.3/piix4_pm/0 v3 2432 · \
        18 0000:00:01.0/PIIX3/0 v3 292 · 19 i8259/0 v1 16 · 20 i8259/1 v1 16 · 21 ioapic/0 v3 206 · \
        22 hpet/0 v2 151 · 23 i8254/0 v3 108 · 24 pcspk/0 v1 2 · 25 fdc/0 v2 593 · 26 ps2kbd/0 v3 284 · \
        27 ps2mouse/0 v2 291 · 28 pckbd/0 v3 40 · 29 vmmouse/0 v0 4105 · 30 port92/0 v1 1 · \
        39 acpi_build/0 v1 1 · 40 globalstate/0 v1 104";
    assert_eq!(devices(&report).join(" · "), expected);
    let kinds: Vec<&str> = list(&report, "elements")
        .filter_map(|row| row["kind"].as_str())
        .take_while(|kind| *kind != "full")
        .collect();
    assert_eq!((kinds.first(), kinds.last()), (Some(&"start"), Some(&"end")));
}

#[test]
fn microvm_has_the_blocks_and_devices_it_is_known_to_have() {
    let Some(bytes) = capture("precopy-microvm-16M.mig") else { return };
    let report = inspect_json(&bytes, &[]);
    is_whole(&report, &bytes);
    assert_eq!(
        blocks(&report),
        [
            ("microvm.ram", 0x100_0000),
            ("/rom@etc/acpi/tables", 0x1000),
            ("pc.bios", 0x2_0000),
            ("/rom@etc/table-loader", 0x1000),
            ("/rom@etc/acpi/rsdp", 0x1000),
        ]
    );
    let names: Vec<String> = list(&report, "devices")
        .map(|device| format!("{}/{}", text(device, "idstr"), number(device, "instance_id")))
        .collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    let mut expected = [
        "timer/0",
        "fw_cfg/0",
        "cpu_common/0",
        "cpu/0",
        "kvm-tpr-opt/0",
        "apic/0",
        "ioapic/0",
        "ioapic/1",
        "kvmclock/0",
        "acpi-ged/0",
        "i8259/0",
        "i8259/1",
        "i8254/0",
        "globalstate/0",
    ];
    expected.sort_unstable();
    assert_eq!(sorted, expected);
    assert_eq!(
        (names.first().map(String::as_str), names.last().map(String::as_str)),
        (Some("timer/0"), Some("globalstate/0"))
    );
    assert_eq!(report["vmdescription"]["bytes"], 14_774);
}

#[test]
fn every_field_of_every_recorded_device_decodes() {
    for name in ["precopy-microvm-kvm.0", "precopy-microvm-tcg.0", "precopy-pc-tcg.0"] {
        let bytes = corpus(name);
        let report = inspect_json(&bytes, &[]);
        let mut idstrs: Vec<&str> = list(&report, "devices").map(|device| text(device, "idstr")).collect();
        idstrs.dedup();
        for idstr in idstrs {
            let report = inspect_json(&bytes, &["--device", idstr]);
            let values = report["device_values"].as_array().expect("a list");
            assert!(!values.is_empty(), "{name}: {idstr}");
            for field in values.iter().flat_map(|device| list(device, "fields")) {
                // What is a structure in the description did not fall back to bytes.
                assert!(field["type"] != "struct" || !field["value"].is_string(), "{name}: {idstr}: {field}");
            }
        }
        let report = inspect_json(&bytes, &["--device", "globalstate"]);
        let run_state = &report["device_values"][0]["fields"][1];
        assert!(text(run_state, "value").starts_with("72756e6e696e6700"), "running: {run_state}");
    }
}

#[test]
fn our_own_guest_is_counted_page_by_page() {
    for name in ["precopy-microvm-kvm.0", "precopy-microvm-tcg.0", "precopy-pc-tcg.0", "xbzrle-microvm.0"] {
        let bytes = corpus(name);
        let report = inspect_json(&bytes, &[]);
        is_whole(&report, &bytes);
        assert_eq!(number(&report["ram"][0], "length"), 2 << 20, "{name}");
        let xbzrle = number(&report["ram"][0], "xbzrle");
        assert_eq!(xbzrle > 0, name.starts_with("xbzrle"), "{name}: {xbzrle}");
    }
}

#[test]
fn the_main_channel_of_multifd_is_read_and_its_flushes_are_told() {
    for name in ["multifd2-none-microvm.0", "multifd2-zlib-microvm.0", "multifd2-zstd-microvm.0"] {
        let said = inspect(&corpus(name), &[]);
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{name}");
        assert!(said.stdout.contains("multifd flushes"), "{name}: {}", said.stdout);
    }
}

#[test]
fn recordings_of_other_kinds_are_named() {
    let ours = [
        ("multifd2-none-microvm.1", "a multifd channel"),
        ("multifd2-zstd-microvm.2", "a multifd channel"),
        ("precopy-pc-tcg.return", "a return path"),
        ("postcopy-microvm.0", "a postcopy stream"),
    ];
    for (name, kind) in ours {
        inspect(&corpus(name), &[]).failed_with(&[kind]);
    }
    let captured = [
        ("background-snapshot-microvm-16M.mig", "a background snapshot"),
        ("mapped-ram-pc-16M.mig", "a mapped-ram file"),
        ("multifd3-zlib.2", "a multifd channel"),
        ("postcopy-cut.main", "a postcopy stream"),
        ("postcopy-cut.recovered", "a postcopy recovery"),
        ("postcopy-preempt-cut.preempt", "a postcopy preempt channel"),
    ];
    for (name, kind) in captured {
        let Some(bytes) = capture(name) else { return };
        inspect(&bytes, &[]).failed_with(&[kind]);
    }
}

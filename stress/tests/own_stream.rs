//! A stream that our own VMM writes to a file can be read by somebody who has only the format.

use limosa_qmp::Client;
use limosa_stress::qemu::{IndependentReader, PATIENCE, compare_pages};
use limosa_vmm::{Dirtier, GuestConfig, GuestKind, Host, Machine, Program, Rate, kvm_usable};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tempfile::TempDir;

use limosa::pages::{ByteCount, PageCount};

const MEMORY: ByteCount = ByteCount(16 << 20);

/// A host whose guest is writing.
fn busy_host(kind: GuestKind) -> Arc<Host> {
    let dirtier =
        Dirtier { rate: Rate::PagesPerSecond(2000), working_set: Some(PageCount(512)), ..Dirtier::default() };
    let config = GuestConfig {
        kind,
        memory: MEMORY,
        vcpus: 2,
        program: Program::Dirtier(dirtier),
        ..GuestConfig::default()
    };
    let host = Host::new(Machine::new(&config).expect("a machine"), false).expect("a host");
    host.run().expect("a running guest");
    host
}

/// Migrates the guest to `file`, as an operator would.
fn save(host: &Arc<Host>, folder: &Path, file: &Path) {
    let socket = folder.join("monitor");
    let _server = host.listen(&socket).expect("a monitor");
    let mut client = Client::connect(&socket).expect("a client");
    let capabilities = json!([
        { "capability": "events", "state": true },
        { "capability": "return-path", "state": false },
    ]);
    client
        .execute("migrate-set-capabilities", json!({ "capabilities": capabilities }))
        .expect("capabilities");
    client.execute("migrate", json!({ "uri": format!("file:{}", file.display()) })).expect("migrate");
    let deadline = Instant::now() + PATIENCE;
    let ended = |event: &limosa_qmp::Event| {
        matches!(event.data["status"].as_str(), Some("completed" | "failed" | "cancelled"))
    };
    let event = client.wait_event_where("MIGRATION", deadline, ended).expect("an end");
    let answer = client.execute("query-migrate", Value::Null).expect("an answer");
    assert_eq!(event.data["status"], "completed", "{answer}");
}

fn assert_readable(kind: GuestKind, machine: &str) {
    let Some(reader) = IndependentReader::require() else { return };
    let folder = TempDir::new().expect("a folder");
    let host = busy_host(kind);
    let file = folder.path().join("stream");
    save(&host, folder.path(), &file);

    let summary = reader.read(&file, folder.path()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(summary["machine"], machine);
    assert_eq!(summary["sections_without_end"], json!([]));
    for (_, block) in host.machine().ram().iter() {
        let theirs = fs::read(folder.path().join(block.name().as_str())).expect("a block");
        let mut ours = vec![0; block.length().0 as usize];
        block.copy_out(0, &mut ours);
        assert_eq!(compare_pages(block.name().as_str(), 0, &ours, &theirs), None, "{machine}");
        assert!(ours.iter().any(|&byte| byte != 0), "{machine}: the guest wrote something");
    }

    let devices = summary["devices"].as_array().expect("devices");
    let mut expected: Vec<(&str, u32)> =
        host.machine().devices().iter().map(|entry| (entry.idstr, entry.instance)).collect();
    expected.push(("globalstate", 0));
    let found: Vec<(&str, u32)> = devices
        .iter()
        .map(|device| (device["name"].as_str().expect("a name"), device["instance"].as_u64().unwrap() as u32))
        .collect();
    assert_eq!(found, expected, "{machine}");
    for device in devices {
        let values = device["values"].as_object().expect("fields");
        assert!(!values.is_empty(), "{machine}: {} is described field by field", device["name"]);
    }
}

#[test]
fn the_stream_of_a_process_guest_is_readable_by_an_independent_reader() {
    assert_readable(GuestKind::Process, "limosa-process-1");
}

#[test]
fn the_stream_of_a_kvm_guest_is_readable_by_an_independent_reader() {
    if let Err(reason) = kvm_usable() {
        limosa_stress::qemu::leave_out(format_args!("no guest under KVM: {reason}"));
        return;
    }
    assert_readable(GuestKind::Kvm, "limosa-kvm-1");
}

//! The client and the JSON shapes against an unmodified QEMU.

use limosa_qmp::{
    Client, ErrorClass, MigrationCapability, MigrationCapabilityStatus, MigrationInfo, MigrationParameters,
    MigrationStatus, QmpError, RunState, StatusInfo,
};
use serde_json::{Value, json};
use std::env;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Long enough for a loaded machine to start QEMU; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(30);

struct Qemu {
    child: Child,
    directory: tempfile::TempDir,
}

impl Qemu {
    /// A guest that has not started, or `None` after saying that the test is left out.
    fn start() -> Option<Self> {
        let program = env::var_os("LIMOSA_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into());
        let directory = tempfile::tempdir().unwrap();
        let monitor = format!("unix:{},server=on,wait=off", directory.path().join("qmp").display());
        let child = Command::new(program)
            .args(["-M", "microvm", "-accel", "tcg", "-nodefaults", "-display", "none", "-m", "16", "-S"])
            .args(["-qmp", &monitor])
            .stdin(Stdio::null())
            .spawn();
        match child {
            Ok(child) => Some(Self { child, directory }),
            Err(error) => {
                let text = format!("QEMU does not start (set LIMOSA_QEMU): {error}");
                assert!(env::var_os("LIMOSA_REQUIRE_ALL_RINGS").is_none_or(|value| value != "1"), "{text}");
                eprintln!("LEFT OUT: {text}");
                None
            }
        }
    }

    fn client(&self) -> Client {
        Client::connect_when_ready(&self.directory.path().join("qmp"), Instant::now() + PATIENCE).unwrap()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Already gone after a `quit`: then both calls have nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_migration_of_a_real_qemu_can_be_followed_by_its_events() {
    let Some(qemu) = Qemu::start() else { return };
    let mut client = qemu.client();
    assert!(client.greeting().version.qemu.major >= 7);

    let status: StatusInfo = client.execute_as("query-status", Value::Null).unwrap();
    assert_eq!((status.running, status.status), (false, RunState::PreLaunch));
    let info: MigrationInfo = client.execute_as("query-migrate", Value::Null).unwrap();
    assert_eq!(info, MigrationInfo::default());
    let capabilities = json!({"capabilities": [{"capability": "events", "state": true}]});
    client.execute("migrate-set-capabilities", capabilities).unwrap();
    client.execute("cont", Value::Null).unwrap();
    let file = qemu.directory.path().join("stream");
    client.execute("migrate", json!({"uri": format!("exec:cat > {}", file.display())})).unwrap();
    client
        .wait_event_where("MIGRATION", Instant::now() + PATIENCE, |event| event.data["status"] == "completed")
        .unwrap();

    // Waiting for the last event kept the earlier ones, in order.
    let earlier: Vec<String> = client.take_events().into_iter().map(|event| event.event).collect();
    assert_eq!(earlier.first().map(String::as_str), Some("RESUME"));
    assert!(earlier.contains(&"STOP".to_owned()));
    assert_eq!(&std::fs::read(file).unwrap()[..4], b"QEVM");

    let info: MigrationInfo = client.execute_as("query-migrate", Value::Null).unwrap();
    assert_eq!(info.status, Some(MigrationStatus::Completed));
    let ram = info.ram.unwrap();
    assert_eq!((ram.page_size, ram.remaining), (4096, 0));
    assert!(ram.duplicate + ram.normal >= 4096, "16 MiB of pages should be counted: {ram:?}");
    client.quit().unwrap();
}

#[test]
fn every_capability_and_parameter_that_is_read_has_qemus_name() {
    let Some(qemu) = Qemu::start() else { return };
    let mut client = qemu.client();
    let capabilities: Vec<MigrationCapabilityStatus> =
        client.execute_as("query-migrate-capabilities", Value::Null).unwrap();
    assert!(!capabilities.is_empty());
    if client.greeting().version.qemu.major == 10 {
        let names: Vec<MigrationCapability> = capabilities.iter().map(|status| status.capability).collect();
        assert_eq!(names, MigrationCapability::ALL);
        // Nothing is lost on the way through our type, so no name is missing or misspelt.
        let said = client.execute("query-migrate-parameters", Value::Null).unwrap();
        let read: MigrationParameters = serde_json::from_value(said.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), said);
    }
}

#[test]
fn a_refusal_names_command_class_and_reason() {
    let Some(qemu) = Qemu::start() else { return };
    let mut client = qemu.client();
    let error = client.execute("no-such-command", Value::Null).unwrap_err();
    let QmpError::Refused { command, class, desc } = error else {
        panic!("expected a refusal, got {error:?}")
    };
    assert_eq!((command.as_str(), class), ("no-such-command", ErrorClass::CommandNotFound));
    assert_eq!(desc, "The command no-such-command has not been found");
}

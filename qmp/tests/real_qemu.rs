//! The client against an unmodified QEMU. Needs `qemu-system-x86_64` on the path.

use limosa_qmp::{Client, ErrorClass, QmpError};
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Long enough for a loaded machine to start QEMU; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(30);

struct Qemu {
    child: Child,
    directory: tempfile::TempDir,
}

impl Qemu {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let monitor = format!("unix:{},server=on,wait=off", directory.path().join("qmp").display());
        let child = Command::new("qemu-system-x86_64")
            .args(["-M", "microvm", "-accel", "tcg", "-nodefaults", "-display", "none", "-m", "16", "-S"])
            .args(["-qmp", &monitor])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 is needed for this test");
        Self { child, directory }
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
#[ignore = "needs qemu-system-x86_64"]
fn a_migration_of_a_real_qemu_can_be_followed_by_its_events() {
    let qemu = Qemu::start();
    let mut client = qemu.client();
    assert!(client.greeting().version.qemu.major >= 7);

    let status = client.execute("query-status", Value::Null).unwrap();
    assert_eq!(status["status"], "prelaunch");
    let capabilities = json!({"capabilities": [{"capability": "events", "state": true}]});
    client.execute("migrate-set-capabilities", capabilities).unwrap();
    client.execute("cont", Value::Null).unwrap();
    let file = qemu.directory.path().join("stream");
    client.execute("migrate", json!({"uri": format!("file:{}", file.display())})).unwrap();
    client
        .wait_event_where("MIGRATION", Instant::now() + PATIENCE, |event| event.data["status"] == "completed")
        .unwrap();

    // Waiting for the last event kept the earlier ones, in order.
    let earlier: Vec<String> = client.take_events().into_iter().map(|event| event.event).collect();
    assert_eq!(earlier.first().map(String::as_str), Some("RESUME"));
    assert!(earlier.contains(&"STOP".to_owned()));
    assert_eq!(&std::fs::read(file).unwrap()[..4], b"QEVM");
    client.quit().unwrap();
}

#[test]
#[ignore = "needs qemu-system-x86_64"]
fn a_refusal_names_command_class_and_reason() {
    let qemu = Qemu::start();
    let mut client = qemu.client();
    let error = client.execute("no-such-command", Value::Null).unwrap_err();
    let QmpError::Refused { command, class, desc } = error else {
        panic!("expected a refusal, got {error:?}")
    };
    assert_eq!((command.as_str(), class), ("no-such-command", ErrorClass::CommandNotFound));
    assert_eq!(desc, "The command no-such-command has not been found");
}

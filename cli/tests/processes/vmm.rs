//! `limosa vmm`: how it begins, how it ends, and what it says.

use crate::process::{Limosa, PATIENCE, leave_out, wait_until};
use limosa_qmp::Client;
use limosa_ram::dirty_log::PagemapDirtyLog;
use limosa_vmm::kvm_usable;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tempfile::TempDir;

/// A VMM with its monitor in a folder of its own.
pub(crate) struct Vmm {
    pub(crate) process: Limosa,
    pub(crate) client: Client,
    folder: TempDir,
}

/// Says so if no guest here can be moved.
pub(crate) fn can_move(test: &str) -> bool {
    let (Err(reason), Err(_)) = (PagemapDirtyLog::detect(), kvm_usable()) else { return true };
    leave_out(test, &reason);
    false
}

impl Vmm {
    pub(crate) fn start(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let monitor = folder.path().join("monitor");
        let qmp = format!("--qmp=unix:{}", monitor.display());
        let process = Limosa::start(["vmm", "--memory=16M", &qmp].iter().chain(options));
        let client = Client::connect_when_ready(&monitor, Instant::now() + PATIENCE).expect("a monitor");
        Self { process, client, folder }
    }

    /// One that waits for a guest at a unix socket in its folder.
    fn waiting() -> Self {
        let vmm = Self::start(&["--incoming=defer"]);
        vmm.process.wait_said("waits for migrate-incoming");
        vmm
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    #[track_caller]
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Value {
        self.client.execute(command, arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.execute("query-status", Value::Null)["running"] == json!(true)
    }
}

/// Sends what is no migration stream to a unix socket.
fn send_nonsense(socket: &Path) {
    let mut stream = UnixStream::connect(socket).expect("somebody listens");
    stream.write_all(b"This is no migration stream, whatever it may be.").expect("it reads");
}

#[test]
fn a_guest_moves_between_two_vmms_at_the_command_of_their_clients() {
    if !can_move("two VMMs") {
        return;
    }
    let mut source = Vmm::start(&["--vcpus=2", "--dirty-rate=2000", "--prefill=text"]);
    let mut destination = Vmm::start(&["--vcpus=2", "--incoming=tcp:127.0.0.1:0", "--paused"]);
    // The line names the port that the kernel has chosen.
    let said = destination.process.wait_said("is awaited at tcp:127.0.0.1:");
    let (_, address) = said.trim_end().split_once("awaited at ").unwrap();
    wait_until("the guest works", || {
        let steps = source.execute("x-limosa-progress", Value::Null)["steps"].clone();
        steps.as_array().unwrap().iter().all(|steps| steps.as_u64().unwrap() > 50)
    });
    source.execute("migrate", json!({ "uri": address }));
    wait_until("it has arrived", || {
        let info = destination.execute("query-migrate", Value::Null);
        assert_ne!(info["status"], "failed", "{info}");
        info["status"] == json!("completed")
    });
    assert!(!destination.is_running(), "it was to arrive paused");
    assert_eq!(destination.execute("x-limosa-verify", Value::Null)["clean"], true);
    destination.execute("cont", Value::Null);
    assert!(destination.is_running());
    for vmm in [source, destination] {
        vmm.client.quit().unwrap();
        let ended = vmm.process.wait();
        assert!(ended.status.success(), "{ended:?}");
    }
}

#[test]
fn a_guest_that_does_not_arrive_ends_the_vmm_with_the_reason() {
    if !can_move("failed arrival") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let stream = folder.path().join("stream");
    let vmm = Vmm::start(&[&format!("--incoming=unix:{}", stream.display())]);
    vmm.process.wait_said("is awaited at unix:");
    send_nonsense(&stream);
    let monitor = vmm.path("monitor");
    vmm.process.wait().assert_failed("the guest did not arrive: ");
    assert!(!stream.exists() && !monitor.exists());
}

#[test]
fn with_defer_the_client_says_whether_a_failed_arrival_is_the_end() {
    if !can_move("exit-on-error") {
        return;
    }
    let mut vmm = Vmm::waiting();
    let stream = vmm.path("stream");
    let uri = format!("unix:{}", stream.display());
    vmm.execute("migrate-incoming", json!({ "uri": uri, "exit-on-error": false }));
    send_nonsense(&stream);
    vmm.process.wait_said("the guest did not arrive: ");
    let info = vmm.execute("query-migrate", Value::Null);
    assert_eq!(info["status"], "failed");
    let said = vmm.process.wait_said("\n");
    assert!(said.contains(info["error-desc"].as_str().unwrap()), "{said} {info}");

    vmm.execute("migrate-incoming", json!({ "uri": uri }));
    send_nonsense(&stream);
    vmm.process.wait().assert_failed("the guest did not arrive: ");
}

#[test]
fn a_signal_ends_the_vmm_and_its_sockets() {
    if !can_move("signals") {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut vmm = Vmm::waiting();
        let (monitor, stream) = (vmm.path("monitor"), vmm.path("stream"));
        vmm.execute("migrate-incoming", json!({ "uri": format!("unix:{}", stream.display()) }));
        assert!(monitor.exists() && stream.exists());
        vmm.process.signal(signal);
        let event = vmm.client.wait_event("SHUTDOWN", Instant::now() + PATIENCE).unwrap();
        assert_eq!(event.data["reason"], "host-signal");
        let ended = vmm.process.wait();
        assert!(ended.status.success(), "{ended:?}");
        assert!(!monitor.exists() && !stream.exists());
    }
}

#[test]
fn a_signal_in_the_middle_of_a_migration_ends_both_vmms_at_once() {
    if !can_move("signal while migrating") {
        return;
    }
    let mut source = Vmm::start(&["--prefill=random"]);
    let mut destination = Vmm::waiting();
    let uri = json!({ "uri": format!("unix:{}", destination.path("stream").display()) });
    destination.execute("migrate-incoming", uri.clone());
    source.execute("migrate-set-parameters", json!({ "max-bandwidth": 10_000 }));
    source.execute("migrate", uri);
    wait_until("it is on its way", || {
        destination.execute("query-migrate", Value::Null)["status"] == json!("active")
    });
    source.process.signal(Signal::SIGTERM);
    let ended = source.process.wait();
    assert!(ended.status.success(), "{ended:?}");
    destination.process.wait().assert_failed("the guest did not arrive: ");
}

#[test]
fn quit_is_answered_before_the_end() {
    if !can_move("quit") {
        return;
    }
    let mut vmm = Vmm::start(&["--paused"]);
    assert!(!vmm.is_running());
    assert_eq!(vmm.execute("quit", Value::Null), json!({}));
    let monitor = vmm.path("monitor");
    assert!(vmm.process.wait().status.success());
    assert!(!monitor.exists());
}

#[test]
fn a_vmm_that_was_told_to_ends_with_its_standard_input() {
    if !can_move("standard input") {
        return;
    }
    let mut vmm = Vmm::start(&["--quit-with-stdin"]);
    vmm.process.close_stdin();
    let ended = vmm.process.wait();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.stderr, "", "who started it knows what it is");
}

#[test]
fn ram_in_a_file_can_be_filled_once_and_used_again() {
    if !can_move("memory file") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = format!("--memory-file={}", folder.path().join("ram").display());
    let options = [&*file, "--prefill=mixed", "--dirty-rate=0"];
    Vmm::start(&options).client.quit().unwrap();
    assert_eq!(std::fs::metadata(folder.path().join("ram")).unwrap().len(), 16 << 20);
    let mut again = Vmm::start(&[&options[..], &["--prefilled", "--paused"]].concat());
    let verified = again.execute("x-limosa-verify", Value::Null);
    assert_eq!((&verified["clean"], &verified["pages-checked"]), (&json!(true), &json!(4096)));
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("sector"), [0; 100]).unwrap();
    let qmp = format!("--qmp={}", at("monitor"));
    for (options, reason) in [
        (vec!["--incoming=tcp:nowhere".to_owned()], "tcp:nowhere"),
        (vec!["--incoming=pigeon:home".to_owned()], "pigeon"),
        (vec![format!("--incoming=unix:{}", at("no/stream"))], "no/stream"),
        (vec!["--memory=1M".to_owned()], "1048576 bytes"),
        (vec!["--vcpus=0".to_owned()], "0 vCPUs"),
        (vec![format!("--boot-sector={}", at("no-sector"))], "no-sector"),
        (vec![format!("--boot-sector={}", at("sector"))], "100 bytes; expected 512"),
        (vec![format!("--serial={}", at("no/serial"))], "no/serial"),
    ] {
        let mut words = vec!["vmm".to_owned(), qmp.clone()];
        words.extend(options);
        Limosa::start(&words).wait().assert_failed(reason);
        assert!(!folder.path().join("monitor").exists(), "{words:?}");
    }
    let nowhere = format!("--qmp={}", at("no/monitor"));
    Limosa::start(["vmm", "--memory=16M", &nowhere]).wait().assert_failed("no/monitor");
    // Who reaches the monitor can ask at once where the guest is awaited: that comes first.
    let neither = ["vmm", "--memory=16M", &nowhere, &format!("--incoming=unix:{}", at("no/stream"))];
    Limosa::start(neither).wait().assert_failed("no/stream");
    let both = ["vmm", &qmp, "--incoming=defer", "--boot-sector=x"];
    assert_eq!(Limosa::start(both).wait().status.code(), Some(2));
}

#[test]
fn a_monitor_that_somebody_has_is_not_taken_from_him() {
    if !can_move("taken monitor") {
        return;
    }
    let mut vmm = Vmm::start(&[]);
    let qmp = format!("--qmp={}", vmm.path("monitor").display());
    Limosa::start(["vmm", "--memory=16M", &qmp]).wait().assert_failed("monitor");
    assert!(vmm.is_running());
}

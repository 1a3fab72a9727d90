//! What is refused around arrivals and departures, and what becomes of a guest that does not arrive.

use crate::ring::within_patience;
use crate::stage::{Vmm, any_kind, at_work, move_guest, word};
use limosa_vmm::{GuestConfig, Occurrence, Program, QuitCause};
use serde_json::{Value, json};
use std::sync::Arc;

#[test]
fn a_guest_that_is_not_here_cannot_run_or_leave() {
    let Some(kind) = any_kind("not here") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    assert_eq!(destination.refusal("cont", Value::Null), "The guest has not arrived yet");
    let away = json!({ "uri": "tcp:127.0.0.1:1" });
    let waiting = "Guest is waiting for an incoming migration";
    assert_eq!(destination.refusal("migrate", away.clone()), waiting);
    // What has no effect is no error, as in QEMU.
    destination.execute("stop", Value::Null);
    destination.execute("migrate_cancel", Value::Null);
    assert_eq!(destination.status(), "inmigrate");

    move_guest(&mut source, &mut destination, "unix");
    assert_eq!(source.refusal("cont", Value::Null), "The guest has migrated: it is on the destination");
    let left = "Can't migrate the vm that was paused due to previous migration";
    assert_eq!(source.refusal("migrate", away), left);
    assert_eq!(source.status(), "postmigrate");
    assert_eq!(destination.status(), "running");
}

#[test]
fn a_vmm_with_a_guest_takes_no_other_in() {
    let Some(kind) = any_kind("occupied") else { return };
    let mut source = Vmm::running(kind);
    let uri = json!({ "uri": "tcp:127.0.0.1:0" });
    let refusal = source.refusal("migrate-incoming", uri.clone());
    assert!(refusal.contains("There is a guest here"), "{refusal}");
    source.execute("stop", Value::Null);
    let refusal = source.refusal("migrate-incoming", uri);
    assert!(refusal.contains("There is a guest here"), "a paused one counts: {refusal}");
}

#[test]
fn one_migration_at_a_time() {
    let Some(kind) = any_kind("busy") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    source.hold_back();
    let uri = destination.listen("unix");
    source.migrate(&uri);
    let busy = "There's a migration process in progress";
    assert_eq!(source.refusal("migrate", json!({ "uri": uri })), busy);
    assert_eq!(destination.refusal("migrate-incoming", json!({ "uri": "tcp:127.0.0.1:0" })), busy);
    let capabilities = json!({ "capabilities": [{ "capability": "xbzrle", "state": true }] });
    assert_eq!(source.refusal("migrate-set-capabilities", capabilities.clone()), busy);
    assert_eq!(destination.refusal("migrate-set-capabilities", capabilities), busy);
    source.let_go();
    source.wait("completed");
}

#[test]
fn a_waiting_vmm_can_still_be_told_to_report_events() {
    let Some(kind) = any_kind("late events") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    destination.set_capability("events", false);
    let uri = destination.listen("unix");
    destination.set_capability("events", true);
    source.migrate(&uri);
    let mut story = destination.story();
    // Whether that it listens was told before or after is decided by chance.
    story.retain(|word| word != "setup");
    assert_eq!(story, ["active", "RESUME", "completed"]);
}

#[test]
fn an_address_where_nobody_can_listen_leaves_the_vmm_waiting() {
    let Some(kind) = any_kind("no address") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    let nowhere = destination.path("no-such-folder").join("stream");
    let uri = format!("unix:{}", nowhere.display());
    let refusal = destination.refusal("migrate-incoming", json!({ "uri": uri }));
    assert!(refusal.contains("no-such-folder"), "{refusal}");
    assert_eq!(destination.status(), "inmigrate");
    move_guest(&mut source, &mut destination, "unix");

    // A guest that left is still away when its VMM could not listen for it.
    source.refusal("migrate-incoming", json!({ "uri": uri }));
    assert_eq!(source.status(), "postmigrate");
}

#[test]
fn a_guest_of_another_size_is_refused_with_the_reason_on_both_sides() {
    let Some(kind) = any_kind("other size") else { return };
    let mut source = Vmm::running(kind);
    let memory = limosa_pages::ByteCount(4 << 20);
    let program = Program::Incoming;
    let config = GuestConfig { kind, memory, vcpus: 2, program, ..GuestConfig::default() };
    let mut destination = Vmm::new(&config, true);
    let uri = destination.listen("tcp");
    source.migrate(&uri);
    destination.wait("failed");
    source.wait("failed");
    let reason = word(&destination.query_migrate()["error-desc"]);
    assert!(reason.contains("pc.ram"), "{reason}");
    assert_ne!(word(&source.query_migrate()["error-desc"]), "");
    assert_eq!((source.status(), destination.status()), ("running".into(), "inmigrate".into()));
    let occurrence = destination.host.wait();
    assert_eq!(occurrence, Occurrence::ArrivalFailed { reason, fatal: false });
}

#[test]
fn a_failed_arrival_is_fatal_unless_the_client_said_otherwise() {
    let Some(kind) = any_kind("exit-on-error") else { return };
    for (arguments, expected) in [
        (json!({}), true),
        (json!({ "exit-on-error": true }), true),
        (json!({ "exit-on-error": false }), false),
    ] {
        let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
        let uri = format!("unix:{}", destination.path("stream").display());
        let mut arguments = arguments;
        arguments["uri"] = json!(uri);
        destination.execute("migrate-incoming", arguments);
        source.hold_back();
        source.migrate(&uri);
        // From here on the destination has nothing to answer, so that it finds the end where it reads.
        source.wait_until("active");
        source.execute("migrate_cancel", Value::Null);
        match destination.host.wait() {
            Occurrence::ArrivalFailed { reason, fatal } => {
                assert_eq!(fatal, expected);
                assert!(reason.contains("closed by the peer"), "{reason}");
            }
            Occurrence::Quit => panic!("nobody said quit"),
        }
        source.wait("cancelled");
    }
}

#[test]
fn a_failed_arrival_is_told_even_if_a_client_asked_first() {
    let Some(kind) = any_kind("asked first") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    let uri = destination.listen("unix");
    source.hold_back();
    source.migrate(&uri);
    destination.wait("active");
    source.execute("migrate_cancel", Value::Null);
    destination.wait("failed");
    assert_eq!(destination.query_migrate()["status"], "failed");
    assert!(matches!(destination.host.wait(), Occurrence::ArrivalFailed { fatal: false, .. }));
}

#[test]
fn a_host_that_closes_leaves_no_socket_behind() {
    let Some(kind) = any_kind("close") else { return };
    let mut destination = Vmm::incoming(kind);
    let (stream, monitor) = (destination.path("stream"), destination.path("monitor"));
    destination.listen("unix");
    assert!(stream.exists() && monitor.exists());
    destination.host.close();
    assert!(!stream.exists());
    // The folder goes with the stage, so it is looked at before that.
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("monitor");
    let server = destination.host.listen(&kept).unwrap();
    assert!(kept.exists());
    drop(server);
    assert!(!kept.exists());
}

#[test]
fn quit_is_answered_and_ends_the_wait() {
    let Some(kind) = any_kind("quit") else { return };
    let mut vmm = Vmm::of(kind, Program::Dirtier(at_work()), false);
    let waiting = Arc::clone(&vmm.host);
    let (told, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || told.send(waiting.wait()));
    let mut other = vmm.another_client();
    vmm.execute("quit", Value::Null);
    let event = vmm.wait_event("SHUTDOWN");
    assert_eq!(event.data, json!({ "guest": false, "reason": "host-qmp-quit" }));
    within_patience("the wait ends", move || {
        assert_eq!(heard.recv().unwrap(), Occurrence::Quit);
    });
    let deadline = std::time::Instant::now() + crate::stage::PATIENCE;
    other.wait_event("SHUTDOWN", deadline).expect("every client is told");
    assert_eq!(vmm.close_monitor().wait(), Occurrence::Quit, "it stays said");
}

#[test]
fn a_signal_is_told_as_such() {
    let Some(kind) = any_kind("signal") else { return };
    let mut vmm = Vmm::of(kind, Program::Dirtier(at_work()), false);
    vmm.host.quit(QuitCause::Signal);
    let event = vmm.wait_event("SHUTDOWN");
    assert_eq!(event.data, json!({ "guest": false, "reason": "host-signal" }));
}

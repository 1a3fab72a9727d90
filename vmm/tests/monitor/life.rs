//! What a client is told of a guest and its migrations, from the first instruction to the end.

use crate::ring::{for_each_kind, let_work, pause_and_verify, total_steps};
use crate::stage::{Vmm, any_kind, move_guest, word};
use serde_json::{Value, json};

#[test]
fn a_guest_is_followed_through_its_whole_life() {
    for_each_kind("life under a monitor", |kind| {
        let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
        assert_eq!((source.query_migrate(), destination.query_migrate()), (json!({}), json!({})));
        assert_eq!((source.status(), destination.status()), ("running".into(), "inmigrate".into()));
        source.execute("stop", Value::Null);
        assert_eq!(source.status(), "paused");
        source.execute("cont", Value::Null);
        assert_eq!(source.status(), "running");

        source.set_capability("pause-before-switchover", true);
        source.hold_back();
        let uri = destination.listen("unix");
        source.migrate(&uri);
        source.wait("active");
        destination.wait("active");
        assert_eq!((source.status(), destination.status()), ("running".into(), "inmigrate".into()));
        source.let_go();
        source.wait("pre-switchover");
        assert_eq!((source.status(), destination.status()), ("finish-migrate".into(), "inmigrate".into()));
        source.execute("migrate-continue", json!({ "state": "pre-switchover" }));
        source.wait("completed");
        destination.wait("completed");
        assert_eq!((source.status(), destination.status()), ("postmigrate".into(), "running".into()));

        let left = total_steps(source.host.machine());
        let_work(destination.host.machine(), 1);
        assert!(total_steps(destination.host.machine()) > left);
        destination.execute("stop", Value::Null);
        assert_eq!(destination.status(), "paused");
        pause_and_verify(destination.host.machine());
    });
}

#[test]
fn events_come_in_qemus_order_on_both_sides() {
    let Some(kind) = any_kind("events") else { return };
    for transport in ["tcp", "unix"] {
        let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
        source.forget_events();
        let uri = destination.listen(transport);
        source.migrate(&uri);
        let mut story = source.story();
        let passes = story.iter().filter(|word| *word == "MIGRATION_PASS").count();
        assert!(passes >= 2, "{story:?}");
        story.retain(|word| word != "MIGRATION_PASS");
        assert_eq!(story, ["setup", "active", "STOP", "device", "completed"]);
        assert_eq!(destination.story(), ["setup", "active", "RESUME", "completed"]);
    }
}

#[test]
fn without_the_capability_only_stops_and_resumes_are_told() {
    let Some(kind) = any_kind("events off") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    source.set_capability("events", false);
    source.forget_events();
    let uri = destination.listen("unix");
    source.migrate(&uri);
    source.wait_until("completed");
    assert_eq!(source.events(), ["STOP"]);
}

#[test]
fn a_guest_that_was_paused_arrives_paused() {
    let Some(kind) = any_kind("paused") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    source.execute("stop", Value::Null);
    source.forget_events();
    let uri = destination.listen("tcp");
    source.migrate(&uri);
    let story = source.story();
    assert!(!story.contains(&"STOP".to_owned()), "it stood still already: {story:?}");
    destination.wait("completed");
    assert_eq!((source.status(), destination.status()), ("postmigrate".into(), "paused".into()));
    destination.execute("cont", Value::Null);
    assert_eq!(destination.status(), "running");
}

#[test]
fn a_paused_guest_cannot_be_let_run_while_the_last_of_it_leaves() {
    let Some(kind) = any_kind("paused, held") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    source.execute("stop", Value::Null);
    source.set_capability("pause-before-switchover", true);
    let uri = destination.listen("unix");
    source.migrate(&uri);
    source.wait("pre-switchover");
    assert_eq!(source.status(), "finish-migrate");
    assert_eq!(source.refusal("cont", Value::Null), "Migration is not finalized yet");
    // A migration that is called off gives the guest back to its operator, as he left it.
    source.execute("migrate_cancel", Value::Null);
    source.wait("cancelled");
    assert_eq!(source.status(), "paused");
    source.execute("cont", Value::Null);
    assert_eq!(source.status(), "running");
    destination.wait("failed");
}

#[test]
fn a_cancelled_migration_leaves_the_guest_running_and_can_be_tried_again() {
    let Some(kind) = any_kind("cancel") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    source.execute("migrate_cancel", Value::Null);
    source.hold_back();
    source.forget_events();
    let uri = destination.listen("unix");
    source.migrate(&uri);
    source.wait_until("active");
    source.execute("migrate_cancel", Value::Null);
    let mut story = source.story();
    story.retain(|word| word != "MIGRATION_PASS");
    assert_eq!(story, ["setup", "active", "cancelling", "cancelled"]);
    assert_eq!(source.query_migrate(), json!({ "status": "cancelled" }));
    assert_eq!(source.status(), "running");
    let_work(source.host.machine(), 100);

    destination.wait("failed");
    assert_eq!(destination.status(), "inmigrate");
    move_guest(&mut source, &mut destination, "unix");
    assert_eq!((source.status(), destination.status()), ("postmigrate".into(), "running".into()));
    pause_and_verify(destination.host.machine());
}

#[test]
fn a_migration_cancelled_before_the_switchover_resumes_the_guest() {
    let Some(kind) = any_kind("cancel in pre-switchover") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    source.set_capability("pause-before-switchover", true);
    source.forget_events();
    let uri = destination.listen("unix");
    source.migrate(&uri);
    source.wait("pre-switchover");
    source.execute("migrate_cancel", Value::Null);
    let story = source.story();
    let tail = &story[story.len() - 3..];
    assert!(tail.contains(&"RESUME".to_owned()) && tail.contains(&"cancelled".to_owned()), "{story:?}");
    assert_eq!(source.status(), "running");
    let_work(source.host.machine(), 100);
    destination.wait("failed");
}

#[test]
fn a_guest_that_left_can_come_back() {
    let Some(kind) = any_kind("there and back") else { return };
    let (mut here, mut there) = (Vmm::running(kind), Vmm::incoming(kind));
    for _ in 0..4 {
        let left = total_steps(here.host.machine());
        move_guest(&mut here, &mut there, "unix");
        let_work(there.host.machine(), 10);
        assert!(total_steps(there.host.machine()) > left);
        std::mem::swap(&mut here, &mut there);
    }
    pause_and_verify(here.host.machine());
}

#[test]
fn a_failed_migration_says_why_and_leaves_the_guest_running() {
    let Some(kind) = any_kind("failure") else { return };
    let mut source = Vmm::running(kind);
    source.forget_events();
    let nobody = source.path("nobody");
    source.migrate(&format!("unix:{}", nobody.display()));
    assert_eq!(source.story(), ["setup", "failed"]);
    let info = source.query_migrate();
    let members: Vec<&String> = info.as_object().unwrap().keys().collect();
    assert_eq!(members, ["status", "error-desc"]);
    assert!(word(&info["error-desc"]).contains(&*nobody.to_string_lossy()), "{info}");
    assert_eq!(source.status(), "running");
}

//! A guest that moves before its memory, as its operator sees it.

use crate::ring::within_patience;
use crate::stage::{Vmm, any_kind, word};
use limosa_vmm::GuestKind;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;

/// Pages of every guest here.
const PAGES: u64 = crate::ring::MEMORY.0 / 4096;

fn limit_postcopy(source: &mut Vmm, bytes_per_second: u64) {
    source.execute("migrate-set-parameters", json!({ "max-postcopy-bandwidth": bytes_per_second }));
}

fn let_follow(source: &mut Vmm) {
    limit_postcopy(source, 0);
}

/// A source whose precopy takes minutes, and a destination, both with postcopy.
fn pair(kind: GuestKind, capabilities: &[&str]) -> (Vmm, Vmm) {
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    for capability in capabilities {
        source.set_capability(capability, true);
        destination.set_capability(capability, true);
    }
    source.hold_back();
    (source, destination)
}

/// Moves the guest in the middle of precopy; most of its memory stays behind, until [`let_follow`].
fn switch(source: &mut Vmm, destination: &mut Vmm) {
    limit_postcopy(source, 64 << 10);
    let uri = destination.listen("unix");
    source.migrate(&uri);
    source.wait("active");
    source.execute("migrate-start-postcopy", Value::Null);
    destination.wait("postcopy-active");
    source.wait("postcopy-active");
}

/// Connects the two again, at a place of its own.
fn recover(source: &mut Vmm, destination: &mut Vmm, name: &str) {
    let uri = format!("unix:{}", destination.path(name).display());
    destination.execute("migrate-recover", json!({ "uri": uri }));
    source.execute("migrate", json!({ "uri": uri, "resume": true }));
    destination.wait("postcopy-active");
    source.wait("postcopy-active");
}

#[track_caller]
fn assert_arrived(source: &mut Vmm, destination: &mut Vmm) {
    source.wait("completed");
    destination.wait("completed");
    assert_eq!((source.status(), destination.status()), ("postmigrate".into(), "running".into()));
    // Its pause ends when the page is here that each worker waits for: all are.
    destination.execute("stop", Value::Null);
    let verified = destination.execute("x-limosa-verify", Value::Null);
    assert_eq!(verified["clean"], true, "{verified}");
}

#[test]
fn a_guest_moves_when_its_operator_says_so_and_its_memory_follows() {
    let Some(kind) = any_kind("postcopy") else { return };
    for capabilities in
        [&["postcopy-ram"] as &[&str], &["postcopy-ram", "postcopy-preempt", "postcopy-blocktime"]]
    {
        let (mut source, mut destination) = pair(kind, capabilities);
        switch(&mut source, &mut destination);
        let_follow(&mut source);
        assert_arrived(&mut source, &mut destination);

        let info = destination.query_migrate();
        let faults = &info["x-limosa-postcopy"];
        let pages = |name: &str| faults[name].as_u64().unwrap_or_else(|| panic!("{name} of {info}"));
        assert!((1..=PAGES).contains(&(pages("pages-by-fault") + pages("pages-by-push"))), "{info}");
        let measured = capabilities.contains(&"postcopy-blocktime");
        assert_eq!(info["postcopy-blocktime"].is_u64(), measured, "{info}");
        assert_eq!(
            info["postcopy-vcpu-blocktime"].as_array().map_or(0, Vec::len),
            if measured { 2 } else { 0 }
        );
        let sent = source.query_migrate();
        assert!(sent["ram"]["postcopy-bytes"].as_u64() > Some(0), "{sent}");
        assert!(sent["x-limosa-postcopy"]["requests"].is_u64(), "{sent}");
    }
}

#[test]
fn a_paused_postcopy_goes_on_wherever_it_was_paused() {
    let Some(kind) = any_kind("postcopy, recovery") else { return };
    for preempt in [false, true] {
        let capabilities = ["postcopy-ram", "postcopy-preempt"];
        let (mut source, mut destination) = pair(kind, &capabilities[..1 + usize::from(preempt)]);
        switch(&mut source, &mut destination);
        for (round, pauser) in ["source", "destination", "source"].iter().enumerate() {
            if *pauser == "source" { &mut source } else { &mut destination }
                .execute("migrate-pause", Value::Null);
            source.wait("postcopy-paused");
            destination.wait("postcopy-paused");
            recover(&mut source, &mut destination, &format!("again-{round}"));
        }
        let_follow(&mut source);
        assert_arrived(&mut source, &mut destination);
    }
}

#[test]
fn a_recovery_that_finds_nobody_leaves_the_migration_paused() {
    let Some(kind) = any_kind("postcopy, failed recovery") else { return };
    let (mut source, mut destination) = pair(kind, &["postcopy-ram"]);
    switch(&mut source, &mut destination);
    source.execute("migrate-pause", Value::Null);
    source.wait("postcopy-paused");
    destination.wait("postcopy-paused");
    let nowhere = format!("unix:{}", source.path("nobody-listens-here").display());
    source.execute("migrate", json!({ "uri": nowhere, "resume": true }));
    source.wait("postcopy-recover-setup");
    source.wait("postcopy-paused");
    assert_ne!(word(&source.query_migrate()["error-desc"]), "");
    recover(&mut source, &mut destination, "again");
    let_follow(&mut source);
    assert_arrived(&mut source, &mut destination);
}

#[test]
fn a_guest_that_is_not_whole_can_neither_be_called_back_nor_looked_at() {
    let Some(kind) = any_kind("postcopy, refusals") else { return };
    let (mut source, mut destination) = pair(kind, &["postcopy-ram"]);
    switch(&mut source, &mut destination);
    assert_eq!(source.refusal("migrate_cancel", Value::Null), "Postcopy migration in-flight, can not cancel");
    assert_eq!(source.refusal("cont", Value::Null), "Migration is not finalized yet");
    let arriving = "The guest's memory is still arriving";
    assert_eq!(destination.refusal("x-limosa-verify", Value::Null), arriving);
    assert_eq!(destination.refusal("x-limosa-progress", Value::Null), arriving);
    let file = destination.path("memory").display().to_string();
    let dump = json!({ "val": 0, "size": 4096, "filename": file });
    assert_eq!(destination.refusal("pmemsave", dump), arriving);
    assert_eq!(destination.status(), "running");
    let_follow(&mut source);
    assert_arrived(&mut source, &mut destination);
}

#[test]
fn a_pause_that_waits_for_a_page_does_not_stand_in_the_way_of_the_recovery() {
    let Some(kind) = any_kind("postcopy, stop") else { return };
    let (mut source, mut destination) = pair(kind, &["postcopy-ram"]);
    switch(&mut source, &mut destination);
    source.execute("migrate-pause", Value::Null);
    source.wait("postcopy-paused");
    destination.wait("postcopy-paused");
    // The workers run into missing pages within moments, and stop when these are here.
    let mut other = destination.another_client();
    let stopping = std::thread::spawn(move || other.execute("stop", Value::Null));
    recover(&mut source, &mut destination, "again");
    let_follow(&mut source);
    source.wait("completed");
    destination.wait("completed");
    within_patience("the guest stops", move || {
        stopping.join().expect("no panic").expect("no refusal");
    });
    assert_eq!(destination.status(), "paused");
}

#[test]
fn a_host_with_a_guest_that_is_not_whole_can_be_closed() {
    let Some(kind) = any_kind("postcopy, close") else { return };
    let (mut source, mut destination) = pair(kind, &["postcopy-ram"]);
    switch(&mut source, &mut destination);
    let host = Arc::clone(&destination.host);
    within_patience("the host closes", move || host.close());
    source.execute("migrate-pause", Value::Null);
    source.wait("postcopy-paused");
    let host = Arc::clone(&source.host);
    within_patience("the host closes", move || host.close());
}

#[test]
fn commands_of_postcopy_are_refused_where_there_is_none() {
    let Some(kind) = any_kind("no postcopy") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    let uri = json!({ "uri": "tcp:127.0.0.1:1" });
    for vmm in [&mut source, &mut destination] {
        let pause =
            "migrate-pause is currently only supported during postcopy-active or postcopy-recover state";
        assert_eq!(vmm.refusal("migrate-pause", Value::Null), pause);
        let recover = "Migrate recover can only be run when postcopy is paused.";
        assert_eq!(vmm.refusal("migrate-recover", uri.clone()), recover);
        let resume = "Cannot resume if there is no paused migration";
        assert_eq!(vmm.refusal("migrate", json!({ "uri": "tcp:127.0.0.1:1", "resume": true })), resume);
        let end = "Migrate recover can only be run when postcopy is paused.";
        assert_eq!(vmm.refusal("x-limosa-end-postcopy", json!({ "outcome": "lost" })), end);
    }
    let start = "Postcopy must be started after migration has been started";
    source.set_capability("postcopy-ram", true);
    assert_eq!(source.refusal("migrate-start-postcopy", Value::Null), start);
    source.set_capability("postcopy-ram", false);
    source.hold_back();
    let uri = destination.listen("unix");
    source.migrate(&uri);
    let off = "Enable postcopy with migrate_set_capability before the start of migration";
    assert_eq!(source.refusal("migrate-start-postcopy", Value::Null), off);
    source.let_go();
    source.wait("completed");
}

/// Passes a connection on to `uri` and back until SHUT(0) comes back: that is lost with the connection. Where to connect.
fn losing_the_last_word(uri: &str) -> String {
    const SHUT: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];
    let mut far = TcpStream::connect(uri.strip_prefix("tcp:").expect("a port")).expect("it listens");
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let (mut near, _) = listener.accept().expect("a source");
        let (mut from, mut to) = (near.try_clone().expect("a copy"), far.try_clone().expect("a copy"));
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let mut bytes = [0; 4096];
        // A message is written at once, and is small.
        while let Ok(count @ 1..) = far.read(&mut bytes) {
            if bytes[..count].ends_with(&SHUT) || near.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        for end in [near, far] {
            let _ = end.shutdown(Shutdown::Both);
        }
    });
    format!("tcp:{address}")
}

#[test]
fn a_source_that_did_not_hear_of_the_end_is_told_when_it_asks() {
    let Some(kind) = any_kind("postcopy, lost end") else { return };
    let (mut source, mut destination) = pair(kind, &["postcopy-ram"]);
    let uri = losing_the_last_word(&destination.listen("tcp"));
    source.migrate(&uri);
    source.wait("active");
    source.execute("migrate-start-postcopy", Value::Null);
    destination.wait("completed");
    source.wait("postcopy-paused");
    assert_eq!(source.refusal("cont", Value::Null), "Migration is not finalized yet");
    let uri = format!("unix:{}", destination.path("again").display());
    destination.execute("migrate-recover", json!({ "uri": uri }));
    source.execute("migrate", json!({ "uri": uri, "resume": true }));
    source.wait("completed");
    assert_eq!((source.status(), destination.status()), ("postmigrate".into(), "running".into()));
    destination.execute("stop", Value::Null);
    assert_eq!(destination.execute("x-limosa-verify", Value::Null)["clean"], true);
}

#[test]
fn a_guest_that_is_given_up_is_neither_looked_at_nor_moved_and_its_host_can_go() {
    let Some(kind) = any_kind("postcopy, lost guest") else { return };
    let (mut source, mut destination) = pair(kind, &["postcopy-ram"]);
    switch(&mut source, &mut destination);
    source.execute("migrate-pause", Value::Null);
    source.wait("postcopy-paused");
    destination.wait("postcopy-paused");
    destination.execute("x-limosa-end-postcopy", json!({ "outcome": "lost" }));
    destination.wait("failed");
    let lost = "The guest is lost: memory of it never came";
    assert_eq!(destination.refusal("x-limosa-verify", Value::Null), lost);
    assert_eq!(destination.refusal("x-limosa-progress", Value::Null), lost);
    assert_eq!(destination.refusal("migrate", json!({ "uri": "tcp:127.0.0.1:1" })), lost);
    within_patience("the host goes", move || drop(destination));
}

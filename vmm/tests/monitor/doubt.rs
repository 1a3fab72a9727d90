//! A link that breaks between the destination's leave to run and its word that it does.

use crate::ring::let_work;
use crate::stage::{Vmm, any_kind, word};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// The last word of a destination, among the messages of the return path (QEMU migration stream, MIG_RP_MSG_SHUT).
const SHUT: u16 = 1;

/// Carries one migration between a listener at `near` and the destination at `far`; the destination's last word gets lost,
/// and with it the link.
fn carry_all_but_the_last_word(near: &Path, far: &Path) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(near).expect("it listens");
    let far = far.to_owned();
    std::thread::spawn(move || {
        let (source, _) = listener.accept().expect("a source");
        let destination = UnixStream::connect(far).expect("a destination");
        let (mut from, mut to) = (source.try_clone().unwrap(), destination.try_clone().unwrap());
        let stream = std::thread::spawn(move || {
            // Ends, with an error perhaps, when the link does.
            let _ = std::io::copy(&mut from, &mut to);
        });
        carry_answers(&destination, &source);
        for end in [source, destination] {
            // Fails where the other side was faster.
            let _ = end.shutdown(std::net::Shutdown::Both);
        }
        stream.join().unwrap();
    })
}

fn carry_answers(mut from: &UnixStream, mut to: &UnixStream) {
    loop {
        let mut message = vec![0; 4];
        from.read_exact(&mut message).expect("an answer");
        let (kind, length) = (u16::from_be_bytes([message[0], message[1]]), [message[2], message[3]]);
        if kind == SHUT {
            return;
        }
        message.resize(4 + usize::from(u16::from_be_bytes(length)), 0);
        from.read_exact(&mut message[4..]).expect("the rest of it");
        to.write_all(&message).expect("the source listens");
    }
}

#[test]
fn a_guest_in_doubt_waits_for_its_operators_word() {
    let Some(kind) = any_kind("in doubt") else { return };
    let (mut source, mut destination) = (Vmm::running(kind), Vmm::incoming(kind));
    destination.listen("unix");
    let near = source.path("near");
    let carrier = carry_all_but_the_last_word(&near, &destination.path("stream"));
    source.migrate(&format!("unix:{}", near.display()));
    source.wait("failed");
    carrier.join().unwrap();
    destination.wait("completed");

    // The guest runs there. Here nobody can know, and so it does not run here.
    assert_eq!((source.status(), destination.status()), ("finish-migrate".into(), "running".into()));
    assert_ne!(word(&source.query_migrate()["error-desc"]), "");
    let report = source.execute("x-limosa-report", Value::Null);
    assert_eq!(report["guest"], "stopped on the source, possibly running on the destination");
    let refusal = source.refusal("migrate", json!({ "uri": "tcp:127.0.0.1:1" }));
    assert!(refusal.contains("may have left the guest on the destination"), "{refusal}");
    let refusal = source.refusal("migrate-incoming", json!({ "uri": "tcp:127.0.0.1:0" }));
    assert!(refusal.contains("There is a guest here"), "{refusal}");

    // The operator has looked there, and put an end to it.
    destination.execute("stop", Value::Null);
    source.execute("cont", Value::Null);
    assert_eq!(source.status(), "running");
    let_work(source.host.machine(), 10);
}

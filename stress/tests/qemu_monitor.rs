//! The same dialogue with an unmodified QEMU and with our own VMM: what a client is told must not differ.

use limosa::pages::{ByteCount, PageCount};
use limosa_qmp::{Client, Event, QmpError, Server};
use limosa_stress::qemu::{Accelerator, Machine as QemuMachine, PATIENCE, Qemu, Release, Setup, leave_out};
use limosa_vmm::{Content, Dirtier, GuestConfig, GuestKind, Host, Machine, Prefill, Program, Rate};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tempfile::TempDir;

/// So slow that a migration does not end by itself: QEMU's guest has 4096 pages, nearly all of them zero, for which it
/// sends nine bytes each; ours is full.
const HELD_BACK: u64 = 1024;

/// Parameters that no QEMU has.
const OUR_PARAMETERS: [&str; 5] = [
    "x-multifd-codec-workers",
    "x-multifd-flush-after-each-section",
    "x-postcopy-auto",
    "x-postcopy-auto-rounds",
    "x-postcopy-auto-time",
];

/// Two monitors of one make, and what they have said.
trait Pair {
    fn source(&mut self) -> &mut Client;
    fn destination(&mut self) -> &mut Client;
    /// A unix socket for the stream.
    fn stream(&self) -> PathBuf;
}

struct QemuPair {
    source: Qemu,
    destination: Qemu,
}

struct OurPair {
    source: Client,
    destination: Client,
    folder: TempDir,
    _hosts: [Arc<Host>; 2],
    _servers: [Server; 2],
}

impl Pair for QemuPair {
    fn source(&mut self) -> &mut Client {
        self.source.monitor()
    }

    fn destination(&mut self) -> &mut Client {
        self.destination.monitor()
    }

    fn stream(&self) -> PathBuf {
        self.destination.folder().join("stream")
    }
}

impl Pair for OurPair {
    fn source(&mut self) -> &mut Client {
        &mut self.source
    }

    fn destination(&mut self) -> &mut Client {
        &mut self.destination
    }

    fn stream(&self) -> PathBuf {
        self.folder.path().join("stream")
    }
}

impl QemuPair {
    /// `None` after saying that there is no QEMU of the release whose shapes ours are.
    fn start() -> Option<Self> {
        let binary = Release::Current.require()?;
        let setup = Setup::new(QemuMachine::Microvm, Accelerator::of_this_machine());
        let mut source = setup.start(&binary).expect("source");
        let version = source.monitor().greeting().version.qemu;
        if (version.major, version.minor) != (10, 0) {
            leave_out(format_args!(
                "QEMU {}.{} answers in other shapes than 10.0",
                version.major, version.minor
            ));
            return None;
        }
        source.wait_tick_past(0).expect("a running guest");
        let destination = setup.destination().start(&binary).expect("destination");
        Some(Self { source, destination })
    }
}

impl OurPair {
    /// `None` after saying that there is no guest here that can leave.
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let dirtier = Dirtier {
            prefill: Prefill::Write(Content::Random),
            working_set: Some(PageCount(64)),
            rate: Rate::PagesPerSecond(500),
            ..Dirtier::default()
        };
        let (near, near_server, source) = our_vmm(&folder, "source", Program::Dirtier(dirtier))?;
        near.run().expect("a running guest");
        let (far, far_server, destination) = our_vmm(&folder, "destination", Program::Incoming)?;
        let (_hosts, _servers) = ([near, far], [near_server, far_server]);
        Some(Self { source, destination, folder, _hosts, _servers })
    }
}

fn our_vmm(folder: &TempDir, name: &str, program: Program) -> Option<(Arc<Host>, Server, Client)> {
    let incoming = program == Program::Incoming;
    let memory = ByteCount(16 << 20);
    let config = GuestConfig { kind: GuestKind::Auto, memory, program, ..GuestConfig::default() };
    let host = match Host::new(Machine::new(&config).expect("a machine"), incoming) {
        Ok(host) => host,
        Err(reason) => {
            leave_out(format_args!("no guest here can leave: {reason}"));
            return None;
        }
    };
    let socket = folder.path().join(name);
    let server = host.listen(&socket).expect("a monitor");
    let mut client = Client::connect(&socket).expect("a client");
    // The harness does this for QEMU.
    set_capability(&mut client, "events", true);
    Some((host, server, client))
}

fn set_capability(client: &mut Client, capability: &str, state: bool) {
    let states = json!([{ "capability": capability, "state": state }]);
    client.execute("migrate-set-capabilities", json!({ "capabilities": states })).expect("a capability");
}

/// What a client has been told, in the order in which it asked.
#[derive(Debug, Default, PartialEq)]
struct Dialogue(Vec<(String, Value)>);

impl Dialogue {
    fn note(&mut self, when: &str, said: Value) {
        self.0.push((when.to_owned(), said));
    }

    /// Words of `query-status`, shapes of `query-migrate`, both sides.
    fn ask_both(&mut self, when: &str, pair: &mut impl Pair) {
        let ask = |client: &mut Client, command| client.execute(command, Value::Null).expect("an answer");
        let said = json!({
            "source": ask(pair.source(), "query-status"),
            "destination": ask(pair.destination(), "query-status"),
        });
        self.note(&format!("query-status, {when}"), sorted(said));
        let said = json!({
            "source": shape(&ask(pair.source(), "query-migrate")),
            "destination": shape(&ask(pair.destination(), "query-migrate")),
        });
        self.note(&format!("query-migrate, {when}"), said);
    }

    /// How a command is refused, or that it is not.
    fn try_out(&mut self, client: &mut Client, command: &str, arguments: Value) {
        let said = match client.execute(command, arguments.clone()) {
            Ok(answer) => answer,
            Err(QmpError::Refused { class, desc, .. }) => json!({ "class": class, "desc": desc }),
            Err(error) => panic!("{command}: {error}"),
        };
        self.note(&format!("{command} {arguments}"), said);
    }
}

/// The names in `value`, with words of statuses as they are and kinds of value in place of other values.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let part = |(name, value): (&String, &Value)| {
                let kept = name == "status" || name == "type";
                (name.clone(), if kept { value.clone() } else { shape(value) })
            };
            sorted(Value::Object(members.iter().map(part).collect()))
        }
        Value::Array(values) => values.iter().map(shape).collect(),
        Value::String(_) => json!("text"),
        Value::Number(_) => json!("number"),
        Value::Bool(_) => json!("boolean"),
        Value::Null => Value::Null,
    }
}

/// The order of members says nothing.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let mut members: Vec<(String, Value)> = members.into_iter().collect();
            members.sort_by(|one, other| one.0.cmp(&other.0));
            Value::Object(
                members.into_iter().map(|(name, value)| (name, sorted(value))).collect::<Map<_, _>>(),
            )
        }
        other => other,
    }
}

fn wait_until(client: &mut Client, status: &str) {
    let begin = Instant::now();
    loop {
        let info = client.execute("query-migrate", Value::Null).expect("an answer");
        if info["status"] == json!(status) {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "waiting for {status}: {info}");
        std::thread::yield_now();
    }
}

/// The events so far but for passes, whose number is decided by how fast the machine is.
fn story(client: &mut Client) -> Value {
    // The answer comes after all events that were sent before it.
    client.execute("query-status", Value::Null).expect("an answer");
    let events = client.take_events().into_iter().filter(|event| event.event != "MIGRATION_PASS");
    events.map(|Event { event, data, .. }| json!({ "event": event, "data": data })).collect()
}

/// Waits for the event that the migration is in `status`, and returns all events up to it.
fn story_until(client: &mut Client, status: &str) -> Value {
    let begin = Instant::now();
    let mut events = Vec::new();
    loop {
        events.extend(story(client).as_array().expect("a list").iter().cloned());
        if events.iter().any(|event| event["data"]["status"] == json!(status)) {
            return Value::Array(events);
        }
        assert!(begin.elapsed() < PATIENCE, "waiting for {status}: {events:?}");
        std::thread::yield_now();
    }
}

/// Commands that cannot be carried out, or have nothing to do, before anything moves.
fn mistakes(pair: &mut impl Pair, dialogue: &mut Dialogue) {
    let nowhere = "tcp:127.0.0.1:1";
    dialogue.try_out(pair.destination(), "migrate", json!({ "uri": nowhere }));
    for (command, arguments) in [
        ("migrate", json!({})),
        ("migrate", json!({ "uri": 1 })),
        ("migrate", json!({ "uri": nowhere, "resume": true })),
        ("migrate", json!({ "uri": nowhere, "no-such-argument": 1 })),
        ("migrate-continue", json!({ "state": "pre-switchover" })),
        ("migrate-continue", json!({ "state": "soon" })),
        ("migrate_cancel", json!({})),
        ("migrate-set-parameters", json!({ "no-such-parameter": 1 })),
        ("migrate-set-parameters", json!({ "max-bandwidth": "fast" })),
        ("migrate-set-capabilities", json!({ "capabilities": [{ "capability": "fast", "state": true }] })),
        ("migrate-set-capabilities", json!({ "capabilities": [{ "capability": "xbzrle" }] })),
        ("pmemsave", json!({ "val": 0, "size": 1 })),
        ("no-such-command", json!({})),
    ] {
        dialogue.try_out(pair.source(), command, arguments);
    }
}

/// The life of a guest that moves, with questions and mistakes on the way.
fn a_migration(pair: &mut impl Pair) -> Dialogue {
    let mut dialogue = Dialogue::default();
    let uri = format!("unix:{}", pair.stream().display());
    let away = json!({ "uri": "tcp:127.0.0.1:1" });
    story(pair.source());
    story(pair.destination());
    dialogue.ask_both("idle", pair);
    mistakes(pair, &mut dialogue);

    pair.destination().execute("migrate-incoming", json!({ "uri": uri })).expect("it listens");
    set_capability(pair.source(), "return-path", true);
    set_capability(pair.source(), "pause-before-switchover", true);
    set_capability(pair.source(), "xbzrle", true);
    pair.source().execute("migrate-set-parameters", json!({ "max-bandwidth": HELD_BACK })).expect("slow");
    pair.source().execute("migrate", json!({ "uri": uri })).expect("it starts");
    wait_until(pair.source(), "active");
    wait_until(pair.destination(), "active");
    dialogue.ask_both("active", pair);
    dialogue.try_out(pair.source(), "migrate", away.clone());
    dialogue.try_out(pair.source(), "migrate-continue", json!({ "state": "pre-switchover" }));
    let capabilities = json!({ "capabilities": [{ "capability": "xbzrle", "state": false }] });
    dialogue.try_out(pair.source(), "migrate-set-capabilities", capabilities);
    pair.source().execute("migrate-set-parameters", json!({ "max-bandwidth": 0 })).expect("fast");
    dialogue.note("source, up to pre-switchover", story_until(pair.source(), "pre-switchover"));
    dialogue.ask_both("pre-switchover", pair);
    dialogue.try_out(pair.source(), "cont", json!({}));
    dialogue.try_out(pair.source(), "migrate-continue", json!({ "state": "pre-switchover" }));
    dialogue.note("source, up to the end", story_until(pair.source(), "completed"));
    dialogue.note("destination, up to the end", story_until(pair.destination(), "completed"));
    dialogue.ask_both("completed", pair);
    dialogue.try_out(pair.source(), "migrate", away.clone());

    // The guest tries to go on to where nobody is.
    pair.destination().execute("migrate", away).expect("it starts");
    dialogue.note("destination, up to the failure", story_until(pair.destination(), "failed"));
    let info = pair.destination().execute("query-migrate", Value::Null).expect("an answer");
    dialogue.note("query-migrate, failed", shape(&info));
    dialogue
}

/// A migration that its operator calls off.
fn a_cancel(pair: &mut impl Pair) -> Dialogue {
    let mut dialogue = Dialogue::default();
    let uri = format!("unix:{}", pair.stream().display());
    pair.destination()
        .execute("migrate-incoming", json!({ "uri": uri, "exit-on-error": false }))
        .expect("it listens");
    set_capability(pair.source(), "return-path", true);
    pair.source().execute("migrate-set-parameters", json!({ "max-bandwidth": HELD_BACK })).expect("slow");
    story(pair.source());
    pair.source().execute("migrate", json!({ "uri": uri })).expect("it starts");
    wait_until(pair.source(), "active");
    pair.source().execute("migrate_cancel", Value::Null).expect("no error");
    dialogue.note("source", story_until(pair.source(), "cancelled"));
    wait_until(pair.source(), "cancelled");
    dialogue.note("query-status", sorted(pair.source().execute("query-status", Value::Null).unwrap()));
    wait_until(pair.destination(), "failed");
    dialogue.note("destination", sorted(pair.destination().execute("query-status", Value::Null).unwrap()));
    dialogue
}

#[track_caller]
fn assert_same(ours: &Dialogue, theirs: &Dialogue) {
    assert_eq!(ours.0.len(), theirs.0.len());
    let both = ours.0.iter().zip(&theirs.0).filter(|(ours, theirs)| ours != theirs);
    let tell = |((when, ours), (_, theirs)): (&(String, Value), &(String, Value))| {
        format!("{when}\n  ours: {ours}\n  QEMU: {theirs}\n")
    };
    let differences: Vec<String> = both.map(tell).collect();
    assert!(differences.is_empty(), "{}", differences.concat());
}

#[test]
fn a_migration_is_told_in_qemus_words_and_shapes() {
    let (Some(mut theirs), Some(mut ours)) = (QemuPair::start(), OurPair::start()) else { return };
    assert_same(&a_migration(&mut ours), &a_migration(&mut theirs));
}

#[test]
fn a_cancelled_migration_is_told_as_qemu_tells_it() {
    let (Some(mut theirs), Some(mut ours)) = (QemuPair::start(), OurPair::start()) else { return };
    assert_same(&a_cancel(&mut ours), &a_cancel(&mut theirs));
}

#[test]
fn parameters_and_capabilities_are_those_of_qemu() {
    let (Some(mut theirs), Some(mut ours)) = (QemuPair::start(), OurPair::start()) else { return };
    let mut ask = |command| {
        let ours = ours.source().execute(command, Value::Null).expect("an answer");
        (ours, theirs.source().execute(command, Value::Null).expect("an answer"))
    };
    let (ours, theirs) = ask("query-migrate-parameters");
    for (name, value) in ours.as_object().expect("an object") {
        if OUR_PARAMETERS.contains(&name.as_str()) {
            assert_eq!(theirs[name], Value::Null, "{name} is QEMU's by now");
        } else {
            assert_eq!(shape(value), shape(&theirs[name]), "{name}");
        }
    }
    let (ours, theirs) = ask("query-migrate-capabilities");
    let names = |list: &Value| -> Vec<Value> {
        list.as_array().expect("a list").iter().map(|entry| entry["capability"].clone()).collect()
    };
    assert_eq!(names(&ours), names(&theirs));
    let (ours, theirs) = ask("query-version");
    assert_eq!(shape(&ours), shape(&theirs));
}

//! The server's dialogue, in the words that QEMU 10.0.2 used when it was asked the same.

use limosa_qmp::{
    Client, Command, CommandError, Commands, ErrorClass, Events, Identity, MigrationCapability,
    MigrationCapabilityStatus, MigrationInfo, MigrationStatus, Notice, QmpError, RunState, Server,
    StatusInfo,
};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// A host that remembers what it was asked, and answers a little.
struct Host {
    asked: Mutex<Vec<Command>>,
    events: Events,
}

impl Commands for Host {
    fn execute(&self, command: Command) -> Result<Value, CommandError> {
        self.asked.lock().unwrap().push(command.clone());
        match command {
            Command::QueryStatus => {
                let status = StatusInfo { running: true, status: RunState::Running, singlestep: None };
                Ok(json!(status))
            }
            Command::Stop => {
                self.events.emit(Notice::Stop);
                Ok(Value::Null)
            }
            Command::MigrateContinue { .. } => Err(CommandError::generic("not in that state")),
            Command::Other { arguments, .. } => Ok(Value::Object(arguments)),
            _ => Ok(Value::Null),
        }
    }

    fn vendor_commands(&self) -> &[&'static str] {
        &["x-limosa-echo"]
    }
}

struct Monitor {
    host: Arc<Host>,
    server: Server,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Monitor {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp");
        let events = Events::new();
        let host = Arc::new(Host { asked: Mutex::default(), events: events.clone() });
        let server = Server::new(Identity::limosa(), Arc::clone(&host) as Arc<dyn Commands>, events);
        server.listen(&path).unwrap();
        Self { host, server, path, _directory: directory }
    }

    fn client(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }

    fn raw(&self) -> Raw {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut raw = Raw(BufReader::new(stream));
        raw.line();
        raw
    }

    fn asked(&self) -> Vec<Command> {
        std::mem::take(&mut self.host.asked.lock().unwrap())
    }
}

/// A client that says exactly what it is told.
struct Raw(BufReader<UnixStream>);

impl Raw {
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        assert!(line.ends_with("\r\n"), "{line:?}");
        serde_json::from_str(&line).unwrap()
    }

    fn say(&mut self, text: &str) -> Value {
        self.0.get_ref().write_all(text.as_bytes()).unwrap();
        self.line()
    }

    fn ask(&mut self, message: Value) -> Value {
        self.say(&message.to_string())
    }

    fn negotiated(mut self) -> Self {
        assert_eq!(self.ask(json!({"execute": "qmp_capabilities"})), json!({"return": {}}));
        self
    }
}

fn error(class: &str, desc: &str) -> Value {
    json!({"error": {"class": class, "desc": desc}})
}

fn generic(desc: &str) -> Value {
    error("GenericError", desc)
}

#[test]
fn the_greeting_has_the_shape_of_qemus() {
    let monitor = Monitor::start();
    let stream = UnixStream::connect(&monitor.path).unwrap();
    let greeting = Raw(BufReader::new(stream)).line();
    let version = concat!("limosa ", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        greeting,
        json!({"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": version}, "capabilities": []}})
    );
}

#[test]
fn before_the_negotiation_nothing_else_is_answered_and_after_it_no_second_one() {
    let monitor = Monitor::start();
    let mut raw = monitor.raw();
    let expecting = "Expecting capabilities negotiation with 'qmp_capabilities'";
    assert_eq!(raw.ask(json!({"execute": "query-status"})), error("CommandNotFound", expecting));
    assert_eq!(raw.ask(json!({"execute": "nope"})), error("CommandNotFound", expecting));
    let oob = json!({"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}});
    assert_eq!(raw.ask(oob), generic("Capability 'oob' is not available"));
    let mut raw = raw.negotiated();
    let complete = "Capabilities negotiation is already complete, command ignored";
    assert_eq!(raw.ask(json!({"execute": "qmp_capabilities"})), error("CommandNotFound", complete));
    assert_eq!(monitor.asked(), []);
}

#[test]
fn the_id_comes_back_as_it_was_whatever_the_answer() {
    let monitor = Monitor::start();
    let mut raw = monitor.raw().negotiated();
    let answer = raw.ask(json!({"execute": "cont", "id": [1, {"a": 2}]}));
    assert_eq!(answer, json!({"return": {}, "id": [1, {"a": 2}]}));
    let answer = raw.ask(json!({"execute": "nope", "id": null}));
    let mut expected = error("CommandNotFound", "The command nope has not been found");
    expected["id"] = Value::Null;
    assert_eq!(answer, expected);
}

#[test]
fn a_message_that_is_no_command_is_refused_in_qemus_words() {
    let monitor = Monitor::start();
    let mut raw = monitor.raw().negotiated();
    for (message, desc) in [
        (json!([1, 2]), "QMP input must be a JSON object"),
        (json!({}), "QMP input lacks member 'execute'"),
        (json!({"execute": 3}), "QMP input member 'execute' must be a string"),
        (json!({"execute": "stop", "arguments": 3}), "QMP input member 'arguments' must be an object"),
        (json!({"execute": "stop", "foo": 1}), "QMP input member 'foo' is unexpected"),
    ] {
        assert_eq!(raw.ask(message), generic(desc));
    }
    assert_eq!(raw.say("3\n"), generic("QMP input must be a JSON object"));
    assert_eq!(monitor.asked(), []);
}

#[test]
fn bad_json_is_answered_and_the_dialogue_goes_on() {
    let monitor = Monitor::start();
    let mut raw = monitor.raw().negotiated();
    for text in ["{\"execute\": xquery}\n", "{\"execute\": \"stop\", }", "}", "{\"a: 1}\n", "\u{1}\n"] {
        let answer = raw.say(text);
        assert_eq!(answer["error"]["class"], "GenericError", "{text:?} was answered {answer}");
        assert!(answer["error"]["desc"].as_str().unwrap().starts_with("JSON parse error, "));
    }
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    assert!(raw.say(&deep)["error"]["desc"].as_str().unwrap().contains("recursion limit"));
    assert_eq!(raw.say("{\"execute\":\n\"cont\"}{\"execute\":\"cont\"}"), json!({"return": {}}));
    assert_eq!(raw.line(), json!({"return": {}}));
}

#[test]
fn a_message_beyond_the_limit_ends_the_connection() {
    let monitor = Monitor::start();
    let mut raw = monitor.raw();
    // The server may hang up before it has read it all.
    let _ = raw.0.get_ref().write_all(("{\"execute\": \"".to_owned() + &"x".repeat(2 << 20)).as_bytes());
    let answer = raw.line();
    assert_eq!(answer, generic("JSON parse error, message is too long"));
    let mut rest = String::new();
    // Either the end, or a reset because of what was not read.
    assert_eq!(raw.0.read_line(&mut rest).unwrap_or(0), 0);
}

#[test]
fn arguments_that_do_not_fit_are_refused_in_qemus_words() {
    let monitor = Monitor::start();
    let mut raw = monitor.raw().negotiated();
    let inet = json!({"transport": "socket", "type": "inet", "host": "h"});
    let soc = json!({"transport": "soc", "type": "inet", "host": "h"});
    let channel = |addr: Value| json!({"channels": [{"channel-type": "main", "addr": addr}]});
    let capability = |entry: Value| json!({"capabilities": [entry]});
    for (name, arguments, desc) in [
        ("query-status", json!({"foo": 1}), "Parameter 'foo' is unexpected"),
        ("migrate", json!({}), "need either 'uri' or 'channels' argument"),
        ("migrate", json!({"channels": []}), "need either 'uri' or 'channels' argument"),
        ("migrate", json!({"uri": 3}), "Invalid parameter type for 'uri', expected: string"),
        ("migrate", json!({"uri": "foo:1"}), "unknown migration protocol: foo:1"),
        ("migrate", channel(inet), "Parameter 'channels[0].addr.port' is missing"),
        ("migrate", channel(soc), "Parameter 'transport' does not accept value 'soc'"),
        ("migrate-set-parameters", json!({"max-bandwidth": "x"}), "Parameter 'max-bandwidth' expects uint64"),
        ("migrate-set-parameters", json!({"bogus": 1}), "Parameter 'bogus' is unexpected"),
        (
            "migrate-set-capabilities",
            capability(json!({"capability": "foo", "state": true})),
            "Parameter 'capability' does not accept value 'foo'",
        ),
        (
            "migrate-set-capabilities",
            capability(json!({"capability": "xbzrle"})),
            "Parameter 'capabilities[0].state' is missing",
        ),
        (
            "migrate-set-capabilities",
            capability(json!({"capability": "xbzrle", "state": 1})),
            "Invalid parameter type for 'capabilities[0].state', expected: boolean",
        ),
        ("migrate-continue", json!({"state": "foo"}), "Parameter 'state' does not accept value 'foo'"),
        ("pmemsave", json!({"val": 0, "size": 4096}), "Parameter 'filename' is missing"),
    ] {
        assert_eq!(raw.ask(json!({"execute": name, "arguments": arguments})), generic(desc), "{name}");
    }
    assert_eq!(monitor.asked(), []);
}

#[test]
fn commands_reach_the_host_with_their_arguments() {
    let monitor = Monitor::start();
    let mut client = monitor.client();
    let tcp =
        json!({"transport": "socket", "type": "inet", "host": "::1", "port": "4444", "keep-alive": true});
    let exec = json!({"transport": "exec", "args": ["/bin/sh", "-c", "cat"]});
    for (name, arguments) in [
        ("migrate", json!({"uri": "unix:/run/guest", "detach": true, "resume": true})),
        ("migrate", json!({"channels": [{"channel-type": "main", "addr": tcp}]})),
        ("migrate-incoming", json!({"channels": [{"channel-type": "main", "addr": exec}]})),
        ("migrate-incoming", json!({"uri": "file:/dump,offset=4096", "exit-on-error": false})),
        ("migrate-set-capabilities", json!({"capabilities": [{"capability": "return-path", "state": true}]})),
        ("pmemsave", json!({"val": 4096, "size": 8192, "filename": "/dump"})),
        ("migrate_cancel", Value::Null),
    ] {
        assert_eq!(client.execute(name, arguments).unwrap(), json!({}));
    }
    let changes = json!({"downtime-limit": 5, "multifd-compression": "zstd", "tls-creds": null});
    client.execute("migrate-set-parameters", changes).unwrap();

    let mut asked = monitor.asked();
    let Some(Command::MigrateSetParameters(parameters)) = asked.pop() else { panic!("no parameters") };
    assert_eq!(
        serde_json::to_value(parameters).unwrap(),
        json!({"tls-creds": "", "downtime-limit": 5, "multifd-compression": "zstd"})
    );
    let status = MigrationCapabilityStatus { capability: MigrationCapability::ReturnPath, state: true };
    let address = |uri: &str| uri.parse().unwrap();
    assert_eq!(
        asked,
        [
            Command::Migrate { address: address("unix:/run/guest"), resume: true },
            Command::Migrate { address: address("tcp:[::1]:4444,keep-alive=on"), resume: false },
            Command::MigrateIncoming { address: address("exec:cat"), exit_on_error: true },
            Command::MigrateIncoming { address: address("file:/dump,offset=4096"), exit_on_error: false },
            Command::MigrateSetCapabilities(vec![status]),
            Command::PmemSave { val: 4096, size: 8192, filename: "/dump".into() },
            Command::MigrateCancel,
        ]
    );
}

#[test]
fn the_host_decides_and_its_refusals_reach_the_client() {
    let monitor = Monitor::start();
    let mut client = monitor.client();
    let status: StatusInfo = client.execute_as("query-status", Value::Null).unwrap();
    assert_eq!((status.running, status.status), (true, RunState::Running));
    let refused = client.execute("migrate-continue", json!({"state": "device"})).unwrap_err();
    let QmpError::Refused { class: ErrorClass::GenericError, desc, .. } = refused else {
        panic!("{refused}")
    };
    assert_eq!(desc, "not in that state");
    assert_eq!(monitor.asked()[1], Command::MigrateContinue { state: MigrationStatus::Device });
}

#[test]
fn a_vendor_command_keeps_its_arguments_and_is_listed() {
    let monitor = Monitor::start();
    let mut client = monitor.client();
    assert_eq!(client.execute("x-limosa-echo", json!({"any": [1]})).unwrap(), json!({"any": [1]}));
    let listed = client.execute("query-commands", Value::Null).unwrap();
    for name in ["x-limosa-echo", "query-commands", "migrate", "migrate_cancel"] {
        assert!(listed.as_array().unwrap().contains(&json!({"name": name})), "{name} is not in {listed}");
    }
}

#[test]
fn version_name_and_uuid_are_answered_without_the_host() {
    let monitor = Monitor::start();
    let mut client = monitor.client();
    let version = client.greeting().version.clone();
    assert_eq!(client.execute("query-version", Value::Null).unwrap(), json!(version));
    assert_eq!(client.execute("query-name", Value::Null).unwrap(), json!({}));
    let uuid = client.execute("query-uuid", Value::Null).unwrap();
    assert_eq!(uuid, json!({"UUID": "00000000-0000-0000-0000-000000000000"}));
    assert_eq!(monitor.asked(), []);
}

#[test]
fn every_client_that_has_negotiated_hears_events_before_the_answer_that_follows_them() {
    let monitor = Monitor::start();
    let (mut asking, mut listening) = (monitor.raw().negotiated(), monitor.client());
    let mut silent = monitor.raw();

    let first = asking.ask(json!({"execute": "stop"}));
    assert_eq!((&first["event"], &first["data"]), (&json!("STOP"), &Value::Null));
    assert!(first["timestamp"]["seconds"].as_i64().unwrap() > 0);
    assert_eq!(asking.line(), json!({"return": {}}));
    listening.wait_event("STOP", Instant::now() + PATIENCE).unwrap();

    // Who has not negotiated gets the answer next, and no event before it.
    assert_eq!(silent.ask(json!({"execute": "qmp_capabilities"})), json!({"return": {}}));
    monitor.host.events.emit(Notice::Migration { status: MigrationStatus::PostcopyActive });
    monitor.host.events.emit(Notice::MigrationPass { pass: 2 });
    assert_eq!(silent.line()["data"], json!({"status": "postcopy-active"}));
    assert_eq!(silent.line()["data"], json!({"pass": 2}));
}

#[test]
fn clients_that_have_left_make_room_for_others() {
    let monitor = Monitor::start();
    drop((0..limosa_qmp::CONNECTIONS_MAX).map(|_| monitor.client()).collect::<Vec<_>>());
    let deadline = Instant::now() + PATIENCE;
    // That they have left is noticed in their own threads, some time.
    while let Err(error) = Client::connect(&monitor.path) {
        assert!(Instant::now() < deadline, "still full: {error}");
    }
}

#[test]
fn a_client_too_many_is_hung_up_on_and_the_others_stay() {
    let monitor = Monitor::start();
    let mut clients: Vec<Client> = (0..limosa_qmp::CONNECTIONS_MAX).map(|_| monitor.client()).collect();
    assert!(matches!(Client::connect(&monitor.path).unwrap_err(), QmpError::Closed { .. }));
    for client in &mut clients {
        client.execute("cont", Value::Null).unwrap();
    }
}

#[test]
fn dropping_the_server_ends_idle_clients_and_removes_the_socket() {
    let Monitor { server, path, host, _directory } = Monitor::start();
    let mut client = Client::connect(&path).unwrap();
    drop(server);
    assert!(!path.exists());
    host.events.emit(Notice::Stop);
    assert!(matches!(client.execute("cont", Value::Null).unwrap_err(), QmpError::Closed { .. }));
}

#[test]
fn any_pair_of_streams_can_be_served() {
    let events = Events::new();
    let host = Arc::new(Host { asked: Mutex::default(), events: events.clone() });
    let server = Server::new(Identity::limosa(), host, events);
    let input = br#"{"execute": "qmp_capabilities"} {"execute": "query-status"}"#;
    let mut output = Vec::new();
    server.serve(&input[..], &mut output).unwrap();
    let lines: Vec<Value> = output
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(
        lines[1..],
        [json!({"return": {}}), json!({"return": {"running": true, "status": "running"}})]
    );
}

#[test]
fn information_about_a_migration_has_qemus_names_and_may_lack_anything() {
    // As QEMU 10.0.2 said it after a failed migration, and a part of what it says during one.
    let failed = json!({"status": "failed", "error-desc": "Connection refused"});
    let active = json!({"status": "active", "total-time": 12, "setup-time": 1, "expected-downtime": 300,
        "socket-address": [{"type": "inet", "host": "127.0.0.1", "port": "4444"}]});
    for text in [json!({}), failed, active] {
        let info: MigrationInfo = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(serde_json::to_value(info).unwrap(), text);
    }
}

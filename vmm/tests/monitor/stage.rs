//! Two hosts and the clients of their monitors.

use crate::ring::{self, busy, leave_out};
use limosa_pages::ByteCount;
use limosa_qmp::{Client, Event, QmpError, Server};
use limosa_ram::dirty_log::PagemapDirtyLog;
use limosa_vmm::{
    Content, Dirtier, GuestConfig, GuestKind, Host, Machine, Prefill, Program, Rate, kvm_usable,
};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Long enough for a loaded machine; reached only by a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A host, its monitor, and one client that is told of all events.
pub(crate) struct Vmm {
    pub(crate) host: Arc<Host>,
    client: Client,
    server: Server,
    folder: TempDir,
}

/// The kind of guest to test the monitor with: it makes no difference, so the cheaper one that can leave.
pub(crate) fn any_kind(test: &str) -> Option<GuestKind> {
    let Err(reason) = PagemapDirtyLog::detect() else { return Some(GuestKind::Process) };
    if kvm_usable().is_ok() {
        return Some(GuestKind::Kvm);
    }
    leave_out(test, &format!("no guest that can leave: {reason}"));
    None
}

/// A guest that writes, in memory that is full.
pub(crate) fn at_work() -> Dirtier {
    Dirtier { rate: Rate::PagesPerSecond(5_000), prefill: Prefill::Write(Content::Random), ..busy() }
}

impl Vmm {
    /// A running guest.
    pub(crate) fn running(kind: GuestKind) -> Self {
        let vmm = Self::of(kind, Program::Dirtier(at_work()), false);
        vmm.host.run().expect("it runs");
        ring::let_work(vmm.host.machine(), 1);
        vmm
    }

    /// A place for a guest, with events on.
    pub(crate) fn incoming(kind: GuestKind) -> Self {
        Self::of(kind, Program::Incoming, true)
    }

    /// A host with events on.
    pub(crate) fn of(kind: GuestKind, program: Program, incoming: bool) -> Self {
        let config = GuestConfig { kind, memory: ring::MEMORY, vcpus: 2, program, ..GuestConfig::default() };
        Self::new(&config, incoming)
    }

    /// A host with events on.
    pub(crate) fn new(config: &GuestConfig, incoming: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let host = Host::new(Machine::new(config).expect("a machine"), incoming).expect("a host");
        let socket = folder.path().join("monitor");
        let server = host.listen(&socket).expect("a monitor");
        let client = Client::connect(&socket).expect("a client");
        let mut vmm = Self { host, client, server, folder };
        vmm.set_capability("events", true);
        vmm
    }

    /// Another client of the same monitor.
    pub(crate) fn another_client(&self) -> Client {
        Client::connect(&self.folder.path().join("monitor")).expect("a client")
    }

    /// A file or socket that nobody else has.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The answer to a command that is not refused.
    #[track_caller]
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Value {
        self.client.execute(command, arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Why a command is refused.
    #[track_caller]
    pub(crate) fn refusal(&mut self, command: &str, arguments: Value) -> String {
        match self.client.execute(command, arguments) {
            Err(QmpError::Refused { desc, .. }) => desc,
            other => panic!("expected a refusal of {command}, got {other:?}"),
        }
    }

    pub(crate) fn set_capability(&mut self, capability: &str, state: bool) {
        let capabilities = json!([{ "capability": capability, "state": state }]);
        self.execute("migrate-set-capabilities", json!({ "capabilities": capabilities }));
    }

    /// The word of `query-status`; whether the guest runs agrees with it.
    #[track_caller]
    pub(crate) fn status(&mut self) -> String {
        let status = self.execute("query-status", Value::Null);
        let word = status["status"].as_str().expect("a word").to_owned();
        assert_eq!(status["running"], json!(word == "running"));
        word
    }

    pub(crate) fn query_migrate(&mut self) -> Value {
        self.execute("query-migrate", Value::Null)
    }

    /// Listens at a unix socket or a free TCP port; returns the URI to reach it.
    pub(crate) fn listen(&mut self, transport: &str) -> String {
        let uri = match transport {
            "tcp" => "tcp:127.0.0.1:0".to_owned(),
            _ => format!("unix:{}", self.path("stream").display()),
        };
        self.execute("migrate-incoming", json!({ "uri": uri, "exit-on-error": false }));
        let address = &self.query_migrate()["socket-address"][0];
        match address["type"].as_str() {
            Some("inet") => format!("tcp:{}:{}", word(&address["host"]), word(&address["port"])),
            Some("unix") => format!("unix:{}", word(&address["path"])),
            other => panic!("an address of type {other:?}"),
        }
    }

    pub(crate) fn migrate(&mut self, uri: &str) {
        self.execute("migrate", json!({ "uri": uri }));
    }

    /// Slows migrations so that they do not end, until [`Self::let_go`]: 8 MiB of a guest [at work](at_work) would take two
    /// minutes.
    pub(crate) fn hold_back(&mut self) {
        self.execute("migrate-set-parameters", json!({ "max-bandwidth": 64 << 10 }));
    }

    pub(crate) fn let_go(&mut self) {
        self.execute("migrate-set-parameters", json!({ "max-bandwidth": 0 }));
    }

    /// Waits for the event that the migration is in `status`; fails if it ends otherwise.
    #[track_caller]
    pub(crate) fn wait(&mut self, status: &str) {
        let ends = |event: &Event| {
            event.data["status"] == json!(status)
                || ["completed", "failed", "cancelled"].iter().any(|end| event.data["status"] == json!(end))
        };
        let event = self.client.wait_event_where("MIGRATION", Instant::now() + PATIENCE, ends);
        let event = event.unwrap_or_else(|error| panic!("waiting for {status}: {error}"));
        assert_eq!(event.data["status"], json!(status), "{}", self.query_migrate());
    }

    /// Waits until `query-migrate` says `status`, and leaves the events alone.
    #[track_caller]
    pub(crate) fn wait_until(&mut self, status: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.query_migrate()["status"] != json!(status) {
            assert!(Instant::now() < deadline, "waiting for {status}: {}", self.query_migrate());
            std::thread::yield_now();
        }
    }

    /// Waits for an event.
    #[track_caller]
    pub(crate) fn wait_event(&mut self, name: &str) -> Event {
        self.client.wait_event(name, Instant::now() + PATIENCE).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Forgets all events so far.
    pub(crate) fn forget_events(&mut self) {
        self.events();
    }

    /// The events so far: statuses of a migration by their words, others by their names.
    pub(crate) fn events(&mut self) -> Vec<String> {
        // The answer comes after all events that were sent before it.
        self.execute("query-status", Value::Null);
        let said = |event: Event| match event.event.as_str() {
            "MIGRATION" => word(&event.data["status"]),
            name => name.to_owned(),
        };
        self.client.take_events().into_iter().map(said).collect()
    }

    /// All events until the migration ended.
    #[track_caller]
    pub(crate) fn story(&mut self) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut story = Vec::new();
        loop {
            story.extend(self.events());
            if story.iter().any(|word| ["completed", "failed", "cancelled"].contains(&word.as_str())) {
                return story;
            }
            assert!(Instant::now() < deadline, "{story:?}");
            std::thread::yield_now();
        }
    }

    /// Closes the monitor and waits until its answers are out.
    pub(crate) fn close_monitor(self) -> Arc<Host> {
        drop(self.server);
        self.host
    }
}

/// Migrates to the end, at full speed.
#[track_caller]
pub(crate) fn move_guest(source: &mut Vmm, destination: &mut Vmm, transport: &str) {
    let uri = destination.listen(transport);
    source.let_go();
    source.migrate(&uri);
    source.wait("completed");
    destination.wait("completed");
}

/// RAM of a host as bytes.
pub(crate) fn memory(vmm: &Vmm, length: ByteCount) -> Vec<u8> {
    let mut bytes = vec![0; length.0 as usize];
    vmm.host.machine().ram().block(limosa_pages::BlockId(0)).copy_out(0, &mut bytes);
    bytes
}

pub(crate) fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

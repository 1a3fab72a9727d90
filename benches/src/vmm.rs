//! One end of a migration: a process and the client of its monitor.

use crate::error::BenchError;
use limosa_qmp::{Client, QmpError};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take until its monitor listens: it maps gigabytes and starts a guest, no more.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// What one tick of a process's clock is, in every Linux of this architecture: `USER_HZ` is 100.
const TICK: Duration = Duration::from_millis(10);
/// Fields of `/proc/PID/stat` after the name: `utime` and `stime` are the 14th and 15th of all.
const USER_TIME_FIELD: usize = 11;

/// A running VMM; killed when dropped.
pub(crate) struct Vmm {
    who: &'static str,
    monitor: Client,
    // Dropped last: a monitor that closes first leaves nothing to complain about.
    child: Process,
}

/// A child that does not outlive its owner.
struct Process(Child);

impl Vmm {
    /// Starts `command` and waits until its monitor answers at `socket`. What it says goes to our stderr.
    pub(crate) fn start(who: &'static str, mut command: Command, socket: &Path) -> Result<Self, BenchError> {
        // Its standard input is a pipe: one that watches it ends with us, even if we are killed.
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let mut child = Process(child.map_err(|source| {
            let program = command.get_program().into();
            BenchError::Spawn { program, source }
        })?);
        let monitor = child.connect(socket).map_err(|source| BenchError::Monitor {
            who,
            during: "connecting",
            source,
        })?;
        Ok(Self { who, monitor, child })
    }

    /// Its number.
    pub(crate) fn process(&self) -> u32 {
        self.child.0.id()
    }

    /// Processor time that the process has used, all threads together; to 10 ms.
    pub(crate) fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process())).unwrap_or_default();
        // The name is in brackets and may hold anything, brackets too.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
        let ticks: u32 =
            fields.skip(USER_TIME_FIELD).take(2).filter_map(|ticks| ticks.parse::<u32>().ok()).sum();
        TICK * ticks
    }

    /// Any command; its answer.
    pub(crate) fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, BenchError> {
        let who = self.who;
        self.monitor.execute(command, arguments).map_err(|source| BenchError::Monitor {
            who,
            during: command,
            source,
        })
    }

    /// Waits until a migration has ended, and returns its last status.
    pub(crate) fn wait_migrated(&mut self, deadline: Instant) -> Result<String, BenchError> {
        let ended = |data: &Value| {
            let status = data["status"].as_str()?;
            matches!(status, "completed" | "failed" | "cancelled").then(|| status.to_owned())
        };
        let who = self.who;
        let event = self
            .monitor
            .wait_event_where("MIGRATION", deadline, |event| ended(&event.data).is_some())
            .map_err(|source| BenchError::Monitor { who, during: "migration", source })?;
        Ok(ended(&event.data).expect("the event was chosen for its status"))
    }
}

impl Process {
    /// Connects as soon as the monitor listens, or fails as soon as the child is gone.
    fn connect(&mut self, socket: &Path) -> Result<Client, QmpError> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let attempt = (Instant::now() + Duration::from_millis(100)).min(deadline);
            match Client::connect_when_ready(socket, attempt) {
                Err(error @ QmpError::Io { .. }) => {
                    let gone = !matches!(self.0.try_wait(), Ok(None));
                    if gone || Instant::now() >= deadline {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only where the process is gone already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

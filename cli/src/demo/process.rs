//! A VMM in a process of its own, and the client of its monitor.

use super::DemoError;
use limosa_qmp::{Client, QmpError};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a VMM may take until its monitor listens: it fills its guest's RAM first.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Checking every page of a large guest takes a while.
const REPLY_TIMEOUT: Duration = Duration::from_secs(120);

/// A child that runs `limosa vmm`. It ends with us: its standard input does.
pub(super) struct Vmm {
    who: &'static str,
    child: Child,
    monitor: Client,
}

impl Vmm {
    /// Starts this program again as a VMM with these options.
    pub(super) fn start(who: &'static str, folder: &Path, options: &[String]) -> Result<Self, DemoError> {
        let socket = folder.join(format!("{who}.qmp"));
        let program = std::env::current_exe().map_err(DemoError::Spawn)?;
        let mut child = Command::new(program)
            .arg("vmm")
            .arg("--quit-with-stdin")
            .arg(format!("--qmp=unix:{}", socket.display()))
            .args(options)
            .stdin(Stdio::piped())
            .spawn()
            .map_err(DemoError::Spawn)?;
        match connect(&mut child, &socket) {
            Ok(mut monitor) => {
                monitor.set_reply_timeout(REPLY_TIMEOUT);
                Ok(Self { who, child, monitor })
            }
            Err(source) => {
                if let Ok(Some(status)) = child.try_wait() {
                    // It has said why on stderr.
                    return Err(DemoError::NotStarted { who, status });
                }
                let _ = child.kill();
                let _ = child.wait();
                Err(DemoError::Monitor { who, source })
            }
        }
    }

    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, DemoError> {
        let who = self.who;
        self.monitor.execute(command, arguments).map_err(|source| DemoError::Monitor { who, source })
    }

    pub(super) fn query<T: DeserializeOwned>(&mut self, command: &str) -> Result<T, DemoError> {
        let who = self.who;
        self.monitor.execute_as(command, Value::Null).map_err(|source| DemoError::Monitor { who, source })
    }

    /// Pages that each worker has written since the guest was first started, anywhere.
    pub(super) fn steps(&mut self) -> Result<Vec<u64>, DemoError> {
        let mut progress = self.execute("x-limosa-progress", Value::Null)?;
        Ok(serde_json::from_value(progress["steps"].take()).unwrap_or_default())
    }

    /// Waits for the event that the migration has ended, until `deadline` at most.
    pub(super) fn wait_for_end(&mut self, deadline: Instant) -> Result<(), DemoError> {
        let ended = |event: &limosa_qmp::Event| {
            ["completed", "failed", "cancelled"].iter().any(|status| event.data["status"] == json!(status))
        };
        match self.monitor.wait_event_where("MIGRATION", deadline, ended) {
            Ok(_) | Err(QmpError::TimedOut { .. }) => Ok(()),
            Err(source) => Err(DemoError::Monitor { who: self.who, source }),
        }
    }

    /// Ends the VMM.
    pub(super) fn quit(mut self) {
        // One that does not answer any more is ended by the drop below.
        let _ = self.monitor.execute("quit", Value::Null);
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Connects as soon as the monitor listens, or fails as soon as the child is gone.
fn connect(child: &mut Child, socket: &Path) -> Result<Client, QmpError> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let attempt = (Instant::now() + Duration::from_millis(100)).min(deadline);
        match Client::connect_when_ready(socket, attempt) {
            Err(error @ QmpError::Io { .. }) => {
                let gone = !matches!(child.try_wait(), Ok(None));
                if gone || Instant::now() >= deadline {
                    return Err(error);
                }
            }
            result => return result,
        }
    }
}

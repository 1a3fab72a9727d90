//! Running the binary.

use serde_json::Value;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// What one run said.
pub(crate) struct Said {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: Option<i32>,
}

impl Said {
    fn new(output: Output) -> Self {
        Self {
            stdout: String::from_utf8(output.stdout).expect("stdout is text"),
            stderr: String::from_utf8(output.stderr).expect("stderr is text"),
            code: output.status.code(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// Holds that the run failed, in one line that contains `parts`.
    pub(crate) fn failed_with(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(1), "{}", self.stderr);
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in: {}", self.stderr);
        }
    }
}

/// Runs `limosa inspect - ARGUMENTS` with `stream` as its stdin.
pub(crate) fn inspect(stream: &[u8], arguments: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_limosa"));
    command.arg("inspect").arg("-").args(arguments);
    feed(command, |stdin| stdin.write_all(stream))
}

/// The JSON about a stream that must be without fault.
pub(crate) fn inspect_json(stream: &[u8], arguments: &[&str]) -> Value {
    let said = inspect(stream, &[&["--json"], arguments].concat());
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    let json = said.json();
    assert_eq!(json["error"], Value::Null);
    json
}

/// Runs `command` while `write` writes to its stdin. That the command stops reading early is not an error.
pub(crate) fn feed(
    mut command: Command,
    write: impl FnOnce(&mut std::process::ChildStdin) -> std::io::Result<()> + Send,
) -> Said {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    std::thread::scope(|scope| {
        scope.spawn(move || match write(&mut stdin) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written.expect("stdin takes the stream"),
        });
        Said::new(child.wait_with_output().expect("the binary ends"))
    })
}

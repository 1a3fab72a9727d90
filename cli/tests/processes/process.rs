//! Processes of the binary under test.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; reached only by a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Set where no test may be left out.
const REQUIRE_ALL_RINGS: &str = "LIMOSA_REQUIRE_ALL_RINGS";

/// A running `limosa`; killed when dropped.
pub(crate) struct Limosa {
    child: Child,
    stdout: Output,
    stderr: Output,
}

/// What a process writes, as far as it has.
struct Output {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

/// A process that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Limosa {
    pub(crate) fn start(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        Self::spawn(Command::new(env!("CARGO_BIN_EXE_limosa")).args(arguments))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary under test starts");
        let stdout = Output::read(child.stdout.take().expect("it was asked for"));
        let stderr = Output::read(child.stderr.take().expect("it was asked for"));
        Self { child, stdout, stderr }
    }

    pub(crate) fn id(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id()), signal).expect("it runs");
    }

    /// Closes its standard input.
    pub(crate) fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits until it has written `text` on stderr; all that it has written there.
    #[track_caller]
    pub(crate) fn wait_said(&self, text: &str) -> String {
        let begin = Instant::now();
        loop {
            let said = self.stderr.text.lock().unwrap().clone();
            if said.contains(text) {
                return said;
            }
            assert!(begin.elapsed() < PATIENCE, "waiting for {text:?}; it said {said:?}");
            std::thread::yield_now();
        }
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Ended {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                break status;
            }
            assert!(
                begin.elapsed() < PATIENCE,
                "it does not end; it said {:?}",
                self.stderr.text.lock().unwrap()
            );
            std::thread::yield_now();
        };
        Ended { status, stdout: self.stdout.all(), stderr: self.stderr.all() }
    }
}

impl Drop for Limosa {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Output {
    fn read(mut pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut chunk) {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..count]));
            }
        });
        Self { text, reader: Some(reader) }
    }

    /// All of it, up to the end of the last process that writes it.
    fn all(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("it only reads");
        }
        self.text.lock().unwrap().clone()
    }
}

impl Ended {
    /// Fails unless it ended with code 1 and told `reason` on stderr, in one line that begins with its name.
    #[track_caller]
    pub(crate) fn assert_failed(&self, reason: &str) {
        assert_eq!(self.status.code(), Some(1), "{self:?}");
        let last = self.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("limosa: ") && self.stderr.contains(reason), "{self:?}");
    }
}

/// The processes started by process `parent`, with their command lines.
pub(crate) fn children(parent: i32) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("there is /proc").flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // A process may end while it is looked at.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name, in parentheses, may hold anything; the state and the parent follow it.
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        if after_name.split_whitespace().nth(1) == Some(&parent.to_string()) {
            found.push((id, command_line(id)));
        }
    }
    found
}

/// The command line of a process, words separated by spaces; empty if it has ended.
pub(crate) fn command_line(id: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Waits until `done`.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "gave up waiting until {what}");
        std::thread::yield_now();
    }
}

/// Says loudly that `test` is left out because `need` is missing; fails where nothing may be.
pub(crate) fn leave_out(test: &str, need: &dyn std::fmt::Display) {
    let message = format!("LEFT OUT: {test}: {need}");
    assert!(std::env::var_os(REQUIRE_ALL_RINGS).is_none_or(|value| value != "1"), "{message}");
    // Not eprintln: the test harness keeps that to itself when the test passes.
    writeln!(io::stderr(), "{message}").expect("stderr takes a line");
}

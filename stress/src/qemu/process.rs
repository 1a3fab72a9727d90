//! One running QEMU: its process, its monitor and its guest's serial port.

use super::binary::Binary;
use super::payload::Payload;
use super::serial::{Line, Serial};
use super::setup::{Setup, ram_file};
use limosa_qmp::{Client, QmpError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use thiserror::Error;

/// How long anything may take before a test gives up: far above what is seen (a boot under emulated firmware
/// takes nine seconds), far below what a person would wait.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A QEMU that did not do what a test needs.
#[derive(Debug, Error)]
pub enum QemuError {
    /// A file, a socket or the process itself.
    #[error("{doing}: {source}")]
    Io {
        /// At what.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// It ended, or was about to and was helped.
    #[error("QEMU ended while {during} ({status}); it said: {stderr}")]
    Ended {
        /// What was waited for.
        during: &'static str,
        /// How.
        status: ExitStatus,
        /// Its words.
        stderr: String,
    },
    /// It took longer than [`PATIENCE`].
    #[error("waited too long for {what}; the guest's last line was {last:?}; QEMU said: {stderr}")]
    TooLate {
        /// What was waited for.
        what: &'static str,
        /// The guest's last line.
        last: Option<Line>,
        /// QEMU's words.
        stderr: String,
    },
    /// The monitor refused, or is gone.
    #[error("monitor, {command}: {source}; QEMU said: {stderr}")]
    Monitor {
        /// What it was told.
        command: String,
        /// Its answer.
        source: QmpError,
        /// QEMU's words on stderr.
        stderr: String,
    },
    /// The migration took another end than the one waited for.
    #[error("migration ended {status:?}, expected {expected:?}: {description}; QEMU said: {stderr}")]
    Migration {
        /// The end.
        status: String,
        /// The one waited for.
        expected: &'static str,
        /// `error-desc` of `query-migrate`.
        description: String,
        /// QEMU's words on stderr.
        stderr: String,
    },
    /// `info mtree -f` is not in the form that is known.
    #[error("no flat view of system memory in {text:?}")]
    NoFlatView {
        /// What it said.
        text: String,
    },
}

/// A running QEMU; killed when dropped.
pub struct Qemu {
    // The order is the order of dropping: the process ends first, then its readers find their sockets closed.
    child: Process,
    monitor: Client,
    serial: Serial,
    folder: TempDir,
    setup: Setup,
}

/// A child that does not outlive its owner, and what it says on stderr.
struct Process {
    child: Child,
    words: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

/// Milliseconds between two looks whether a process that has not connected yet still lives.
const LIFE_CHECK: u16 = 50;

impl Qemu {
    /// Starts `binary` and waits until its monitor answers. See [`Setup::start`].
    pub(super) fn start(binary: &Binary, setup: &Setup) -> Result<Self, QemuError> {
        let io = |doing| move |source| QemuError::Io { doing, source };
        let folder = TempDir::new().map_err(io("making a folder"))?;
        let com1 = folder.path().join("com1");
        let monitor = folder.path().join("monitor");
        let listener = UnixListener::bind(&com1).map_err(io("listening for the serial port"))?;

        let mut command = binary.command();
        setup.apply(&mut command, folder.path()).map_err(io("writing the guest's files"))?;
        // In this order: when the serial port has connected to us, the monitor listens already.
        let socket = format!("socket,id=monitor,server=on,wait=off,path={}", monitor.display());
        command.args(["-chardev", &socket, "-mon", "chardev=monitor,mode=control"]);
        let socket = format!("socket,id=com1,path={}", com1.display());
        command.args(["-chardev", &socket, "-serial", "chardev:com1"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = Process::watch(command.spawn().map_err(io("starting QEMU"))?);

        let serial = Serial::new(child.accept(&listener)?);
        let monitor = match Client::connect(&monitor) {
            Ok(monitor) => monitor,
            // It hangs up on us when it does not like its arguments.
            Err(_) => return Err(child.end("connecting its monitor")),
        };
        let mut qemu = Self { child, monitor, serial, folder, setup: setup.clone() };
        qemu.set_capabilities(&[("events", true)])?;
        Ok(qemu)
    }

    /// The guest's serial port.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// What its guest does.
    pub fn payload(&self) -> Payload {
        self.setup.boot.payload()
    }

    /// What it was started with.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// What it said on stderr so far.
    pub fn stderr(&self) -> String {
        self.child.words.lock().clone()
    }

    /// A folder of its own, which goes when it goes.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where guest RAM lies under [`super::Backing::SharedFile`].
    pub fn ram_file(&self) -> PathBuf {
        ram_file(self.folder.path())
    }

    /// The client of its monitor, which has capability `events` on.
    pub fn monitor(&mut self) -> &mut Client {
        &mut self.monitor
    }

    /// Any monitor command; its return value.
    ///
    /// # Errors
    /// The monitor refuses.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QemuError> {
        self.monitor.execute(command, arguments).map_err(|source| self.child.refused(command, source))
    }

    /// A command of the human monitor; its text.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn human_monitor(&mut self, line: &str) -> Result<String, QemuError> {
        let answer = self.execute("human-monitor-command", json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// Pauses the guest; returns when its processors stand.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn stop(&mut self) -> Result<(), QemuError> {
        self.execute("stop", json!({})).map(drop)
    }

    /// Waits until the guest's counter is past `tick`; returns it.
    ///
    /// # Errors
    /// [`QemuError::TooLate`], also when the guest reported a fault of its memory instead.
    pub fn wait_tick_past(&self, tick: u32) -> Result<u32, QemuError> {
        let past = |line| matches!(line, Line::Fault(_)) || matches!(line, Line::Tick(at) if at > tick);
        match self.serial.wait(Instant::now() + PATIENCE, past) {
            Some(Line::Tick(at)) => Ok(at),
            _ => Err(self.too_late("the guest's next tick")),
        }
    }

    /// Waits until the guest finds a page that is not what it wrote; returns the page's guest-physical address.
    ///
    /// # Errors
    /// [`QemuError::TooLate`].
    pub fn wait_fault(&self) -> Result<u32, QemuError> {
        match self.serial.wait(Instant::now() + PATIENCE, |line| matches!(line, Line::Fault(_))) {
            Some(Line::Fault(page)) => Ok(page),
            _ => Err(self.too_late("a fault of the guest's memory")),
        }
    }

    /// Bytes of guest-physical memory from `address` on. Meaningful when the guest is stopped.
    ///
    /// # Errors
    /// As [`Self::execute`], or the file QEMU wrote cannot be read.
    pub fn pmemsave(&mut self, address: u64, length: u64) -> Result<Vec<u8>, QemuError> {
        let path = self.folder.path().join("pmemsave");
        self.execute("pmemsave", json!({ "val": address, "size": length, "filename": path }))?;
        std::fs::read(&path).map_err(|source| QemuError::Io { doing: "reading what pmemsave wrote", source })
    }

    /// Waits until the process ends of itself.
    ///
    /// # Errors
    /// [`QemuError::TooLate`].
    pub fn wait_exit(&mut self) -> Result<ExitStatus, QemuError> {
        // The guest's serial port closes with the process.
        self.serial.wait_closed(Instant::now() + PATIENCE).ok_or_else(|| self.too_late("QEMU's end"))?;
        self.child.child.wait().map_err(|source| QemuError::Io { doing: "waiting for QEMU", source })
    }

    /// The data of the next event called `name`.
    pub(super) fn wait_event(&mut self, name: &str, deadline: Instant) -> Result<Value, QemuError> {
        match self.monitor.wait_event(name, deadline) {
            Ok(event) => Ok(event.data),
            Err(QmpError::TimedOut { .. }) => Err(self.too_late("a migration event")),
            Err(source) => Err(self.child.refused(name, source)),
        }
    }

    fn too_late(&self, what: &'static str) -> QemuError {
        QemuError::TooLate { what, last: self.serial.last(), stderr: self.stderr() }
    }
}

impl Process {
    fn watch(mut child: Child) -> Self {
        let words = Arc::new(Mutex::new(String::new()));
        let mut pipe = child.stderr.take().expect("stderr was asked for");
        let sink = Arc::clone(&words);
        let reader = thread::spawn(move || {
            let mut chunk = [0; 1024];
            while let Ok(count @ 1..) = pipe.read(&mut chunk) {
                sink.lock().push_str(&String::from_utf8_lossy(&chunk[..count]));
            }
        });
        Self { child, words, reader: Some(reader) }
    }

    /// The connection that this process makes to `listener`.
    fn accept(&mut self, listener: &UnixListener) -> Result<UnixStream, QemuError> {
        const DURING: &str = "connecting its serial port";
        let io = |source| QemuError::Io { doing: DURING, source };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(LIFE_CHECK)).map_err(|errno| io(errno.into()))? > 0 {
                return Ok(listener.accept().map_err(io)?.0);
            }
            if self.child.try_wait().map_err(io)?.is_some() {
                return Err(self.end(DURING));
            }
            if Instant::now() > deadline {
                return Err(QemuError::TooLate {
                    what: DURING,
                    last: None,
                    stderr: self.words.lock().clone(),
                });
            }
        }
    }

    /// Ends the process if it has not ended; the error has its last words.
    fn end(&mut self, during: &'static str) -> QemuError {
        // Fails only where the process is gone already, which is what is wanted.
        let _ = self.child.kill();
        let status = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join(); // A panic there has said so itself.
        }
        match status {
            Ok(status) => QemuError::Ended { during, status, stderr: self.words.lock().clone() },
            Err(source) => QemuError::Io { doing: during, source },
        }
    }

    fn refused(&self, command: &str, source: QmpError) -> QemuError {
        QemuError::Monitor { command: command.to_owned(), source, stderr: self.words.lock().clone() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end("dropped");
    }
}

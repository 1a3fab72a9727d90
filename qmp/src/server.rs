//! The side that answers.

use crate::connection::Connection;
use crate::events::Events;
use crate::message::{CommandError, VersionInfo};
use crate::outbox::Outbox;
use crate::{Command, QemuVersion};
use limosa_transport::{Address, Link, Listener, ShutdownHandle, TransportError};
use serde_json::Value;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Clients at once: an operator, a supervisor, and a dozen that were forgotten.
pub const CONNECTIONS_MAX: usize = 16;

/// How long a client may take to make room for a message: after that it is not worth waiting for.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The host: does what clients ask for.
pub trait Commands: Send + Sync {
    /// Executes one command; [`Value::Null`] is answered as an empty object.
    ///
    /// Called from the thread of the connection, so several at once if there are several clients. Must not drop the
    /// [`Server`].
    ///
    /// # Errors
    /// If the command is refused: the client is told.
    fn execute(&self, command: Command) -> Result<Value, CommandError>;

    /// Names of the host's own commands, which come as [`Command::Other`].
    fn vendor_commands(&self) -> &[&'static str] {
        &[]
    }
}

/// Who we say we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Whose commands we speak, and as which program.
    pub version: VersionInfo,
    /// Name of the guest, if it has one.
    pub name: Option<String>,
    /// Its UUID; zeros if it has none.
    pub uuid: [u8; 16],
}

/// A monitor that any number of clients can connect to, up to [`CONNECTIONS_MAX`] at once.
///
/// Dropping it stops listening, lets commands in progress end and their answers go out, and waits for that.
pub struct Server {
    shared: Arc<Shared>,
    listeners: Mutex<Vec<(ShutdownHandle, JoinHandle<()>)>>,
}

struct Shared {
    identity: Identity,
    commands: Arc<dyn Commands>,
    events: Events,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    closing: bool,
    open: Vec<(Arc<Outbox>, JoinHandle<()>)>,
}

impl Identity {
    /// This version of Limosa, which speaks the commands of QEMU 10.0.
    pub fn limosa() -> Self {
        Self {
            version: VersionInfo {
                qemu: QemuVersion { major: 10, minor: 0, micro: 0 },
                package: concat!("limosa ", env!("CARGO_PKG_VERSION")).to_owned(),
            },
            name: None,
            uuid: [0; 16],
        }
    }
}

impl Server {
    /// A monitor that nobody can reach yet. `events` is what the host tells its clients through.
    pub fn new(identity: Identity, commands: Arc<dyn Commands>, events: Events) -> Self {
        let connections = Mutex::new(Connections::default());
        Self {
            shared: Arc::new(Shared { identity, commands, events, connections }),
            listeners: Mutex::new(Vec::new()),
        }
    }

    /// Listens at the unix socket `path` from now on.
    ///
    /// # Errors
    /// If it cannot, for example because another process does.
    pub fn listen(&self, path: &Path) -> Result<(), TransportError> {
        let listener = Listener::bind(&Address::Unix(path.to_owned()))?;
        let handle = listener.shutdown_handle();
        let shared = Arc::clone(&self.shared);
        let thread = thread::spawn(move || {
            // Ends with the shutdown handle, or if the kernel cannot give us sockets any more.
            while let Ok(link) = listener.accept(None) {
                shared.open(link);
            }
        });
        lock(&self.listeners).push((handle, thread));
        Ok(())
    }

    /// Converses over any pair of streams, for example stdin and stdout, until the client leaves.
    ///
    /// # Errors
    /// If the streams fail.
    pub fn serve(&self, reader: impl Read, writer: impl Write + Send) -> io::Result<()> {
        let outbox = Arc::new(Outbox::default());
        self.shared.events.add(&outbox);
        self.shared.converse(&outbox, reader, writer, || ())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for (handle, thread) in lock(&self.listeners).drain(..) {
            handle.shutdown();
            join(thread);
        }
        let open = {
            let mut connections = lock(&self.shared.connections);
            connections.closing = true;
            std::mem::take(&mut connections.open)
        };
        open.iter().for_each(|(outbox, _)| outbox.close());
        open.into_iter().for_each(|(_, thread)| join(thread));
    }
}

impl Shared {
    /// Gives a new client a thread of its own; a client too many is hung up on.
    fn open(self: &Arc<Self>, link: Link) {
        let mut connections = lock(&self.connections);
        connections.open.retain(|(_, thread)| !thread.is_finished());
        if connections.closing || connections.open.len() >= CONNECTIONS_MAX {
            return;
        }
        let outbox = Arc::new(Outbox::default());
        self.events.add(&outbox);
        let (shared, mine) = (Arc::clone(self), Arc::clone(&outbox));
        let thread = thread::spawn(move || {
            let handle = link.shutdown_handle();
            let (reader, mut writer) = link.split();
            if writer.set_deadline(Some(WRITE_TIMEOUT)).is_err() {
                return;
            }
            // A client that resets the connection has left, like one that closes it.
            let _ = shared.converse(&mine, reader, writer, || handle.shutdown());
        });
        connections.open.push((outbox, thread));
    }

    /// Reads in this thread and writes in another, until both are done. `hang_up` must end a blocked read, if it can.
    fn converse(
        &self,
        outbox: &Outbox,
        reader: impl Read,
        mut writer: impl Write + Send,
        hang_up: impl Fn() + Send,
    ) -> io::Result<()> {
        thread::scope(|scope| {
            let writing = scope.spawn(move || {
                let result = write_out(outbox, &mut writer);
                outbox.abandon();
                hang_up();
                result
            });
            let _guard = AbandonOnPanic(outbox);
            let reading = Connection::new(&self.identity, &*self.commands, outbox).converse(reader);
            outbox.close();
            let written = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            reading.and(written)
        })
    }
}

/// A host that panics in a command must not leave the writer waiting for its answer.
struct AbandonOnPanic<'a>(&'a Outbox);

impl Drop for AbandonOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.abandon();
        }
    }
}

/// Writes messages as they come, one to a line, until there will be no more.
fn write_out(outbox: &Outbox, writer: &mut impl Write) -> io::Result<()> {
    while let Some(mut message) = outbox.next() {
        message.push_str("\r\n");
        writer.write_all(message.as_bytes())?;
        writer.flush()?;
    }
    Ok(())
}

fn join(thread: JoinHandle<()>) {
    if let Err(panic) = thread.join()
        && !thread::panicking()
    {
        std::panic::resume_unwind(panic);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

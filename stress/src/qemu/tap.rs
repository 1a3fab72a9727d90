//! Stands between two QEMUs and keeps what they say to each other.

use super::process::PATIENCE;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

/// A relay for the unix sockets of one migration.
pub struct Tap {
    path: PathBuf,
    relay: JoinHandle<io::Result<Vec<Conversation>>>,
}

/// What was said over one connection.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// Source to destination.
    pub forward: Vec<u8>,
    /// Destination to source.
    pub backward: Vec<u8>,
}

const READ_BYTES: usize = 64 << 10;

impl Tap {
    /// Listens in `folder` and passes the first `connections` connections on to the socket at `destination`.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(folder: &Path, destination: PathBuf, connections: usize) -> io::Result<Self> {
        let path = folder.join("tap");
        let listener = UnixListener::bind(&path)?;
        let relay = thread::spawn(move || relay(&listener, &destination, connections));
        Ok(Self { path, relay })
    }

    /// Where the source migrates to.
    pub fn uri(&self) -> String {
        format!("unix:{}", self.path.display())
    }

    /// Waits until both ends have closed every connection; the conversations in order of connection.
    ///
    /// # Errors
    /// A connection did not come or broke, or nothing was said for as long as [`PATIENCE`].
    ///
    /// # Panics
    /// If a relaying thread panicked.
    pub fn finish(self) -> io::Result<Vec<Conversation>> {
        self.relay.join().expect("the relay does not panic")
    }
}

fn relay(listener: &UnixListener, destination: &Path, connections: usize) -> io::Result<Vec<Conversation>> {
    let patience = PollTimeout::try_from(PATIENCE).map_err(io::Error::other)?;
    let mut open = Vec::with_capacity(connections);
    for _ in 0..connections {
        if poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], patience)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let source = listener.accept()?.0;
        let destination = UnixStream::connect(destination)?;
        source.set_read_timeout(Some(PATIENCE))?;
        destination.set_read_timeout(Some(PATIENCE))?;
        let (from, to) = (source.try_clone()?, destination.try_clone()?);
        open.push((thread::spawn(move || copy(from, to)), thread::spawn(move || copy(destination, source))));
    }
    let join = |thread: JoinHandle<io::Result<Vec<u8>>>| thread.join().expect("copying does not panic");
    open.into_iter()
        .map(|(forward, backward)| Ok(Conversation { forward: join(forward)?, backward: join(backward)? }))
        .collect()
}

/// Copies until `from` closes, and then closes this direction of `to`.
fn copy(mut from: UnixStream, mut to: UnixStream) -> io::Result<Vec<u8>> {
    let mut said = Vec::new();
    let mut chunk = vec![0; READ_BYTES];
    loop {
        match from.read(&mut chunk)? {
            0 => break,
            count => {
                to.write_all(&chunk[..count])?;
                said.extend_from_slice(&chunk[..count]);
            }
        }
    }
    match to.shutdown(Shutdown::Write) {
        // The other end was faster.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(said),
        result => result.map(|()| said),
    }
}

//! Plain sockets for the two small peers: standard library only, so that nothing of ours but the wire is tried.

use super::process::PATIENCE;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP on the loopback interface.
    Tcp,
    /// A unix socket.
    Unix,
}

/// A place to be migrated to.
pub enum Endpoint {
    /// Listening on a free port.
    Tcp(TcpListener),
    /// Listening at a path.
    Unix(UnixListener, PathBuf),
}

/// A connected socket whose operations fail after [`PATIENCE`].
pub trait Connection: Read + Write + Send {}

impl Connection for TcpStream {}
impl Connection for UnixStream {}

impl Endpoint {
    /// Listens; a unix socket is made in `folder`.
    ///
    /// # Errors
    /// What the system says.
    pub fn listen(transport: Transport, folder: &Path) -> io::Result<Self> {
        match transport {
            Transport::Tcp => TcpListener::bind("127.0.0.1:0").map(Self::Tcp),
            Transport::Unix => {
                let path = folder.join("endpoint");
                Ok(Self::Unix(UnixListener::bind(&path)?, path))
            }
        }
    }

    /// What QEMU calls it.
    ///
    /// # Panics
    /// If the system does not know the port it gave us.
    pub fn uri(&self) -> String {
        match self {
            Self::Tcp(listener) => format!("tcp:{}", listener.local_addr().expect("a bound socket")),
            Self::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    /// The next connection.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::TimedOut`] if nobody connects.
    pub fn accept(&self) -> io::Result<Box<dyn Connection>> {
        let listener = match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        };
        let patience = PollTimeout::try_from(PATIENCE).map_err(io::Error::other)?;
        if poll(&mut [PollFd::new(listener, PollFlags::POLLIN)], patience)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match self {
            Self::Tcp(listener) => patient_tcp(listener.accept()?.0),
            Self::Unix(listener, _) => patient_unix(listener.accept()?.0),
        }
    }

    /// Connects to a `tcp:host:port` or `unix:path` where somebody listens.
    ///
    /// # Errors
    /// What the system says, or [`io::ErrorKind::InvalidInput`] for another URI.
    pub fn connect(uri: &str) -> io::Result<Box<dyn Connection>> {
        match uri.split_once(':') {
            Some(("tcp", address)) => patient_tcp(TcpStream::connect(address)?),
            Some(("unix", path)) => patient_unix(UnixStream::connect(path)?),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

fn patient_tcp(stream: TcpStream) -> io::Result<Box<dyn Connection>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(Box::new(stream))
}

fn patient_unix(stream: UnixStream) -> io::Result<Box<dyn Connection>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(Box::new(stream))
}

//! Waiting for links.

use crate::address::Address;
use crate::connect::open_to_receive;
use crate::descriptor::{Direction, wait};
use crate::error::{During, Failure, Role, TransportError};
use crate::link::{Ends, Link};
use crate::shutdown::{ShutdownHandle, Stop};
use crate::unix::SocketFile;
use crate::{tcp, unix};
use socket2::Socket;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Connections that may wait to be accepted: a source connects all its channels at once, at most 255 of multifd
/// beside the main and the preempt channel.
pub const BACKLOG: i32 = 1 + 255 + 1;

/// A place where links arrive, as the side that receives the guest.
///
/// `tcp:` and `unix:` accept any number; `fd:`, `exec:` and `file:` are opened by [`Listener::bind`] and handed out by the first
/// [`Listener::accept`]. Dropping the listener removes its socket file.
#[derive(Debug)]
pub struct Listener {
    source: Source,
    asked: Address,
    bound: Address,
    stop: Arc<Stop>,
}

#[derive(Debug)]
enum Source {
    /// Nonblocking, so that a connection that vanishes between `poll` and `accept` cannot hold us up.
    Socket { socket: Socket, _file: Option<SocketFile> },
    /// The one connection, until somebody takes it.
    Single(Mutex<Option<Ends>>),
}

impl Listener {
    /// Begins to listen at `address`.
    ///
    /// # Errors
    /// [`Failure::InUse`] if another process listens there; what the kernel says otherwise.
    pub fn bind(address: &Address) -> Result<Self, TransportError> {
        Self::open(address)
            .map_err(|failure| TransportError::new(Role::Main, During::Bind(address.clone()), failure))
    }

    fn open(address: &Address) -> Result<Self, Failure> {
        let (source, bound) = match address {
            Address::Tcp(asked) => {
                let socket = tcp::listen(asked, BACKLOG)?;
                let bound = Address::Tcp(tcp::bound_address(&socket, asked)?);
                (Source::Socket { socket, _file: None }, bound)
            }
            Address::Unix(path) => {
                let (socket, file) = unix::listen(path, BACKLOG)?;
                (Source::Socket { socket, _file: Some(file) }, address.clone())
            }
            Address::Fd(_) | Address::Exec(_) | Address::File { .. } => {
                (Source::Single(Mutex::new(Some(open_to_receive(address)?))), address.clone())
            }
        };
        if let Source::Socket { socket, .. } = &source {
            socket.set_nonblocking(true)?;
        }
        Ok(Self { source, asked: address.clone(), bound, stop: Arc::new(Stop::with_bell()?) })
    }

    /// Where to connect to: as asked for, with the port that the kernel chose.
    pub fn local_address(&self) -> &Address {
        &self.bound
    }

    /// Waits for the next connection until `deadline`; `None` is for ever. Its role is [`Role::Main`] until its first
    /// bytes tell otherwise.
    ///
    /// # Errors
    /// [`Failure::TimedOut`], [`Failure::ShutDown`], [`Failure::SingleConnection`], or what the kernel says.
    pub fn accept(&self, deadline: Option<Instant>) -> Result<Link, TransportError> {
        match self.next(deadline) {
            Ok(ends) => Ok(Link::new(ends, Role::Main)),
            Err(failure) => Err(TransportError::new(Role::Main, During::Accept(self.bound.clone()), failure)),
        }
    }

    /// A handle with which any thread can end the wait for a connection. Connections made before stay.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        ShutdownHandle::new(&self.stop, Weak::new())
    }

    fn next(&self, deadline: Option<Instant>) -> Result<Ends, Failure> {
        let socket = match &self.source {
            Source::Single(ends) => {
                let ends = ends.lock().unwrap_or_else(PoisonError::into_inner).take();
                return ends.ok_or(Failure::SingleConnection);
            }
            Source::Socket { socket, .. } => socket,
        };
        let began = Instant::now();
        loop {
            if self.stop.is_asked() {
                return Err(Failure::ShutDown);
            }
            match socket.accept() {
                Ok((connection, _)) => {
                    if let Address::Tcp(address) = &self.asked {
                        tcp::tune(&connection, address)?;
                    }
                    return Ok(Ends::of_socket(connection.into())?);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !wait(socket.as_fd(), Direction::Receiving, self.stop.bell(), deadline)? {
                        let after = deadline.map_or(Duration::ZERO, |deadline| deadline - began);
                        return Err(Failure::TimedOut { after });
                    }
                }
                Err(error) if is_of_that_connection(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether accepting failed because of the one who called, who has gone again: the next may be better.
fn is_of_that_connection(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), Interrupted | ConnectionAborted | ConnectionReset)
}

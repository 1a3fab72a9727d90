//! One open descriptor, and how to wait for it.

use crate::error::Failure;
use crate::kernel;
use crate::shutdown::Stop;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use socket2::SockRef;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes a second that a short queue must not be in the way of: twice 10 Gbit/s, because the kernel counts its overhead too. A
/// path of 50 microseconds holds 128 KiB of that, one of 10 milliseconds 25 MB.
const PATH_RATE: f64 = 2.5e9;

/// A descriptor that bytes go through.
#[derive(Debug)]
pub(crate) struct Descriptor {
    fd: OwnedFd,
    kind: Kind,
    stop: Arc<Stop>,
}

/// What tells the kernel's descriptors apart for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Blocks in the call, under the socket's own timeouts; `shutdown(2)` wakes it.
    Socket,
    /// Nonblocking; waits in `poll(2)` together with the bell of [`Stop`].
    Pipe,
    /// Always ready.
    File,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Receiving,
    Sending,
}

impl Descriptor {
    /// Takes `fd` as what it is, with the blocking mode that its kind is used in.
    ///
    /// The mode belongs to the open file description: whoever shares it (a parent that passed on its own stdout) shares
    /// the mode.
    pub(crate) fn new(fd: OwnedFd, kind: Kind, stop: Arc<Stop>) -> io::Result<Self> {
        let mut flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        flags.set(OFlag::O_NONBLOCK, kind == Kind::Pipe);
        fcntl(&fd, FcntlArg::F_SETFL(flags))?;
        Ok(Self { fd, kind, stop })
    }

    pub(crate) fn stop(&self) -> &Arc<Stop> {
        &self.stop
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Receives what is there, waiting for the first byte; 0 is the end of the stream.
    pub(crate) fn read(&self, out: &mut [u8], patience: Option<Duration>) -> Result<usize, Failure> {
        self.transfer(Direction::Receiving, patience, |fd| {
            Ok(match self.kind {
                Kind::Socket => recv(fd.as_raw_fd(), out, MsgFlags::empty())?,
                Kind::Pipe | Kind::File => nix::unistd::read(fd, out)?,
            })
        })
    }

    /// Receives what is there; `None` if nothing is, 0 at the end of the stream.
    pub(crate) fn read_ready(&self, out: &mut [u8]) -> Result<Option<usize>, Failure> {
        self.transfer_ready(|fd| {
            Ok(match self.kind {
                Kind::Socket => recv(fd.as_raw_fd(), out, MsgFlags::MSG_DONTWAIT)?,
                Kind::Pipe | Kind::File => nix::unistd::read(fd, out)?,
            })
        })
    }

    /// Sends what the kernel takes now; `None` if it takes nothing.
    pub(crate) fn write_ready(&self, bytes: &[u8]) -> Result<Option<usize>, Failure> {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let written = self.transfer_ready(|fd| {
            Ok(match self.kind {
                Kind::Socket => send(fd.as_raw_fd(), bytes, flags)?,
                Kind::Pipe | Kind::File => nix::unistd::write(fd, bytes)?,
            })
        })?;
        if written == Some(0) { Err(Failure::NoProgress) } else { Ok(written) }
    }

    /// Sends what the kernel takes, at least a byte.
    pub(crate) fn write(&self, bytes: &[u8], patience: Option<Duration>) -> Result<usize, Failure> {
        let written = self.transfer(Direction::Sending, patience, |fd| {
            Ok(match self.kind {
                Kind::Socket => send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?,
                Kind::Pipe | Kind::File => nix::unistd::write(fd, bytes)?,
            })
        })?;
        if written == 0 { Err(Failure::NoProgress) } else { Ok(written) }
    }

    /// Makes `call` until it moves something, or the end comes, or nothing happens for as long as `patience`.
    pub(crate) fn transfer(
        &self,
        direction: Direction,
        patience: Option<Duration>,
        mut call: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Result<usize, Failure> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        loop {
            if self.stop.is_asked() {
                return Err(Failure::ShutDown);
            }
            let failure = match call(self.fd.as_fd()) {
                // A socket that our own handle shut down looks like one that the peer has ended.
                Ok(0) if self.stop.is_asked() => return Err(Failure::ShutDown),
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            match (failure.kind(), self.kind) {
                _ if self.stop.is_asked() => return Err(Failure::ShutDown),
                // The socket's own timeout: it is never nonblocking.
                (io::ErrorKind::WouldBlock, Kind::Socket) => return Err(timed_out(patience)),
                (io::ErrorKind::WouldBlock, Kind::Pipe | Kind::File) => {
                    let ready = wait(self.fd.as_fd(), direction, self.stop.bell(), deadline)?;
                    if !ready {
                        return Err(timed_out(patience));
                    }
                }
                _ => return Err(failure.into()),
            }
        }
    }

    /// Makes `call`, which must not wait; `None` if there is nothing to move now.
    fn transfer_ready(
        &self,
        mut call: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Result<Option<usize>, Failure> {
        loop {
            let outcome = call(self.fd.as_fd());
            // A socket that our own handle shut down looks like one that the peer has ended.
            if self.stop.is_asked() {
                return Err(Failure::ShutDown);
            }
            match outcome {
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives the kernel the longest time that one call may wait. Only sockets have one.
    pub(crate) fn set_timeout(&self, direction: Direction, patience: Option<Duration>) -> io::Result<()> {
        if self.kind != Kind::Socket {
            return Ok(());
        }
        let socket = SockRef::from(&self.fd);
        match direction {
            Direction::Receiving => socket.set_read_timeout(patience),
            Direction::Sending => socket.set_write_timeout(patience),
        }
    }

    /// Sets how much the kernel keeps of what is sent on a socket, or has come and was not read: `least`, or what a long
    /// path needs.
    pub(crate) fn limit_queue(&self, direction: Direction, least: usize) -> io::Result<()> {
        if self.kind != Kind::Socket {
            return Ok(());
        }
        let socket = SockRef::from(&self.fd);
        let round_trip = kernel::shortest_round_trip(self.fd.as_fd()).unwrap_or_default();
        let bytes = least.max((round_trip.as_secs_f64() * PATH_RATE) as usize);
        // The kernel takes twice as much for its own overhead.
        match direction {
            Direction::Receiving => socket.set_recv_buffer_size(bytes / 2),
            Direction::Sending => socket.set_send_buffer_size(bytes / 2),
        }
    }

    /// Ends both directions of a socket under whoever is blocked in them.
    pub(crate) fn shut_down(&self) {
        // Fails only if the connection is gone already, and then nobody is blocked.
        let _ = SockRef::from(&self.fd).shutdown(Shutdown::Both);
    }

    /// Ends the receiving direction of a socket behind what has come. Linux lets that be read.
    pub(crate) fn end_receiving(&self) {
        // Fails only if the connection is gone already, and that is the end, too.
        let _ = SockRef::from(&self.fd).shutdown(Shutdown::Read);
    }

    /// Tells the peer of a socket that nothing more will come.
    pub(crate) fn end_sending(&self) -> io::Result<()> {
        SockRef::from(&self.fd).shutdown(Shutdown::Write)
    }

    /// Bytes written that the other side has not taken.
    pub(crate) fn queued_bytes(&self) -> u64 {
        match self.kind {
            Kind::Socket => kernel::socket_queue(self.fd.as_fd()),
            Kind::Pipe => kernel::pipe_queue(self.fd.as_fd()),
            Kind::File => 0,
        }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn timed_out(patience: Option<Duration>) -> Failure {
    Failure::TimedOut { after: patience.unwrap_or_default() }
}

/// Waits until `fd` is ready or the bell rings (`true`), or the deadline has passed (`false`).
pub(crate) fn wait(
    fd: BorrowedFd<'_>,
    direction: Direction,
    bell: Option<BorrowedFd<'_>>,
    deadline: Option<Instant>,
) -> io::Result<bool> {
    let interest = match direction {
        Direction::Receiving => PollFlags::POLLIN,
        Direction::Sending => PollFlags::POLLOUT,
    };
    loop {
        let timeout = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            None => PollTimeout::NONE,
            // Rounded up to a millisecond: rounded down, the last wait of a deadline would spin.
            Some(left) => PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX),
        };
        let mut waiting = vec![PollFd::new(fd, interest)];
        waiting.extend(bell.map(|bell| PollFd::new(bell, PollFlags::POLLIN)));
        match poll(&mut waiting, timeout) {
            Ok(0) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => return Ok(false),
            Ok(0) | Err(nix::Error::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn socket() -> Descriptor {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        Descriptor::new(ours.into(), Kind::Socket, Arc::new(Stop::without_bell())).unwrap()
    }

    #[test]
    fn a_call_that_takes_nothing_is_an_error_and_not_repeated() {
        let mut calls = 0;
        let result = socket().transfer(Direction::Sending, None, |_| {
            calls += 1;
            Err(io::ErrorKind::WriteZero.into())
        });
        assert!(matches!(result, Err(Failure::NoProgress)), "{result:?}");
        assert_eq!(calls, 1);
    }

    #[test]
    fn an_interrupted_call_is_made_again() {
        let mut calls = 0;
        let result = socket().transfer(Direction::Receiving, None, |_| {
            calls += 1;
            if calls < 3 { Err(io::ErrorKind::Interrupted.into()) } else { Ok(5) }
        });
        assert_eq!((result.unwrap(), calls), (5, 3));
    }
}

//! A connected stream, and its two halves.

mod ready;

use crate::descriptor::{Descriptor, Direction, Kind};
use crate::error::{During, Failure, Role, TransportError};
use crate::exec::Reaped;
use crate::kernel;
use crate::shutdown::{ShutdownHandle, Stop};
use crate::zero_copy::ZeroCopy;
use limosa_ram::{Gather, Scatter};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Most that can be looked at without taking it: the longest thing by which a channel is told from another is the
/// multifd init packet of 64 bytes (wire 4.2).
pub const PEEK_BYTES_MAX: usize = 64;

/// A connected byte stream. One owner; it moves.
///
/// Dropping it closes it. Whether the peer got everything is for the peer to say (invariant I7).
#[derive(Debug)]
pub struct Link {
    reader: LinkReader,
    writer: LinkWriter,
}

/// The receiving direction of a link.
#[derive(Debug)]
pub struct LinkReader {
    half: Half,
    /// Received by [`LinkReader::peek`], not yet handed out.
    peeked: Vec<u8>,
}

/// The sending direction of a link.
#[derive(Debug)]
pub struct LinkWriter {
    half: Half,
    /// What the kernel has not copied and still holds, where guest pages are sent so.
    zero_copy: Option<ZeroCopy>,
    /// Since when the kernel has taken nothing of what was to be sent without waiting.
    full_since: Option<Instant>,
}

/// What both directions are made of.
#[derive(Debug)]
struct Half {
    role: Role,
    /// `None` if the link has no such direction, or it was finished.
    descriptor: Option<Arc<Descriptor>>,
    direction: Direction,
    patience: Option<Duration>,
    stop: Arc<Stop>,
    child: Option<Arc<Reaped>>,
}

/// A descriptor for each direction that exists; twice the same for a socket.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) receiving: Option<Arc<Descriptor>>,
    pub(crate) sending: Option<Arc<Descriptor>>,
    pub(crate) stop: Arc<Stop>,
    pub(crate) child: Option<Arc<Reaped>>,
}

impl Link {
    pub(crate) fn new(ends: Ends, role: Role) -> Self {
        let half = |descriptor, direction| Half {
            role,
            descriptor,
            direction,
            patience: None,
            stop: Arc::clone(&ends.stop),
            child: ends.child.clone(),
        };
        Self {
            reader: LinkReader { half: half(ends.receiving, Direction::Receiving), peeked: Vec::new() },
            writer: LinkWriter {
                half: half(ends.sending, Direction::Sending),
                zero_copy: None,
                full_since: None,
            },
        }
    }

    /// Takes a connected socket, a pipe's end or a file, at its current position, as a link.
    ///
    /// # Errors
    /// [`Failure::Descriptor`] if it is none of these.
    pub fn from_fd(fd: OwnedFd, role: Role) -> Result<Self, TransportError> {
        match Ends::of_descriptor(fd) {
            Ok(ends) => Ok(Self::new(ends, role)),
            Err(failure) => Err(TransportError::new(role, During::Setup, failure)),
        }
    }

    /// Two links connected to one another inside this process.
    ///
    /// # Errors
    /// If the kernel has no socket left.
    pub fn pair() -> Result<(Self, Self), TransportError> {
        let (one, other) = std::os::unix::net::UnixStream::pair()
            .map_err(|error| TransportError::new(Role::Main, During::Setup, error))?;
        Ok((Self::from_fd(one.into(), Role::Main)?, Self::from_fd(other.into(), Role::Main)?))
    }

    /// What the link is for.
    pub fn role(&self) -> Role {
        self.reader.half.role
    }

    /// Says what the link is for, once its first bytes have told.
    pub fn set_role(&mut self, role: Role) {
        self.reader.half.role = role;
        self.writer.half.role = role;
    }

    /// Whether bytes can go both ways, so that there can be a return path.
    pub fn is_bidirectional(&self) -> bool {
        self.reader.half.descriptor.is_some() && self.writer.half.descriptor.is_some()
    }

    /// Sets how long an operation may wait without moving a byte, both ways; `None`, the beginning, is for ever.
    ///
    /// # Errors
    /// If the kernel does not take it.
    ///
    /// # Panics
    /// If the duration is zero.
    pub fn set_deadline(&mut self, patience: Option<Duration>) -> Result<(), TransportError> {
        self.reader.set_deadline(patience)?;
        self.writer.set_deadline(patience)
    }

    /// A handle with which any thread can end the link.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        self.reader.half.shutdown_handle(self.writer.half.descriptor.as_ref())
    }

    /// The two directions, for two owners.
    pub fn split(self) -> (LinkReader, LinkWriter) {
        (self.reader, self.writer)
    }

    /// As [`LinkReader::read_some`].
    ///
    /// # Errors
    /// As there.
    pub fn read_some(&mut self, out: &mut [u8]) -> Result<usize, TransportError> {
        self.reader.read_some(out)
    }

    /// As [`LinkReader::read_exact`].
    ///
    /// # Errors
    /// As there.
    pub fn read_exact(&mut self, out: &mut [u8]) -> Result<(), TransportError> {
        self.reader.read_exact(out)
    }

    /// As [`LinkReader::read_scatter`].
    ///
    /// # Errors
    /// As there.
    pub fn read_scatter(&mut self, scatter: &mut Scatter<'_>) -> Result<(), TransportError> {
        self.reader.read_scatter(scatter)
    }

    /// As [`LinkReader::peek`].
    ///
    /// # Errors
    /// As there.
    pub fn peek(&mut self, count: usize) -> Result<&[u8], TransportError> {
        self.reader.peek(count)
    }

    /// As [`LinkWriter::write_all`].
    ///
    /// # Errors
    /// As there.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        self.writer.write_all(bytes)
    }

    /// As [`LinkWriter::write_gather`].
    ///
    /// # Errors
    /// As there.
    pub fn write_gather(&mut self, gather: &mut Gather<'_>) -> Result<(), TransportError> {
        self.writer.write_gather(gather)
    }

    /// As [`LinkWriter::queued_bytes`].
    pub fn queued_bytes(&self) -> u64 {
        self.writer.queued_bytes()
    }

    /// As [`LinkWriter::finish`].
    ///
    /// # Errors
    /// As there.
    pub fn finish(&mut self) -> Result<(), TransportError> {
        self.writer.finish()
    }

    /// Closes the link and, if it is a child's, waits for the child's end under the deadline of the sending side.
    ///
    /// # Errors
    /// [`Failure::Command`] if the child failed; [`Failure::TimedOut`] if it still runs.
    pub fn close(self) -> Result<(), TransportError> {
        let Self { reader, writer: LinkWriter { half, .. } } = self;
        let Half { role, patience, child, descriptor, .. } = half;
        // The child ends when its stdin does: close first, wait then.
        drop((reader, descriptor));
        match child.map_or(Ok(()), |child| child.wait(patience)) {
            Ok(()) => Ok(()),
            Err(failure) => Err(TransportError::new(role, During::Close, failure)),
        }
    }
}

impl LinkReader {
    /// Receives at least a byte, and at most what fits; 0 is the end of the stream.
    ///
    /// # Errors
    /// If the link is lost, late or shut down.
    ///
    /// # Panics
    /// If `out` is empty: the answer could not be told from the end of the stream.
    pub fn read_some(&mut self, out: &mut [u8]) -> Result<usize, TransportError> {
        assert!(!out.is_empty(), "asked for nothing");
        if self.peeked.is_empty() {
            return self.half.receive(out);
        }
        let count = self.peeked.len().min(out.len());
        out[..count].copy_from_slice(&self.peeked[..count]);
        self.peeked.drain(..count);
        Ok(count)
    }

    /// Receives exactly as many bytes as fit.
    ///
    /// # Errors
    /// As [`Self::read_some`]; [`Failure::Ended`] if the stream ends first.
    pub fn read_exact(&mut self, out: &mut [u8]) -> Result<(), TransportError> {
        let mut done = 0;
        while done < out.len() {
            match self.read_some(&mut out[done..])? {
                0 => return Err(self.half.ended((out.len() - done) as u64)),
                count => done += count,
            }
        }
        Ok(())
    }

    /// Receives exactly what `scatter` has room for, straight into guest RAM.
    ///
    /// # Errors
    /// As [`Self::read_exact`].
    pub fn read_scatter(&mut self, scatter: &mut Scatter<'_>) -> Result<(), TransportError> {
        let taken = scatter.copy_from(&self.peeked);
        self.peeked.drain(..taken);
        while !scatter.is_empty() {
            let received = self.half.transfer(|fd| scatter.read_from(fd))?;
            if received == 0 {
                return Err(self.half.ended(scatter.remaining().0));
            }
        }
        Ok(())
    }

    /// The next `count` bytes without taking them; fewer only at the end of the stream.
    ///
    /// # Errors
    /// As [`Self::read_some`].
    ///
    /// # Panics
    /// If `count` is more than [`PEEK_BYTES_MAX`].
    pub fn peek(&mut self, count: usize) -> Result<&[u8], TransportError> {
        assert!(count <= PEEK_BYTES_MAX, "cannot peek {count} bytes");
        // Received for good, not with MSG_PEEK: that cannot wait for more than a byte, and pipes do not have it.
        while self.peeked.len() < count {
            let mut bytes = [0; PEEK_BYTES_MAX];
            let wanted = count - self.peeked.len();
            match self.half.receive(&mut bytes[..wanted])? {
                0 => break,
                received => self.peeked.extend_from_slice(&bytes[..received]),
            }
        }
        Ok(&self.peeked[..count.min(self.peeked.len())])
    }

    /// Lets at most about `least` bytes wait in our kernel unread, or as many as a long path holds at 10 Gbit/s; the peer sends
    /// no more then. What has come already stays. Of no effect on a link that is not a socket. The kernel counts its own
    /// overhead, and rounds small numbers up.
    ///
    /// # Errors
    /// If the kernel does not take it.
    pub fn limit_queue(&mut self, least: usize) -> Result<(), TransportError> {
        self.half.limit_queue(least)
    }

    /// Sets how long an operation may wait without receiving a byte; `None` is for ever.
    ///
    /// # Errors
    /// If the kernel does not take it.
    ///
    /// # Panics
    /// If the duration is zero.
    pub fn set_deadline(&mut self, patience: Option<Duration>) -> Result<(), TransportError> {
        self.half.set_deadline(patience)
    }

    /// A handle with which any thread can end the link; of a socket, both directions.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        self.half.shutdown_handle(None)
    }

    /// What the link is for.
    pub fn role(&self) -> Role {
        self.half.role
    }
}

impl LinkWriter {
    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// If the link is lost, late or shut down; part of `bytes` may be sent then.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        let descriptor = self.half.descriptor()?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent =
                descriptor.write(rest, self.half.patience).map_err(|failure| self.half.error(failure))?;
            rest = &rest[sent..];
        }
        Ok(())
    }

    /// Sends all of `gather`, straight from guest RAM: one system call per 1024 vectors at best.
    ///
    /// # Errors
    /// As [`Self::write_all`]; `gather` knows what is left then.
    pub fn write_gather(&mut self, gather: &mut Gather<'_>) -> Result<(), TransportError> {
        while !gather.is_empty() {
            match self.zero_copy {
                None => self.half.transfer(|fd| gather.write_to(fd)).map(drop)?,
                Some(_) => self.write_in_place(gather)?,
            }
        }
        Ok(())
    }

    /// Sends guest pages without a copy from now on. Only TCP can, and only a real network gains by it.
    ///
    /// # Errors
    /// [`Failure::NoZeroCopy`] if this kind of link cannot.
    pub fn use_zero_copy(&mut self) -> Result<(), TransportError> {
        let allowed = kernel::allow_zero_copy(self.half.descriptor()?.as_fd());
        allowed.map_err(|error| {
            TransportError::new(self.half.role, During::Setup, Failure::NoZeroCopy(error))
        })?;
        self.zero_copy = Some(ZeroCopy::default());
        Ok(())
    }

    /// Waits until the kernel holds no page any more that was sent without a copy: the peer has acknowledged them all.
    /// Returns at once where nothing is sent so. `true` if pages were sent so since the last time, and the kernel has
    /// copied them all the same.
    ///
    /// # Errors
    /// If the link is lost, late or shut down.
    pub fn wait_zero_copy(&mut self) -> Result<bool, TransportError> {
        let Some(zero_copy) = &mut self.zero_copy else { return Ok(false) };
        self.half.wait_zero_copy(zero_copy, 0)?;
        Ok(zero_copy.was_missed())
    }

    /// Sends the first pieces of `gather` that are alike: guest pages without a copy, anything else with one.
    fn write_in_place(&mut self, gather: &mut Gather<'_>) -> Result<(), TransportError> {
        let Some(zero_copy) = &mut self.zero_copy else { unreachable!("called only where it is on") };
        let mut in_place = false;
        let sent = self.half.transfer(|fd| {
            let (bytes, without_copy) = gather.write_in_place_to(fd)?;
            in_place = without_copy;
            Ok(bytes)
        });
        match sent {
            Ok(_) if in_place => {
                zero_copy.sent();
                // Keeps the queue of what is done short; it counts against the socket's memory.
                let descriptor = self.half.descriptor()?;
                zero_copy.reap(descriptor).map_err(|failure| self.half.error(failure))
            }
            Ok(_) => Ok(()),
            Err(error) => match error.failure {
                // The kernel holds as much as it may: that gets less when the peer acknowledges some of it.
                Failure::Os(source) if source.raw_os_error() == Some(libc::ENOBUFS) => {
                    let pending = zero_copy.pending();
                    if pending == 0 {
                        return Err(self.half.error(Failure::LockedMemory(source)));
                    }
                    self.half.wait_zero_copy(zero_copy, pending - 1)
                }
                failure => Err(TransportError { failure, ..error }),
            },
        }
    }

    /// Bytes written that the peer has not taken: for TCP those not acknowledged, for a pipe those not read. The kernel
    /// counts its own overhead too for a unix socket; 0 for a file.
    ///
    /// Cost: one system call.
    pub fn queued_bytes(&self) -> u64 {
        self.half.descriptor.as_ref().map_or(0, |descriptor| descriptor.queued_bytes())
    }

    /// Lets at most about `least` bytes wait in our kernel, or as many as a long path holds at 10 Gbit/s: what is sent next
    /// overtakes nothing, but waits for less. Of no effect on a link that is not a socket. The kernel counts its own overhead, and
    /// rounds small numbers up.
    ///
    /// # Errors
    /// If the kernel does not take it.
    pub fn limit_queue(&mut self, least: usize) -> Result<(), TransportError> {
        self.half.limit_queue(least)
    }

    /// Ends the stream: the peer reads what was sent, then its end. The other direction stays open.
    ///
    /// # Errors
    /// If the connection is gone already.
    pub fn finish(&mut self) -> Result<(), TransportError> {
        let Some(descriptor) = self.half.descriptor.take() else { return Ok(()) };
        if descriptor.kind() != Kind::Socket {
            return Ok(()); // Closed by being dropped: nobody else holds it.
        }
        descriptor.end_sending().map_err(|error| TransportError::new(self.half.role, During::Close, error))
    }

    /// Ends the stream as [`Self::finish`] does, and waits until the command of an `exec:` address has ended too:
    /// before that, nobody knows what became of the bytes. Other links are done at once.
    ///
    /// # Errors
    /// [`Failure::Command`] if the command failed; [`Failure::TimedOut`] if it still runs after the deadline.
    pub fn finish_and_wait(&mut self) -> Result<(), TransportError> {
        self.finish()?;
        let ended = self.half.child.as_ref().map_or(Ok(()), |child| child.wait(self.half.patience));
        ended.map_err(|failure| TransportError::new(self.half.role, During::Close, failure))
    }

    /// Sets how long an operation may wait without sending a byte; `None` is for ever.
    ///
    /// # Errors
    /// If the kernel does not take it.
    ///
    /// # Panics
    /// If the duration is zero.
    pub fn set_deadline(&mut self, patience: Option<Duration>) -> Result<(), TransportError> {
        self.half.set_deadline(patience)
    }

    /// A handle with which any thread can end the link; of a socket, both directions.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        self.half.shutdown_handle(None)
    }

    /// What the link is for.
    pub fn role(&self) -> Role {
        self.half.role
    }
}

impl Half {
    fn receive(&self, out: &mut [u8]) -> Result<usize, TransportError> {
        self.descriptor()?.read(out, self.patience).map_err(|failure| self.error(failure))
    }

    fn transfer(
        &self,
        call: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Result<usize, TransportError> {
        self.descriptor()?
            .transfer(self.direction, self.patience, call)
            .map_err(|failure| self.error(failure))
    }

    fn wait_zero_copy(&self, zero_copy: &mut ZeroCopy, left: u64) -> Result<(), TransportError> {
        let descriptor = self.descriptor()?;
        zero_copy.wait(descriptor, left, self.patience).map_err(|failure| self.error(failure))
    }

    fn descriptor(&self) -> Result<&Descriptor, TransportError> {
        let direction = match self.direction {
            Direction::Receiving => "receiving",
            Direction::Sending => "sending",
        };
        self.descriptor.as_deref().ok_or_else(|| self.error(Failure::OneWay { direction }))
    }

    fn set_deadline(&mut self, patience: Option<Duration>) -> Result<(), TransportError> {
        assert!(patience != Some(Duration::ZERO), "a deadline of zero would mean for ever to the kernel");
        self.patience = patience;
        match &self.descriptor {
            Some(descriptor) => descriptor
                .set_timeout(self.direction, patience)
                .map_err(|error| TransportError::new(self.role, During::Setup, error)),
            None => Ok(()),
        }
    }

    fn limit_queue(&self, least: usize) -> Result<(), TransportError> {
        let limited = self.descriptor.as_ref().map(|half| half.limit_queue(self.direction, least));
        limited.unwrap_or(Ok(())).map_err(|error| TransportError::new(self.role, During::Setup, error))
    }

    fn shutdown_handle(&self, other: Option<&Arc<Descriptor>>) -> ShutdownHandle {
        let socket =
            self.descriptor.as_ref().or(other).filter(|descriptor| descriptor.kind() == Kind::Socket);
        ShutdownHandle::new(&self.stop, socket.map_or_else(Weak::new, Arc::downgrade))
    }

    fn ended(&self, wanted: u64) -> TransportError {
        self.error(Failure::Ended { wanted })
    }

    fn error(&self, failure: Failure) -> TransportError {
        let during = match self.direction {
            Direction::Receiving => During::Read,
            Direction::Sending => During::Write,
        };
        TransportError { role: self.role, during, failure }
    }
}

impl io::Read for LinkReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() { Ok(0) } else { Ok(self.read_some(out)?) }
    }
}

impl io::Write for LinkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Ends {
    /// A socket: both directions, one descriptor.
    pub(crate) fn of_socket(fd: OwnedFd) -> io::Result<Self> {
        let descriptor = Arc::new(Descriptor::new(fd, Kind::Socket, Arc::new(Stop::without_bell()))?);
        Ok(Self {
            stop: Arc::clone(descriptor.stop()),
            receiving: Some(Arc::clone(&descriptor)),
            sending: Some(descriptor),
            child: None,
        })
    }

    /// Whatever this descriptor is, in the directions in which it was opened.
    pub(crate) fn of_descriptor(fd: OwnedFd) -> Result<Self, Failure> {
        let kind = match SFlag::from_bits_truncate(fstat(&fd)?.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFSOCK => return Ok(Self::of_socket(fd)?),
            SFlag::S_IFIFO | SFlag::S_IFCHR => Kind::Pipe,
            SFlag::S_IFREG | SFlag::S_IFBLK => Kind::File,
            _ => {
                let reason = "neither a socket nor a pipe nor a file";
                return Err(Failure::Descriptor { number: fd.as_raw_fd(), reason });
            }
        };
        let mode = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?) & OFlag::O_ACCMODE;
        let descriptor = Arc::new(Descriptor::new(fd, kind, Arc::new(Stop::with_bell()?))?);
        Ok(Self {
            stop: Arc::clone(descriptor.stop()),
            receiving: (mode != OFlag::O_WRONLY).then(|| Arc::clone(&descriptor)),
            sending: (mode != OFlag::O_RDONLY).then(|| Arc::clone(&descriptor)),
            child: None,
        })
    }
}

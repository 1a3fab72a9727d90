//! What can happen to a link, and to which one.

use crate::address::{Address, AddressError};
use std::fmt;
use std::io;
use std::process::ExitStatus;
use std::time::Duration;
use thiserror::Error;

/// What a link is for. Only errors and logs look at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// The stream of sections, and the return path in the other direction.
    #[default]
    Main,
    /// A channel of pages, counted from 0.
    Multifd(u8),
    /// Pages that a running guest waits for.
    Preempt,
    /// One that has not said yet what it is for.
    Unidentified,
}

/// Something went wrong with a link: with which one, doing what, and how.
#[derive(Debug, Error)]
#[error("{role} channel: {during}")]
pub struct TransportError {
    /// Which link.
    pub role: Role,
    /// What it was doing.
    pub during: During,
    /// What happened.
    #[source]
    pub failure: Failure,
}

/// What a link was doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum During {
    /// Connecting to this address.
    Connect(Address),
    /// Beginning to listen at this address.
    Bind(Address),
    /// Waiting for a connection at this address.
    Accept(Address),
    /// Setting an option of the socket.
    Setup,
    /// Receiving.
    Read,
    /// Sending.
    Write,
    /// Ending the stream.
    Close,
}

/// How an operation on a link failed.
#[derive(Debug, Error)]
pub enum Failure {
    /// The connection is gone: reset, unreachable, or closed by a peer that we still had to tell something.
    #[error("connection lost")]
    Lost(#[source] io::Error),
    /// The peer ended the stream in the middle of something.
    #[error("stream ended with {wanted} bytes still to come")]
    Ended {
        /// Bytes that were missing.
        wanted: u64,
    },
    /// Nothing moved for this long.
    #[error("nothing moved for {after:?}")]
    TimedOut {
        /// The deadline that was set.
        after: Duration,
    },
    /// Nobody listens there.
    #[error("connection refused")]
    Refused(#[source] io::Error),
    /// A [`ShutdownHandle`](crate::ShutdownHandle) ended it.
    #[error("shut down from this side")]
    ShutDown,
    /// The kernel took nothing of what it was given, and gave no reason.
    #[error("no progress")]
    NoProgress,
    /// The link has no such direction: a file has no return path, and what was finished stays finished.
    #[error("the link has no {direction} direction")]
    OneWay {
        /// `receiving` or `sending`.
        direction: &'static str,
    },
    /// A second connection was asked of an address that makes only one.
    #[error("this kind of address makes a single connection")]
    SingleConnection,
    /// Another process listens there.
    #[error("address in use")]
    InUse(#[source] io::Error),
    /// The descriptor cannot be a link.
    #[error("descriptor {number}: {reason}")]
    Descriptor {
        /// Its number.
        number: i32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The name of a descriptor that was passed in; only the host knows its number.
    #[error("descriptor {name:?} is known by name only; the host has to resolve it")]
    NamedDescriptor {
        /// The name.
        name: String,
    },
    /// The address resolves to nothing that it allows itself.
    #[error("no address of the allowed family")]
    NoAddress,
    /// The command of an `exec:` address failed.
    #[error("the command ended with {0}")]
    Command(ExitStatus),
    /// Not an address at all.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// This kind of link cannot send without a copy: only TCP can.
    #[error("the kernel does not send without a copy here")]
    NoZeroCopy(#[source] io::Error),
    /// Sending without a copy holds pages in memory, and this process may hold none.
    #[error("no memory may be locked for sending without a copy; the limit is RLIMIT_MEMLOCK")]
    LockedMemory(#[source] io::Error),
    /// Anything else the kernel said.
    #[error("{0}")]
    Os(#[source] io::Error),
}

impl TransportError {
    pub(crate) fn new(role: Role, during: During, failure: impl Into<Failure>) -> Self {
        Self { role, during, failure: failure.into() }
    }

    /// Whether the connection is gone, not just late or misused: by the peer, by the network or by our own handle.
    pub fn is_loss(&self) -> bool {
        matches!(self.failure, Failure::Lost(_) | Failure::Ended { .. } | Failure::ShutDown)
    }
}

/// Sorts the kernel's reasons into those that a caller tells apart.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::*;
        match error.kind() {
            ConnectionReset | BrokenPipe | ConnectionAborted | NotConnected | HostUnreachable
            | NetworkUnreachable | NetworkDown | TimedOut => Self::Lost(error),
            ConnectionRefused => Self::Refused(error),
            AddrInUse => Self::InUse(error),
            WriteZero => Self::NoProgress,
            _ => Self::Os(error),
        }
    }
}

impl From<nix::Error> for Failure {
    fn from(error: nix::Error) -> Self {
        io::Error::from(error).into()
    }
}

impl From<TransportError> for io::Error {
    fn from(error: TransportError) -> Self {
        let kind = match &error.failure {
            Failure::Lost(source)
            | Failure::Refused(source)
            | Failure::InUse(source)
            | Failure::NoZeroCopy(source)
            | Failure::LockedMemory(source)
            | Failure::Os(source) => source.kind(),
            Failure::Ended { .. } => io::ErrorKind::UnexpectedEof,
            Failure::TimedOut { .. } => io::ErrorKind::TimedOut,
            Failure::NoProgress => io::ErrorKind::WriteZero,
            Failure::ShutDown => io::ErrorKind::ConnectionAborted,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Main => f.write_str("main"),
            Self::Multifd(number) => write!(f, "multifd {number}"),
            Self::Preempt => f.write_str("preempt"),
            Self::Unidentified => f.write_str("unidentified"),
        }
    }
}

impl fmt::Display for During {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(address) => write!(f, "connect to {address}"),
            Self::Bind(address) => write!(f, "listen at {address}"),
            Self::Accept(address) => write!(f, "accept at {address}"),
            Self::Setup => f.write_str("socket setup"),
            Self::Read => f.write_str("receive"),
            Self::Write => f.write_str("send"),
            Self::Close => f.write_str("close"),
        }
    }
}

//! What can go wrong between a machine and the world, as facts.

use std::fmt;

/// Something that is not allowed in this state: by the peer, or by the shell around the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{got} in state {state}, where {expected} was expected")]
pub struct ProtocolError {
    /// Name of the state.
    pub state: &'static str,
    /// What the state waits for.
    pub expected: &'static str,
    /// What came instead.
    pub got: Unexpected,
}

/// The thing that was not expected: its name, and its number where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unexpected {
    /// Event, message or command.
    pub name: &'static str,
    /// PING value, section id or SHUT code.
    pub value: Option<u32>,
}

impl Unexpected {
    pub(crate) const fn named(name: &'static str) -> Self {
        Self { name, value: None }
    }

    pub(crate) const fn valued(name: &'static str, value: u32) -> Self {
        Self { name, value: Some(value) }
    }
}

impl fmt::Display for Unexpected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Some(value) => write!(f, "{} {value:#x}", self.name),
            None => f.write_str(self.name),
        }
    }
}

/// One direction of the connection has ended without the peer's last word (I7: EOF is loss).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{role} {reason}")]
pub struct Loss {
    /// Which direction.
    pub role: LinkRole,
    /// How it ended.
    pub reason: LossReason,
}

impl Loss {
    /// Whether a link beside the main one is gone, and nothing worse: it can be replaced. One that carried something that is
    /// no message has another fault.
    pub(crate) const fn is_beside_main(&self) -> bool {
        let beside = matches!(self.role, LinkRole::Preempt | LinkRole::Channel(_));
        beside && !matches!(self.reason, LossReason::Unreadable)
    }
}

/// The directions of a connection, and what stands beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkRole {
    /// Source to destination: the stream itself.
    Main,
    /// Destination to source.
    ReturnPath,
    /// Source to destination: pages that were asked for.
    Preempt,
    /// A multifd channel, by its number.
    Channel(u16),
}

/// How a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LossReason {
    /// The peer closed it.
    Closed,
    /// The kernel reported this `errno`.
    Broken(i32),
    /// Nothing moved within the link's deadline.
    TimedOut,
    /// What came was no message; the shell holds the decoder's error.
    Unreadable,
}

impl fmt::Display for LinkRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Main => f.write_str("main link"),
            Self::ReturnPath => f.write_str("return path"),
            Self::Preempt => f.write_str("preempt channel"),
            Self::Channel(number) => write!(f, "multifd channel {number}"),
        }
    }
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed by the peer"),
            Self::Broken(errno) => write!(f, "broken (errno {errno})"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Unreadable => f.write_str("carried something that is no message"),
        }
    }
}

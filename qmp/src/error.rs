//! What can go wrong between a client and a monitor.

use crate::message::ErrorClass;
use std::io;
use thiserror::Error;

/// Why a client did not get its answer. `during` names a command, an awaited event, or the greeting.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "`during` is explained above, `source` by its type")]
pub enum QmpError {
    /// The monitor understood and said no.
    #[error("{command}: {class}: {desc}")]
    Refused {
        /// The command that was refused.
        command: String,
        /// QEMU's class of error.
        class: ErrorClass,
        /// The monitor's own words.
        desc: String,
    },
    /// The monitor went away.
    #[error("the monitor closed the connection during {during}")]
    Closed { during: String },
    /// The deadline passed first. A late answer to a command is dropped when it comes.
    #[error("no answer in time during {during}")]
    TimedOut { during: String },
    /// The socket failed.
    #[error("the connection to the monitor failed during {during}")]
    Io { during: String, source: io::Error },
    /// A message longer than any that a monitor sends.
    #[error("the monitor sent a message of more than {limit} bytes")]
    TooLong {
        /// Bytes that were accepted.
        limit: usize,
    },
    /// A message that is no JSON, or not of the expected shape.
    #[error("the monitor sent an answer of unexpected shape during {during}")]
    Shape { during: String, source: serde_json::Error },
    /// Arguments that are no JSON object; nothing was sent.
    #[error("the arguments of {command} do not make a JSON object")]
    Arguments {
        /// The command that was not sent.
        command: String,
    },
}

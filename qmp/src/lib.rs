//! QMP, QEMU's machine protocol: JSON commands, replies and events over a local socket.
//!
//! [`Client`] drives a monitor: a real QEMU's or our own.
//! Messages are framed by the shape of the JSON itself, never by line ends, as QEMU does it.
//!
//! Trade-off taken: results are [`serde_json::Value`]s with typed views beside them, not one type per command of
//! QEMU's schema; a client can so issue every command of every version.
//!
//! **Deliberately absent:** out-of-band commands (the capability `oob` is not offered), the human monitor, schema
//! introspection.
#![forbid(unsafe_code)]

mod client;
mod error;
mod framer;
mod message;

pub use client::{Client, REPLY_TIMEOUT};
pub use error::QmpError;
pub use message::{ErrorClass, Event, Greeting, QemuVersion, Timestamp, VersionInfo};

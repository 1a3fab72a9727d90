//! QMP, QEMU's machine protocol: JSON commands, replies and events over a local socket.
//!
//! [`Client`] drives a monitor: a real QEMU's or our own. [`Server`] is a monitor: it keeps the dialogue's rules and
//! hands each [`Command`] to the host's [`Commands`]; the host tells all clients what happens through [`Events`].
//! Names, JSON shapes and error texts are QEMU's. Messages are framed by the shape of the JSON itself, never by
//! line ends, as QEMU does it.
//!
//! Trade-off taken: the client's results are [`serde_json::Value`]s with typed views beside them
//! ([`Client::execute_as`]), not one type per command of QEMU's schema; so it can issue every command of every
//! version. A slow client is hung up on rather than waited for: an event must never hold up a migration.
//!
//! **Deliberately absent:** out-of-band commands (the capability `oob` is not offered), the human monitor, schema
//! introspection, and any knowledge of the engine: the host converts.
#![forbid(unsafe_code)]

mod address;
mod arguments;
mod client;
mod command;
mod connection;
mod error;
mod events;
mod framer;
mod message;
mod migration;
mod outbox;
mod server;
mod settings;
mod words;

pub use address::SocketAddress;
pub use client::{Client, REPLY_TIMEOUT};
pub use command::Command;
pub use error::QmpError;
pub use events::{Events, Notice};
pub use message::{CommandError, ErrorClass, Event, Greeting, QemuVersion, Timestamp, VersionInfo};
pub use migration::{
    MigrationInfo, MigrationStats, MigrationStatus, MultifdChannelStats, RunState, StatusInfo,
    XbzrleCacheStats,
};
pub use server::{CONNECTIONS_MAX, Commands, Identity, Server};
pub use settings::{
    MigMode, MigrationCapability, MigrationCapabilityStatus, MigrationParameters, MultiFdCompression,
    StrOrNull, ZeroPageDetection,
};

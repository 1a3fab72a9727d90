//! The envelope: greeting, events, classes of error.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};
use thiserror::Error;

/// The first message of a monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Who speaks.
    pub version: VersionInfo,
    /// Features that the client may enable; `oob` is the only one QEMU knows.
    pub capabilities: Vec<String>,
}

/// Who speaks, as `query-version` says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// The version of QEMU whose commands are spoken.
    pub qemu: QemuVersion,
    /// Free text: the distribution's package, or our own name and version.
    pub package: String,
}

/// Three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the three parts of a version number have no better description")]
pub struct QemuVersion {
    pub major: u32,
    pub minor: u32,
    pub micro: u32,
}

/// Something that happened without being asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, by the monitor's clock.
    pub timestamp: Timestamp,
    /// Its name in capitals, for example `MIGRATION`.
    pub event: String,
    /// What belongs to it; null if the event has no data, and then not sent.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

/// Wall-clock time of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamp {
    /// Since 1970, or -1 if the clock failed.
    pub seconds: i64,
    /// 0 to 999999, or -1 if the clock failed.
    pub microseconds: i64,
}

/// QEMU's classes of error; almost everything is [`ErrorClass::GenericError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorClass {
    /// Everything without a class of its own.
    GenericError,
    /// No such command, or not in this phase of the connection.
    CommandNotFound,
    /// A device is missing or in the wrong state.
    DeviceNotActive,
    /// No such device.
    DeviceNotFound,
    /// The accelerator lacks a feature.
    KVMMissingCap,
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
#[error("{class}: {desc}")]
pub struct CommandError {
    /// Which class of error.
    pub class: ErrorClass,
    /// In words, for people.
    pub desc: String,
}

impl CommandError {
    /// An error of no class in particular, which is almost every error.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::GenericError, desc: desc.into() }
    }

    pub(crate) fn not_found(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::CommandNotFound, desc: desc.into() }
    }
}

impl Event {
    /// An event of now.
    pub fn now(event: impl Into<String>, data: Value) -> Self {
        Self { timestamp: Timestamp::now(), event: event.into(), data }
    }
}

impl Timestamp {
    /// The wall clock's time.
    pub fn now() -> Self {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => Self {
                seconds: i64::try_from(since.as_secs()).unwrap_or(-1),
                microseconds: i64::from(since.subsec_micros()),
            },
            Err(_) => Self { seconds: -1, microseconds: -1 },
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

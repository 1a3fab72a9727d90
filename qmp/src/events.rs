//! Telling every client what happened.

use crate::message::Event;
use crate::migration::MigrationStatus;
use crate::outbox::Outbox;
use serde_json::{Map, Value, json};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Something that every client is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// `MIGRATION`: the status has changed. Only to be sent with capability `events` on.
    Migration {
        /// To this.
        status: MigrationStatus,
    },
    /// `MIGRATION_PASS`: the dirty log has been read. Only to be sent with capability `events` on.
    MigrationPass {
        /// For the how-manieth time, from 1.
        pass: u64,
    },
    /// `STOP`: the guest has stopped.
    Stop,
    /// `RESUME`: it runs again.
    Resume,
    /// `SHUTDOWN`: the VMM ends.
    Shutdown {
        /// Whether the guest wanted it.
        guest: bool,
        /// QEMU's word for why, for example `host-qmp-quit`.
        reason: &'static str,
    },
    /// One of the host's own.
    Other {
        /// Its name, which begins with `X_LIMOSA_`.
        name: &'static str,
        /// What belongs to it.
        data: Map<String, Value>,
    },
}

/// The clients that are connected, to whoever has something to tell them. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Events {
    outboxes: Arc<Mutex<Vec<Weak<Outbox>>>>,
}

impl Events {
    /// Nobody is connected yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells every client that is connected and has agreed on capabilities. Never waits for any of them.
    pub fn emit(&self, notice: Notice) {
        let text = serde_json::to_string(&notice.into_event()).expect("an event is JSON");
        let mut outboxes = self.outboxes.lock().unwrap_or_else(PoisonError::into_inner);
        outboxes.retain(|outbox| match outbox.upgrade() {
            Some(outbox) => {
                outbox.push_event(&text);
                true
            }
            None => false,
        });
    }

    pub(crate) fn add(&self, outbox: &Arc<Outbox>) {
        self.outboxes.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(outbox));
    }
}

impl Notice {
    fn into_event(self) -> Event {
        let (name, data) = match self {
            Self::Migration { status } => ("MIGRATION", json!({"status": status})),
            Self::MigrationPass { pass } => ("MIGRATION_PASS", json!({"pass": pass})),
            Self::Stop => ("STOP", Value::Null),
            Self::Resume => ("RESUME", Value::Null),
            Self::Shutdown { guest, reason } => ("SHUTDOWN", json!({"guest": guest, "reason": reason})),
            Self::Other { name, data } => (name, Value::Object(data)),
        };
        Event::now(name, data)
    }
}

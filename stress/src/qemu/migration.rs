//! A QEMU's migrations: told over its monitor, waited for by its events.

use super::process::{PATIENCE, Qemu, QemuError};
use limosa_pages::ByteCount;
use serde_json::{Value, json};
use std::time::Instant;

impl Qemu {
    /// Turns migration capabilities on or off.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn set_capabilities(&mut self, states: &[(&str, bool)]) -> Result<(), QemuError> {
        let states: Vec<Value> =
            states.iter().map(|(name, state)| json!({ "capability": name, "state": state })).collect();
        self.execute("migrate-set-capabilities", json!({ "capabilities": states })).map(drop)
    }

    /// Sets migration parameters, an object under QEMU's names.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn set_parameters(&mut self, parameters: Value) -> Result<(), QemuError> {
        self.execute("migrate-set-parameters", parameters).map(drop)
    }

    /// Begins to send the guest to `uri`; the end is told by [`Self::wait_migrated`].
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn migrate(&mut self, uri: &str) -> Result<(), QemuError> {
        self.execute("migrate", json!({ "uri": uri })).map(drop)
    }

    /// Begins to listen at `uri`. From 9.1 on a failed load leaves the process alive, so that it can be asked for
    /// the reason; before, it ends.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn migrate_incoming(&mut self, uri: &str) -> Result<(), QemuError> {
        let stays = self.execute("migrate-incoming", json!({ "uri": uri, "exit-on-error": false }));
        match stays {
            Err(QemuError::Monitor { source, .. }) if source.to_string().contains("exit-on-error") => {
                self.execute("migrate-incoming", json!({ "uri": uri })).map(drop)
            }
            other => other.map(drop),
        }
    }

    /// The TCP address it listens at after [`Self::migrate_incoming`] with port 0: `host:port`.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn incoming_address(&mut self) -> Result<String, QemuError> {
        let answer = self.execute("query-migrate", json!({}))?;
        let address = &answer["socket-address"][0];
        let part = |name: &str| address[name].as_str().unwrap_or_default().to_owned();
        Ok(format!("{}:{}", part("host"), part("port")))
    }

    /// Waits until the migration, outgoing or incoming, is `completed`.
    ///
    /// # Errors
    /// [`QemuError::Migration`] if it failed or was cancelled, [`QemuError::TooLate`], or the monitor is gone.
    pub fn wait_migrated(&mut self) -> Result<(), QemuError> {
        self.wait_migration("completed")
    }

    /// Waits until the migration has the status `expected`, an end or one on the way there.
    ///
    /// # Errors
    /// As [`Self::wait_migrated`].
    pub fn wait_migration(&mut self, expected: &'static str) -> Result<(), QemuError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let data = self.wait_event("MIGRATION", deadline)?;
            let status = data["status"].as_str().unwrap_or_default();
            if status == expected {
                return Ok(());
            }
            if matches!(status, "completed" | "failed" | "cancelled") {
                return Err(self.other_end(status.to_owned(), expected));
            }
        }
    }

    /// Lets the guest of an outgoing migration move before its memory.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn start_postcopy(&mut self) -> Result<(), QemuError> {
        self.execute("migrate-start-postcopy", json!({})).map(drop)
    }

    /// Closes the connection of a postcopy.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn pause_postcopy(&mut self) -> Result<(), QemuError> {
        self.execute("migrate-pause", json!({})).map(drop)
    }

    /// Goes on with a paused postcopy, over a new connection to `uri`.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn resume_postcopy(&mut self, uri: &str) -> Result<(), QemuError> {
        self.execute("migrate", json!({ "uri": uri, "resume": true })).map(drop)
    }

    /// Listens at `uri` for the source of a paused postcopy.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn recover_postcopy(&mut self, uri: &str) -> Result<(), QemuError> {
        self.execute("migrate-recover", json!({ "uri": uri })).map(drop)
    }

    /// Waits until `pass` rounds over the dirty bitmap were made.
    ///
    /// # Errors
    /// [`QemuError::TooLate`], or the monitor is gone.
    pub fn wait_pass(&mut self, pass: u64) -> Result<(), QemuError> {
        let deadline = Instant::now() + PATIENCE;
        while self.wait_event("MIGRATION_PASS", deadline)?["pass"].as_u64() < Some(pass) {}
        Ok(())
    }

    /// Slows an outgoing migration to `bandwidth` bytes a second so that a busy guest never converges, until
    /// [`Self::let_go`]. The first round must take longer than a tenth of a second: QEMU has measured nothing before,
    /// and stops the guest without a look at what is dirty. From 8.2 on.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn hold_back(&mut self, bandwidth: ByteCount) -> Result<(), QemuError> {
        // Less than a page in the allowed downtime, whatever it measures on its channels. (With a limit of 0 it does not
        // look for dirty pages before it stops the guest.)
        self.set_parameters(json!({
            "downtime-limit": 1,
            "max-bandwidth": bandwidth.0,
            "avail-switchover-bandwidth": 1 << 20,
        }))
    }

    /// Lets an outgoing migration end with its next round.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn let_go(&mut self) -> Result<(), QemuError> {
        self.set_parameters(json!({
            "downtime-limit": 2000,
            "max-bandwidth": 0,
            "avail-switchover-bandwidth": 0,
        }))
    }

    fn other_end(&mut self, status: String, expected: &'static str) -> QemuError {
        let answer = self.execute("query-migrate", json!({})).unwrap_or_default();
        let description = answer["error-desc"].as_str().unwrap_or_default().to_owned();
        QemuError::Migration { status, expected, description, stderr: self.stderr() }
    }
}

//! The monitor's commands, carried out.

use super::moving::Refused;
use super::{Host, State, reply};
use crate::pace::Rate;
use limosa::RunState;
use limosa::pages::{BlockId, ByteCount};
use limosa_qmp::{Command, CommandError, Commands, MigrationStatus, StatusInfo};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Bytes of guest memory copied at a time into a file.
const SAVE_CHUNK: usize = 1 << 20;

/// Commands that QEMU does not have.
const VENDOR_COMMANDS: &[&str] = &[
    "x-limosa-verify",
    "x-limosa-progress",
    "x-limosa-report",
    "x-limosa-set-rate",
    "x-limosa-set-autostart",
];

impl Commands for Host {
    fn execute(&self, command: Command) -> Result<Value, CommandError> {
        let mut state = self.state.lock();
        state.moving.settle();
        let State { settings, moving } = &mut *state;
        match command {
            Command::QueryStatus => json(&self.status()),
            Command::Stop => {
                self.guest.pause();
                done()
            }
            Command::Cont => {
                self.check_may_run(moving.is_in_doubt())?;
                self.guest.run().map_err(generic)?;
                done()
            }
            Command::Quit => {
                self.quit();
                done()
            }
            Command::Migrate { resume: true, .. } => {
                Err(CommandError::generic("Cannot resume if there is no paused migration"))
            }
            Command::Migrate { address, resume: false } => {
                moving.start(address, settings, &self.guest).map_err(generic)?;
                done()
            }
            Command::MigrateIncoming { address, .. } => {
                moving.listen(&address, settings, &self.guest).map_err(generic)?;
                done()
            }
            Command::MigrateSetParameters(wanted) => {
                settings.set_parameters(&wanted)?;
                if let Some(outgoing) = moving.outgoing() {
                    outgoing.set_parameters(settings.parameters().clone()).map_err(generic)?;
                }
                done()
            }
            Command::QueryMigrateParameters => json(&settings.query_parameters()),
            Command::MigrateSetCapabilities(_) if moving.is_busy() => Err(generic(Refused::Busy)),
            Command::MigrateSetCapabilities(wanted) => {
                settings.set_capabilities(&wanted)?;
                done()
            }
            Command::QueryMigrateCapabilities => json(&settings.query_capabilities()),
            Command::QueryMigrate => {
                let cache = settings.capabilities().xbzrle.then_some(settings.parameters().xbzrle_cache_size);
                json(&reply::migration_info(&moving.figures(), self.machine.ram().layout().total(), cache))
            }
            Command::MigrateCancel => {
                if let Some(outgoing) = moving.outgoing() {
                    outgoing.cancel();
                }
                done()
            }
            Command::MigrateContinue { state: expected } => {
                let now = moving.outgoing().map(|outgoing| reply::status(outgoing.statistics().status));
                match (now, moving.outgoing()) {
                    (Some(now), Some(outgoing))
                        if now == expected && now == MigrationStatus::PreSwitchover =>
                    {
                        outgoing.continue_switchover();
                        done()
                    }
                    (now, _) => {
                        let now = now.unwrap_or(MigrationStatus::None);
                        Err(CommandError::generic(format!("Migration not in expected state: {now}")))
                    }
                }
            }
            Command::PmemSave { val, size, filename } => {
                drop(state);
                self.save_memory(val, size, &filename)?;
                done()
            }
            Command::Other { name, arguments } => {
                let last = moving.last().cloned();
                if name == "x-limosa-set-autostart" {
                    settings.set_autostart(argument(&arguments, "on", Value::as_bool)?);
                    return done();
                }
                drop(state);
                match name.as_str() {
                    "x-limosa-report" => last
                        .map(|last| reply::report(&last))
                        .ok_or_else(|| CommandError::generic("No migration has ended yet")),
                    _ => self.execute_on_guest(&name, &arguments),
                }
            }
        }
    }

    fn vendor_commands(&self) -> &[&'static str] {
        VENDOR_COMMANDS
    }
}

impl Host {
    fn status(&self) -> StatusInfo {
        let state = self.guest.state();
        let status = limosa_qmp::RunState::from_word(state.as_str()).expect("the engine's words are QEMU's");
        StatusInfo { running: state == RunState::Running, status, singlestep: None }
    }

    /// I6, one guest: what may run elsewhere does not run here, unless the operator has looked there.
    fn check_may_run(&self, in_doubt: bool) -> Result<(), CommandError> {
        match self.guest.state() {
            RunState::PostMigrate => {
                Err(CommandError::generic("The guest has migrated: it is on the destination"))
            }
            RunState::InMigrate => Err(CommandError::generic("The guest has not arrived yet")),
            RunState::FinishMigrate if !in_doubt => {
                Err(CommandError::generic("Migration is not finalized yet"))
            }
            _ => Ok(()),
        }
    }

    fn execute_on_guest(&self, name: &str, arguments: &Map<String, Value>) -> Result<Value, CommandError> {
        match name {
            "x-limosa-verify" => Ok(reply::verified(&self.machine.verify().map_err(generic)?)),
            "x-limosa-progress" => Ok(reply::progress(&self.machine.progress())),
            "x-limosa-set-rate" => {
                // Pages per second; null is as fast as the processor can.
                let rate = match arguments.get("pages-per-second") {
                    Some(Value::Null) => Rate::Unlimited,
                    _ => Rate::PagesPerSecond(argument(arguments, "pages-per-second", Value::as_u64)?),
                };
                self.machine.set_rate(rate);
                done()
            }
            _ => unreachable!("only the commands that were announced come here"),
        }
    }

    /// Writes guest-physical memory to a file. RAM is one block from address 0 on.
    fn save_memory(&self, start: u64, size: u64, file: &Path) -> Result<(), CommandError> {
        let block = self.machine.ram().block(BlockId(0));
        let end = start.checked_add(size).filter(|end| ByteCount(*end) <= block.length());
        let Some(end) = end else {
            let text = format!("Invalid addr 0x{start:016x}/size {size} specified");
            return Err(CommandError::generic(text));
        };
        let write = || -> io::Result<()> {
            let mut file = File::create(file)?;
            let mut chunk = vec![0; SAVE_CHUNK];
            for at in (start..end).step_by(SAVE_CHUNK) {
                let length = (end - at).min(SAVE_CHUNK as u64) as usize;
                block.copy_out(at, &mut chunk[..length]);
                file.write_all(&chunk[..length])?;
            }
            Ok(())
        };
        write()
            .map_err(|error| CommandError::generic(format!("Could not write '{}': {error}", file.display())))
    }
}

fn argument<'a, T>(
    arguments: &'a Map<String, Value>,
    name: &str,
    read: impl FnOnce(&'a Value) -> Option<T>,
) -> Result<T, CommandError> {
    arguments
        .get(name)
        .and_then(read)
        .ok_or_else(|| CommandError::generic(format!("Parameter '{name}' is missing or of another type")))
}

fn json(value: &impl serde::Serialize) -> Result<Value, CommandError> {
    Ok(serde_json::to_value(value).expect("replies are JSON"))
}

fn generic(error: impl std::fmt::Display) -> CommandError {
    CommandError::generic(error.to_string())
}

fn done() -> Result<Value, CommandError> {
    Ok(Value::Null)
}

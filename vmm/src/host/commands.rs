//! The monitor's commands, carried out.

use super::memory_dump::dump;
use super::moving::{ExitOnError, PostcopyRefused};
use super::vendor::VendorCommand;
use super::{Host, QuitCause, State, reply};
use limosa::RunState;
use limosa::pages::BlockId;
use limosa_qmp::{Command, CommandError, Commands, MigrationStatus, StatusInfo};
use parking_lot::MutexGuard;
use serde_json::Value;

impl Commands for Host {
    fn execute(&self, command: Command) -> Result<Value, CommandError> {
        let mut state = self.state.lock();
        state.moving.settle(&self.guest);
        let State { settings, moving } = &mut *state;
        match command {
            Command::QueryStatus => json(&self.status()),
            Command::Stop => {
                // A vCPU that waits for a page stops when the page is here, which may take a recovery by another client.
                drop(state);
                self.guest.pause();
                done()
            }
            Command::Cont => {
                self.guest.run(moving.is_in_doubt()).map_err(generic)?;
                done()
            }
            Command::Quit => {
                self.quit(QuitCause::Monitor);
                done()
            }
            Command::Migrate { address, resume: true } => {
                moving.resume_postcopy(address).map_or_else(refused, |()| done())
            }
            Command::Migrate { address, resume: false } => {
                moving.start(address, settings, &self.guest).map_err(generic)?;
                done()
            }
            Command::MigrateIncoming { address, exit_on_error } => {
                let exit_on_error = ExitOnError(exit_on_error);
                moving.listen(&address, settings, &self.guest, exit_on_error).map_err(generic)?;
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
            Command::MigrateSetCapabilities(wanted) => {
                settings.set_capabilities(&wanted, moving)?;
                if moving.is_arriving() {
                    self.guest.tell_changes(settings.capabilities().events);
                }
                done()
            }
            Command::QueryMigrateCapabilities => json(&settings.query_capabilities()),
            Command::QueryMigrate => {
                let total = self.machine.ram().layout().total();
                json(&reply::migration_info(&moving.figures(), total, settings))
            }
            Command::MigrateCancel => moving.cancel().map_or_else(refused, |()| done()),
            Command::MigrateContinue { state: expected } => {
                let now = reply::status_of(&moving.figures());
                match moving.outgoing() {
                    Some(outgoing) if now == expected && now == MigrationStatus::PreSwitchover => {
                        outgoing.continue_switchover();
                        done()
                    }
                    _ => Err(CommandError::generic(format!("Migration not in expected state: {now}"))),
                }
            }
            Command::MigrateStartPostcopy => moving.start_postcopy().map_or_else(refused, |()| done()),
            Command::MigratePause => moving.pause_postcopy().map_or_else(refused, |()| done()),
            Command::MigrateRecover { address } => {
                moving.recover_postcopy(&address).map_or_else(refused, |()| done())
            }
            Command::PmemSave { val, size, filename } => {
                moving.check_memory().map_err(generic)?;
                drop(state);
                dump(self.machine.ram().block(BlockId(0)), val, size, &filename).map_err(generic)?;
                done()
            }
            Command::Other { name, arguments } => self.vendor(VendorCommand::read(&name, arguments)?, state),
        }
    }

    fn vendor_commands(&self) -> &[&'static str] {
        VendorCommand::NAMES
    }
}

impl Host {
    fn vendor(&self, command: VendorCommand, state: MutexGuard<'_, State>) -> Result<Value, CommandError> {
        let moving = &state.moving;
        match command {
            VendorCommand::Report => moving
                .last()
                .map(reply::report)
                .ok_or_else(|| CommandError::generic("No migration has ended yet")),
            VendorCommand::Verify => {
                moving.check_memory().map_err(generic)?;
                // Takes its time, in which other clients may be served.
                drop(state);
                Ok(reply::verified(&self.machine.verify().map_err(generic)?))
            }
            VendorCommand::Progress => {
                moving.check_memory().map_err(generic)?;
                Ok(reply::progress(&self.machine.progress()))
            }
            VendorCommand::SetRate(rate) => {
                self.machine.set_rate(rate);
                done()
            }
            VendorCommand::SetAutostart(autostart) => {
                self.guest.set_autostart(autostart);
                done()
            }
            VendorCommand::EndPostcopy(word) => moving.end_postcopy(word).map_or_else(refused, |()| done()),
        }
    }

    fn status(&self) -> StatusInfo {
        let state = self.guest.state();
        let status = limosa_qmp::RunState::from_word(state.as_str()).expect("the engine's words are QEMU's");
        StatusInfo { running: state == RunState::Running, status, singlestep: None }
    }
}

fn json(value: &impl serde::Serialize) -> Result<Value, CommandError> {
    Ok(serde_json::to_value(value).expect("replies are JSON"))
}

fn generic(error: impl std::fmt::Display) -> CommandError {
    CommandError::generic(error.to_string())
}

fn refused(error: PostcopyRefused) -> Result<Value, CommandError> {
    Err(generic(error))
}

fn done() -> Result<Value, CommandError> {
    Ok(Value::Null)
}

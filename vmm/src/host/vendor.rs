//! Commands that QEMU does not have, for demonstrations, benchmarks and tests.

use crate::pace::Rate;
use limosa::OperatorWord;
use limosa_qmp::CommandError;
use serde_json::{Map, Value};

/// One of them, with its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VendorCommand {
    /// Check every byte of the guest's memory.
    Verify,
    /// How far the guest's workers are.
    Progress,
    /// How the last migration went.
    Report,
    /// How fast the workers may go.
    SetRate(Rate),
    /// Whether a guest that arrives shall run.
    SetAutostart(bool),
    /// How a paused postcopy ends, by the word of whoever has looked at the other side.
    EndPostcopy(OperatorWord),
}

impl VendorCommand {
    /// Their names.
    pub(super) const NAMES: &[&str] = &[
        "x-limosa-verify",
        "x-limosa-progress",
        "x-limosa-report",
        "x-limosa-set-rate",
        "x-limosa-set-autostart",
        "x-limosa-end-postcopy",
    ];

    /// The command of this name, which is one of [`Self::NAMES`].
    ///
    /// # Errors
    /// If the arguments are not those of the command.
    pub(super) fn read(name: &str, mut arguments: Map<String, Value>) -> Result<Self, CommandError> {
        let command = match name {
            "x-limosa-verify" => Self::Verify,
            "x-limosa-progress" => Self::Progress,
            "x-limosa-report" => Self::Report,
            "x-limosa-set-rate" => Self::SetRate(take(&mut arguments, "pages-per-second", rate)?),
            "x-limosa-set-autostart" => Self::SetAutostart(take(&mut arguments, "on", Value::as_bool)?),
            "x-limosa-end-postcopy" => Self::EndPostcopy(take(&mut arguments, "outcome", outcome)?),
            _ => unreachable!("only commands that were announced come here"),
        };
        match arguments.keys().next() {
            None => Ok(command),
            Some(name) => Err(CommandError::generic(format!("Parameter '{name}' is unexpected"))),
        }
    }
}

/// Pages per second; null is as fast as the processor can.
fn rate(value: &Value) -> Option<Rate> {
    if value.is_null() { Some(Rate::Unlimited) } else { value.as_u64().map(Rate::PagesPerSecond) }
}

/// What the operator has found, or decides.
fn outcome(value: &Value) -> Option<OperatorWord> {
    match value.as_str()? {
        "never-ran" => Some(OperatorWord::NeverRan),
        "completed" => Some(OperatorWord::HasGuest),
        "lost" => Some(OperatorWord::GiveUp),
        _ => None,
    }
}

fn take<T>(
    arguments: &mut Map<String, Value>,
    name: &str,
    read: impl FnOnce(&Value) -> Option<T>,
) -> Result<T, CommandError> {
    let value = arguments.shift_remove(name);
    let value = value.ok_or_else(|| CommandError::generic(format!("Parameter '{name}' is missing")))?;
    read(&value).ok_or_else(|| CommandError::generic(format!("Invalid parameter type for '{name}'")))
}

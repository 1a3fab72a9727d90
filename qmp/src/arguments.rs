//! Reading a command's arguments, with QEMU's words for what is wrong with them.
//!
//! By hand and not by `serde`, because clients match on these texts, and because the path to the culprit
//! (`channels[0].addr.port`) belongs into them.

use crate::message::CommandError;
use serde_json::{Map, Value};

/// Longest list that an argument may be: QEMU's longest is one entry for each of its 22 capabilities.
const LIST_MAX: usize = 256;

/// The members of an object that nobody has asked for yet.
pub(crate) struct Arguments {
    members: Map<String, Value>,
    /// What precedes a member's name in an error: empty, or a path with a dot at its end.
    prefix: String,
}

/// A type that can be an argument.
pub(crate) trait Argument: Sized {
    /// Takes it out of `value`, which stands at `path`.
    fn read(value: Value, path: &str) -> Result<Self, CommandError>;
}

impl Arguments {
    /// The arguments of a command.
    pub(crate) fn new(members: Map<String, Value>) -> Self {
        Self { members, prefix: String::new() }
    }

    /// An object among the arguments.
    pub(crate) fn nested(value: Value, path: &str) -> Result<Self, CommandError> {
        match value {
            Value::Object(members) => Ok(Self { members, prefix: format!("{path}.") }),
            _ => Err(wrong_type(path, "object")),
        }
    }

    /// A member that has to be there.
    pub(crate) fn required<T: Argument>(&mut self, name: &str) -> Result<T, CommandError> {
        let path = self.path(name);
        self.optional(name)?.ok_or_else(|| CommandError::generic(format!("Parameter '{path}' is missing")))
    }

    /// A member that may be left out.
    pub(crate) fn optional<T: Argument>(&mut self, name: &str) -> Result<Option<T>, CommandError> {
        let path = self.path(name);
        // `shift_remove` keeps the order of the others, so that errors name the first one in the text.
        self.members.shift_remove(name).map(|value| T::read(value, &path)).transpose()
    }

    /// Refuses what is left.
    pub(crate) fn finish(self) -> Result<(), CommandError> {
        match self.members.keys().next() {
            Some(name) => {
                Err(CommandError::generic(format!("Parameter '{}' is unexpected", self.path(name))))
            }
            None => Ok(()),
        }
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// The error for a word that is none of an enumeration's. QEMU names the member without the path to it.
pub(crate) fn not_accepted(path: &str, word: &str) -> CommandError {
    let name = path.rsplit('.').next().unwrap_or(path);
    CommandError::generic(format!("Parameter '{name}' does not accept value '{word}'"))
}

fn wrong_type(path: &str, expected: &str) -> CommandError {
    CommandError::generic(format!("Invalid parameter type for '{path}', expected: {expected}"))
}

impl Argument for String {
    fn read(value: Value, path: &str) -> Result<Self, CommandError> {
        match value {
            Value::String(text) => Ok(text),
            _ => Err(wrong_type(path, "string")),
        }
    }
}

impl Argument for bool {
    fn read(value: Value, path: &str) -> Result<Self, CommandError> {
        value.as_bool().ok_or_else(|| wrong_type(path, "boolean"))
    }
}

impl Argument for u64 {
    fn read(value: Value, path: &str) -> Result<Self, CommandError> {
        value.as_u64().ok_or_else(|| CommandError::generic(format!("Parameter '{path}' expects uint64")))
    }
}

impl Argument for u8 {
    fn read(value: Value, path: &str) -> Result<Self, CommandError> {
        let number = value.as_u64().and_then(|number| u8::try_from(number).ok());
        number.ok_or_else(|| CommandError::generic(format!("Parameter '{path}' expects uint8_t")))
    }
}

impl<T: Argument> Argument for Vec<T> {
    fn read(value: Value, path: &str) -> Result<Self, CommandError> {
        let Value::Array(values) = value else { return Err(wrong_type(path, "array")) };
        if values.len() > LIST_MAX {
            return Err(CommandError::generic(format!(
                "Parameter '{path}' has more than {LIST_MAX} entries"
            )));
        }
        values
            .into_iter()
            .enumerate()
            .map(|(index, value)| T::read(value, &format!("{path}[{index}]")))
            .collect()
    }
}

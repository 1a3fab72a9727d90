//! One client: the rules of the dialogue, text in and text out.

use crate::arguments::Arguments;
use crate::command::{Command, NAMES};
use crate::framer::Framer;
use crate::message::{CommandError, Greeting};
use crate::outbox::Outbox;
use crate::server::{Commands, Identity};
use serde_json::{Map, Value, json};
use std::io::{self, Read};

/// Longest accepted message. The longest that makes sense is `migrate-set-capabilities` with all of them: 2 KB.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// One read from the stream.
const READ_BYTES: usize = 4 << 10;

/// Commands that are answered here, without the host.
const OWN_NAMES: &[&str] =
    &["qmp_capabilities", "query-version", "query-commands", "query-name", "query-uuid"];

/// The dialogue with one client.
pub(crate) struct Connection<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) commands: &'a dyn Commands,
    pub(crate) outbox: &'a Outbox,
    /// Whether the client has agreed on capabilities: until then, it may do nothing else.
    negotiated: bool,
}

/// A message with the shape of a command.
struct Request {
    name: String,
    arguments: Map<String, Value>,
}

impl<'a> Connection<'a> {
    pub(crate) fn new(identity: &'a Identity, commands: &'a dyn Commands, outbox: &'a Outbox) -> Self {
        Self { identity, commands, outbox, negotiated: false }
    }

    /// Greets, and answers until the client leaves or the connection closes.
    pub(crate) fn converse(&mut self, mut reader: impl Read) -> io::Result<()> {
        let greeting = Greeting { version: self.identity.version.clone(), capabilities: Vec::new() };
        self.outbox.push(json!({"QMP": greeting}).to_string());
        let mut framer = Framer::new(MESSAGE_BYTES_MAX);
        let mut bytes = [0; READ_BYTES];
        loop {
            match framer.next() {
                Ok(Some(text)) => {
                    if !self.outbox.begin() {
                        return Ok(());
                    }
                    let answer = self.answer(&text);
                    self.outbox.finish(answer.to_string());
                    continue;
                }
                Ok(None) => {}
                Err(_) => {
                    let error = CommandError::generic("JSON parse error, message is too long");
                    self.outbox.push(json!({"error": error}).to_string());
                    return Ok(());
                }
            }
            match reader.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(count) => framer.push(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn answer(&mut self, text: &[u8]) -> Value {
        let (id, result) = match serde_json::from_slice(text) {
            Ok(Value::Object(mut message)) => {
                let id = message.shift_remove("id");
                (id, Request::read(message).and_then(|request| self.execute(request)))
            }
            Ok(_) => (None, Err(CommandError::generic("QMP input must be a JSON object"))),
            Err(error) => (None, Err(CommandError::generic(format!("JSON parse error, {error}")))),
        };
        let mut answer = match result {
            // A command without a result is answered with an empty object.
            Ok(Value::Null) => json!({"return": {}}),
            Ok(value) => json!({"return": value}),
            Err(error) => json!({"error": error}),
        };
        if let Some(id) = id {
            answer["id"] = id;
        }
        answer
    }

    fn execute(&mut self, Request { name, arguments }: Request) -> Result<Value, CommandError> {
        match (name.as_str(), self.negotiated) {
            ("qmp_capabilities", false) => return self.negotiate(Arguments::new(arguments)),
            (_, false) => {
                return Err(CommandError::not_found(
                    "Expecting capabilities negotiation with 'qmp_capabilities'",
                ));
            }
            ("qmp_capabilities", true) => {
                return Err(CommandError::not_found(
                    "Capabilities negotiation is already complete, command ignored",
                ));
            }
            (name, true) if OWN_NAMES.contains(&name) => {
                Arguments::new(arguments).finish()?;
                return Ok(self.describe(name));
            }
            _ => {}
        }
        if self.commands.vendor_commands().contains(&name.as_str()) {
            return self.commands.execute(Command::Other { name, arguments });
        }
        match Command::read(&name, arguments)? {
            Some(command) => self.commands.execute(command),
            None => Err(CommandError::not_found(format!("The command {name} has not been found"))),
        }
    }

    fn negotiate(&mut self, mut arguments: Arguments) -> Result<Value, CommandError> {
        let enable: Vec<String> = arguments.optional("enable")?.unwrap_or_default();
        arguments.finish()?;
        if let Some(capability) = enable.first() {
            return Err(CommandError::generic(format!("Capability '{capability}' is not available")));
        }
        self.negotiated = true;
        self.outbox.set_negotiated();
        Ok(Value::Null)
    }

    /// Answers one of [`OWN_NAMES`].
    fn describe(&self, name: &str) -> Value {
        match name {
            "query-version" => json!(self.identity.version),
            "query-name" => self.identity.name.as_ref().map_or(json!({}), |name| json!({"name": name})),
            "query-uuid" => json!({"UUID": uuid_text(self.identity.uuid)}),
            _ => OWN_NAMES
                .iter()
                .chain(NAMES)
                .chain(self.commands.vendor_commands())
                .map(|name| json!({"name": name}))
                .collect(),
        }
    }
}

impl Request {
    /// Checks the members of a message from which the id has been taken.
    fn read(message: Map<String, Value>) -> Result<Self, CommandError> {
        let bad = |what: String| Err(CommandError::generic(format!("QMP input {what}")));
        let (mut name, mut arguments) = (None, Map::new());
        for (member, value) in message {
            match (member.as_str(), value) {
                ("execute", Value::String(command)) => name = Some(command),
                ("execute", _) => return bad("member 'execute' must be a string".to_owned()),
                ("arguments", Value::Object(members)) => arguments = members,
                ("arguments", _) => return bad("member 'arguments' must be an object".to_owned()),
                _ => return bad(format!("member '{member}' is unexpected")),
            }
        }
        match name {
            Some(name) => Ok(Self { name, arguments }),
            None => bad("lacks member 'execute'".to_owned()),
        }
    }
}

/// The usual text: hexadecimal in groups of 8, 4, 4, 4 and 12 digits.
fn uuid_text(uuid: [u8; 16]) -> String {
    let number = u128::from_be_bytes(uuid);
    let digits = format!("{number:032x}");
    let groups = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    groups.join("-")
}

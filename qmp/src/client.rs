//! The side that asks.

use crate::error::QmpError;
use crate::framer::Framer;
use crate::message::{CommandError, Event, Greeting};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a command may take unless [`Client::set_reply_timeout`] says otherwise: `pmemsave` of a large guest to
/// a slow disk is the longest one, and a monitor that is stuck should still be noticed.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest accepted message. QEMU's own longest is the answer to `query-qmp-schema`: about 0.3 MB.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Events kept until somebody waits for them; then the oldest are dropped. A migration makes about ten, and one per
/// pass over the dirty pages.
const EVENTS_MAX: usize = 4096;

/// First and longest pause between two attempts to connect: short enough not to be felt, long enough not to load a
/// machine that is busy starting a VMM.
const CONNECT_PAUSE_MIN: Duration = Duration::from_millis(1);
const CONNECT_PAUSE_MAX: Duration = Duration::from_millis(50);

/// One read from the socket.
const READ_BYTES: usize = 16 << 10;

/// A connection to a monitor, ready for commands.
///
/// Dropping it closes the connection and nothing else: the VMM lives on.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    framer: Framer,
    greeting: Greeting,
    events: VecDeque<Event>,
    next_id: u64,
    reply_timeout: Duration,
}

/// What a monitor may send before it is asked.
#[derive(Deserialize)]
#[serde(untagged)]
enum Opening {
    Hello {
        #[serde(rename = "QMP")]
        greeting: Greeting,
    },
    Event(Event),
}

/// An answer, good or bad.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    id: Value,
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<CommandError>,
}

impl Client {
    /// Connects to the monitor that listens at `path`, and leaves the negotiation behind.
    ///
    /// # Errors
    /// If nobody listens there, or it does not greet and agree within [`REPLY_TIMEOUT`].
    pub fn connect(path: &Path) -> Result<Self, QmpError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| QmpError::Io { during: format!("connect to {}", path.display()), source })?;
        Self::from_stream(stream)
    }

    /// Connects to a monitor that is about to listen at `path`: tries again until `deadline`.
    ///
    /// # Errors
    /// [`QmpError::Io`] with the last reason if nobody listens there in time; as [`Client::connect`] otherwise.
    pub fn connect_when_ready(path: &Path, deadline: Instant) -> Result<Self, QmpError> {
        let mut pause = CONNECT_PAUSE_MIN;
        loop {
            match Self::connect(path) {
                Err(QmpError::Io { source, .. })
                    if matches!(
                        source.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    ) && Instant::now() + pause < deadline =>
                {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(CONNECT_PAUSE_MAX);
                }
                result => return result,
            }
        }
    }

    /// Takes over a connected socket, for example one end of a pair whose other end is a child's stdin and stdout.
    ///
    /// # Errors
    /// If the other side does not greet and agree within [`REPLY_TIMEOUT`].
    pub fn from_stream(stream: UnixStream) -> Result<Self, QmpError> {
        let mut framer = Framer::new(MESSAGE_BYTES_MAX);
        let deadline = Instant::now() + REPLY_TIMEOUT;
        let shape = |source| QmpError::Shape { during: "greeting".to_owned(), source };
        // QEMU has connected us, but not noticed yet, when an event of a guest that just starts overtakes its greeting.
        let mut events = VecDeque::new();
        let greeting = loop {
            let text = receive(&stream, &mut framer, "greeting", deadline)?;
            match serde_json::from_slice(&text).map_err(shape)? {
                Opening::Hello { greeting } => break greeting,
                Opening::Event(event) if events.len() < EVENTS_MAX => events.push_back(event),
                Opening::Event(_) => {}
            }
        };
        let mut client = Self { stream, framer, greeting, events, next_id: 1, reply_timeout: REPLY_TIMEOUT };
        client.execute("qmp_capabilities", Value::Null)?;
        Ok(client)
    }

    /// Who answers, as it introduced itself.
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// Sets how long [`Client::execute`] waits for an answer.
    pub fn set_reply_timeout(&mut self, timeout: Duration) {
        self.reply_timeout = timeout;
    }

    /// Issues `command` and waits for its answer; events that come meanwhile are kept.
    ///
    /// `arguments` is a JSON object, or null for none.
    ///
    /// # Errors
    /// [`QmpError::Refused`] if the monitor says no; the others if the connection fails or the answer does not come.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let id = self.next_id;
        self.next_id += 1;
        self.send(command, arguments, id)?;
        let deadline = Instant::now() + self.reply_timeout;
        loop {
            let text = receive(&self.stream, &mut self.framer, command, deadline)?;
            let Some(answer) = self.keep_if_event(&text, command)? else { continue };
            // The answer to an earlier command that timed out is nobody's any more; one without an id can only
            // mean that the monitor could not read what we sent.
            if !answer.id.is_null() && answer.id != json!(id) {
                continue;
            }
            return match answer.error {
                Some(CommandError { class, desc }) => {
                    Err(QmpError::Refused { command: command.to_owned(), class, desc })
                }
                None => Ok(answer.result.unwrap_or(Value::Null)),
            };
        }
    }

    /// As [`Client::execute`], with the answer in a type.
    ///
    /// # Errors
    /// Also [`QmpError::Shape`] if the answer is not of that type.
    pub fn execute_as<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<T, QmpError> {
        let answer = self.execute(command, arguments)?;
        serde_json::from_value(answer)
            .map_err(|source| QmpError::Shape { during: command.to_owned(), source })
    }

    /// Takes the first event called `name` out of those kept, or waits for it until `deadline`; others are kept.
    ///
    /// # Errors
    /// [`QmpError::TimedOut`] if it does not come; [`QmpError::Closed`] if the monitor goes away first.
    pub fn wait_event(&mut self, name: &str, deadline: Instant) -> Result<Event, QmpError> {
        self.wait_event_where(name, deadline, |_| true)
    }

    /// As [`Client::wait_event`], for an event called `name` that satisfies `wanted`.
    ///
    /// # Errors
    /// As [`Client::wait_event`].
    pub fn wait_event_where(
        &mut self,
        name: &str,
        deadline: Instant,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Event, QmpError> {
        loop {
            let found = self.events.iter().position(|event| event.event == name && wanted(event));
            if let Some(event) = found.and_then(|found| self.events.remove(found)) {
                return Ok(event);
            }
            let text = receive(&self.stream, &mut self.framer, name, deadline)?;
            self.keep_if_event(&text, name)?;
        }
    }

    /// The events that came and that nobody waited for, oldest first. Does not look at the socket.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    /// Ends the VMM. That it is gone before it could answer is as good as an answer.
    ///
    /// # Errors
    /// If the monitor refuses, or does neither in time.
    pub fn quit(mut self) -> Result<(), QmpError> {
        match self.execute("quit", Value::Null) {
            Ok(_) | Err(QmpError::Closed { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn send(&mut self, command: &str, arguments: Value, id: u64) -> Result<(), QmpError> {
        let message = match arguments {
            Value::Null => json!({"execute": command, "id": id}),
            Value::Object(_) => json!({"execute": command, "arguments": arguments, "id": id}),
            _ => return Err(QmpError::Arguments { command: command.to_owned() }),
        };
        let mut text = message.to_string();
        text.push_str("\r\n");
        self.stream
            .set_write_timeout(Some(self.reply_timeout))
            .and_then(|()| self.stream.write_all(text.as_bytes()))
            .map_err(|source| stream_error(command, source))
    }

    /// Keeps the message if it is an event, or gives it back if it is an answer.
    fn keep_if_event(&mut self, text: &[u8], during: &str) -> Result<Option<Answer>, QmpError> {
        let shape = |source| QmpError::Shape { during: during.to_owned(), source };
        let value: Value = serde_json::from_slice(text).map_err(shape)?;
        if value.get("event").is_none() {
            return serde_json::from_value(value).map(Some).map_err(shape);
        }
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(serde_json::from_value(value).map_err(shape)?);
        Ok(None)
    }
}

/// The next message of the stream, until `deadline`.
fn receive(
    mut stream: &UnixStream,
    framer: &mut Framer,
    during: &str,
    deadline: Instant,
) -> Result<Vec<u8>, QmpError> {
    let mut bytes = [0; READ_BYTES];
    loop {
        if let Some(text) = framer.next().map_err(|_| QmpError::TooLong { limit: MESSAGE_BYTES_MAX })? {
            return Ok(text);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(QmpError::TimedOut { during: during.to_owned() });
        }
        match stream.set_read_timeout(Some(left)).and_then(|()| stream.read(&mut bytes)) {
            Ok(0) => return Err(QmpError::Closed { during: during.to_owned() }),
            Ok(count) => framer.push(&bytes[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(stream_error(during, error)),
        }
    }
}

fn stream_error(during: &str, source: io::Error) -> QmpError {
    let during = during.to_owned();
    match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => QmpError::TimedOut { during },
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => QmpError::Closed { during },
        _ => QmpError::Io { during, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;

    #[test]
    fn an_event_that_overtakes_the_greeting_is_kept_for_later() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let monitor = std::thread::spawn(move || {
            theirs
                .write_all(
                    br#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESUME"}
                    {"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""},
                    "capabilities": ["oob"]}}"#,
                )
                .unwrap();
            let mut request = String::new();
            io::BufReader::new(&theirs).read_line(&mut request).unwrap();
            let request: Value = serde_json::from_str(&request).unwrap();
            theirs.write_all(json!({"return": {}, "id": request["id"]}).to_string().as_bytes()).unwrap();
            request
        });
        let mut client = Client::from_stream(ours).unwrap();
        assert_eq!(monitor.join().unwrap()["execute"], "qmp_capabilities");
        assert_eq!(client.greeting().version.qemu.major, 10);
        assert_eq!(
            client.take_events().iter().map(|event| event.event.as_str()).collect::<Vec<_>>(),
            ["RESUME"]
        );
    }
}

//! What a connection still has to be sent: answers and events, in order, and never too many.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Messages that may wait for a client to read them. A migration makes about ten events and one per pass; a client
/// that is 1024 behind has stopped reading, and must not cost us memory or time.
const MESSAGES_MAX: usize = 1024;

/// The queue between those who have something to say to a client and the thread that writes it.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    messages: VecDeque<String>,
    /// The client has agreed on capabilities: from now on it gets events.
    negotiated: bool,
    /// A command is being executed; its answer is still to come.
    busy: bool,
    /// Nothing new is begun; what is there goes out.
    closing: bool,
}

impl Outbox {
    /// Marks the beginning of a command. `false` if the connection is closing: the command must not be begun.
    pub(crate) fn begin(&self) -> bool {
        let mut state = self.lock();
        state.busy = !state.closing;
        state.busy
    }

    /// Marks the end of a command, with its answer.
    pub(crate) fn finish(&self, answer: String) {
        let mut state = self.lock();
        state.busy = false;
        state.push(answer);
        self.changed.notify_all();
    }

    /// Adds a message that belongs to no command, whatever the state of the negotiation.
    pub(crate) fn push(&self, message: String) {
        self.lock().push(message);
        self.changed.notify_all();
    }

    /// Adds an event, if the client is ready for events.
    pub(crate) fn push_event(&self, event: &str) {
        let mut state = self.lock();
        if state.negotiated {
            state.push(event.to_owned());
            self.changed.notify_all();
        }
    }

    /// From now on the client gets events.
    pub(crate) fn set_negotiated(&self) {
        self.lock().negotiated = true;
    }

    /// Begins nothing new, and ends when all is out.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_all();
    }

    /// Drops everything: the client cannot be reached any more.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.closing = true;
        state.busy = false;
        state.messages.clear();
        self.changed.notify_all();
    }

    /// Waits for the next message to write; `None` when nothing more will come.
    pub(crate) fn next(&self) -> Option<String> {
        let idle = |state: &mut State| state.messages.is_empty() && (!state.closing || state.busy);
        let mut state = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        state.messages.pop_front()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, message: String) {
        if self.messages.len() < MESSAGES_MAX {
            self.messages.push_back(message);
        } else {
            // A gap would mislead the client: it is given what waits for it already, and then the end.
            self.closing = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_only_after_the_negotiation() {
        let outbox = Outbox::default();
        outbox.push_event("early");
        outbox.set_negotiated();
        outbox.push_event("late");
        outbox.close();
        assert_eq!((outbox.next().as_deref(), outbox.next()), (Some("late"), None));
    }

    #[test]
    fn closing_waits_for_the_answer_of_the_command_in_progress() {
        let outbox = Outbox::default();
        assert!(outbox.begin());
        outbox.close();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (outbox.next(), outbox.next()));
            outbox.finish("answer".to_owned());
            assert_eq!(writer.join().unwrap(), (Some("answer".to_owned()), None));
        });
        assert!(!outbox.begin());
    }

    #[test]
    fn a_client_that_does_not_read_is_closed_and_gets_no_gap() {
        let outbox = Outbox::default();
        (0..=MESSAGES_MAX).for_each(|number| outbox.push(number.to_string()));
        assert!(!outbox.begin());
        let received: Vec<String> = std::iter::from_fn(|| outbox.next()).collect();
        assert_eq!(received, (0..MESSAGES_MAX).map(|number| number.to_string()).collect::<Vec<_>>());
    }
}

//! Streams that are cut, damaged, shuffled or made up: the guest never runs, and the error says where and why.

#[path = "../guest/mod.rs"]
mod guest;
#[path = "../relay/mod.rs"]
mod relay;
#[path = "../stream/mod.rs"]
mod stream;

mod crafted;
mod damaged;
mod shuffled;

use guest::{Counter, Guest};
use limosa_engine::{Incoming, IncomingConfig, NoObserver, Outgoing, OutgoingConfig, RunState};
use relay::{Medium, connection};
use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;

/// A good stream of a small guest, and what must come of it.
pub(crate) struct Recording {
    pub(crate) stream: Vec<u8>,
    pub(crate) memory: Vec<u8>,
    pub(crate) counter: Counter,
}

impl Recording {
    pub(crate) fn new() -> Self {
        let (mut source, mut destination) = (Guest::tiny(), Guest::tiny_incoming());
        let (here, there, relay) = relay::relay(Medium::Unix, None);
        let (savevm, vm) = (destination.take_savevm(), destination.vm());
        let observer = Arc::new(NoObserver);
        let incoming =
            Incoming::over(there, IncomingConfig::default(), savevm, vm, observer.clone()).unwrap();
        let (savevm, vm) = (source.take_savevm(), source.vm());
        let outgoing = Outgoing::over(here, OutgoingConfig::default(), savevm, vm, observer).unwrap();
        guest::assert_completed(&outgoing.wait().0, &incoming.wait().0);
        let stream = relay.join().unwrap().there;
        let whole = stream::pieces(&stream).last().unwrap().range.end;
        assert_eq!(whole, stream.len(), "the map covers the stream");
        let counter = source.counter.lock().clone();
        Self { stream, memory: source.memory(), counter }
    }
}

/// A destination that is offered one stream after the other.
pub(crate) struct Victim {
    guest: Guest,
}

/// What a stream came to.
pub(crate) enum Verdict {
    /// The guest runs, with this memory and device.
    Ran(Vec<u8>, Counter),
    /// It did not, and this is why.
    Refused(String),
}

impl Victim {
    pub(crate) fn new() -> Self {
        Self { guest: Guest::tiny_incoming() }
    }

    /// Offers `stream`, and then the end of the connection. It has to fit into a socket's buffer.
    pub(crate) fn offer(&mut self, stream: &[u8]) -> Verdict {
        let (link, attacker) = connection(Medium::Unix);
        (&attacker).write_all(stream).unwrap();
        attacker.shutdown(Shutdown::Write).unwrap();
        let (savevm, vm) = (self.guest.take_savevm(), self.guest.vm());
        let config = IncomingConfig::default();
        let incoming = Incoming::over(link, config, savevm, vm, Arc::new(NoObserver)).unwrap();
        let (report, savevm) = incoming.wait();
        self.guest.give_back(savevm);
        if report.is_completed() {
            assert_eq!(self.guest.run_state(), RunState::Running);
            self.guest.put_into(RunState::InMigrate);
            return Verdict::Ran(self.guest.memory(), self.guest.counter.lock().clone());
        }
        assert_eq!(self.guest.run_state(), RunState::InMigrate, "refused, and runs: {report:?}");
        assert_eq!(report.outcome.status().as_str(), "failed");
        Verdict::Refused(report.statistics.error.expect("a failure has a reason"))
    }

    /// Offers a stream that must be refused; returns why.
    #[track_caller]
    pub(crate) fn refuse(&mut self, stream: &[u8], what: &str) -> String {
        match self.offer(stream) {
            Verdict::Refused(error) => {
                assert_names_place(&error, what);
                error
            }
            Verdict::Ran(..) => panic!("the guest runs: {what}"),
        }
    }
}

/// Every refusal names a part of the stream, an offset in it, and a reason behind these.
#[track_caller]
pub(crate) fn assert_names_place(error: &str, what: &str) {
    const PLACES: [&str; 5] = [
        "header at byte",
        "configuration at byte",
        "between sections at byte",
        "section ",
        "end of stream at byte",
    ];
    assert!(PLACES.iter().any(|place| error.contains(place)), "no place in {error:?}: {what}");
    stream::offset_in(error);
    let place_and_offset = error.find(" of the stream").expect("just found");
    let reason = error.len() - " of the stream".len() - "section ram/0 at byte 0".len();
    assert!(reason > 10, "no reason in {error:?} beside what ends at {place_and_offset}: {what}");
}

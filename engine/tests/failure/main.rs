//! Whatever fails, wherever: at most one side has the guest, somebody says why, and the list can be used again.

#[path = "../guest/mod.rs"]
mod guest;
#[path = "../relay/mod.rs"]
mod relay;
#[path = "../stream/mod.rs"]
mod stream;

mod cancels;
mod cuts;
mod handlers;
mod links;
mod refusals;
mod registration;

use guest::{Guest, assert_completed};
use limosa_engine::{
    Incoming, IncomingConfig, IncomingReport, NoObserver, Outgoing, OutgoingConfig, OutgoingReport, RunState,
};
use limosa_transport::Link;
use std::sync::Arc;

/// Both ends of one migration.
pub(crate) struct Ended {
    pub(crate) outgoing: OutgoingReport,
    pub(crate) incoming: IncomingReport,
}

impl Ended {
    pub(crate) fn source_error(&self) -> &str {
        self.outgoing.statistics.error.as_deref().unwrap_or("(none)")
    }

    pub(crate) fn destination_error(&self) -> &str {
        self.incoming.statistics.error.as_deref().unwrap_or("(none)")
    }
}

/// Starts the destination over `link`.
pub(crate) fn receive(link: Link, guest: &mut Guest, config: IncomingConfig) -> Incoming {
    Incoming::over(link, config, guest.take_savevm(), guest.vm(), Arc::new(NoObserver)).unwrap()
}

/// Starts the source over `link`.
pub(crate) fn send(link: Link, guest: &mut Guest, config: OutgoingConfig) -> Outgoing {
    Outgoing::over(link, config, guest.take_savevm(), guest.vm(), Arc::new(NoObserver)).unwrap()
}

/// Migrates over a connection that is there already; the lists are back in their guests afterwards.
pub(crate) fn migrate_over(
    (here, there): (Link, Link),
    source: &mut Guest,
    destination: &mut Guest,
    config: OutgoingConfig,
) -> Ended {
    let incoming = receive(there, destination, IncomingConfig::default());
    let outgoing = send(here, source, config);
    end(outgoing, incoming, source, destination)
}

/// Waits for both ends and gives the lists back.
pub(crate) fn end(
    outgoing: Outgoing,
    incoming: Incoming,
    source: &mut Guest,
    destination: &mut Guest,
) -> Ended {
    let (outgoing, savevm) = outgoing.wait();
    source.give_back(savevm);
    let (incoming, savevm) = incoming.wait();
    destination.give_back(savevm);
    Ended { outgoing, incoming }
}

/// Proves that both lists still work: the guest moves, and is then put back to where it was.
pub(crate) fn assert_migrates_now(source: &mut Guest, destination: &mut Guest) {
    let ended = migrate_over(Link::pair().unwrap(), source, destination, OutgoingConfig::default());
    assert_completed(&ended.outgoing, &ended.incoming);
    assert!(source.memory() == destination.memory());
    assert_eq!(*source.counter.lock(), *destination.counter.lock());
    assert_eq!(destination.run_state(), RunState::Running);
    source.put_into(RunState::Running);
    destination.put_into(RunState::InMigrate);
}

/// The guest runs on the source, and never ran on the destination.
pub(crate) fn assert_on_source(source: &Guest, destination: &Guest, what: &str) {
    let states = (source.run_state(), destination.run_state());
    assert_eq!(states, (RunState::Running, RunState::InMigrate), "{what}");
}

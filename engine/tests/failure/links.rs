//! Links of one direction: nobody answers, and the source believes the kernel.

use super::guest::{Guest, assert_completed};
use super::{end, migrate_over, receive, send};
use limosa_engine::{
    Capabilities, GuestFate, Incoming, IncomingConfig, NoObserver, Outgoing, OutgoingConfig, RunState,
    SourceEnding,
};
use limosa_transport::{Address, Link, Role};
use std::sync::Arc;

fn silent() -> OutgoingConfig {
    let capabilities = Capabilities { return_path: false, ..Capabilities::default() };
    OutgoingConfig { capabilities, ..OutgoingConfig::default() }
}

fn pipe() -> (Link, Link) {
    let (reader, writer) = std::io::pipe().unwrap();
    (Link::from_fd(writer.into(), Role::Main).unwrap(), Link::from_fd(reader.into(), Role::Main).unwrap())
}

#[test]
fn a_guest_moves_over_a_link_that_has_no_way_back() {
    for links in [pipe(), Link::pair().unwrap()] {
        let (mut source, mut destination) = (Guest::running(0), Guest::incoming(0));
        let ended = migrate_over(links, &mut source, &mut destination, silent());
        assert_completed(&ended.outgoing, &ended.incoming);
        assert_eq!(ended.outgoing.outcome.ending, SourceEnding::Completed { confirmed: false });
        assert!(source.memory() == destination.memory());
        assert_eq!((source.run_state(), destination.run_state()), (RunState::Paused, RunState::Running));
    }
}

#[test]
fn a_guest_waits_in_a_file_and_is_loaded_from_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = Address::File { path: directory.path().join("guest"), offset: 4096 };
    let (mut source, mut destination) = (Guest::running(0), Guest::incoming(0));
    let (savevm, vm) = (source.take_savevm(), source.vm());
    let outgoing = Outgoing::start(file.clone(), silent(), savevm, vm, Arc::new(NoObserver)).unwrap();
    let (outgoing, _) = outgoing.wait();
    let (savevm, vm) = (destination.take_savevm(), destination.vm());
    let incoming =
        Incoming::listen(&file, IncomingConfig::default(), savevm, vm, Arc::new(NoObserver)).unwrap();
    let (incoming, _) = incoming.wait();
    assert_completed(&outgoing, &incoming);
    assert!(source.memory() == destination.memory());
}

#[test]
fn a_return_path_on_a_link_without_one_is_refused_by_name() {
    let (mut source, mut destination) = (Guest::tiny(), Guest::tiny_incoming());
    let ended = migrate_over(pipe(), &mut source, &mut destination, OutgoingConfig::default());
    assert_eq!(ended.outgoing.guest(), GuestFate::OnSource);
    assert!(ended.source_error().contains("no receiving direction"), "{}", ended.source_error());
    super::assert_on_source(&source, &destination, ended.source_error());
}

#[test]
fn a_reader_of_a_pipe_that_goes_away_leaves_the_guest_here() {
    let (mut source, mut destination) = (Guest::running(0), Guest::incoming(0));
    let (here, there) = pipe();
    let incoming = receive(there, &mut destination, IncomingConfig::default());
    incoming.cancel();
    // The pipe holds 64 KiB, and there are 2 MB to send.
    let outgoing = send(here, &mut source, silent());
    let ended = end(outgoing, incoming, &mut source, &mut destination);
    assert_eq!(ended.outgoing.guest(), GuestFate::OnSource);
    assert_eq!(ended.incoming.outcome.status().as_str(), "cancelled");
    super::assert_on_source(&source, &destination, ended.source_error());
}

#[test]
fn a_destination_that_nobody_listens_at_leaves_the_guest_here() {
    let directory = tempfile::tempdir().unwrap();
    let nobody = Address::Unix(directory.path().join("nobody"));
    let mut source = Guest::tiny();
    let (savevm, vm) = (source.take_savevm(), source.vm());
    let outgoing =
        Outgoing::start(nobody, OutgoingConfig::default(), savevm, vm, Arc::new(NoObserver)).unwrap();
    let (report, savevm) = outgoing.wait();
    source.give_back(savevm);
    let error = report.statistics.error.unwrap();
    assert!(error.contains("connect to unix:") && error.contains("nobody"), "{error}");
    assert_eq!(report.outcome.fate, GuestFate::OnSource);
    let mut destination = Guest::tiny_incoming();
    super::assert_on_source(&source, &destination, &error);
    super::assert_migrates_now(&mut source, &mut destination);
}

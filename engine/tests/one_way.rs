//! Streams that nobody answers: to a file, and through a command.

mod guest;

use guest::{Guest, assert_completed};
use limosa_engine::{
    Capabilities, GuestFate, Incoming, IncomingConfig, NoObserver, Outgoing, OutgoingConfig, OutgoingReport,
};
use limosa_transport::Address;
use std::path::Path;
use std::sync::Arc;

fn send(source: &mut Guest, address: Address) -> OutgoingReport {
    // A file cannot answer, and the engine knows; of a command it cannot know.
    let return_path = matches!(address, Address::File { .. });
    let capabilities = Capabilities { return_path, ..Capabilities::default() };
    let config = OutgoingConfig { capabilities, ..OutgoingConfig::default() };
    let (savevm, vm) = (source.take_savevm(), source.vm());
    let (report, savevm) = Outgoing::start(address, config, savevm, vm, Arc::new(NoObserver)).unwrap().wait();
    source.give_back(savevm);
    report
}

fn load(address: &Address) -> (Guest, limosa_engine::IncomingReport) {
    let mut destination = Guest::incoming(10);
    let (savevm, vm) = (destination.take_savevm(), destination.vm());
    let config = IncomingConfig { autostart: false, ..IncomingConfig::default() };
    let incoming = Incoming::listen(address, config, savevm, vm, Arc::new(NoObserver));
    let (report, _) = incoming.unwrap().wait();
    (destination, report)
}

fn file(folder: &Path, offset: u64) -> Address {
    Address::File { path: folder.join("stream"), offset }
}

#[test]
fn a_guest_saved_to_a_file_is_loaded_from_it() {
    let folder = tempfile::tempdir().unwrap();
    for offset in [0, 4096] {
        let mut source = Guest::running(10);
        source.let_write(100);
        let outgoing = send(&mut source, file(folder.path(), offset));
        let (destination, incoming) = load(&file(folder.path(), offset));
        assert_completed(&outgoing, &incoming);
        assert!(source.memory() == destination.memory(), "offset {offset}");
    }
}

#[test]
fn a_command_has_ended_when_the_migration_is_completed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stream");
    let mut source = Guest::running(10);
    // The sleep is the command's: whoever does not wait for it finds no file.
    let command = format!("cat > {0}.part && sleep 0.2 && mv {0}.part {0}", path.display());
    let outgoing = send(&mut source, Address::shell(command));
    assert!(path.exists());
    let (destination, incoming) = load(&Address::shell(format!("cat {}", path.display())));
    assert_completed(&outgoing, &incoming);
    assert!(source.memory() == destination.memory());
}

#[test]
fn a_command_that_fails_at_the_end_leaves_the_guest_in_doubt() {
    let mut source = Guest::running(10);
    let report = send(&mut source, Address::shell("cat > /dev/null; exit 3"));
    assert_eq!(report.guest(), GuestFate::InDoubt);
    let error = report.statistics.error.unwrap();
    assert!(error.contains("exit status: 3"), "{error}");
}

//! What does not fit is refused before a page moves, and the refusal arrives.

use super::guest::{Guest, configuration};
use super::handlers::{Disk, Faults};
use super::relay::{Medium, Traffic, connection, relay};
use super::{Ended, assert_migrates_now, assert_on_source, migrate_over, receive, send, stream};
use limosa_engine::{
    Capabilities, GuestFate, IncomingConfig, NoObserver, Outgoing, OutgoingConfig, Parameters, Priority,
    RamHandler, SaveVm,
};
use limosa_pages::{BlockName, ByteCount};
use limosa_ram::dirty_log::FakeDirtyLog;
use limosa_ram::{GuestRam, RamBlock};
use limosa_transport::{Address, TcpAddress};
use limosa_wire::{Command, Configuration, ReturnMessage, encode};
use std::sync::Arc;

/// Sends the guest with a list of its own to one with another, and expects no page between them.
fn refused(ours: SaveVm, theirs: SaveVm) -> Ended {
    let (mut source, mut destination) = (Guest::tiny(), Guest::tiny_incoming());
    let (own_list, own_list_there) = (source.take_savevm(), destination.take_savevm());
    source.give_back(ours);
    destination.give_back(theirs);
    let (here, there, relay) = relay(Medium::Unix, None);
    let ended = migrate_over((here, there), &mut source, &mut destination, OutgoingConfig::default());
    let Traffic { there, .. } = relay.join().unwrap();
    assert!(!has_live_pages(&there), "{} bytes were sent: {}", there.len(), ended.destination_error());
    assert_eq!(ended.outgoing.guest(), GuestFate::OnSource);
    assert_eq!(ended.outgoing.statistics.ram.normal.0 + ended.outgoing.statistics.ram.zero.0, 0);
    assert_on_source(&source, &destination, ended.destination_error());
    source.give_back(own_list);
    destination.give_back(own_list_there);
    assert_migrates_now(&mut source, &mut destination);
    ended
}

/// A stream without a whole page is shorter than one.
fn has_live_pages(stream: &[u8]) -> bool {
    stream.len() >= 4096 || stream::has_pages(stream)
}

fn list(configuration: Configuration, blocks: &[(&str, u64)]) -> SaveVm {
    let blocks = blocks.iter().map(|(name, pages)| {
        RamBlock::memfd(BlockName::new(*name).unwrap(), ByteCount(pages * 4096)).unwrap()
    });
    let ram = GuestRam::new(blocks.collect()).unwrap();
    let log = FakeDirtyLog::new(ram.layout());
    let mut savevm = SaveVm::new(configuration);
    savevm.register_ram(RamHandler::new(ram, Some(Box::new(log))));
    savevm
}

const BLOCKS: [(&str, u64); 2] = [("main.ram", 3), ("small.ram", 1)];

#[track_caller]
fn assert_says(ended: &Ended, destination: &[&str], source: &str) {
    let error = ended.destination_error();
    for part in destination {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
    assert!(ended.source_error().contains(source), "{source:?} is not in {:?}", ended.source_error());
}

#[test]
fn another_machine_is_refused_before_ram() {
    let other = Configuration { machine: "other-guest".to_owned(), ..configuration() };
    let ended = refused(list(other, &BLOCKS), list(configuration(), &BLOCKS));
    assert_says(&ended, &["configuration at byte", "\"other-guest\"", "\"test-guest\""], "");
}

#[test]
fn another_page_size_is_refused_before_ram() {
    let other = Configuration { target_page_bits: Some(16), ..configuration() };
    let ended = refused(list(other, &BLOCKS), list(configuration(), &BLOCKS));
    assert_says(&ended, &["configuration at byte", "2^16", "2^12"], "");
}

#[test]
fn another_uuid_and_another_capability_are_refused_before_ram() {
    let with = |uuid| Configuration { uuid: Some([uuid; 16]), ..configuration() };
    let ended = refused(list(with(1), &BLOCKS), list(with(2), &BLOCKS));
    assert_says(&ended, &["configuration at byte", "UUID"], "");
    let other = Configuration { capabilities: Some(vec!["x-ignore-shared".to_owned()]), ..configuration() };
    let ended = refused(list(other, &BLOCKS), list(configuration(), &BLOCKS));
    assert_says(&ended, &["configuration at byte", "x-ignore-shared", "peer has it on"], "");
}

#[test]
fn another_list_of_blocks_is_refused_before_ram() {
    let ram = "section ram/0 at byte";
    let source = "the destination refused: ";
    for (blocks, parts) in [
        (&[("main.ram", 3), ("other.ram", 1)][..], &[ram, "there is no RAM block \"other.ram\" here"][..]),
        (&[("main.ram", 4), ("small.ram", 1)], &[ram, "\"main.ram\" has 16384 bytes there and 12288 here"]),
        (&[("main.ram", 3)], &[ram, "does not have RAM block \"small.ram\""]),
    ] {
        let ended = refused(list(configuration(), blocks), list(configuration(), &BLOCKS));
        assert_says(&ended, parts, source);
    }
}

#[test]
fn another_version_of_a_live_section_is_refused_before_ram() {
    let with_disk = |version| {
        let mut savevm = list(configuration(), &BLOCKS);
        let disk = Box::new(Disk::new(&Faults::default()));
        savevm.register_live("disk", 0, version, Priority::Default, disk);
        savevm
    };
    let ended = refused(with_disk(3), with_disk(2));
    let parts = ["section disk/0 at byte", "version 3 was sent; 2 to 2 can be read"];
    assert_says(&ended, &parts, "the destination refused: ");
}

#[test]
fn a_live_section_that_nobody_knows_is_refused_before_ram() {
    let mut ours = list(configuration(), &BLOCKS);
    ours.register_live("disk", 0, 1, Priority::Default, Box::new(Disk::new(&Faults::default())));
    let ended = refused(ours, list(configuration(), &BLOCKS));
    assert_says(&ended, &["section disk/0 at byte", "there is no disk/0 here"], "the destination refused: ");
}

#[test]
fn a_refusal_arrives_over_tcp_although_the_stream_is_still_on_its_way() {
    // Large enough for the source to be in the middle of a write, with the socket's buffers full.
    for turn in 0..10 {
        let (mut source, mut destination) = (Guest::running(0), Guest::incoming(0));
        let mut savevm = destination.take_savevm();
        let faults = Faults::default();
        savevm.register_live("disk", 0, 1, Priority::GicV3, Box::new(Disk::new(&faults)));
        destination.give_back(savevm);
        let mut savevm = source.take_savevm();
        // Leaves before RAM, and is refused in its first PART, with all of RAM behind it.
        savevm.register_live("disk", 0, 1, Priority::GicV3, Box::new(Disk::new(&Faults::default())));
        source.give_back(savevm);
        faults.set(super::handlers::Step::LoadPart);

        let incoming = receive_tcp(&mut destination);
        let address = incoming.address().unwrap().clone();
        let config = OutgoingConfig {
            parameters: Parameters { downtime_limit: std::time::Duration::ZERO, ..Parameters::default() },
            capabilities: Capabilities { return_path: true, ..Capabilities::default() },
            ..OutgoingConfig::default()
        };
        let (savevm, vm) = (source.take_savevm(), source.vm());
        let outgoing = Outgoing::start(address, config, savevm, vm, Arc::new(NoObserver)).unwrap();
        let ended = super::end(outgoing, incoming, &mut source, &mut destination);
        assert!(
            ended.source_error().contains("the destination refused: "),
            "{turn}: {}",
            ended.source_error()
        );
        assert!(
            ended.destination_error().contains("section disk/0 at byte"),
            "{}",
            ended.destination_error()
        );
        assert_on_source(&source, &destination, "refused over tcp");
    }
}

fn receive_tcp(destination: &mut Guest) -> limosa_engine::Incoming {
    limosa_engine::Incoming::listen(
        &Address::Tcp(TcpAddress::new("127.0.0.1", 0)),
        IncomingConfig::default(),
        destination.take_savevm(),
        destination.vm(),
        Arc::new(NoObserver),
    )
    .unwrap()
}

#[test]
fn a_destination_that_answers_nonsense_is_left_and_the_guest_runs_on() {
    let shut = |code: u32| [&[0, 1, 0, 4][..], &code.to_be_bytes()].concat();
    let pong = |value: u32| [&[0, 2, 0, 4][..], &value.to_be_bytes()].concat();
    let bitmap = [&[0, 5, 0, 9, 8][..], b"main.ram", &u64::MAX.to_be_bytes()].concat();
    for (answer, expected) in [
        (vec![0, 0x7f, 0, 0], "return-path message type"),
        (vec![0, 0, 0, 0], "return-path message type"),
        (vec![0, 2, 0xff, 0xff], "return-path message length"),
        (pong(0), "PONG 0x0"),
        (pong(0x5000_0001), "PONG 0x50000001"),
        (shut(0), "SHUT 0x0"),
        (shut(7), "refused with code 7"),
        ([&[0, 4, 0, 12][..], &0_u64.to_be_bytes(), &4096_u32.to_be_bytes()].concat(), "page request"),
        (bitmap, "received-bitmap length"),
        (vec![0, 2], "closed by the peer"),
    ] {
        let mut source = Guest::tiny();
        let (here, there) = connection(Medium::Unix);
        std::io::Write::write_all(&mut &there, &answer).unwrap();
        // Reads nothing and says no more.
        there.shutdown(std::net::Shutdown::Write).unwrap();
        let (report, savevm) = send(here, &mut source, OutgoingConfig::default()).wait();
        source.give_back(savevm);
        let error = report.statistics.error.unwrap();
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
        assert_eq!(report.outcome.fate, GuestFate::OnSource, "{error}");
        let mut destination = Guest::tiny_incoming();
        assert_on_source(&source, &destination, &error);
        assert_migrates_now(&mut source, &mut destination);
    }
}

#[test]
fn an_impatient_destination_gives_up_on_a_source_that_takes_no_answers() {
    let mut destination = Guest::tiny_incoming();
    let (there, flood) = connection(Medium::Unix);
    let patience = Some(std::time::Duration::from_millis(20));
    let config = IncomingConfig { read_deadline: patience, ..IncomingConfig::default() };
    let incoming = receive(there, &mut destination, config);
    let mut stream = Vec::new();
    encode::header(&mut stream);
    configuration().encode(&mut stream);
    Command::OpenReturnPath.encode(&mut stream);
    std::io::Write::write_all(&mut &flood, &stream).unwrap();
    stream.clear();
    (0..1000).for_each(|_| Command::Ping(1).encode(&mut stream));
    // Until the answers fill all buffers and the destination hangs up.
    while std::io::Write::write_all(&mut &flood, &stream).is_ok() {}
    let (report, _) = incoming.wait();
    let error = report.statistics.error.unwrap();
    assert!(error.contains("return path timed out: between sections at byte"), "{error}");
}

#[test]
fn the_report_is_there_before_the_connection_ends() {
    let mut destination = Guest::tiny_incoming();
    let (there, source) = connection(Medium::Unix);
    let incoming = receive(there, &mut destination, IncomingConfig::default());
    let mut stream = Vec::new();
    encode::header(&mut stream);
    configuration().encode(&mut stream);
    Command::OpenReturnPath.encode(&mut stream);
    Command::PostcopyRun.encode(&mut stream);
    std::io::Write::write_all(&mut &source, &stream).unwrap();
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut &source, &mut answer).unwrap();
    assert_eq!(super::stream::answers(&answer), [ReturnMessage::Shut(1)]);
    assert!(incoming.has_ended());
    assert_eq!(incoming.statistics().status.as_str(), "failed");
}

#[test]
fn an_impatient_destination_gives_up_on_a_silent_source() {
    let mut destination = Guest::tiny_incoming();
    let (there, silent) = connection(Medium::Unix);
    let patience = Some(std::time::Duration::from_millis(1));
    let config = IncomingConfig { read_deadline: patience, ..IncomingConfig::default() };
    let (report, _) = receive(there, &mut destination, config).wait();
    let error = report.statistics.error.unwrap();
    assert!(error.contains("header at byte 0 of the stream") && error.contains("nothing moved"), "{error}");
    drop(silent);
}

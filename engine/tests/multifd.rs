//! Whole migrations over several connections.

mod guest;

use guest::{Guest, assert_completed};
use limosa_engine::{
    Capabilities, ChannelSync, Codec, Incoming, IncomingChannels, IncomingConfig, IncomingReport, NoObserver,
    Outgoing, OutgoingConfig, OutgoingReport, Parameters, RunState, ZeroPageDetection,
};
use limosa_transport::Address;
use socket2::SockRef;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

/// A migration's settings, the same on both sides.
#[derive(Clone, Copy, Debug)]
struct Setting {
    count: u8,
    codec: Codec,
    zeros: ZeroPageDetection,
    sync: ChannelSync,
}

const PLAIN: Setting =
    Setting { count: 2, codec: Codec::None, zeros: ZeroPageDetection::Multifd, sync: ChannelSync::PerRound };

fn outgoing_config(setting: Setting) -> OutgoingConfig {
    OutgoingConfig {
        capabilities: Capabilities { multifd: true, return_path: true, ..Capabilities::default() },
        parameters: Parameters {
            multifd_channels: setting.count,
            multifd_codec: setting.codec,
            zero_page_detection: setting.zeros,
            ..Parameters::default()
        },
        channel_sync: setting.sync,
        ..OutgoingConfig::default()
    }
}

fn incoming_config(setting: Setting) -> IncomingConfig {
    IncomingConfig {
        autostart: false,
        channels: Some(IncomingChannels {
            count: setting.count,
            compression: setting.codec.compression(),
            sync: setting.sync,
            uuid: [0; 16],
        }),
        ..IncomingConfig::default()
    }
}

fn start(destination: &mut Guest, config: IncomingConfig) -> (Incoming, Address) {
    let (savevm, vm) = (destination.take_savevm(), destination.vm());
    let address = "tcp:127.0.0.1:0".parse().unwrap();
    let incoming = Incoming::listen(&address, config, savevm, vm, Arc::new(NoObserver)).unwrap();
    let address = incoming.address().unwrap().clone();
    (incoming, address)
}

fn migrate(
    source: &mut Guest,
    destination: &mut Guest,
    there: Setting,
    here: Setting,
) -> (OutgoingReport, IncomingReport) {
    let (incoming, address) = start(destination, incoming_config(there));
    let (savevm, vm) = (source.take_savevm(), source.vm());
    let outgoing = Outgoing::start(address, outgoing_config(here), savevm, vm, Arc::new(NoObserver)).unwrap();
    let (outgoing, savevm) = outgoing.wait();
    source.give_back(savevm);
    let (incoming, savevm) = incoming.wait();
    destination.give_back(savevm);
    (outgoing, incoming)
}

fn assert_arrives(setting: Setting) {
    let (mut source, mut destination) = (Guest::running(900), Guest::incoming(900));
    source.let_write(1000);
    let (outgoing, incoming) = migrate(&mut source, &mut destination, setting, setting);
    assert!(outgoing.is_completed(), "{setting:?}: {outgoing:?} {incoming:?}");
    assert_completed(&outgoing, &incoming);
    assert!(source.memory() == destination.memory(), "{setting:?}");
    assert_eq!(*source.counter.lock(), *destination.counter.lock(), "{setting:?}");
    let ram = outgoing.statistics.ram;
    assert!(ram.channel_bytes.0 > 0 && ram.normal.0 > 0 && ram.zero.0 > 0, "{setting:?}: {ram:?}");
}

#[test]
fn a_writing_guest_arrives_over_any_number_of_channels() {
    for count in [1, 2, 4, 8, 16] {
        assert_arrives(Setting { count, ..PLAIN });
    }
}

#[test]
fn a_writing_guest_arrives_with_every_codec() {
    let of_qemu = [Codec::Zlib { level: 1 }, Codec::Zstd { level: 1 }, Codec::Zstd { level: 3 }];
    for codec in of_qemu.into_iter().chain([Codec::Lz4, Codec::ZstdPacket { level: 1 }, Codec::Auto]) {
        assert_arrives(Setting { codec, ..PLAIN });
    }
}

/// Settings for pages that leave without a copy into the kernel.
fn without_copies() -> OutgoingConfig {
    let mut config = outgoing_config(PLAIN);
    config.capabilities.zero_copy_send = true;
    config
}

#[test]
fn a_writing_guest_arrives_without_copies_into_the_kernel() {
    let (mut source, mut destination) = (Guest::running(900), Guest::incoming(900));
    source.let_write(1000);
    let (incoming, address) = start(&mut destination, incoming_config(PLAIN));
    let (savevm, vm) = (source.take_savevm(), source.vm());
    let outgoing = Outgoing::start(address, without_copies(), savevm, vm, Arc::new(NoObserver)).unwrap();
    let (outgoing, incoming) = (outgoing.wait().0, incoming.wait().0);
    assert_completed(&outgoing, &incoming);
    assert!(source.memory() == destination.memory());
    // Over loopback the kernel copies after all, and says so.
    let channels = &outgoing.statistics.channels;
    assert!(channels.iter().map(|channel| channel.missed_zero_copy).sum::<u64>() > 0, "{channels:?}");
}

#[test]
fn a_socket_that_cannot_send_without_copies_is_refused_and_the_guest_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (mut source, mut destination) = (Guest::running(0), Guest::incoming(0));
    let address = format!("unix:{}", folder.path().join("stream").display()).parse().unwrap();
    let (savevm, vm) = (destination.take_savevm(), destination.vm());
    let config = incoming_config(PLAIN);
    let incoming = Incoming::listen(&address, config, savevm, vm, Arc::new(NoObserver)).unwrap();
    let (savevm, vm) = (source.take_savevm(), source.vm());
    let outgoing = Outgoing::start(address, without_copies(), savevm, vm, Arc::new(NoObserver)).unwrap();
    let error = outgoing.wait().0.statistics.error.unwrap();
    assert!(error.contains("the kernel does not send without a copy here"), "{error}");
    assert!(!incoming.wait().0.is_completed());
    assert_eq!((source.run_state(), destination.run_state()), (RunState::Running, RunState::InMigrate));
}

#[test]
fn zero_pages_leave_where_they_are_told_to() {
    assert_arrives(Setting { zeros: ZeroPageDetection::Legacy, ..PLAIN });
    assert_arrives(Setting { sync: ChannelSync::PerSection, ..PLAIN });
}

#[test]
fn a_guest_that_was_cancelled_under_way_goes_on_here() {
    let (mut source, mut destination) = (Guest::running(900), Guest::incoming(900));
    let (incoming, address) = start(&mut destination, incoming_config(PLAIN));
    let mut config = outgoing_config(PLAIN);
    config.parameters.max_bandwidth = Some(limosa_pages::ByteCount(1 << 20));
    let (savevm, vm) = (source.take_savevm(), source.vm());
    let outgoing = Outgoing::start(address, config, savevm, vm, Arc::new(NoObserver)).unwrap();
    while outgoing.statistics().ram.channel_bytes.0 < 100_000 {
        std::thread::yield_now();
    }
    outgoing.cancel();
    assert_eq!(outgoing.wait().0.outcome.status().as_str(), "cancelled");
    assert!(!incoming.wait().0.is_completed());
    assert_eq!((source.run_state(), destination.run_state()), (RunState::Running, RunState::InMigrate));
}

#[test]
fn a_second_attempt_begins_to_count_anew() {
    let (mut source, mut nowhere, mut destination) =
        (Guest::running(900), Guest::incoming(900), Guest::incoming(900));
    let zstd = Setting { codec: Codec::Zstd { level: 1 }, ..PLAIN };
    let (outgoing, _) = migrate(&mut source, &mut nowhere, zstd, PLAIN);
    assert!(!outgoing.is_completed(), "{outgoing:?}");
    let (outgoing, incoming) = migrate(&mut source, &mut destination, PLAIN, PLAIN);
    assert_completed(&outgoing, &incoming);
    let (outgoing, incoming) = migrate(&mut destination, &mut source, PLAIN, PLAIN);
    assert_completed(&outgoing, &incoming);
    assert!(source.memory() == destination.memory());
}

/// Starts a migration to a destination with other settings; what both sides say of it.
fn disagree(outgoing: OutgoingConfig, incoming: IncomingConfig) -> (OutgoingReport, IncomingReport) {
    let (mut source, mut destination) = (Guest::running(10), Guest::incoming(10));
    let (incoming, address) = start(&mut destination, incoming);
    let (savevm, vm) = (source.take_savevm(), source.vm());
    let outgoing = Outgoing::start(address, outgoing, savevm, vm, Arc::new(NoObserver)).unwrap();
    let (outgoing, _) = outgoing.wait();
    let (incoming, _) = incoming.wait();
    assert!(!incoming.is_completed(), "{incoming:?}");
    assert_eq!(destination.run_state(), RunState::InMigrate);
    if !outgoing.is_completed() {
        assert_eq!(source.run_state(), RunState::Running, "{outgoing:?}");
    }
    (outgoing, incoming)
}

#[test]
fn sides_that_disagree_both_name_both_values_and_the_guest_stays() {
    let zstd = Setting { codec: Codec::Zstd { level: 1 }, ..PLAIN };
    let lz4 = Setting { codec: Codec::Lz4, ..PLAIN };
    let three = Setting { count: 3, ..PLAIN };
    let off = |mut config: OutgoingConfig| {
        config.capabilities.multifd = false;
        config
    };
    let without = IncomingConfig { channels: None, ..incoming_config(PLAIN) };
    for (here, there, words) in [
        (outgoing_config(PLAIN), incoming_config(zstd), "multifd-compression: none at the source, zstd at"),
        (outgoing_config(zstd), incoming_config(PLAIN), "multifd-compression: zstd at the source, none at"),
        (
            outgoing_config(lz4),
            incoming_config(zstd),
            "multifd-compression: per packet at the source, zstd at",
        ),
        (outgoing_config(three), incoming_config(PLAIN), "multifd-channels: 3 at the source, 2 at"),
        (outgoing_config(PLAIN), incoming_config(three), "multifd-channels: 2 at the source, 3 at"),
        (outgoing_config(PLAIN), without, "multifd: on at the source, off at the destination"),
        (off(outgoing_config(PLAIN)), incoming_config(PLAIN), "multifd: off at the source, on at"),
    ] {
        let (outgoing, incoming) = disagree(here, there);
        for error in [outgoing.statistics.error, incoming.statistics.error] {
            let error = error.expect("a failure has a reason");
            assert!(error.contains(words), "{error:?} does not say {words:?}");
        }
    }
}

#[test]
fn a_connection_that_is_lost_before_its_first_word_is_called_neither_stream_nor_channel() {
    let mut destination = Guest::tiny_incoming();
    let (incoming, address) = start(&mut destination, incoming_config(PLAIN));
    let stranger = TcpStream::connect(address.to_string().strip_prefix("tcp:").unwrap()).unwrap();
    (&stranger).write_all(b"QE").unwrap();
    SockRef::from(&stranger).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stranger);
    let (report, savevm) = incoming.wait();
    destination.give_back(savevm);
    let error = report.statistics.error.unwrap();
    assert!(error.contains("a connection came that did not say what it is for"), "{error}");
    assert!(error.contains("unidentified channel: receive") && !error.contains("main"), "{error}");
}

#[test]
fn a_source_that_does_not_say_how_many_channels_it_has_is_counted() {
    let one = Setting { count: 1, ..PLAIN };
    let silent = |setting| {
        let mut config = outgoing_config(setting);
        config.capabilities.return_path = false;
        config
    };
    let hasty = IncomingConfig { channel_patience: Duration::ZERO, ..incoming_config(PLAIN) };
    let without = IncomingConfig { channels: None, ..incoming_config(PLAIN) };
    for (here, there, words) in [
        (one, hasty, "1 of 2 multifd channels came within 0ns"),
        (PLAIN, incoming_config(one), "more multifd channels than the 1 that are set here"),
        (PLAIN, without, "more multifd channels than the 0 that are set here"),
    ] {
        let (_, incoming) = disagree(silent(here), there);
        let error = incoming.statistics.error.expect("a failure has a reason");
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    }
}

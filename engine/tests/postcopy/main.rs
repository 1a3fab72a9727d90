//! Whole migrations that end in postcopy, between two engines in one process.

#[path = "../guest/mod.rs"]
mod guest;
#[path = "../relay/mod.rs"]
mod relay;

mod cuts;
mod huge;
mod permission;
mod recovery;
mod replacement;

use guest::{Guest, Recorder, assert_completed};
use limosa_engine::{
    Capabilities, ChannelSync, Codec, GuestFate, Incoming, IncomingChannels, IncomingConfig,
    IncomingPostcopy, IncomingReport, Outgoing, OutgoingConfig, OutgoingReport, Parameters, RunState,
};
use limosa_pages::{BlockId, ByteCount, PAGE_BYTES};
use limosa_transport::Address;
use std::sync::Arc;
use std::time::Duration;

/// How a migration is set; the same on both sides.
#[derive(Clone, Copy, Debug, Default)]
struct Setting {
    preempt: bool,
    /// Whether the guest runs where it comes to.
    autostart: bool,
    /// Multifd channels; 0 for none.
    channels: u8,
    codec: Codec,
    /// Precopy may go through its rounds.
    fast: bool,
}

struct Migration {
    outgoing: Outgoing,
    incoming: Incoming,
    here: Arc<Recorder>,
    there: Arc<Recorder>,
}

fn slow(setting: Setting) -> OutgoingConfig {
    OutgoingConfig {
        capabilities: Capabilities {
            postcopy_ram: true,
            postcopy_preempt: setting.preempt,
            multifd: setting.channels > 0,
            ..OutgoingConfig::default().capabilities
        },
        // So slow that precopy does not end by itself, and that the guest is faster than the push.
        parameters: Parameters {
            max_bandwidth: Some(ByteCount(if setting.fast { 256 << 20 } else { 1 << 20 })),
            max_postcopy_bandwidth: Some(ByteCount(2 << 20)),
            downtime_limit: Duration::ZERO,
            multifd_channels: setting.channels.max(1),
            multifd_codec: setting.codec,
            ..Parameters::default()
        },
        ..OutgoingConfig::default()
    }
}

fn start(source: &mut Guest, destination: &mut Guest, setting: Setting) -> Migration {
    start_by(source, destination, setting, Clone::clone)
}

/// As [`start`], to another address than that of the destination.
fn start_by(
    source: &mut Guest,
    destination: &mut Guest,
    setting: Setting,
    way: impl FnOnce(&Address) -> Address,
) -> Migration {
    let (here, there) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
    let config = IncomingConfig {
        autostart: setting.autostart,
        postcopy: Some(IncomingPostcopy { preempt: setting.preempt }),
        channels: (setting.channels > 0).then_some(IncomingChannels {
            count: setting.channels,
            compression: setting.codec.compression(),
            sync: ChannelSync::PerRound,
            uuid: [0; 16],
        }),
        ..IncomingConfig::default()
    };
    let listen = "tcp:127.0.0.1:0".parse().unwrap();
    let (savevm, vm) = (destination.take_savevm(), destination.vm());
    let incoming = Incoming::listen(&listen, config, savevm, vm, there.clone()).unwrap();
    let address = way(incoming.address().unwrap());
    let (savevm, vm) = (source.take_savevm(), source.vm());
    let outgoing = Outgoing::start(address, slow(setting), savevm, vm, here.clone()).unwrap();
    Migration { outgoing, incoming, here, there }
}

impl Migration {
    fn wait(self, source: &mut Guest, destination: &mut Guest) -> (OutgoingReport, IncomingReport) {
        let (outgoing, savevm) = self.outgoing.wait();
        source.give_back(savevm);
        let (incoming, savevm) = self.incoming.wait();
        destination.give_back(savevm);
        (outgoing, incoming)
    }

    fn wait_until(&self, reached: impl Fn(&Self) -> bool) {
        while !reached(self) && !self.outgoing.has_ended() {
            std::thread::yield_now();
        }
    }
}

/// Bytes that differ may only be those that the guest has written there.
fn assert_same_but_for_writes(source: &Guest, destination: &Guest, sent: u64) {
    let (before, after) = (source.memory(), destination.memory());
    let changed = before.iter().zip(&after).filter(|(here, there)| here != there).count() as u64;
    let written = destination.counter.lock().writes - sent;
    assert!(changed <= written * 8, "{changed} bytes differ after {written} writes of 8");
}

#[test]
fn a_guest_that_stands_still_moves_first_and_its_memory_follows() {
    for preempt in [false, true] {
        let (mut source, mut destination) = (Guest::running(0), Guest::incoming(0));
        let migration = start(&mut source, &mut destination, Setting { preempt, ..Setting::default() });
        migration.outgoing.start_postcopy().unwrap();
        let (here, there) = (migration.here.clone(), migration.there.clone());
        let (outgoing, incoming) = migration.wait(&mut source, &mut destination);
        assert_completed(&outgoing, &incoming);
        assert!(source.memory() == destination.memory());
        assert_eq!(*source.counter.lock(), *destination.counter.lock());
        assert_eq!(here.statuses(), ["setup", "active", "device", "postcopy-active", "completed"]);
        assert_eq!(there.statuses(), ["setup", "active", "postcopy-active", "completed"]);
    }
}

#[test]
fn a_writing_guest_goes_on_there_while_its_memory_follows() {
    let settings =
        [(false, 0, Codec::None), (true, 0, Codec::None), (false, 2, Codec::None), (true, 3, Codec::Lz4)];
    for (preempt, channels, codec) in settings {
        let (mut source, mut destination) = (Guest::running(1400), Guest::incoming(1400));
        source.let_write(1000);
        let setting = Setting { preempt, autostart: true, channels, codec, ..Setting::default() };
        let migration = start(&mut source, &mut destination, setting);
        migration.wait_until(|migration| migration.outgoing.statistics().ram.normal.0 > 100);
        migration.outgoing.start_postcopy().unwrap();
        let (outgoing, incoming) = migration.wait(&mut source, &mut destination);
        assert_completed(&outgoing, &incoming);
        assert_eq!(outgoing.guest(), GuestFate::OnDestination);
        let sent = source.counter.lock().writes;
        destination.let_write(1000);
        destination.stop();
        assert_eq!(source.run_state(), RunState::Paused);
        assert_same_but_for_writes(&source, &destination, sent);
        let asked = outgoing.statistics.urgent.unwrap();
        assert!(asked.requests > 0 && asked.pages.0 > 0, "{asked:?}");
        let came = incoming.statistics.postcopy.unwrap();
        assert!(came.pages_by_fault.0 > 0, "{came:?}");
    }
}

#[test]
fn what_is_dropped_there_is_no_base_for_deltas() {
    let (mut source, mut destination) = (Guest::running(1400), Guest::incoming_private(1400));
    source.let_write(1000);
    // It does not go on there, so that every byte can be compared.
    let setting = Setting { channels: 2, codec: Codec::Lz4, fast: true, ..Setting::default() };
    let migration = start(&mut source, &mut destination, setting);
    migration.wait_until(|migration| migration.outgoing.statistics().passes > 3);
    migration.outgoing.start_postcopy().unwrap();
    let (outgoing, incoming) = migration.wait(&mut source, &mut destination);
    assert_completed(&outgoing, &incoming);
    assert!(source.memory() == destination.memory());
}

#[test]
fn memory_can_be_read_there_before_it_has_come() {
    let (mut source, mut destination) = (Guest::running(0), Guest::incoming(0));
    let expected = source.memory();
    let ram = destination.ram.clone();
    let migration = start(&mut source, &mut destination, Setting { preempt: true, ..Setting::default() });
    migration.outgoing.start_postcopy().unwrap();
    migration.wait_until(|migration| migration.there.statuses().contains(&"postcopy-active"));
    for page in (0..1500).rev() {
        let offset = page * PAGE_BYTES as u64;
        let word = guest::memory::read_word(&ram, BlockId(0), offset).to_le_bytes();
        assert_eq!(word, expected[offset as usize..offset as usize + 8], "page {page}");
    }
    let (outgoing, incoming) = migration.wait(&mut source, &mut destination);
    assert_completed(&outgoing, &incoming);
    assert!(destination.memory() == expected);
}

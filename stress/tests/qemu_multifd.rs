//! Pages on several connections, with an unmodified QEMU as the other side: in both directions, whatever the channels
//! carry.

use limosa::{
    Capabilities, CapturedGuest, ChannelSync, Codec, Incoming, IncomingChannels, IncomingConfig,
    IncomingReport, NoObserver, OutgoingConfig, Parameters, SaveVm, ZeroPageDetection,
};
use limosa_stress::qemu::{
    Accelerator, Binary, ForeignGuest, Machine, PATIENCE, Qemu, Release, Retouched, Setup, Still, Transport,
    assert_goes_on, send,
};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Rounds in which a guest that changes is sent again: its pages take another channel in each.
const PASSES: u64 = 6;

/// What both sides are set to.
#[derive(Clone, Copy, Debug)]
struct Setting {
    transport: Transport,
    channels: u8,
    codec: Codec,
    zeros: ZeroPageDetection,
}

const PLAIN: Setting =
    Setting { transport: Transport::Tcp, channels: 2, codec: Codec::None, zeros: ZeroPageDetection::Multifd };

/// Every number of channels, every codec and every place to look for zero pages, but not each with each.
const SETTINGS: [Setting; 5] = [
    PLAIN,
    Setting { channels: 1, codec: Codec::Zstd { level: 3 }, ..PLAIN },
    Setting { channels: 4, codec: Codec::Zlib { level: 1 }, transport: Transport::Unix, ..PLAIN },
    Setting { channels: 4, zeros: ZeroPageDetection::Legacy, ..PLAIN },
    Setting { codec: Codec::Zstd { level: 1 }, zeros: ZeroPageDetection::None, ..PLAIN },
];

impl Setting {
    fn of_ours_outgoing(self) -> OutgoingConfig {
        OutgoingConfig {
            capabilities: Capabilities { multifd: true, return_path: true, ..Capabilities::default() },
            parameters: Parameters {
                multifd_channels: self.channels,
                multifd_codec: self.codec,
                zero_page_detection: self.zeros,
                ..Parameters::default()
            },
            ..OutgoingConfig::default()
        }
    }

    fn of_ours_incoming(self) -> IncomingConfig {
        IncomingConfig {
            read_deadline: Some(PATIENCE),
            channels: Some(IncomingChannels {
                count: self.channels,
                compression: self.codec.compression(),
                sync: ChannelSync::PerRound,
                uuid: [0; 16],
            }),
            ..IncomingConfig::default()
        }
    }

    fn apply(self, qemu: &mut Qemu) {
        qemu.set_capabilities(&[("multifd", true), ("return-path", true)]).expect("capabilities");
        let (method, level) = match self.codec {
            Codec::None => ("none", None),
            Codec::Zlib { level } => ("zlib", Some(("multifd-zlib-level", level))),
            Codec::Zstd { level } => ("zstd", Some(("multifd-zstd-level", level))),
        };
        let zeros = match self.zeros {
            ZeroPageDetection::Multifd => "multifd",
            ZeroPageDetection::Legacy => "legacy",
            ZeroPageDetection::None => "none",
        };
        let mut parameters = json!({
            "multifd-channels": self.channels,
            "multifd-compression": method,
            "zero-page-detection": zeros,
        });
        if let Some((name, level)) = level {
            parameters[name] = json!(level);
        }
        qemu.set_parameters(parameters).expect("parameters");
    }
}

fn running(setup: &Setup, binary: &Binary) -> Qemu {
    let source = setup.start(binary).expect("source");
    source.wait_tick_past(20).expect("a running guest");
    source
}

/// A guest of QEMU's on the one connection that needs no channels.
fn capture(source: &mut Qemu) -> CapturedGuest {
    source.set_capabilities(&[("return-path", true)]).expect("capabilities");
    let link = source.migrate_to_us(Transport::Unix).expect("a migration");
    let guest = CapturedGuest::receive(link).expect("a whole guest");
    source.wait_migrated().expect("source");
    guest
}

/// Takes in the guest of `source` as `setting` says.
fn receive(source: &mut Qemu, savevm: SaveVm, setting: Setting) -> (IncomingReport, SaveVm) {
    let address = setting.transport.address(source.folder());
    let config = setting.of_ours_incoming();
    let incoming =
        Incoming::listen(&address, config, savevm, Arc::new(Still), Arc::new(NoObserver)).expect("a start");
    setting.apply(source);
    source.migrate(&incoming.address().expect("it listens").to_string()).expect("migrate");
    incoming.wait()
}

/// Sends a guest to a fresh QEMU like `setup` as `setting` says; it must go on from where it stopped in `source`.
fn assert_qemu_takes(savevm: SaveVm, source: &Qemu, setup: &Setup, binary: &Binary, setting: Setting) {
    let mut destination = setup.destination().start(binary).expect("destination");
    setting.apply(&mut destination);
    let address = destination.listen(setting.transport).expect("listen");
    let config = setting.of_ours_outgoing();
    let report = send(savevm, address, config, Arc::new(Still), Arc::new(NoObserver)).expect("a start");
    let error = &report.statistics.error;
    assert!(report.is_completed(), "{setting:?}: {error:?}; QEMU said: {}", destination.stderr());
    destination.wait_migrated().expect("destination");
    let ram = report.statistics.ram;
    let working_set = setup.boot.payload().working_set;
    assert!(ram.normal >= working_set, "{setting:?}: its pages are not zero: {ram:?}");
    assert!(ram.channel_bytes.0 > 0, "{setting:?}: {ram:?}");
    assert_goes_on(source, &mut destination).expect("a guest that goes on");
}

#[test]
fn a_guest_goes_on_in_a_qemu_that_took_it_over_several_channels() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup::new(Machine::Microvm, Accelerator::of_this_machine());
    for setting in SETTINGS {
        let mut source = running(&setup, &binary);
        let guest = capture(&mut source);
        assert_qemu_takes(guest.into_savevm(), &source, &setup, &binary, setting);
    }
}

#[test]
fn every_page_of_a_guest_that_qemu_sent_over_several_channels_arrives() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup::new(Machine::Microvm, Accelerator::of_this_machine());
    let model = capture(&mut running(&setup, &binary));
    for setting in SETTINGS {
        let ForeignGuest { ram, savevm, .. } = ForeignGuest::like(&model).expect("memory");
        let mut source = running(&setup, &binary);
        let (report, _) = receive(&mut source, savevm, setting);
        assert!(report.is_completed(), "{setting:?}: {:?}", report.statistics.error);
        source.wait_migrated().expect("source");
        source.assert_same_memory(&ram).expect("pmemsave");
        let counted = report.statistics.ram;
        assert!(counted.channel_bytes.0 > 0, "{setting:?}: {counted:?}");
    }
}

#[test]
fn a_guest_of_a_pc_moves_through_us_from_qemu_to_qemu_over_several_channels() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup::new(Machine::Pc, Accelerator::of_this_machine());
    let model = capture(&mut running(&setup, &binary));
    let ForeignGuest { ram, savevm, .. } = ForeignGuest::like(&model).expect("memory");
    let mut source = running(&setup, &binary);
    let (report, savevm) = receive(&mut source, savevm, PLAIN);
    assert!(report.is_completed(), "{:?}", report.statistics.error);
    source.wait_migrated().expect("source");
    source.assert_same_memory(&ram).expect("pmemsave");
    assert_qemu_takes(savevm, &source, &setup, &binary, PLAIN);
}

#[test]
fn pages_that_change_in_every_round_are_the_last_ones_in_qemu() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup::new(Machine::Microvm, Accelerator::of_this_machine());
    for codec in [Codec::None, Codec::Zlib { level: 1 }] {
        let mut source = running(&setup, &binary);
        let guest = ForeignGuest::holding(capture(&mut source));
        let retouched = Arc::new(Retouched::new(&guest, &setup, PASSES));
        let setting = Setting { channels: 4, codec, ..PLAIN };
        let mut destination = setup.destination().start(&binary).expect("destination");
        setting.apply(&mut destination);
        let address = destination.listen(setting.transport).expect("listen");
        let mut config = setting.of_ours_outgoing();
        // Nothing may be left at the switchover but what the stop itself writes.
        config.parameters.downtime_limit = Duration::ZERO;
        let report =
            send(guest.savevm, address, config, retouched.clone(), retouched.clone()).expect("a start");
        let error = &report.statistics.error;
        assert!(report.is_completed(), "{setting:?}: {error:?}; QEMU said: {}", destination.stderr());
        destination.wait_migrated().expect("destination");
        let ram = report.statistics.ram;
        assert!(ram.normal.0 >= 3 * retouched.pages().0, "several rounds: {ram:?}");
        assert_goes_on(&source, &mut destination).expect("a guest that goes on");
    }
}

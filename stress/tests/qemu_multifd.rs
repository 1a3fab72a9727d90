//! Pages on several connections, with an unmodified QEMU as the other side: each guest comes to us from one QEMU, is held
//! against that QEMU's memory, and goes on in another one, whatever the channels carry.

use limosa::pages::ByteCount;
use limosa::{CapturedGuest, ChannelSync, Codec, ZeroPageDetection};
use limosa_stress::qemu::{
    Boot, ChannelSetting, ForeignGuest, Machine, Payload, Peer, Release, Retouched, Setup, Transport,
    assert_goes_on, send,
};
use limosa_stress::sim::Rng;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

const CHANNELS: [u8; 5] = [1, 2, 4, 8, 16];
const CODECS: [Codec; 3] = [Codec::None, Codec::Zlib { level: 1 }, Codec::Zstd { level: 1 }];
const ZEROS: [ZeroPageDetection; 3] =
    [ZeroPageDetection::Multifd, ZeroPageDetection::Legacy, ZeroPageDetection::None];
const SYNCS: [ChannelSync; 2] = [ChannelSync::PerRound, ChannelSync::PerSection];
const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Unix];

/// Rounds in which a guest that changes is sent again: its pages take another channel in each.
const PASSES: u64 = 6;

/// The same where QEMU decides when it has tried often enough.
const PASSES_OF_QEMU: u64 = 4;

/// Every pair of values of two axes, in as many settings as there are pairs of the two longest.
fn pairs() -> Vec<ChannelSetting> {
    let number = |channels: usize, codec: usize| channels + codec;
    (0..CHANNELS.len())
        .flat_map(|channels| (0..CODECS.len()).map(move |codec| (channels, codec)))
        .map(|(channels, codec)| ChannelSetting {
            machine: Machine::Microvm,
            channels: CHANNELS[channels],
            codec: CODECS[codec],
            zeros: ZEROS[number(channels, codec) % ZEROS.len()],
            sync: SYNCS[number(channels, codec) % SYNCS.len()],
            transport: TRANSPORTS[number(channels, 2 * codec) / 2 % TRANSPORTS.len()],
        })
        .collect()
}

/// Every setting that there is for a machine that can do all of them.
fn product() -> impl Iterator<Item = ChannelSetting> {
    CHANNELS.into_iter().flat_map(|channels| {
        CODECS.into_iter().flat_map(move |codec| {
            ZEROS.into_iter().flat_map(move |zeros| {
                SYNCS.into_iter().flat_map(move |sync| {
                    TRANSPORTS.into_iter().map(move |transport| ChannelSetting {
                        machine: Machine::Microvm,
                        transport,
                        channels,
                        codec,
                        zeros,
                        sync,
                    })
                })
            })
        })
    })
}

/// What an old machine can do: zero pages on the main channel, and channels in line at the end of each section.
fn of_an_old_machine(channels: u8, codec: Codec) -> ChannelSetting {
    ChannelSetting {
        machine: Machine::Pc7_2,
        channels,
        codec,
        zeros: ZeroPageDetection::Legacy,
        sync: ChannelSync::PerSection,
        ..ChannelSetting::PLAIN
    }
}

/// The two QEMUs that a guest passes between, through us.
struct Route<'a> {
    from: Peer<'a>,
    to: Peer<'a>,
    /// Guests that show what a machine's stream looks like.
    models: HashMap<String, CapturedGuest>,
}

impl<'a> Route<'a> {
    fn new(from: Peer<'a>, to: Peer<'a>) -> Self {
        Self { from, to, models: HashMap::new() }
    }

    fn assert_passes(&mut self, setting: ChannelSetting) {
        let machine = setting.machine.to_string();
        let model = self.models.entry(machine).or_insert_with(|| self.from.capture(setting).1);
        let (source, savevm) = self.from.assert_sends(model, setting);
        self.to.assert_takes(savevm, &source, setting);
    }
}

#[test]
fn the_settings_below_have_every_pair_of_values() {
    let settings = pairs();
    let has = |wanted: &dyn Fn(&ChannelSetting) -> bool| settings.iter().any(wanted);
    for any in product() {
        assert!(has(&|one| one.channels == any.channels && one.codec == any.codec), "{any:?}");
        assert!(has(&|one| one.channels == any.channels && one.zeros == any.zeros), "{any:?}");
        assert!(has(&|one| one.channels == any.channels && one.sync == any.sync), "{any:?}");
        assert!(has(&|one| one.channels == any.channels && one.transport == any.transport), "{any:?}");
        assert!(has(&|one| one.codec == any.codec && one.zeros == any.zeros), "{any:?}");
        assert!(has(&|one| one.codec == any.codec && one.sync == any.sync), "{any:?}");
        assert!(has(&|one| one.codec == any.codec && one.transport == any.transport), "{any:?}");
        assert!(has(&|one| one.zeros == any.zeros && one.sync == any.sync), "{any:?}");
        assert!(has(&|one| one.zeros == any.zeros && one.transport == any.transport), "{any:?}");
        assert!(has(&|one| one.sync == any.sync && one.transport == any.transport), "{any:?}");
    }
}

#[test]
fn a_guest_passes_from_qemu_to_qemu_whatever_the_channels_are_set_to() {
    let Some(binary) = Release::Current.require() else { return };
    let current = Peer { binary: &binary, release: Release::Current };
    let mut route = Route::new(current, current);
    let pc = ChannelSetting { machine: Machine::Pc, ..ChannelSetting::PLAIN };
    for setting in pairs().into_iter().chain([pc]) {
        route.assert_passes(setting);
    }
}

#[test]
fn a_guest_of_an_old_machine_passes_between_the_releases_that_have_it() {
    let Some(old) = Release::V7_2.require() else { return };
    let Some(current) = Release::Current.require() else { return };
    let old = Peer { binary: &old, release: Release::V7_2 };
    let current = Peer { binary: &current, release: Release::Current };
    let routes = [(old, current), (current, old), (old, old), (current, current)];
    let settings = CHANNELS.into_iter().zip(CODECS.into_iter().cycle());
    for ((from, to), (channels, codec)) in routes.into_iter().cycle().zip(settings) {
        Route::new(from, to).assert_passes(of_an_old_machine(channels, codec));
    }
}

#[test]
#[ignore = "four minutes: every setting, where the test above has every pair"]
fn a_guest_passes_from_qemu_to_qemu_in_every_setting() {
    let Some(binary) = Release::Current.require() else { return };
    let current = Peer { binary: &binary, release: Release::Current };
    let mut route = Route::new(current, current);
    product().for_each(|setting| route.assert_passes(setting));
}

#[test]
#[ignore = "a minute: every setting, where the test above has each value"]
fn a_guest_of_an_old_machine_passes_between_the_releases_in_every_setting() {
    let Some(old) = Release::V7_2.require() else { return };
    let Some(current) = Release::Current.require() else { return };
    let old = Peer { binary: &old, release: Release::V7_2 };
    let current = Peer { binary: &current, release: Release::Current };
    for (from, to) in [(old, current), (current, old), (old, old), (current, current)] {
        let mut route = Route::new(from, to);
        for channels in CHANNELS {
            CODECS.into_iter().for_each(|codec| route.assert_passes(of_an_old_machine(channels, codec)));
        }
    }
}

/// What a source is slowed down to that is to send its guest again and again, and bytes that no codec makes smaller, so
/// that the first round lasts half a second of it.
const SLOW: ByteCount = ByteCount(32 << 20);
const NOISE: usize = 16 << 20;
/// Where they lie: the upper half of the guest's RAM.
const NOISE_START: u64 = 16 << 20;

fn noise() -> Vec<u8> {
    let mut rng = Rng::new(1);
    (0..NOISE / size_of::<u64>()).flat_map(|_| rng.bits().to_le_bytes()).collect()
}

#[test]
fn pages_that_qemu_sends_in_every_round_are_the_last_ones_here() {
    let Some(binary) = Release::Current.require() else { return };
    let current = Peer { binary: &binary, release: Release::Current };
    let (_, model) = current.capture(ChannelSetting::PLAIN);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("noise");
    std::fs::write(&file, noise()).expect("room");
    for (codec, sync) in CODECS.into_iter().flat_map(|codec| SYNCS.map(|sync| (codec, sync))) {
        let setting = ChannelSetting { channels: 4, codec, sync, ..ChannelSetting::PLAIN };
        let ForeignGuest { ram, savevm, .. } = ForeignGuest::like(&model).expect("memory");
        let setup = setting.setup();
        let payload = setup.boot.payload();
        // Without a pause, so that no round is too short for the guest to write.
        let boot = Boot::Flash(Payload { pause: 1, ..payload });
        let setup = Setup { boot, preload: Some((file.clone(), NOISE_START)), ..setup };
        let mut source = setup.start(&binary).expect("source");
        source.wait_tick_past(0).expect("a running guest");
        source.hold_back(SLOW).expect("parameters");
        let incoming = current.receive(&mut source, savevm, setting);
        source.wait_pass(PASSES_OF_QEMU).expect("passes");
        source.let_go().expect("parameters");
        let (report, _) = incoming.wait();
        assert!(report.is_completed(), "{setting:?}: {:?}", report.statistics.error);
        source.wait_migrated().expect("source");
        source.assert_same_memory(&ram).expect("pmemsave");
        let sent = report.statistics.ram.normal.bytes();
        assert!(sent > ByteCount(NOISE as u64) + payload.working_set.bytes(), "rounds: {sent}");
    }
}

#[test]
fn pages_that_change_in_every_round_are_the_last_ones_in_qemu() {
    let Some(binary) = Release::Current.require() else { return };
    let current = Peer { binary: &binary, release: Release::Current };
    for (codec, sync) in CODECS.into_iter().flat_map(|codec| SYNCS.map(|sync| (codec, sync))) {
        let setting = ChannelSetting { channels: 4, codec, sync, ..ChannelSetting::PLAIN };
        let setup = setting.setup();
        let (source, captured) = current.capture(setting);
        let guest = ForeignGuest::holding(captured);
        let retouched = Arc::new(Retouched::new(&guest, &setup, PASSES));
        let mut destination = setup.destination().start(&binary).expect("destination");
        setting.apply(&mut destination, Release::Current);
        let address = destination.listen(setting.transport).expect("listen");
        let mut config = setting.outgoing();
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

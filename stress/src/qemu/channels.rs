//! Several connections with a QEMU: what both sides must be set to, and guests that pass over them.

use super::binary::{Accelerator, Binary, Release};
use super::continuity::assert_goes_on;
use super::engine::{Transport, send};
use super::foreign::{ForeignGuest, Still};
use super::payload::Payload;
use super::process::{PATIENCE, Qemu};
use super::setup::{Boot, Machine, Setup};
use limosa::pages::PageCount;
use limosa::{
    Capabilities, CapturedGuest, ChannelSync, Codec, Incoming, IncomingChannels, IncomingConfig, NoObserver,
    OutgoingConfig, Parameters, SaveVm, ZeroPageDetection,
};
use serde_json::json;
use std::sync::Arc;

/// What both sides of a migration over several connections are set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelSetting {
    /// The machine type; an old one implies [`ChannelSync::PerSection`].
    pub machine: Machine,
    /// Kind of socket.
    pub transport: Transport,
    /// Connections beside the main one.
    pub channels: u8,
    /// How pages are compressed.
    pub codec: Codec,
    /// Where the source looks for zero pages.
    pub zeros: ZeroPageDetection,
    /// When the channels are brought into line.
    pub sync: ChannelSync,
}

/// A QEMU that one side of a migration runs, and which release it is.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// The program.
    pub binary: &'a Binary,
    /// What it understands.
    pub release: Release,
}

/// Pages that the guest writes to: 8 packets, so that several channels have something to do.
const WORKING_SET: PageCount = PageCount(1024);

/// Pages between two ticks; a pass has as many ticks as with the default payload.
const PAGES_PER_TICK: u32 = 64;

/// Ticks before a guest leaves: its first pass is over.
const TICKS: u32 = 20;

impl ChannelSetting {
    /// Two channels of a microvm without a codec, in QEMU's newest manner.
    pub const PLAIN: Self = Self {
        machine: Machine::Microvm,
        transport: Transport::Tcp,
        channels: 2,
        codec: Codec::None,
        zeros: ZeroPageDetection::Multifd,
        sync: ChannelSync::PerRound,
    };

    /// A guest of 32 MiB of which 4 MiB are busy.
    pub fn setup(self) -> Setup {
        let accelerator = Accelerator::of_this_machine();
        let payload = Payload {
            working_set: WORKING_SET,
            pages_per_tick: PAGES_PER_TICK,
            ..Payload::paced(accelerator)
        };
        let mut setup =
            Setup { memory_mib: 32, boot: Boot::Flash(payload), ..Setup::new(self.machine, accelerator) };
        if self.sync == ChannelSync::PerSection && self.machine != Machine::Pc7_2 {
            setup.globals.push("migration.multifd-flush-after-each-section=on");
        }
        setup
    }

    /// Our side as the source.
    pub fn outgoing(self) -> OutgoingConfig {
        OutgoingConfig {
            capabilities: Capabilities { multifd: true, return_path: true, ..Capabilities::default() },
            parameters: Parameters {
                multifd_channels: self.channels,
                multifd_codec: self.codec,
                zero_page_detection: self.zeros,
                ..Parameters::default()
            },
            channel_sync: self.sync,
            announce_switchover: self.machine != Machine::Pc7_2,
            ..OutgoingConfig::default()
        }
    }

    /// Our side as the destination.
    pub fn incoming(self) -> IncomingConfig {
        IncomingConfig {
            read_deadline: Some(PATIENCE),
            channels: Some(IncomingChannels {
                count: self.channels,
                compression: self.codec.compression(),
                sync: self.sync,
                uuid: [0; 16],
            }),
            ..IncomingConfig::default()
        }
    }

    /// QEMU's side, either one. How channels are brought into line is a matter of [`Self::setup`].
    ///
    /// # Panics
    /// If the monitor refuses.
    pub fn apply(self, qemu: &mut Qemu, release: Release) {
        qemu.set_capabilities(&[("multifd", true), ("return-path", true)]).expect("capabilities");
        let (method, level) = match self.codec {
            Codec::None => ("none", None),
            Codec::Zlib { level } => ("zlib", Some(("multifd-zlib-level", level))),
            Codec::Zstd { level } => ("zstd", Some(("multifd-zstd-level", level))),
            other => panic!("a QEMU has no {other:?}"),
        };
        let mut parameters = json!({ "multifd-channels": self.channels, "multifd-compression": method });
        if let Some((name, level)) = level {
            parameters[name] = json!(level);
        }
        // Before 9.0 there is no choice: zero pages leave on the main channel.
        if release == Release::Current {
            parameters["zero-page-detection"] = json!(match self.zeros {
                ZeroPageDetection::Multifd => "multifd",
                ZeroPageDetection::Legacy => "legacy",
                ZeroPageDetection::None => "none",
            });
        }
        qemu.set_parameters(parameters).expect("parameters");
    }
}

impl Peer<'_> {
    /// Starts a guest of [`ChannelSetting::setup`] and waits until it is busy.
    ///
    /// # Panics
    /// If it does not start.
    pub fn running(&self, setting: ChannelSetting) -> Qemu {
        let source = setting.setup().start(self.binary).expect("source");
        source.wait_tick_past(TICKS).expect("a running guest");
        source
    }

    /// A guest of the setting's machine, on the one connection that needs no channels.
    ///
    /// # Panics
    /// If it does not come.
    pub fn capture(&self, setting: ChannelSetting) -> (Qemu, CapturedGuest) {
        let mut source = self.running(setting);
        source.set_capabilities(&[("return-path", true)]).expect("capabilities");
        let link = source.migrate_to_us(Transport::Unix).expect("a migration");
        let guest = CapturedGuest::receive(link).expect("a whole guest");
        source.wait_migrated().expect("source");
        (source, guest)
    }

    /// Begins to take in the guest of `source`, a QEMU of this release.
    ///
    /// # Panics
    /// If one side does not start.
    pub fn receive(&self, source: &mut Qemu, savevm: SaveVm, setting: ChannelSetting) -> Incoming {
        let address = setting.transport.address(source.folder());
        let config = setting.incoming();
        let incoming = Incoming::listen(&address, config, savevm, Arc::new(Still), Arc::new(NoObserver))
            .expect("a start");
        setting.apply(source, self.release);
        source.migrate(&incoming.address().expect("it listens").to_string()).expect("migrate");
        incoming
    }

    /// Takes in a running guest over channels, holds every page of it against its QEMU, and returns both. `model` is a
    /// guest of the same machine.
    ///
    /// # Panics
    /// If it does not arrive, or a page differs.
    pub fn assert_sends(&self, model: &CapturedGuest, setting: ChannelSetting) -> (Qemu, SaveVm) {
        let ForeignGuest { ram, savevm, .. } = ForeignGuest::like(model).expect("memory");
        let mut source = self.running(setting);
        let (report, savevm) = self.receive(&mut source, savevm, setting).wait();
        let error = &report.statistics.error;
        assert!(report.is_completed(), "{setting:?}: {error:?}; QEMU said: {}", source.stderr());
        source.wait_migrated().expect("source");
        source.assert_same_memory(&ram).expect("pmemsave");
        assert!(report.statistics.ram.channel_bytes.0 > 0, "{setting:?}: {:?}", report.statistics.ram);
        (source, savevm)
    }

    /// Sends a guest over channels to a fresh QEMU; it must go on from where it stopped in `source`.
    ///
    /// # Panics
    /// If it does not arrive, or does not go on.
    pub fn assert_takes(&self, savevm: SaveVm, source: &Qemu, setting: ChannelSetting) {
        let mut destination = setting.setup().destination().start(self.binary).expect("destination");
        setting.apply(&mut destination, self.release);
        let address = destination.listen(setting.transport).expect("listen");
        let report = send(savevm, address, setting.outgoing(), Arc::new(Still), Arc::new(NoObserver))
            .expect("a start");
        let error = &report.statistics.error;
        assert!(report.is_completed(), "{setting:?}: {error:?}; QEMU said: {}", destination.stderr());
        destination.wait_migrated().expect("destination");
        let ram = report.statistics.ram;
        assert!(ram.normal >= WORKING_SET, "{setting:?}: its pages are not zero: {ram:?}");
        assert!(ram.channel_bytes.0 > 0, "{setting:?}: {ram:?}");
        assert_goes_on(source, &mut destination).expect("a guest that goes on");
    }
}

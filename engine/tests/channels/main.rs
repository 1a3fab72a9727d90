//! Channels that fail, and channels that lie, beside a main channel that does neither: the guest stays on its source
//! with its memory, never runs on the destination, and somebody says which channel it was.

#[path = "../guest/mod.rs"]
mod guest;
mod kills;
mod lies;
mod proxy;

use guest::{Guest, assert_completed};
use limosa_engine::{
    Capabilities, ChannelSync, Codec, GuestFate, Incoming, IncomingChannels, IncomingConfig, IncomingReport,
    NoObserver, Outgoing, OutgoingConfig, OutgoingReport, Parameters, RunState, Vm, VmError,
    ZeroPageDetection,
};
use limosa_pages::{BlockId, PAGE_BYTES};
use limosa_ram::GuestRam;
use limosa_ram::dirty_log::HostWrites;
use proxy::{Mischief, Proxy, Recorded};
use std::sync::Arc;
use std::time::Duration;

/// How long a destination waits for a channel of which the test knows that nothing comes.
const SHORT: Duration = Duration::from_millis(20);

/// Everything that pages may be compressed with.
const CODECS: [Codec; 5] = [
    Codec::None,
    Codec::Zlib { level: 1 },
    Codec::Zstd { level: 1 },
    Codec::Lz4,
    Codec::ZstdPacket { level: 1 },
];

/// What the hot page holds while the guest runs, and what its last write leaves there.
const RUNNING: u8 = 0x55;
const STOPPED: u8 = 0xaa;

/// A guest that is sent over channels again and again, and what it must look like each time.
struct Bench {
    source: Guest,
    destination: Guest,
    /// While it runs.
    memory: Vec<u8>,
    channels: u8,
    codec: Codec,
    /// How long the destination waits for silent channels.
    patience: Duration,
    /// How long the source waits for a channel that takes nothing.
    write_deadline: Duration,
}

/// Both ends of one migration, and what went over the channels.
struct Ended {
    outgoing: OutgoingReport,
    incoming: IncomingReport,
    channels: Vec<Recorded>,
}

/// A hold on a guest whose last write comes with its stop: so that pages leave in the switchover, too.
struct LastWrite {
    vm: Arc<dyn Vm>,
    ram: GuestRam,
    writes: Arc<HostWrites>,
}

impl Bench {
    fn new(channels: u8, codec: Codec) -> Self {
        Self::with(Guest::tiny(), Guest::tiny_incoming(), channels, codec)
    }

    /// A guest of 6 MB, none of it zero: more than a socket takes in without a reader.
    fn large(channels: u8) -> Self {
        let source = Guest::running(0);
        for (_, block) in source.ram.iter() {
            block.copy_in(0, &vec![1; block.length().0 as usize]);
        }
        Self::with(source, Guest::incoming(0), channels, Codec::None)
    }

    fn with(source: Guest, destination: Guest, channels: u8, codec: Codec) -> Self {
        let patience = IncomingConfig::default().sync_patience;
        let write_deadline = OutgoingConfig::default().write_deadline;
        touch(&source.ram, RUNNING);
        Self { memory: source.memory(), source, destination, channels, codec, patience, write_deadline }
    }

    fn incoming(&self) -> IncomingConfig {
        let channels = IncomingChannels {
            count: self.channels,
            compression: self.codec.compression(),
            sync: ChannelSync::PerRound,
            uuid: [0; 16],
        };
        IncomingConfig { sync_patience: self.patience, channels: Some(channels), ..IncomingConfig::default() }
    }

    fn outgoing(&self) -> OutgoingConfig {
        OutgoingConfig {
            capabilities: Capabilities { multifd: true, return_path: true, ..Capabilities::default() },
            parameters: Parameters {
                multifd_channels: self.channels,
                multifd_codec: self.codec,
                zero_page_detection: ZeroPageDetection::Multifd,
                ..Parameters::default()
            },
            write_deadline: self.write_deadline,
            ..OutgoingConfig::default()
        }
    }

    /// A migration through a proxy that does `mischief` to channel `number`.
    fn run(&mut self, number: u8, mischief: Mischief) -> Ended {
        touch(&self.source.ram, RUNNING);
        let (savevm, vm) = (self.destination.take_savevm(), self.destination.vm());
        let anywhere = "tcp:127.0.0.1:0".parse().unwrap();
        let incoming =
            Incoming::listen(&anywhere, self.incoming(), savevm, vm, Arc::new(NoObserver)).unwrap();
        let proxy = Proxy::start(incoming.address().unwrap(), self.channels, number, mischief);
        let vm = Arc::new(LastWrite {
            vm: self.source.vm(),
            ram: self.source.ram.clone(),
            writes: Arc::clone(&self.source.writes),
        });
        let savevm = self.source.take_savevm();
        let outgoing =
            Outgoing::start(proxy.address(), self.outgoing(), savevm, vm, Arc::new(NoObserver)).unwrap();
        let (outgoing, savevm) = outgoing.wait();
        self.source.give_back(savevm);
        let (incoming, savevm) = incoming.wait();
        self.destination.give_back(savevm);
        Ended { outgoing, incoming, channels: proxy.finish() }
    }

    /// The channels of a migration that nothing disturbs; the guest is back on its source afterwards.
    fn record(&mut self) -> Vec<Recorded> {
        let ended = self.run(0, Mischief::None);
        assert_completed(&ended.outgoing, &ended.incoming);
        assert!(self.source.memory() == self.destination.memory());
        self.put_back();
        ended.channels
    }

    /// The guest runs where it ran before with the memory that it had, and nobody says that it is elsewhere.
    fn assert_stays(&mut self, ended: &Ended, what: &str) {
        let what = format!("{what}: {}", ended.errors());
        assert_eq!(ended.outgoing.guest(), GuestFate::OnSource, "{what}");
        assert!(!ended.incoming.is_completed(), "{what}");
        let states = (self.source.run_state(), self.destination.run_state());
        assert_eq!(states, (RunState::Running, RunState::InMigrate), "{what}");
        let memory = self.source.memory();
        assert!([RUNNING, STOPPED].contains(&memory[0]), "{what}");
        touch(&self.source.ram, RUNNING);
        assert!(self.source.memory() == self.memory, "{what}");
    }

    fn put_back(&mut self) {
        self.source.put_into(RunState::Running);
        self.destination.put_into(RunState::InMigrate);
    }
}

impl Ended {
    fn errors(&self) -> String {
        let none = || "(none)".to_owned();
        let source = self.outgoing.statistics.error.clone().unwrap_or_else(none);
        let destination = self.incoming.statistics.error.clone().unwrap_or_else(none);
        format!("source: {source}; destination: {destination}")
    }
}

impl Vm for LastWrite {
    fn stop(&self) -> Result<(), VmError> {
        self.vm.stop()?;
        touch(&self.ram, STOPPED);
        self.writes.mark(BlockId(0), 0, PAGE_BYTES as u64);
        Ok(())
    }

    fn resume(&self) -> Result<(), VmError> {
        self.vm.resume()
    }

    fn run_state(&self) -> RunState {
        self.vm.run_state()
    }
}

/// Fills the first page.
fn touch(ram: &GuestRam, byte: u8) {
    ram.block(BlockId(0)).copy_in(0, &[byte; PAGE_BYTES]);
}

/// Proves that both lists still work: the guest moves with all of its memory.
fn assert_migrates_now(mut bench: Bench) {
    let ended = bench.run(0, Mischief::None);
    assert_completed(&ended.outgoing, &ended.incoming);
    assert!(bench.source.memory() == bench.destination.memory());
    assert_eq!(bench.destination.run_state(), RunState::Running);
}

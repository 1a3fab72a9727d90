//! 200 migrations of a busy guest in a row, from A to B to A: exactly one of them runs it, its progress never steps back,
//! and no byte of its memory is ever another than it must be.
//!
//! The machines are the same all along, so that a guest comes back to memory full of what it left there.

mod places;

use limosa::pages::ByteCount;
use limosa::transport::Link;
use limosa::{
    Capabilities, ChannelSync, Codec, Incoming, IncomingChannels, IncomingConfig, IncomingReport, NoObserver,
    Outgoing, OutgoingConfig, OutgoingReport, Parameters, Vm,
};
use limosa_stress::qemu::{PATIENCE, leave_out};
use limosa_vmm::{GuestKind, Program, kvm_usable};
use places::{Census, Place, assert_no_step_back, assert_one_runs, busy, machine};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Migrations with each number of vCPUs: 200 of each kind of guest.
const TURNS: usize = 100;
/// The same over channels: each number of them with each codec, and once more.
const CHANNEL_TURNS: usize = 2 * CHANNELS.len() * CODECS.len();
const CHANNELS: [u8; 4] = [1, 2, 4, 8];
const CODECS: [Codec; 4] = [Codec::None, Codec::Zstd { level: 1 }, Codec::Lz4, Codec::Auto];
const VCPUS: [u32; 2] = [1, 2];

/// After so many migrations the guest is paused and every page is checked.
const CHECK_EVERY: usize = 10;

#[test]
fn a_busy_kvm_guest_survives_two_hundred_migrations() {
    match kvm_usable() {
        Ok(()) => go_to_and_fro(GuestKind::Kvm, Turn::new, TURNS),
        Err(reason) => leave_out(format_args!("hot guests under KVM: {reason}")),
    }
}

#[test]
fn a_busy_kvm_guest_survives_migrations_over_any_number_of_channels() {
    match kvm_usable() {
        Ok(()) => go_to_and_fro(GuestKind::Kvm, Turn::over_channels, CHANNEL_TURNS),
        Err(reason) => leave_out(format_args!("hot guests over channels: {reason}")),
    }
}

#[test]
fn a_busy_process_guest_survives_two_hundred_migrations() {
    match machine(GuestKind::Process, 1, Program::Incoming).dirty_log() {
        Ok(_) => go_to_and_fro(GuestKind::Process, Turn::new, TURNS),
        Err(reason) => leave_out(format_args!("hot process guests: {reason}")),
    }
}

/// How one migration is made.
#[derive(Clone, Copy, Debug)]
struct Turn {
    route: Route,
    xbzrle: bool,
    return_path: bool,
    /// How many channels beside the main one, and what is on them.
    channels: Option<(u8, Codec)>,
}

#[derive(Clone, Copy, Debug)]
enum Route {
    SocketPair,
    Tcp,
    Unix,
}

/// What all migrations together did, to prove that they had something to do.
#[derive(Debug, Default)]
struct Totals {
    /// Pages sent after the first round: the guest wrote while it moved.
    resent: u64,
    deltas: u64,
}

impl Turn {
    /// All twelve ways in twelve turns.
    fn new(number: usize) -> Self {
        Self {
            route: [Route::SocketPair, Route::Tcp, Route::Unix][number % 3],
            xbzrle: number / 3 % 2 == 1,
            return_path: number % 12 < 6,
            channels: None,
        }
    }

    /// All channels with all codecs, and then without a return path where the codec needs no greeting.
    fn over_channels(number: usize) -> Self {
        let channels = CHANNELS[number % CHANNELS.len()];
        let codec = CODECS[number / CHANNELS.len() % CODECS.len()];
        Self {
            route: [Route::Tcp, Route::Unix][number % 2],
            xbzrle: false,
            return_path: number < CHANNEL_TURNS / 2 || matches!(codec, Codec::Lz4 | Codec::Auto),
            channels: Some((channels, codec)),
        }
    }

    fn config(self) -> OutgoingConfig {
        let Self { xbzrle, return_path, channels, .. } = self;
        let multifd = channels.is_some();
        let (multifd_channels, multifd_codec) = channels.unwrap_or((1, Codec::None));
        OutgoingConfig {
            capabilities: Capabilities { xbzrle, return_path, multifd, ..Capabilities::default() },
            parameters: Parameters {
                // Too small for the working set, so that pages are evicted.
                xbzrle_cache_size: ByteCount(4 << 20),
                multifd_channels,
                multifd_codec,
                ..Parameters::default()
            },
            ..OutgoingConfig::default()
        }
    }

    fn incoming(self) -> IncomingConfig {
        let channels = self.channels.map(|(count, codec)| IncomingChannels {
            count,
            compression: codec.compression(),
            sync: ChannelSync::PerRound,
            uuid: [0; 16],
        });
        IncomingConfig { read_deadline: Some(PATIENCE), channels, ..IncomingConfig::default() }
    }
}

fn go_to_and_fro(kind: GuestKind, turn: impl Fn(usize) -> Turn, turns: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let begin = Instant::now();
    for vcpus in VCPUS {
        let census = Arc::new(Census::default());
        let mut here = Place::new(kind, vcpus, busy(u64::from(vcpus)), &census);
        let mut there = Place::new(kind, vcpus, Program::Incoming, &census);
        let mut totals = Totals::default();
        here.handle.resume().expect("it runs");
        for number in 0..turns {
            here.work();
            let turn = turn(number);
            let when = format!("{kind:?}, {vcpus} vCPUs, migration {number}, {turn:?}");
            let (outgoing, incoming) = migrate(turn, &mut here, &mut there, folder.path());
            assert!(outgoing.is_completed(), "{when}: {:?}", outgoing.statistics.error);
            assert!(incoming.is_completed(), "{when}: {:?}", incoming.statistics.error);
            totals.add(&outgoing);
            assert_one_runs(&census, &here, &there, &when);
            assert_no_step_back(&here.machine().progress(), &there.machine().progress(), &when);
            if number % CHECK_EVERY == CHECK_EVERY - 1 {
                there.check(&when);
            }
            std::mem::swap(&mut here, &mut there);
        }
        here.check(&"at the end");
        // More than a page in each migration: the guest was busy.
        assert!(totals.resent > turns as u64, "{totals:?}");
        assert_eq!(totals.deltas > 0, (0..turns).any(|number| turn(number).xbzrle), "{totals:?}");
        eprintln!("{kind:?}, {vcpus} vCPUs: {turns} migrations, {:?} so far, {totals:?}", begin.elapsed());
    }
}

fn migrate(
    turn: Turn,
    source: &mut Place,
    destination: &mut Place,
    folder: &Path,
) -> (OutgoingReport, IncomingReport) {
    let observer = Arc::new(NoObserver);
    let (list, vm) = (destination.lend(), destination.vm());
    let config = turn.incoming();
    let address = match turn.route {
        Route::SocketPair => None,
        Route::Tcp => Some("tcp:127.0.0.1:0".to_owned()),
        Route::Unix => Some(format!("unix:{}", folder.join("stream").display())),
    };
    let (incoming, outgoing) = match address {
        None => {
            let (near, far) = Link::pair().expect("a pair");
            let incoming = Incoming::over(far, config, list, vm, observer.clone()).expect("it listens");
            let (list, vm) = (source.lend(), source.vm());
            (incoming, Outgoing::over(near, turn.config(), list, vm, observer))
        }
        Some(address) => {
            let address = address.parse().expect("a plain address");
            let incoming =
                Incoming::listen(&address, config, list, vm, observer.clone()).expect("it listens");
            let address = incoming.address().expect("a place").clone();
            let (list, vm) = (source.lend(), source.vm());
            (incoming, Outgoing::start(address, turn.config(), list, vm, observer))
        }
    };
    let (left, list) = outgoing.expect("it starts").wait();
    source.savevm = Some(list);
    let (arrived, list) = incoming.wait();
    destination.savevm = Some(list);
    (left, arrived)
}

impl Totals {
    fn add(&mut self, report: &OutgoingReport) {
        self.resent += report.statistics.rounds.iter().skip(1).map(|round| round.pages.0).sum::<u64>();
        self.deltas += report.statistics.ram.xbzrle_pages.0;
    }
}

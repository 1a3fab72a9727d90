//! 200 migrations of a busy guest in a row, from A to B to A: exactly one of them runs it, its progress never steps back,
//! and no byte of its memory is ever another than it must be.
//!
//! The machines are the same all along, so that a guest comes back to memory full of what it left there.

use limosa::pages::{BlockId, ByteCount, PageCount};
use limosa::transport::Link;
use limosa::{
    Capabilities, ChannelSync, Codec, Incoming, IncomingChannels, IncomingConfig, IncomingReport, NoObserver,
    Outgoing, OutgoingConfig, OutgoingReport, Parameters, SaveVm, Vm, VmError,
};
use limosa_stress::qemu::{PATIENCE, leave_out};
use limosa_vmm::{
    Content, Dirtier, GuestConfig, GuestKind, Machine, Prefill, Program, Rate, RunState, WorkerProgress,
    kvm_usable,
};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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

const MEMORY: ByteCount = ByteCount(32 << 20);
/// What the guest writes again and again, as fast as it can. A prime, so that the vCPUs' shares differ.
const WORKING_SET: PageCount = PageCount(2039);
/// Steps that every worker does between two migrations.
const STEPS: u64 = 50;

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

/// How many machines run the guest.
#[derive(Debug, Default)]
struct Census {
    running: AtomicUsize,
    most: AtomicUsize,
}

/// A machine with its list, and the engine's hold on it.
struct Place {
    handle: Arc<Handle>,
    savevm: Option<SaveVm>,
}

struct Handle {
    machine: Machine,
    run_state: Mutex<limosa::RunState>,
    census: Arc<Census>,
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

impl Census {
    fn add(&self) {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
    }

    fn remove(&self) {
        self.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Place {
    fn new(kind: GuestKind, vcpus: u32, program: Program, census: &Arc<Census>) -> Self {
        let run_state = match program {
            Program::Incoming => limosa::RunState::InMigrate,
            _ => limosa::RunState::Paused,
        };
        let machine = machine(kind, vcpus, program);
        let savevm = Some(machine.savevm().expect("a list"));
        let census = Arc::clone(census);
        Self { handle: Arc::new(Handle { machine, run_state: Mutex::new(run_state), census }), savevm }
    }

    fn machine(&self) -> &Machine {
        &self.handle.machine
    }

    fn vm(&self) -> Arc<dyn Vm> {
        Arc::clone(&self.handle) as Arc<_>
    }

    fn lend(&mut self) -> SaveVm {
        self.savevm.take().expect("lent to one migration at a time")
    }

    /// Waits until every worker has written some pages.
    fn work(&self) {
        let before = self.machine().progress();
        let begin = Instant::now();
        let behind = |now: &WorkerProgress, before: &WorkerProgress| now.steps < before.steps + STEPS;
        while self.machine().progress().iter().zip(&before).any(|(now, before)| behind(now, before)) {
            assert!(begin.elapsed() < PATIENCE, "the guest does not go on");
            std::thread::yield_now();
        }
    }

    /// Pauses the guest, checks every page of it, and lets it go on.
    fn check(&self, when: &dyn std::fmt::Display) {
        self.handle.stop().expect("it stops");
        let report = self.machine().verify().expect("it is the built-in guest");
        assert!(report.is_clean(), "{when}: {report:#?}");
        let looked_at = report.pages_checked + report.pages_in_flight;
        assert_eq!(looked_at, self.machine().ram().block(BlockId(0)).pages(), "{when}");
        self.handle.resume().expect("it goes on");
    }
}

impl Vm for Handle {
    fn stop(&self) -> Result<(), VmError> {
        let mut run_state = self.run_state.lock();
        if *run_state == limosa::RunState::Running {
            self.machine.pause();
            self.census.remove();
        }
        *run_state = limosa::RunState::Paused;
        Ok(())
    }

    fn resume(&self) -> Result<(), VmError> {
        let mut run_state = self.run_state.lock();
        // Counted before the first instruction: too many is what must be seen.
        self.census.add();
        self.machine.resume().map_err(VmError::new)?;
        *run_state = limosa::RunState::Running;
        Ok(())
    }

    fn run_state(&self) -> limosa::RunState {
        *self.run_state.lock()
    }
}

fn machine(kind: GuestKind, vcpus: u32, program: Program) -> Machine {
    let config = GuestConfig { kind, memory: MEMORY, vcpus, program, ..GuestConfig::default() };
    Machine::new(&config).expect("a machine")
}

fn go_to_and_fro(kind: GuestKind, turn: impl Fn(usize) -> Turn, turns: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let begin = Instant::now();
    for vcpus in VCPUS {
        let census = Arc::new(Census::default());
        let dirtier = Dirtier {
            seed: u64::from(vcpus),
            content: Content::Mixed,
            prefill: Prefill::Write(Content::Mixed),
            working_set: Some(WORKING_SET),
            rate: Rate::Unlimited,
            ..Dirtier::default()
        };
        let mut here = Place::new(kind, vcpus, Program::Dirtier(dirtier), &census);
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

fn assert_one_runs(census: &Census, here: &Place, there: &Place, when: &str) {
    let states = (here.machine().run_state(), there.machine().run_state());
    assert_eq!(states, (RunState::Paused, RunState::Running), "{when}");
    assert_eq!(census.running.load(Ordering::SeqCst), 1, "{when}");
    assert_eq!(census.most.load(Ordering::SeqCst), 1, "{when}: never two at a time");
}

fn assert_no_step_back(left: &[WorkerProgress], arrived: &[WorkerProgress], when: &str) {
    assert_eq!(left.len(), arrived.len(), "{when}");
    for (left, arrived) in left.iter().zip(arrived) {
        assert!(left.steps <= arrived.steps, "{when}: {left:?} became {arrived:?}");
    }
}

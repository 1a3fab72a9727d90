//! Migrations of a busy guest whose links are cut again and again, at moments that a seed chooses: before the switch to
//! postcopy, while it happens, after it, and in the middle of a recovery.
//!
//! Whatever is cut, one machine runs the guest, and its memory is whole there in the end. A cut before the switch leaves the
//! guest where it was, and the migration begins anew; after it the operator connects both sides again.

#[path = "../places/mod.rs"]
mod places;
mod proxy;

use limosa::pages::ByteCount;
use limosa::transport::Address;
use limosa::{
    Capabilities, ChannelSync, Compression, GuestFate, Incoming, IncomingChannels, IncomingConfig,
    IncomingPostcopy, IncomingReport, MigrationStatus, NoObserver, OperatorWord, Outgoing, OutgoingConfig,
    OutgoingReport, Parameters, Vm,
};
use limosa_stress::qemu::{PATIENCE, leave_out};
use limosa_stress::sim::Rng;
use limosa_vmm::{GuestKind, Program, RunState, kvm_usable};
use places::{Census, MEMORY, Place, assert_no_step_back, assert_one_runs, busy, machine};
use proxy::Proxy;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Migrations of each kind of guest in every run of the tests.
const FEW: u64 = 20;
/// And in the long one.
const MANY: u64 = 100;

/// How often the links of one migration are cut at most.
const CUTS_MAX: u64 = 3;

/// Around the switch: the package of this guest, and the answers to it, are smaller.
const NEAR: u64 = 16 << 10;

/// How much of its memory follows the guest in a second: it takes a moment, in which links can be cut.
const FOLLOWS: ByteCount = ByteCount(64 << 20);

#[test]
fn a_kvm_guest_is_on_one_side_and_whole_wherever_its_links_are_cut() {
    with_kvm(0..FEW);
}

#[test]
fn a_process_guest_is_on_one_side_and_whole_wherever_its_links_are_cut() {
    with_processes(0..FEW);
}

#[test]
#[ignore = "the long run: a hundred migrations"]
fn a_kvm_guest_survives_a_hundred_migrations_whose_links_are_cut() {
    with_kvm(1000..1000 + MANY);
}

#[test]
#[ignore = "the long run: a hundred migrations"]
fn a_process_guest_survives_a_hundred_migrations_whose_links_are_cut() {
    with_processes(1000..1000 + MANY);
}

fn with_kvm(seeds: std::ops::Range<u64>) {
    match kvm_usable() {
        Ok(()) if can_watch_faults(GuestKind::Kvm) => go_to_and_fro(GuestKind::Kvm, seeds),
        Ok(()) => {}
        Err(reason) => leave_out(format_args!("cut links under KVM: {reason}")),
    }
}

fn with_processes(seeds: std::ops::Range<u64>) {
    match machine(GuestKind::Process, 1, Program::Incoming).dirty_log() {
        Ok(_) if can_watch_faults(GuestKind::Process) => go_to_and_fro(GuestKind::Process, seeds),
        Ok(_) => {}
        Err(reason) => leave_out(format_args!("cut links of process guests: {reason}")),
    }
}

/// Whether there is userfaultfd here.
fn can_watch_faults(kind: GuestKind) -> bool {
    let mut place = Place::new(kind, 1, Program::Incoming, &Arc::default());
    let postcopy = Some(IncomingPostcopy::default());
    let config = IncomingConfig { postcopy, ..IncomingConfig::default() };
    let (list, vm) = (place.lend(), place.vm());
    match Incoming::listen(&anywhere(), config, list, vm, Arc::new(NoObserver)) {
        Ok(incoming) => {
            incoming.cancel();
            incoming.wait();
            true
        }
        Err(refused) => {
            leave_out(format_args!("cut links: {}", refused.reason));
            false
        }
    }
}

/// What a seed says of one migration.
#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    preempt: bool,
    /// Multifd channels; 0 for none.
    channels: u8,
    /// Bytes that pass before the order to switch.
    switch_after: u64,
    /// The first one last.
    cuts: Vec<Cut>,
}

/// From when on so many bytes of both directions pass before the links are cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Start(u64),
    Switch(u64),
    /// The guest is seen to run there.
    Run(u64),
}

/// What all migrations together met, to prove that they were disturbed.
#[derive(Debug, Default)]
struct Totals {
    stayed: u64,
    paused: u64,
    /// The operator had to say where the guest is.
    asked: u64,
}

/// A migration under way, and what its operator has done.
struct Attempt<'a> {
    plan: &'a mut Plan,
    outgoing: Outgoing,
    incoming: Incoming,
    proxy: Proxy,
    switched: bool,
    asked: bool,
}

impl Plan {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let cuts = (0..1 + rng.below(CUTS_MAX))
            .map(|_| match rng.below(6) {
                0 => Cut::Start(rng.below(MEMORY.0)),
                1 => Cut::Switch(rng.below(NEAR)),
                2 => Cut::Switch(rng.below(MEMORY.0 / 4)),
                3 => Cut::Run(rng.below(NEAR)),
                _ => Cut::Run(rng.below(MEMORY.0 / 16)),
            })
            .collect();
        Self {
            seed,
            preempt: rng.one_in(2),
            channels: rng.choose(&[0, 0, 2]),
            switch_after: rng.below(3 * MEMORY.0 / 2),
            cuts,
        }
    }

    fn outgoing(&self) -> OutgoingConfig {
        OutgoingConfig {
            capabilities: Capabilities {
                postcopy_ram: true,
                postcopy_preempt: self.preempt,
                multifd: self.channels > 0,
                ..OutgoingConfig::default().capabilities
            },
            // A busy guest never gets there without the switch.
            parameters: Parameters {
                downtime_limit: Duration::ZERO,
                max_postcopy_bandwidth: Some(FOLLOWS),
                multifd_channels: self.channels.max(1),
                ..Parameters::default()
            },
            ..OutgoingConfig::default()
        }
    }

    fn incoming(&self) -> IncomingConfig {
        let channels = (self.channels > 0).then_some(IncomingChannels {
            count: self.channels,
            compression: Compression::None,
            sync: ChannelSync::PerRound,
            uuid: [0; 16],
        });
        let postcopy = Some(IncomingPostcopy { preempt: self.preempt });
        IncomingConfig { channels, postcopy, ..IncomingConfig::default() }
    }

    /// After how many bytes of a new connection it is cut, if that is known already.
    fn cut_from_start(&mut self) -> Option<u64> {
        match self.cuts.last() {
            Some(Cut::Start(bytes)) => {
                let bytes = *bytes;
                self.cuts.pop();
                Some(bytes)
            }
            _ => None,
        }
    }

    fn next_cut(&mut self) -> Option<u64> {
        self.cuts.pop().map(|(Cut::Start(bytes) | Cut::Switch(bytes) | Cut::Run(bytes))| bytes)
    }
}

impl<'a> Attempt<'a> {
    fn start(plan: &'a mut Plan, source: &mut Place, destination: &mut Place) -> Self {
        let observer = Arc::new(NoObserver);
        let (list, vm) = (destination.lend(), destination.vm());
        let incoming = Incoming::listen(&anywhere(), plan.incoming(), list, vm, observer.clone());
        let incoming = incoming.expect("it listens");
        let proxy = Proxy::start(incoming.address().expect("a place"), plan.cut_from_start());
        let (list, vm) = (source.lend(), source.vm());
        let outgoing = Outgoing::start(proxy.address(), plan.outgoing(), list, vm, observer);
        Self { plan, outgoing: outgoing.expect("it starts"), incoming, proxy, switched: false, asked: false }
    }

    /// Does what an operator would do, until both sides have ended.
    fn see_to_the_end(&mut self, source: &Place, destination: &Place) {
        let begin = Instant::now();
        loop {
            let ended = (self.outgoing.has_ended(), self.incoming.has_ended());
            let statuses = (self.outgoing.statistics().status, self.incoming.statistics().status);
            let (paused, recovers) = (MigrationStatus::PostcopyPaused, &self.incoming);
            match statuses {
                _ if ended == (true, true) => return,
                // The connections beside the first one may be lost before they have come, and be waited for.
                (MigrationStatus::Failed, _) if ended.0 => recovers.cancel(),
                (here, there) if (here, there) == (paused, paused) => self.recover(),
                (here, MigrationStatus::Completed) if here == paused && ended.1 => {
                    self.say(OperatorWord::HasGuest);
                }
                (here, MigrationStatus::Failed) if here == paused && ended.1 => {
                    self.say(OperatorWord::NeverRan);
                }
                _ if !self.switched && self.proxy.passed() >= self.plan.switch_after => self.switch(),
                (_, MigrationStatus::PostcopyActive) if self.proxy.is_whole() => self.run(),
                _ => std::thread::yield_now(),
            }
            let states = (source.machine().run_state(), destination.machine().run_state());
            assert!(
                begin.elapsed() < PATIENCE,
                "seed {}: no end: {statuses:?} {ended:?}, {states:?}, {:?}\n{:?}\n{:?}",
                self.plan.seed,
                self.plan,
                self.outgoing.statistics(),
                self.incoming.statistics(),
            );
        }
    }

    fn switch(&mut self) {
        self.switched = true;
        // One that has failed meanwhile has been cut before.
        if self.outgoing.start_postcopy().is_ok()
            && let Some(Cut::Switch(bytes)) = self.plan.cuts.last().copied()
        {
            self.plan.cuts.pop();
            self.proxy.cut_after(bytes);
        }
    }

    /// The guest runs there.
    fn run(&mut self) {
        if let Some(Cut::Run(bytes)) = self.plan.cuts.last().copied() {
            self.plan.cuts.pop();
            self.proxy.cut_after(bytes);
        } else {
            std::thread::yield_now();
        }
    }

    fn recover(&mut self) {
        let pauses = self.outgoing.statistics().pauses;
        let address = self.incoming.recover_postcopy(&anywhere()).expect("it is paused");
        self.proxy = Proxy::start(&address, self.plan.next_cut());
        self.outgoing.resume_postcopy(self.proxy.address()).expect("it is paused");
        let begin = Instant::now();
        let unheard = |now: &limosa::OutgoingStatistics| {
            now.status == MigrationStatus::PostcopyPaused && now.pauses == pauses
        };
        while unheard(&self.outgoing.statistics()) {
            assert!(begin.elapsed() < PATIENCE, "seed {}: the source does not resume", self.plan.seed);
            std::thread::yield_now();
        }
    }

    fn say(&mut self, word: OperatorWord) {
        self.asked = true;
        // Said again until it is heard; then the migration has ended, and says so.
        let _ = self.outgoing.end_postcopy(word);
        std::thread::yield_now();
    }

    fn wait(self, source: &mut Place, destination: &mut Place) -> (OutgoingReport, IncomingReport) {
        let (left, list) = self.outgoing.wait();
        source.savevm = Some(list);
        let (arrived, list) = self.incoming.wait();
        destination.savevm = Some(list);
        (left, arrived)
    }
}

fn anywhere() -> Address {
    "tcp:127.0.0.1:0".parse().expect("an address")
}

fn go_to_and_fro(kind: GuestKind, seeds: std::ops::Range<u64>) {
    let begin = Instant::now();
    let census = Arc::new(Census::default());
    let mut here = Place::new(kind, 2, busy(seeds.start), &census);
    let mut there = Place::new(kind, 2, Program::Incoming, &census);
    let mut totals = Totals::default();
    here.handle.resume().expect("it runs");
    for seed in seeds {
        let mut plan = Plan::new(seed);
        let when = format!("{kind:?}, seed {seed}: {plan:?}");
        eprintln!("{when}");
        while !migrate(&mut plan, &mut here, &mut there, &mut totals, &when) {
            assert_stayed(&census, &here, &there, &when);
            here.check(&when);
            totals.stayed += 1;
        }
        assert_one_runs(&census, &here, &there, &when);
        assert_no_step_back(&here.machine().progress(), &there.machine().progress(), &when);
        there.check(&when);
        std::mem::swap(&mut here, &mut there);
    }
    eprintln!("{kind:?}: {:?} in {:?}", totals, begin.elapsed());
    assert!(totals.stayed > 0 && totals.paused > 0, "{totals:?}");
}

/// One attempt; whether the guest has moved.
fn migrate(plan: &mut Plan, here: &mut Place, there: &mut Place, totals: &mut Totals, when: &str) -> bool {
    here.work();
    let mut attempt = Attempt::start(plan, here, there);
    attempt.see_to_the_end(here, there);
    totals.asked += u64::from(attempt.asked);
    let (left, arrived) = attempt.wait(here, there);
    totals.paused += u64::from(left.statistics.pauses);
    let why = (&left.statistics.error, &arrived.statistics.error);
    match left.guest() {
        GuestFate::OnDestination => {
            assert!(left.is_completed() && arrived.is_completed(), "{when}: {why:?}");
            true
        }
        GuestFate::OnSource => {
            assert!(!left.is_completed() && !arrived.is_completed(), "{when}: {why:?}");
            false
        }
        fate => panic!("{when}: {fate}, {why:?}"),
    }
}

fn assert_stayed(census: &Census, here: &Place, there: &Place, when: &str) {
    assert_eq!(here.machine().run_state(), RunState::Running, "{when}");
    assert_eq!(there.machine().run_state(), RunState::Paused, "{when}");
    census.assert_one(when);
}

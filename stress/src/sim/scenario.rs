//! What a seed means: how the migration is set up, what goes wrong, and in which state.

use super::destination_shell::DestinationHabits;
use super::fault::Fault;
use super::guest::PAGES;
use super::mutant::Mutant;
use super::rng::Rng;
use limosa_pages::PAGE_BYTES;
use limosa_protocol::{
    AutoPostcopy, BytesPerSecond, ConvergenceConfig, FeatureWishes, SourceConfig, SourcePostcopy,
};
use limosa_wire::{Features, PostcopyAdvice};
use std::time::Duration;

/// Which machine's state is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// [`limosa_protocol::Source`]
    Source,
    /// [`limosa_protocol::Destination`]
    Destination,
}

/// A state of a machine, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The machine.
    pub side: Side,
    /// The state's name.
    pub state: &'static str,
}

/// A fault and when it strikes.
#[derive(Clone, Copy, Debug)]
pub struct Strike {
    /// In this state; `None` is anywhere.
    pub place: Option<Place>,
    /// After so many steps there.
    pub after: u64,
    /// The fault.
    pub fault: Fault,
}

/// Everything that a run is made of.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Chance of the run itself.
    pub rng: Rng,
    /// Settings of the source.
    pub source: SourceConfig,
    /// What the destination is like.
    pub destination: DestinationHabits,
    /// The user asks for postcopy at some moment.
    pub starts_postcopy: bool,
    /// Writes that the guest makes.
    pub writes: u32,
    /// Pages that it writes to.
    pub working_set: u64,
    /// Connections for pages beside the main one.
    pub channels: usize,
    /// What goes wrong, in this order; each is armed when the one before it has struck.
    pub strikes: Vec<Strike>,
    /// The mistake that the shells make.
    pub mutant: Option<Mutant>,
}

impl Scenario {
    /// A migration in which nothing goes wrong.
    pub fn undisturbed(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let return_path = !rng.one_in(4);
        let limits = [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(300)];
        let source = SourceConfig {
            return_path,
            pause_before_switchover: rng.one_in(4),
            switchover_ack: return_path && rng.one_in(4),
            convergence: ConvergenceConfig {
                downtime_limit: rng.choose(&limits),
                switchover_bandwidth: rng.one_in(8).then_some(BytesPerSecond(100_000_000)),
                auto_postcopy: None,
            },
            max_bandwidth: rng.one_in(4).then_some(SLOW),
            features: FeatureWishes { wanted: some_features(&mut rng), required: Features::NONE },
            ..SourceConfig::default()
        };
        Self {
            destination: DestinationHabits {
                ack_at: source.switchover_ack.then(|| Duration::from_micros(rng.below(5000))),
                is_qemu: rng.one_in(3),
                features: some_features(&mut rng),
                postcopy: None,
            },
            source,
            starts_postcopy: false,
            writes: rng.below(60) as u32,
            working_set: 1 + rng.below(PAGES as u64),
            channels: 0,
            strikes: Vec::new(),
            mutant: None,
            rng,
        }
    }

    /// A migration that goes over to postcopy, by the user's word or by policy, and in which nothing goes wrong.
    pub fn postcopy(seed: u64) -> Self {
        let mut scenario = Self::undisturbed(seed);
        let rng = &mut scenario.rng;
        let advice =
            PostcopyAdvice { page_size_summary: PAGE_BYTES as u64, target_page_size: PAGE_BYTES as u64 };
        let source = &mut scenario.source;
        source.return_path = true;
        // A downtime that nothing fits keeps precopy going until somebody wants postcopy.
        source.convergence.downtime_limit = Duration::ZERO;
        source.postcopy = Some(SourcePostcopy {
            advice,
            preempt: rng.one_in(2),
            max_bandwidth: rng.one_in(4).then_some(SLOW),
        });
        scenario.starts_postcopy = rng.one_in(2);
        source.convergence.auto_postcopy = (!scenario.starts_postcopy).then(|| AutoPostcopy {
            rounds_max: rng.one_in(2).then(|| 1 + rng.below(3) as u32),
            time_max: rng.one_in(2).then(|| Duration::from_millis(rng.below(20))),
        });
        scenario.destination.postcopy = Some(advice);
        scenario.writes = 100 + rng.below(200) as u32;
        // They carry pages until the switch; what follows it stays on the main channel and the preempt channel.
        scenario.channels = if rng.one_in(4) { 1 + rng.below(CHANNELS_MAX) as usize } else { 0 };
        // Chance alone would seldom give both sides the two extensions that belong together.
        if rng.one_in(2) {
            scenario.extend();
        }
        scenario
    }

    /// A migration with postcopy in which a fault strikes in this state, and perhaps others some time later.
    pub fn postcopy_struck_in(place: Place, seed: u64, patience: u64) -> Self {
        let mut scenario = Self::postcopy(seed);
        if place.state == REPLACING_LINKS {
            scenario.extend();
        }
        let rng = &mut scenario.rng;
        if let Some(postcopy) = &mut scenario.source.postcopy {
            match place.state {
                "opening the preempt channel"
                | "reopening the preempt channel"
                | "draining"
                | REPLACING_LINKS => postcopy.preempt = true,
                _ => {}
            }
        }
        if place.state == REPLACING_LINKS {
            let pushing = Place { side: Side::Source, state: "pushing" };
            let (after, fault) = (rng.below(6), Fault::CutPreempt);
            scenario.strikes.push(Strike { place: Some(pushing), after, fault });
        }
        if AFTER_A_LOSS.contains(&place.state) {
            let pushing = Place { side: Side::Source, state: rng.choose(&["awaiting running", "pushing"]) };
            scenario.strikes.push(Strike {
                place: Some(pushing),
                after: rng.below(6),
                fault: Fault::CutLink,
            });
        }
        let after = rng.below(patience + 1);
        scenario.strikes.push(Strike { place: Some(place), after, fault: rng.choose(&Fault::POSTCOPY) });
        while scenario.strikes.len() < STRIKES_MAX && rng.one_in(2) {
            let after = rng.below(120);
            scenario.strikes.push(Strike { place: None, after, fault: rng.choose(&Fault::POSTCOPY) });
        }
        scenario
    }

    /// A migration with postcopy between two of ours, with a link for pages that are asked for, which breaks alone after so
    /// many steps each time.
    pub fn postcopy_over_a_breaking_link(seed: u64, breaks: &[u64]) -> Self {
        let mut scenario = Self::postcopy(seed);
        scenario.extend();
        if let Some(postcopy) = &mut scenario.source.postcopy {
            postcopy.preempt = true;
        }
        let place = Some(Place { side: Side::Source, state: "pushing" });
        let strike = |&after| Strike { place, after, fault: Fault::CutPreempt };
        scenario.strikes.extend(breaks.iter().map(strike));
        scenario
    }

    /// A migration in which a fault strikes in this state, `patience` steps after it is reached or sooner, and perhaps
    /// another one some time later.
    pub fn struck_in(place: Place, seed: u64, patience: u64) -> Self {
        let mut scenario = Self::undisturbed(seed);
        scenario.make_reachable(place.state);
        let rng = &mut scenario.rng;
        if place.state == "resuming" {
            // Somebody must have given up while the guest was stopped.
            let stopped = Place { side: Side::Source, state: rng.choose(&STOPPED_STATES) };
            let cancel = Strike { place: Some(stopped), after: 0, fault: Fault::CancelSource };
            scenario.strikes.push(cancel);
        }
        let after = rng.below(patience + 1);
        scenario.strikes.push(Strike { place: Some(place), after, fault: rng.choose(&Fault::ALL) });
        if rng.one_in(2) {
            let after = rng.below(40);
            scenario.strikes.push(Strike { place: None, after, fault: rng.choose(&Fault::ALL) });
        }
        scenario
    }

    /// A migration over channels in which nothing goes wrong.
    pub fn over_channels(seed: u64) -> Self {
        let mut scenario = Self::undisturbed(seed);
        scenario.channels = 1 + scenario.rng.below(CHANNELS_MAX) as usize;
        scenario
    }

    /// The same with a fault of a channel, when so many steps are done, and perhaps another fault some time later.
    pub fn with_a_channel_struck(fault: Fault, seed: u64) -> Self {
        let mut scenario = Self::over_channels(seed);
        let rng = &mut scenario.rng;
        scenario.strikes.push(Strike { place: None, after: rng.below(CHANNEL_STEPS), fault });
        if rng.one_in(4) {
            let after = rng.below(40);
            scenario.strikes.push(Strike { place: None, after, fault: rng.choose(&Fault::ALL) });
        }
        scenario
    }

    /// Gives both sides all extensions.
    fn extend(&mut self) {
        self.destination.is_qemu = false;
        self.destination.features = Features::KNOWN;
        self.source.features.wanted = Features::KNOWN;
    }

    /// Changes the settings that would keep a migration out of this state.
    fn make_reachable(&mut self, state: &str) {
        match state {
            "greeting" | "proving setup" | "barrier" | "proving devices" | "awaiting shut" | "resuming" => {
                self.source.return_path = true;
            }
            "throttled" => self.source.max_bandwidth = Some(SLOW),
            "resting" => {
                self.source.return_path = true;
                self.source.switchover_ack = true;
                // Later than any first round.
                self.destination.ack_at = Some(Duration::from_millis(400));
            }
            "pre-switchover" => self.source.pause_before_switchover = true,
            _ => {}
        }
    }
}

/// Any set of those that this version knows.
fn some_features(rng: &mut Rng) -> Features {
    Features::from_bits(rng.below(Features::KNOWN.bits() + 1))
}

/// The state that only a migration reaches that has lost a link beside the main one, alone.
const REPLACING_LINKS: &str = "replacing links";

/// States that only a migration reaches that has lost its connection.
const AFTER_A_LOSS: [&str; 7] = [
    "pausing",
    "paused",
    "reconnecting",
    "fetching bitmaps",
    "reopening the preempt channel",
    "awaiting resume",
    "recovering",
];

/// Most faults of one run.
const STRIKES_MAX: usize = 4;

/// Half a megabyte per second: the burst is five pages.
const SLOW: BytesPerSecond = BytesPerSecond(500_000);

/// Enough that most pages have company.
const CHANNELS_MAX: u64 = 4;

/// Most migrations over channels take a little more.
const CHANNEL_STEPS: u64 = 400;

/// States in which the guest is stopped and a cancel is still obeyed.
const STOPPED_STATES: [&str; 4] = ["final sync", "completing precopy", "saving devices", "proving devices"];

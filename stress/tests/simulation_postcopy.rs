//! Seeded migrations that go over to postcopy, with faults in every state of both machines, and a mutant for every invariant.
//!
//! Links are cut up to four times a run and made anew. Every run ends with the whole guest on the destination or with the
//! guest running on the source, unless a process with a part of it was killed.

use limosa_protocol::GuestFate;
use limosa_stress::sim::{Fault, Mutant, Place, Report, Scenario, Side, Strike, World};
use std::collections::BTreeSet;

/// Seeds per state: 29 states make 11,600 runs.
const SEEDS: u64 = 400;

/// A fault strikes up to so many steps after its state is reached, if the state lasts so long.
const PATIENCE: u64 = 6;

/// Of a state's seeds at least this part strikes in it: a quarter. Some states are short, and some lie behind a choice.
const HITS_PART: u64 = 4;

/// Runs that a mutant may survive.
const MUTANT_RUNS_MAX: u64 = 2000;

const SOURCE_STATES: [&str; 19] = [
    "iterating",
    "barrier",
    "opening the preempt channel",
    "discarding ahead",
    "stopping the guest",
    "final sync",
    "completing for postcopy",
    "discarding",
    "packaging devices",
    "sending the package",
    "awaiting running",
    "pushing",
    "draining",
    "completing postcopy",
    "awaiting completion",
    "paused",
    "fetching bitmaps",
    "reopening the preempt channel",
    "awaiting resume",
];

/// Between two steps of the world these are hardly ever seen to last, so a fault there strikes less often.
const SHORT_STATES: [&str; 3] = ["pausing", "reconnecting", "replacing links"];

const DESTINATION_STATES: [&str; 8] = [
    "awaiting listen",
    "loading the package",
    "starting in postcopy",
    "running",
    "awaiting pages",
    "pausing",
    "paused",
    "recovering",
];

fn places() -> impl Iterator<Item = Place> {
    let source = SOURCE_STATES.into_iter().map(|state| Place { side: Side::Source, state });
    let destination = DESTINATION_STATES.into_iter().map(|state| Place { side: Side::Destination, state });
    source.chain(destination)
}

fn short_places() -> impl Iterator<Item = Place> {
    SHORT_STATES.into_iter().map(|state| Place { side: Side::Source, state })
}

fn run(place: Place, seed: u64, patience: u64) -> Report {
    World::new(Scenario::postcopy_struck_in(place, seed, patience))
        .run()
        .unwrap_or_else(|violation| panic!("{violation}; {place:?} seed {seed} patience {patience}"))
}

/// Runs a seed, patiently if the state lasts; says whether the fault struck where it was meant to.
fn strike_in(place: Place, seed: u64) -> bool {
    let hit = |report: Report| report.struck.iter().any(|strike| strike.place == Some(place));
    [PATIENCE, 0].into_iter().any(|patience| hit(run(place, seed, patience)))
}

fn one_guest_after_faults_in(side: Side, places: impl Iterator<Item = Place>) {
    for place in places.filter(|place| place.side == side) {
        let hits = (0..SEEDS).filter(|seed| strike_in(place, *seed)).count() as u64;
        assert!(hits >= SEEDS / HITS_PART, "{place:?} was struck {hits} times in {SEEDS}");
    }
}

#[test]
fn a_fault_in_any_state_of_a_postcopy_source_leaves_one_whole_guest() {
    one_guest_after_faults_in(Side::Source, places().chain(short_places()));
}

#[test]
fn a_fault_in_any_state_of_a_postcopy_destination_leaves_one_whole_guest() {
    one_guest_after_faults_in(Side::Destination, places());
}

#[test]
fn an_undisturbed_postcopy_completes_and_is_one() {
    let switched = (0..1000)
        .filter(|seed| {
            let report = World::new(Scenario::postcopy(*seed)).run();
            let report = report.unwrap_or_else(|violation| panic!("{violation}; seed {seed}"));
            report.visited.iter().any(|place| place.state == "pushing")
        })
        .count();
    assert!(switched >= 500, "only {switched} of 1000 switched");
}

#[test]
fn the_lists_above_name_every_state_of_postcopy() {
    let visited: BTreeSet<&str> = places()
        .flat_map(|place| (0..20).map(move |seed| run(place, seed, PATIENCE)))
        .flat_map(|report| report.visited)
        .map(|place| place.state)
        .collect();
    let named = places().chain(short_places()).map(|place| place.state).collect::<BTreeSet<_>>();
    let missing: Vec<_> = named.difference(&visited).collect();
    assert!(missing.is_empty(), "never seen: {missing:?}");
}

#[test]
fn every_mutant_of_postcopy_is_killed_by_the_check_of_its_invariant() {
    let survivors: Vec<_> = Mutant::POSTCOPY.into_iter().filter(|mutant| !is_killed(*mutant)).collect();
    assert_eq!(survivors, []);
}

fn is_killed(mutant: Mutant) -> bool {
    let places: Vec<_> = places().collect();
    (0..MUTANT_RUNS_MAX).any(|seed| {
        let scenario = match mutant {
            Mutant::LeavesReaderBehind => Scenario::postcopy_over_a_breaking_link(seed, &[0, 0, 0]),
            _ => Scenario::postcopy_struck_in(places[seed as usize % places.len()], seed, PATIENCE),
        };
        World::new(Scenario { mutant: Some(mutant), ..scenario })
            .run()
            .is_err_and(|violation| mutant.explains(&violation))
    })
}

#[test]
fn a_link_that_is_cut_three_times_costs_a_migration_nothing_but_time() {
    let (mut pauses, mut completed) = (0, 0);
    for seed in 0..SEEDS {
        let mut scenario = Scenario::postcopy(seed);
        let place = Some(Place { side: Side::Source, state: "pushing" });
        for first in [0, 20, 40] {
            scenario.strikes.push(Strike { place, after: first + seed % 20, fault: Fault::CutLink });
        }
        let report =
            World::new(scenario).run().unwrap_or_else(|violation| panic!("{violation}; seed {seed}"));
        let (source, destination) = (&report.world.source.machine, &report.world.destination);
        let arrived = source.outcome().is_some_and(|outcome| outcome.fate == GuestFate::OnDestination);
        // Without answers about the guest a source pushes as soon as the devices are loaded, which may be too early.
        assert_eq!(arrived, destination.guest_ran, "seed {seed}");
        completed += u64::from(arrived);
        pauses += source.counters().pauses;
    }
    assert!(completed >= SEEDS * 9 / 10 && u64::from(pauses) > SEEDS, "{completed} after {pauses} pauses");
}

#[test]
fn a_preempt_link_that_breaks_alone_is_replaced_without_a_pause() {
    let (mut replaced, mut paused) = (0, 0);
    for seed in 0..SEEDS {
        let scenario = Scenario::postcopy_over_a_breaking_link(seed, &[seed % 20, 20, 40]);
        let report =
            World::new(scenario).run().unwrap_or_else(|violation| panic!("{violation}; seed {seed}"));
        let counters = report.world.source.machine.counters();
        assert!(report.world.destination.guest_ran, "seed {seed}");
        replaced += counters.replacements;
        // Of one that is heard of when the end has been sent already.
        paused += counters.pauses;
    }
    let expected = u64::from(replaced) > SEEDS && u64::from(paused) < SEEDS / 4;
    assert!(expected, "{replaced} replaced, {paused} pauses");
}

//! Seeded migrations with a fault in every state of both machines, and a mutant for every invariant.
//!
//! A failure names its state and seed; `Scenario::struck_in` with the same two is the same run.

use limosa_stress::sim::{Mutant, Place, Report, Scenario, Side, World};
use std::collections::BTreeSet;

/// Seeds per state, all of which must strike in it.
const SEEDS: u64 = 1000;

/// A fault strikes up to so many steps after its state is reached, if the state lasts so long.
const PATIENCE: u64 = 6;

/// Runs that a mutant may survive. The most patient one needs 169: doubt is rare, and a guest that runs on both sides
/// after it is rarer.
const MUTANT_RUNS_MAX: u64 = 1000;

const SOURCE_STATES: [&str; 17] = [
    "greeting",
    "saving setup",
    "proving setup",
    "syncing",
    "iterating",
    "throttled",
    "barrier",
    "resting",
    "stopping the guest",
    "pre-switchover",
    "final sync",
    "completing precopy",
    "saving devices",
    "proving devices",
    "sending end",
    "awaiting shut",
    "resuming",
];

const DESTINATION_STATES: [&str; 6] = [
    "awaiting header",
    "awaiting configuration",
    "between sections",
    "in section",
    "awaiting vmdescription",
    "starting the guest",
];

fn places() -> impl Iterator<Item = Place> {
    let source = SOURCE_STATES.map(|state| Place { side: Side::Source, state });
    let destination = DESTINATION_STATES.map(|state| Place { side: Side::Destination, state });
    source.into_iter().chain(destination)
}

/// Runs a seed, patiently if the state lasts; says whether the fault struck where it was meant to.
fn strike_in(place: Place, seed: u64) -> bool {
    [PATIENCE, 0].into_iter().any(|patience| {
        let report = World::new(Scenario::struck_in(place, seed, patience))
            .run()
            .unwrap_or_else(|violation| panic!("{violation}; {place:?} seed {seed} patience {patience}"));
        has_struck(&report, place)
    })
}

fn has_struck(report: &Report, place: Place) -> bool {
    report.struck.iter().any(|strike| strike.place == Some(place))
}

fn struck_a_thousand_times_in_each(side: Side) {
    for place in places().filter(|place| place.side == side) {
        let hits = (0..SEEDS).filter(|seed| strike_in(place, *seed)).count() as u64;
        assert_eq!(hits, SEEDS, "{place:?}");
    }
}

#[test]
fn a_fault_in_any_state_of_the_source_leaves_one_guest() {
    struck_a_thousand_times_in_each(Side::Source);
}

#[test]
fn a_fault_in_any_state_of_the_destination_leaves_one_guest() {
    struck_a_thousand_times_in_each(Side::Destination);
}

#[test]
fn the_lists_above_name_every_state_of_both_machines() {
    // Fifty seeds for each state, and each passes through most of the others.
    let visited: BTreeSet<Place> = places()
        .flat_map(|place| (0..SEEDS / 20).map(move |seed| Scenario::struck_in(place, seed, PATIENCE)))
        .flat_map(|scenario| World::new(scenario).run().expect("checked by the tests above").visited)
        .filter(|place| place.state != "finished")
        .collect();
    assert_eq!(visited, places().collect());
}

#[test]
fn an_undisturbed_migration_completes() {
    for seed in 0..SEEDS {
        let run = World::new(Scenario::undisturbed(seed)).run();
        assert!(run.is_ok(), "{run:?}; undisturbed seed {seed}");
    }
}

#[test]
fn every_mutant_is_killed_by_the_check_of_its_invariant() {
    let survivors: Vec<_> = Mutant::ALL.into_iter().filter(|mutant| !is_killed(*mutant)).collect();
    assert_eq!(survivors, []);
}

fn is_killed(mutant: Mutant) -> bool {
    let places: Vec<_> = places().collect();
    (0..MUTANT_RUNS_MAX).any(|seed| {
        let place = places[seed as usize % places.len()];
        let scenario = Scenario { mutant: Some(mutant), ..Scenario::struck_in(place, seed, PATIENCE) };
        World::new(scenario).run().is_err_and(|violation| mutant.explains(&violation))
    })
}

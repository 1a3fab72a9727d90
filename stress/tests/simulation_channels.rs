//! Seeded migrations whose pages race each other on several connections, with faults of these, and a mutant for each side
//! of their barrier (I5).
//!
//! A failure names its fault and seed; the same two are the same run.

use limosa_protocol::GuestFate;
use limosa_stress::sim::{Fault, Mutant, Scenario, World};

/// Seeds for each fault, and without one.
const SEEDS: u64 = 1000;

/// Runs that a mutant may survive.
const MUTANT_RUNS_MAX: u64 = 100;

#[test]
fn an_undisturbed_migration_over_channels_completes() {
    for seed in 0..SEEDS {
        let run = World::new(Scenario::over_channels(seed)).run();
        assert!(run.is_ok(), "{run:?}; undisturbed seed {seed}");
    }
}

#[test]
fn a_fault_of_a_channel_at_any_packet_leaves_one_guest() {
    for fault in Fault::OF_CHANNELS {
        let (mut struck, mut stayed) = (0, 0);
        for seed in 0..SEEDS {
            let report = World::new(Scenario::with_a_channel_struck(fault, seed))
                .run()
                .unwrap_or_else(|violation| panic!("{violation}; {fault:?} seed {seed}"));
            struck += u64::from(report.struck.iter().any(|strike| strike.fault == fault));
            let outcome = report.world.source.machine.outcome();
            stayed += u64::from(outcome.is_some_and(|outcome| outcome.fate == GuestFate::OnSource));
        }
        let counts = format!("{fault:?} struck in {struck} of {SEEDS} runs, the guest stayed in {stayed}");
        assert!(struck > SEEDS * 3 / 4 && stayed > SEEDS / 20, "{counts}");
        eprintln!("{counts}");
    }
}

#[test]
fn every_mutant_of_the_channels_is_killed_by_the_check_of_their_barrier() {
    let is_killed = |mutant: &Mutant| {
        (0..MUTANT_RUNS_MAX).any(|seed| {
            let scenario = Scenario { mutant: Some(*mutant), ..Scenario::over_channels(seed) };
            World::new(scenario).run().is_err_and(|violation| mutant.explains(&violation))
        })
    };
    let survivors: Vec<_> = Mutant::OF_CHANNELS.into_iter().filter(|mutant| !is_killed(mutant)).collect();
    assert_eq!(survivors, []);
}

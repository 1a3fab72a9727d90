//! An outcome must say where the guest is, and be right.

use super::Violation;
use crate::sim::destination_shell::DestinationShell;
use crate::sim::environment::Environment;
use crate::sim::source_shell::SourceShell;
use limosa_protocol::{DestinationEnding, GuestFate, SourceEnding};

/// What the source's outcome means on the source.
pub(super) fn check_source(source: &SourceShell) -> Result<(), Violation> {
    if source.crashed {
        return Ok(());
    }
    let outcome =
        source.machine.outcome().ok_or(Violation::WrongOutcome { rule: "who finishes has an outcome" })?;
    match outcome.fate {
        GuestFate::OnSource => {
            rule(
                source.guest_runs || outcome.resume_failed,
                "a guest on the source runs there, or could not be resumed",
            )?;
            rule(outcome.resume_failed == source.resume_failed, "who cannot resume says so")?;
        }
        GuestFate::OnDestination => {
            rule(!source.guest_runs, "a guest on the destination does not run on the source")?;
            rule(
                matches!(outcome.ending, SourceEnding::Completed { .. }),
                "only completion gives the guest away",
            )?;
        }
        GuestFate::InDoubt | GuestFate::Paused | GuestFate::Lost => {
            rule(!source.guest_runs, "a guest in doubt is stopped on the source")?;
            rule(matches!(outcome.ending, SourceEnding::Failed(_)), "doubt has a reason")?;
        }
    }
    Ok(())
}

/// What the destination's outcome means on the destination.
pub(super) fn check_destination(destination: &DestinationShell) -> Result<(), Violation> {
    if destination.crashed {
        return Ok(());
    }
    let outcome = destination
        .machine
        .outcome()
        .ok_or(Violation::WrongOutcome { rule: "who finishes has an outcome" })?;
    let completed = matches!(outcome.ending, DestinationEnding::Completed { .. });
    rule(completed == destination.guest_runs, "a destination runs the guest if and only if it completed")?;
    rule((outcome.fate == GuestFate::OnDestination) == completed, "its fate says the same")
}

/// What the outcomes mean together.
pub(super) fn check_pair(
    source: &SourceShell,
    destination: &DestinationShell,
    environment: &Environment,
    disturbed: bool,
) -> Result<(), Violation> {
    let Some(outcome) = source.machine.outcome().filter(|_| !source.crashed) else { return Ok(()) };
    let ran = destination.guest_ran;
    if outcome.fate == GuestFate::OnSource {
        rule(!ran, "a guest on the source has never run on the destination")?;
        rule(source.memory.pages == environment.guest.truth, "a guest on the source has its memory")?;
    }
    let confirmed = outcome.ending == SourceEnding::Completed { confirmed: true };
    let completed =
        destination.machine.outcome().is_some_and(|outcome| outcome.fate == GuestFate::OnDestination);
    let whole = destination.pages == environment.guest.truth.map(Some);
    rule(!completed || destination.crashed || whole, "a completed guest has all of its memory")?;
    let given_up = outcome.fate == GuestFate::Paused;
    rule(!given_up || destination.crashed, "only a guest that died with its process is given up")?;
    rule(!confirmed || ran, "a confirmed guest has run on the destination")?;
    rule(disturbed || (outcome.fate == GuestFate::OnDestination && ran), "an undisturbed migration completes")
}

fn rule(holds: bool, rule: &'static str) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation::WrongOutcome { rule }) }
}

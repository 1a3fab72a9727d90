//! I3 and I4: a received bit is set only after the bytes are there; in postcopy they come once, and are what the guest wrote.

use super::Violation;
use crate::sim::destination_shell::DestinationShell;
use crate::sim::environment::Environment;
use crate::sim::guest::PAGES;

pub(super) fn check(destination: &DestinationShell, environment: &Environment) -> Result<(), Violation> {
    let received = || (0..PAGES).filter(|page| destination.received[*page]);
    if let Some(page) = received().find(|page| destination.pages[*page].is_none()) {
        return Err(Violation::MarkedBeforePlaced { page });
    }
    if !destination.postcopy.is_listening() {
        return Ok(());
    }
    if let Some(page) = destination.postcopy.placed_twice {
        return Err(Violation::PlacedTwice { page });
    }
    let truth = &environment.guest.truth;
    let wrong =
        received().find(|page| destination.guest_runs && destination.pages[*page] != Some(truth[*page]));
    wrong.map_or(Ok(()), |page| Err(Violation::WrongPage { page }))
}

//! I6: at most one side runs the guest, and what runs is the guest.

use super::Violation;
use crate::sim::destination_shell::DestinationShell;
use crate::sim::environment::Environment;
use crate::sim::source_shell::SourceShell;

/// Once the destination has run the guest, the source must not, even if the destination is gone again: the guest has
/// answered the network from there.
pub(super) fn check(source: &SourceShell, destination: &DestinationShell) -> Result<(), Violation> {
    if source.guest_runs && destination.guest_ran { Err(Violation::TwoGuests) } else { Ok(()) }
}

/// Looks at the guest in the moment in which it starts on the destination.
#[derive(Debug, Default)]
pub(super) struct StartWatch {
    seen: bool,
}

impl StartWatch {
    pub(super) fn check(
        &mut self,
        source: &SourceShell,
        destination: &DestinationShell,
        environment: &Environment,
    ) -> Result<(), Violation> {
        if self.seen || !destination.guest_ran {
            return Ok(());
        }
        self.seen = true;
        // In postcopy it starts with what it has; every page that it has is checked all the time.
        let whole = !destination.postcopy.is_listening();
        if whole && destination.pages != environment.guest.truth.map(Some) {
            return Err(Violation::WrongState { what: "RAM" });
        }
        if destination.device != Some(environment.guest.device) {
            return Err(Violation::WrongState { what: "device" });
        }
        check(source, destination)
    }
}

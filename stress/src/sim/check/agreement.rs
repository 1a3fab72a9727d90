//! Both sides use the same extensions, or the destination takes no page.

use super::Violation;
use crate::sim::destination_shell::DestinationShell;
use crate::sim::source_shell::SourceShell;

pub(super) fn check(source: &SourceShell, destination: &DestinationShell) -> Result<(), Violation> {
    if !destination.received.contains(&true) || source.agreed == destination.agreed {
        return Ok(());
    }
    let [sent, expected] = [source.agreed, destination.agreed].map(Option::unwrap_or_default);
    Err(Violation::Disagreement { sent, expected })
}

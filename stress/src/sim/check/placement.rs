//! I3: a received bit is set only after the bytes are there.

use super::Violation;
use crate::sim::destination_shell::DestinationShell;
use crate::sim::guest::PAGES;

pub(super) fn check(destination: &DestinationShell) -> Result<(), Violation> {
    let early = (0..PAGES).find(|page| destination.received[*page] && destination.pages[*page].is_none());
    early.map_or(Ok(()), |page| Err(Violation::MarkedBeforePlaced { page }))
}

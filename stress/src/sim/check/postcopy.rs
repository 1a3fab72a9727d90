//! I1 and I10 in postcopy: every page is owed, claimed, under way or held, and what was asked for leaves first.

use super::Violation;
use crate::sim::channels::Packet;
use crate::sim::destination_shell::DestinationShell;
use crate::sim::environment::Environment;
use crate::sim::guest::PAGES;
use crate::sim::link::Frame;
use crate::sim::source_shell::SourceShell;
use limosa_pages::PageIndex;

/// States of the source in which pages follow a guest that has gone, over one connection.
const CONNECTED: [&str; 5] =
    ["awaiting running", "pushing", "draining", "completing postcopy", "awaiting completion"];

pub(super) fn check_order(source: &SourceShell) -> Result<(), Violation> {
    source.postcopy.overtaken.map_or(Ok(()), |page| Err(Violation::Overtaken { page }))
}

pub(super) fn check_debt(
    source: &SourceShell,
    destination: &DestinationShell,
    environment: &Environment,
) -> Result<(), Violation> {
    let connected = CONNECTED.contains(&source.machine.state_name()) && environment.link.is_whole();
    let listens = destination.postcopy.is_listening();
    if !listens && !environment.is_whole() {
        return Ok(());
    }
    // A reader that has refused something has thrown it away, and the pause that follows will make up for it.
    let reads = !listens || destination.postcopy.reads_main();
    if !connected
        || !reads
        || source.crashed
        || destination.crashed
        || destination.machine.outcome().is_some()
    {
        return Ok(());
    }
    let mut settled = [false; PAGES];
    for frame in environment.link.main.under_way().chain(environment.link.preempt.under_way()) {
        if let Frame::Page { page, .. } = frame {
            settled[*page] = true;
        }
    }
    for page in source.postcopy.claimed().chain(destination.half_placed_pages()) {
        settled[page] = true;
    }
    if !listens {
        mark_channels(source, environment, &mut settled);
    }
    let lost = (0..PAGES).find(|page| {
        let owed = source.memory.owed.is_owed(PageIndex(*page as u64));
        let placed = !listens && destination.pages[*page] == Some(source.memory.pages[*page]);
        !(owed || settled[*page] || destination.received[*page] || placed)
    });
    lost.map_or(Ok(()), |page| Err(Violation::LostPage { page }))
}

/// Before the destination has passed the last FLUSH, pages of precopy may be on the channels.
fn mark_channels(source: &SourceShell, environment: &Environment, settled: &mut [bool; PAGES]) {
    for packet in environment.channels.iter().flat_map(|channel| channel.under_way()) {
        if let Packet::Page { page, .. } = packet {
            settled[*page] = true;
        }
    }
    for page in source.channels.iter().flat_map(|channels| channels.queued()) {
        settled[page] = true;
    }
}

//! I1 and I5: no page is forgotten, and nothing is under way behind a barrier.

use super::Violation;
use crate::sim::channels::Packet;
use crate::sim::destination_shell::DestinationShell;
use crate::sim::environment::Environment;
use crate::sim::guest::PAGES;
use crate::sim::link::Frame;
use crate::sim::source_shell::SourceShell;
use limosa_pages::PageIndex;

/// Looks when the source passes from one state to the next.
#[derive(Debug, Default)]
pub(super) struct BarrierWatch {
    last_state: &'static str,
}

impl BarrierWatch {
    pub(super) fn check(
        &mut self,
        source: &SourceShell,
        destination: &DestinationShell,
        environment: &Environment,
    ) -> Result<(), Violation> {
        let state = source.machine.state_name();
        let before = std::mem::replace(&mut self.last_state, state);
        // On a link that is not whole, behind a refusal or a lost SYNC, pages are lost and the migration with them.
        let over = !environment.is_whole()
            || environment.sync_lost
            || destination.machine.outcome().is_some()
            || source.crashed;
        if state == before || over {
            return Ok(());
        }
        match (before, state) {
            ("barrier", "syncing") => {
                if pages_under_way(source, environment) {
                    return Err(Violation::PassedBarrier { what: "a page of the round" });
                }
            }
            ("proving devices", "sending end") if destination.device.is_none() => {
                return Err(Violation::PassedBarrier { what: "device state" });
            }
            // The lists of pages are the truth only while the machine is in rounds.
            ("syncing" | "throttled" | "resting" | "final sync" | "completing precopy", _) => {}
            _ => return Ok(()),
        }
        check_debt(source, destination, environment)
    }
}

/// Whether a page is on its way, on any connection or in front of one.
fn pages_under_way(source: &SourceShell, environment: &Environment) -> bool {
    let main = environment.link.main.under_way().any(|frame| matches!(frame, Frame::Page { .. }));
    let mut packets = environment.channels.iter().flat_map(|channel| channel.under_way());
    let queued = source.channels.as_ref().is_some_and(|channels| channels.queued().len() > 0);
    main || queued || packets.any(|packet| matches!(packet, Packet::Page { .. }))
}

/// Every page is owed, logged, under way or held.
fn check_debt(
    source: &SourceShell,
    destination: &DestinationShell,
    environment: &Environment,
) -> Result<(), Violation> {
    let memory = &source.memory;
    let mut settled = [false; PAGES];
    for frame in environment.link.main.under_way() {
        if let Frame::Page { page, generation } = frame {
            settled[*page] |= *generation == memory.pages[*page];
        }
    }
    for packet in environment.channels.iter().flat_map(|channel| channel.under_way()) {
        if let Packet::Page { page, generation } = packet {
            settled[*page] |= *generation == memory.pages[*page];
        }
    }
    for page in source.channels.iter().flat_map(|channels| channels.queued()) {
        settled[page] = true;
    }
    let lost = (0..PAGES).find(|page| {
        let held = destination.pages[*page] == Some(memory.pages[*page]);
        let owed = memory.owed.is_owed(PageIndex(*page as u64)) || memory.log[*page];
        !(held || owed || settled[*page])
    });
    lost.map_or(Ok(()), |page| Err(Violation::LostPage { page }))
}

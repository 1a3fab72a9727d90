//! Pause and recovery of postcopy: the connection is dropped as a whole, and another takes its place.

use super::coordinator::Running;
use super::return_path::{Heard, Peer};
use super::steps::StepError;
use crate::error::LoadFault;
use crossbeam_channel::{never, select};
use limosa_pages::{PageCount, PageIndex, PageRun, ReceivedMap};
use limosa_protocol::{SourceEvent, SourceStep};
use limosa_transport::Role;
use limosa_wire::{Command, ReceivedPages, ReturnMessage, received_bitmap_bytes};
use std::collections::HashSet;
use std::sync::Arc;

impl Running {
    /// Ends the connection, and every thread that used it.
    pub(super) fn pause(&mut self) -> SourceEvent {
        self.shared.refuse_pause();
        self.steps.silence();
        if let Some(peer) = self.peer.take() {
            peer.silence();
        }
        SourceEvent::Paused
    }

    /// Another connection, without header: the destination knows what it is for (wire 5.9).
    pub(super) fn reconnect(&mut self) -> Result<SourceEvent, StepError> {
        let link = self.steps.dialer.connect(Role::Main).map_err(StepError::main)?;
        let links = link.shutdown_handle();
        let (reader, mut writer) = link.split();
        writer.set_deadline(Some(self.steps.config.write_deadline)).map_err(StepError::main)?;
        self.steps.links.replace(links.into());
        self.steps.out.replace_link(writer);
        self.shared.let_pause(self.steps.links.handle());
        let peer = Peer::listen(reader, Arc::clone(&self.steps.urgent), self.steps.links.handle());
        self.peer = Some(peer.map_err(|error| StepError::Handler(SourceStep::Reconnect, Box::new(error)))?);
        Ok(SourceEvent::Reconnected)
    }

    /// Asks for what the destination holds, and owes it the rest (I1). `None` if the machine has heard something else
    /// meanwhile and does not want it any more.
    pub(super) fn fetch_bitmaps(&mut self) -> Result<Option<SourceEvent>, StepError> {
        let layout = self.steps.savevm.ram_layout().expect("postcopy is refused to a guest without RAM");
        for (_, block) in layout.iter() {
            Command::RecvBitmap { block: block.name.clone() }.encode(self.steps.out.buffer());
        }
        self.steps.flush()?;
        let asked_in = self.machine.state_name();
        let received = ReceivedMap::empty(&layout);
        let mut missing: HashSet<_> = layout.iter().map(|(id, _)| id).collect();
        while !missing.is_empty() {
            let expired = self.machine.poll_timeout().map_or_else(never, crossbeam_channel::at);
            let peer = self.peer.as_ref().map_or_else(never, |peer| peer.heard.clone());
            let heard = select! {
                recv(peer) -> heard => heard.ok(),
                recv(expired) -> _ => None,
            };
            match heard {
                Some(Heard::Message(ReturnMessage::RecvBitmap(pages))) => {
                    let refused = |fault| StepError::Handler(SourceStep::FetchBitmaps, Box::new(fault));
                    let block = layout.find(pages.block.as_str()).filter(|id| missing.remove(id));
                    let Some(block) = block else {
                        let name = pages.block.as_str().to_owned();
                        return Err(refused(LoadFault::UnknownBlock { name }));
                    };
                    let expected = received_bitmap_bytes(layout.block(block).length);
                    if pages.bitmap.len() as u64 != expected.0 {
                        return Err(refused(LoadFault::BitmapLength {
                            name: pages.block.as_str().to_owned(),
                            expected: expected.0,
                            got: pages.bitmap.len() as u64,
                        }));
                    }
                    note_received(&pages, layout.block(block).pages(), |run| {
                        received.block(block).mark(run);
                    });
                }
                Some(heard) => {
                    self.on_heard(heard);
                    if self.machine.state_name() != asked_in {
                        return Ok(None);
                    }
                }
                None => {
                    // Late, or the thread of the return path panicked, and then it is late in any case.
                    self.tell(SourceEvent::Timeout);
                    return Ok(None);
                }
            }
        }
        self.steps.savevm.owe_missing(&received);
        Ok(Some(SourceEvent::BitmapsMerged { pending: self.steps.pending() }))
    }
}

/// Reports the set bits of a received bitmap, which must be as long as `pages` need, as runs.
fn note_received(received: &ReceivedPages, pages: PageCount, mut note: impl FnMut(PageRun)) {
    let is_set = |page: u64| received.bitmap[page as usize / 8] & (1 << (page % 8)) != 0;
    let mut page = 0;
    while page < pages.0 {
        let start = page;
        while page < pages.0 && is_set(page) {
            page += 1;
        }
        if page > start {
            note(PageRun::new(PageIndex(start), PageCount(page - start)));
        }
        page += 1;
    }
}

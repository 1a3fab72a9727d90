//! Postcopy on the destination: the package beside the main link, faults, pauses, and what is said after the end.

use super::DestinationShell;
use crate::sim::environment::{Environment, Listener};
use crate::sim::guest::PAGES;
use crate::sim::link::{FRAMES_MAX, Frame, Received};
use crate::sim::mutant::Mutant;
use crate::sim::source_shell::ram;
use limosa_pages::{PAGE_BYTES, PageCount};
use limosa_protocol::{DestinationAction, DestinationEvent, GuestFate, LinkRole, Loss, PostcopyStream};
use limosa_wire::{Command, ReceivedPages, RequestedPages, ReturnMessage};
use std::collections::{BTreeSet, VecDeque};

/// What the destination keeps beside its machine in postcopy.
#[derive(Debug, Default)]
pub struct DestinationPostcopySide {
    /// What is left of the package; `None` before it came.
    package: Option<VecDeque<Frame>>,
    /// The page that loading the device will touch.
    device_touches: Option<usize>,
    /// The main link has a reader of its own; `None` after its last word and without a connection.
    stream: Option<PostcopyStream>,
    /// The link for pages that were asked for is read.
    preempt_open: bool,
    half_placed: Option<(usize, u64)>,
    inbox: VecDeque<DestinationEvent>,
    /// Pages that somebody waits for.
    waits: BTreeSet<usize>,
    to_ask: VecDeque<usize>,
    asking: bool,
    awaits_pages: bool,
    /// A page that came although it was there (I4).
    pub placed_twice: Option<usize>,
}

impl DestinationPostcopySide {
    /// Whether the package has begun to be loaded: pages are placed once from then on.
    pub const fn is_listening(&self) -> bool {
        self.package.is_some()
    }

    /// Whether the main link has a reader that will take everything that comes.
    pub const fn reads_main(&self) -> bool {
        self.stream.is_some()
    }
}

impl DestinationShell {
    /// Does what only postcopy asks for. `false` if that has to wait for room.
    pub(super) fn perform_postcopy(
        &mut self,
        action: DestinationAction,
        environment: &mut Environment,
    ) -> bool {
        match action {
            DestinationAction::PreparePostcopy => {
                (self.pages, self.received) = ([None; PAGES], [false; PAGES]);
            }
            DestinationAction::Discard { ranges, .. } => {
                for range in ranges {
                    let first = range.start / PAGE_BYTES as u64;
                    for page in first..first + range.length / PAGE_BYTES as u64 {
                        (self.pages[page as usize], self.received[page as usize]) = (None, false);
                    }
                }
            }
            DestinationAction::Listen => self.listen(),
            DestinationAction::AwaitPages => self.postcopy.awaits_pages = true,
            DestinationAction::Pause => {
                self.pause(environment);
                self.machine.handle(DestinationEvent::Paused);
            }
            DestinationAction::SendBitmap { block } => {
                if !environment.link.back.has_room(environment.now) {
                    self.acting = Some(DestinationAction::SendBitmap { block });
                    return false;
                }
                let mut bitmap = vec![0; PAGES.div_ceil(8).next_multiple_of(8)];
                for page in (0..PAGES).filter(|page| self.received[*page]) {
                    bitmap[page / 8] |= 1 << (page % 8);
                }
                let answer = ReturnMessage::RecvBitmap(ReceivedPages { block, bitmap });
                if let Err(reason) = environment.write_back(answer) {
                    self.machine.handle(DestinationEvent::Lost(Loss { role: LinkRole::ReturnPath, reason }));
                }
            }
            DestinationAction::DropLinks => self.drop_links(environment),
            DestinationAction::TakeLinks => self.postcopy.preempt_open = true,
            DestinationAction::ResumeFaults => {
                self.postcopy.asking = true;
                self.postcopy.to_ask = self.postcopy.waits.iter().copied().collect();
            }
            action => unreachable!("{action:?} is no action of postcopy"),
        }
        true
    }

    /// The package has been read whole.
    pub(super) fn take_package(&mut self, frames: Vec<Frame>, environment: &mut Environment) {
        let length = frames.len() as u32;
        self.postcopy.device_touches =
            environment.rng.one_in(2).then(|| environment.guest.choose(&mut environment.rng));
        self.postcopy.package = Some(frames.into());
        self.machine.handle(DestinationEvent::CommandRead(Command::Packaged { length }));
    }

    fn listen(&mut self) {
        self.postcopy.stream = Some(self.machine.postcopy_stream());
        self.postcopy.preempt_open = true;
        self.postcopy.asking = true;
    }

    /// The coordinator's turn: an event of a reader, or the next piece of the package.
    pub(super) fn coordinate(&mut self, environment: &mut Environment) -> bool {
        if self.device_waits() {
            return false;
        }
        if let Some(event) = self.postcopy.inbox.pop_front() {
            self.machine.handle(event);
            return true;
        }
        if let Some(frame) = self.postcopy.package.as_mut().and_then(VecDeque::pop_front) {
            if std::mem::take(&mut self.step_fails) {
                self.refuse(&frame);
            } else {
                self.load(frame, environment);
                if self.postcopy.package.as_ref().is_some_and(VecDeque::is_empty) {
                    self.machine.handle(DestinationEvent::PackageEnded);
                }
            }
            return true;
        }
        self.judge_pages(environment)
    }

    /// Loading a device touches a page that is not here. Loss of the link ends the wait: what is not watched reads as zero,
    /// and the guest will not run.
    fn device_waits(&mut self) -> bool {
        let next = self.postcopy.package.as_ref().and_then(VecDeque::front);
        let Some(page) = self.postcopy.device_touches.filter(|_| matches!(next, Some(Frame::Device(_))))
        else {
            return false;
        };
        let lost = self.postcopy.inbox.iter().any(|event| !matches!(event, DestinationEvent::CommandRead(_)));
        if self.received[page] || lost || self.postcopy.stream.is_none() {
            self.postcopy.device_touches = None;
            return false;
        }
        self.fault(page);
        true
    }

    fn judge_pages(&mut self, environment: &Environment) -> bool {
        let missing = self.received.iter().filter(|received| !**received).count() as u64;
        let believes = environment.mutant == Some(Mutant::EndsWithPagesMissing);
        let under_way = self.postcopy.preempt_open || self.half_placed_pages().next().is_some();
        if !self.postcopy.awaits_pages || (missing > 0 && under_way && !believes) {
            return false;
        }
        self.postcopy.awaits_pages = false;
        let event = if missing == 0 || believes {
            DestinationEvent::AllReceived
        } else {
            DestinationEvent::PagesMissing { pages: PageCount(missing) }
        };
        self.machine.handle(event);
        true
    }

    /// The main link's reader in postcopy.
    pub fn read_main(&mut self, environment: &mut Environment) -> bool {
        let Some(stream) = self.postcopy.stream.as_mut().filter(|_| !self.crashed && !self.finished) else {
            return false;
        };
        if let Some((page, generation)) = self.half_placed.take() {
            self.place_second_half(page, generation, environment);
            self.postcopy.waits.remove(&page);
            return true;
        }
        let event = match environment.link.main.read(environment.now) {
            Received::Nothing => return false,
            // I7: the mutant's stream ends where its link does.
            Received::Lost(_) if environment.mutant == Some(Mutant::EndsWithPagesMissing) => {
                self.end_main(DestinationEvent::EndOfStream);
                return true;
            }
            Received::Lost(reason) => {
                self.end_main(DestinationEvent::Lost(Loss { role: LinkRole::Main, reason }));
                return true;
            }
            Received::Item(_) if std::mem::take(&mut self.step_fails) => {
                self.end_main(DestinationEvent::LoadFailed { section: None });
                return true;
            }
            Received::Item(Frame::Page { page, generation }) => {
                if self.arrives(page) {
                    self.place_first_half(page, generation, environment);
                }
                return true;
            }
            Received::Item(Frame::Command(command)) => DestinationEvent::CommandRead(command),
            Received::Item(Frame::Open { id, kind }) => DestinationEvent::SectionOpened { id, kind },
            Received::Item(Frame::Footer(id)) => DestinationEvent::SectionLoaded { id },
            Received::Item(Frame::EndOfStream) => DestinationEvent::EndOfStream,
            Received::Item(_) => DestinationEvent::LoadFailed { section: None },
        };
        match stream.on(event) {
            Ok(None) => {}
            Ok(Some(DestinationEvent::EndOfStream)) => self.end_main(DestinationEvent::EndOfStream),
            Ok(Some(event)) => self.postcopy.inbox.push_back(event),
            Err(failure) => self.end_main(DestinationEvent::StreamRefused(failure)),
        }
        true
    }

    fn end_main(&mut self, event: DestinationEvent) {
        self.postcopy.stream = None;
        self.postcopy.inbox.push_back(event);
    }

    /// The reader of the link for pages that were asked for.
    pub fn read_preempt(&mut self, environment: &mut Environment) -> bool {
        if !self.postcopy.preempt_open || self.crashed || self.finished {
            return false;
        }
        if let Some((page, generation)) = self.postcopy.half_placed.take() {
            self.place_second_half(page, generation, environment);
            self.postcopy.waits.remove(&page);
            return true;
        }
        match environment.link.preempt.read(environment.now) {
            Received::Nothing => return false,
            Received::Item(Frame::Page { page, generation }) => {
                if self.arrives(page) {
                    let main = self.half_placed.take();
                    self.place_first_half(page, generation, environment);
                    self.postcopy.half_placed = std::mem::replace(&mut self.half_placed, main);
                }
            }
            Received::Item(frame) => unreachable!("{frame:?} on the preempt link"),
            Received::Lost(reason) => {
                self.postcopy.preempt_open = false;
                self.postcopy
                    .inbox
                    .push_back(DestinationEvent::Lost(Loss { role: LinkRole::Preempt, reason }));
            }
        }
        true
    }

    /// Whether a page is to be placed. One that is here already stays as it is (I4).
    fn arrives(&mut self, page: usize) -> bool {
        let under_way = [self.half_placed, self.postcopy.half_placed].into_iter().flatten();
        let twice = self.received[page] || under_way.map(|(page, _)| page).any(|other| other == page);
        if twice {
            self.postcopy.placed_twice = Some(page);
        }
        !twice
    }

    /// Somebody touches a page that is not here.
    pub fn fault(&mut self, page: usize) -> bool {
        let fresh = self.postcopy.waits.insert(page);
        if fresh && self.postcopy.asking {
            self.postcopy.to_ask.push_back(page);
        }
        fresh
    }

    /// The fault thread asks for a page.
    pub fn ask(&mut self, environment: &mut Environment) -> bool {
        if self.crashed || self.finished || !environment.link.back.has_room(environment.now) {
            return false;
        }
        let Some(page) = self.postcopy.to_ask.pop_front() else { return false };
        let pages = RequestedPages { start: (page * PAGE_BYTES) as u64, length: PAGE_BYTES as u32 };
        // A failed write is heard of on the main link too.
        let _lost_anyway = environment.write_back(ReturnMessage::RequestPages { block: Some(ram()), pages });
        true
    }

    /// Pages that are being placed.
    pub fn half_placed_pages(&self) -> impl Iterator<Item = usize> {
        [self.half_placed, self.postcopy.half_placed].into_iter().flatten().map(|(page, _)| page)
    }

    /// The main link is read on.
    fn drop_links(&mut self, environment: &Environment) {
        self.postcopy.asking = false;
        self.postcopy.to_ask.clear();
        if environment.mutant == Some(Mutant::LeavesReaderBehind) {
            return;
        }
        if let Some((page, generation)) = self.postcopy.half_placed.take() {
            self.place_second_half(page, generation, environment);
            self.postcopy.waits.remove(&page);
        }
        let postcopy = &mut self.postcopy;
        postcopy.preempt_open = false;
        let of_preempt = |event: &DestinationEvent| {
            matches!(event, DestinationEvent::Lost(Loss { role: LinkRole::Preempt, .. }))
        };
        postcopy.inbox.retain(|event| !of_preempt(event));
    }

    fn pause(&mut self, environment: &mut Environment) {
        let kept = environment.rng.below(FRAMES_MAX as u64) as usize;
        environment.link.cut(0, kept);
        // The readers end what they have begun.
        for (page, generation) in
            [self.half_placed.take(), self.postcopy.half_placed.take()].into_iter().flatten()
        {
            self.place_second_half(page, generation, environment);
            self.postcopy.waits.remove(&page);
        }
        let postcopy = &mut self.postcopy;
        (postcopy.stream, postcopy.preempt_open) = (None, false);
        (postcopy.asking, postcopy.awaits_pages) = (false, false);
        postcopy.inbox.clear();
        postcopy.to_ask.clear();
    }

    /// Who would take a new connection here.
    pub fn listener(&self) -> Listener {
        if self.crashed {
            return Listener::Nobody;
        }
        match self.machine.last_word().filter(|_| self.finished) {
            Some(word) => Listener::LastWord(word),
            None if self.machine.paused().is_some() => Listener::Recovery,
            None => Listener::Nobody,
        }
    }

    /// A connection for a recovery has come.
    pub fn reconnected(&mut self) {
        self.postcopy.stream = Some(self.machine.postcopy_stream());
        self.machine.handle(DestinationEvent::Reconnected);
    }

    /// A guest that was given up does not run on with pages missing.
    pub(super) fn stop_guest_if_lost(&mut self) {
        let lost = self.machine.outcome().is_some_and(|outcome| outcome.fate == GuestFate::Lost);
        self.guest_runs &= !lost;
    }
}

//! Postcopy on the source: the package, pages that are asked for, the end of a connection and a new one.

use super::step::{Slice, Step, Write, WriteResult};
use super::{DEVICE, DEVICE_ENTRY, RAM, SourceShell};
use crate::sim::channels::SendChannels;
use crate::sim::environment::Environment;
use crate::sim::guest::PAGES;
use crate::sim::link::{FRAMES_MAX, Frame};
use crate::sim::mutant::Mutant;
use limosa_pages::{BlockName, PAGE_BYTES, PageIndex};
use limosa_protocol::{LinkRole, Loss, LossReason, SectionKind, SourceAction, SourceEvent, SourceStep};
use limosa_wire::{Command, DiscardRange, ReturnMessage};
use std::collections::VecDeque;

/// What the source keeps beside its machine in postcopy.
#[derive(Debug, Default)]
pub struct SourcePostcopySide {
    /// Pages that were asked for leave on a link of their own.
    preempt: bool,
    package: Vec<Frame>,
    /// Requests are served; before, there is nobody who could make one.
    serving: bool,
    /// Pages that were asked for and wait for the next slice.
    requested: VecDeque<usize>,
    /// Pages that were asked for, claimed, and not written yet.
    claimed: VecDeque<usize>,
    bitmap_awaited: bool,
    /// The link for pages that were asked for is to be made anew, alone.
    preempt_replaced: bool,
    /// A page that left although another one was asked for (I10).
    pub overtaken: Option<usize>,
}

/// A step of postcopy that is no stream of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PostcopyStep {
    OpenPreempt,
    PackageDevices { ping: u32 },
    Drain,
    Pause,
    Reconnect,
    ReplaceLinks,
}

impl SourcePostcopySide {
    pub(super) fn new(preempt: bool) -> Self {
        Self { preempt, ..Self::default() }
    }

    /// Pages that nobody owes any more and that are not on a link yet.
    pub fn claimed(&self) -> impl Iterator<Item = usize> {
        self.claimed.iter().copied()
    }
}

impl PostcopyStep {
    pub(super) const fn can_fail(self) -> Option<SourceStep> {
        match self {
            Self::OpenPreempt => Some(SourceStep::OpenPreempt),
            Self::PackageDevices { .. } => Some(SourceStep::PackageDevices),
            Self::Reconnect => Some(SourceStep::Reconnect),
            Self::Drain | Self::Pause | Self::ReplaceLinks => None,
        }
    }
}

impl SourceShell {
    pub(super) fn begin_postcopy(&mut self, action: SourceAction, mutant: Option<Mutant>) -> Step {
        let write = |before: Vec<Frame>, pages, after: Vec<Frame>, result| {
            Step::Write(Write { before: before.into(), pages, after: after.into(), sent: 0, result })
        };
        let open = |kind| Frame::Open { id: RAM, kind };
        match action {
            SourceAction::OpenPreempt => Step::Postcopy(PostcopyStep::OpenPreempt),
            SourceAction::PackageDevices { ping } => Step::Postcopy(PostcopyStep::PackageDevices { ping }),
            SourceAction::Drain => Step::Postcopy(PostcopyStep::Drain),
            SourceAction::Pause => Step::Postcopy(PostcopyStep::Pause),
            SourceAction::Reconnect => Step::Postcopy(PostcopyStep::Reconnect),
            SourceAction::ReplaceLinks => Step::Postcopy(PostcopyStep::ReplaceLinks),
            SourceAction::CompleteForPostcopy => {
                let mut frames = vec![Frame::Command(Command::SwitchoverStart)];
                // I5: nothing of precopy may arrive behind the discards.
                let racing = self.channels.as_ref().is_some_and(SendChannels::is_racing);
                if racing && mutant != Some(Mutant::SkipsFlush) {
                    frames.extend([open(SectionKind::Part), Frame::Flush, Frame::Footer(RAM)]);
                }
                write(frames, None, Vec::new(), WriteResult::ForPostcopy)
            }
            SourceAction::DiscardAhead => {
                self.memory.sync();
                // All that is owed is named every time: naming a page twice is no harm.
                let pages = self.memory.owed.count();
                let result = WriteResult::DiscardsAhead { pages };
                write(vec![Frame::Command(self.discards())], None, Vec::new(), result)
            }
            SourceAction::SendDiscards => {
                write(vec![Frame::Command(self.discards())], None, Vec::new(), WriteResult::Discards)
            }
            SourceAction::SendPackage => {
                self.postcopy.serving = true;
                let package = Frame::Package(std::mem::take(&mut self.postcopy.package));
                write(vec![package], None, Vec::new(), WriteResult::Package)
            }
            SourceAction::Push { max_bytes, .. } => {
                let slice = Slice { bytes_left: max_bytes.0, pages_left: 3, bounded: true };
                let footer = vec![Frame::Footer(RAM)];
                write(vec![open(SectionKind::Part)], Some(slice), footer, WriteResult::Push)
            }
            SourceAction::CompletePostcopy => {
                let frames = vec![open(SectionKind::End), Frame::Footer(RAM), Frame::EndOfStream];
                write(frames, None, Vec::new(), WriteResult::PostcopyEnd)
            }
            SourceAction::FetchBitmaps => {
                self.postcopy.bitmap_awaited = true;
                let ask = Frame::Command(Command::RecvBitmap { block: ram() });
                write(vec![ask], None, Vec::new(), WriteResult::Bitmaps)
            }
            action => unreachable!("{action:?} is no action of postcopy"),
        }
    }

    pub(super) fn perform_postcopy(&mut self, step: PostcopyStep, environment: &mut Environment) -> bool {
        let event = match step {
            PostcopyStep::ReplaceLinks => {
                self.drop_links(environment);
                return true;
            }
            PostcopyStep::OpenPreempt if std::mem::take(&mut self.postcopy.preempt_replaced) => {
                environment.link.replace_preempt();
                SourceEvent::PreemptOpened
            }
            PostcopyStep::OpenPreempt if !environment.link.preempt.is_open() => lost_preempt(),
            PostcopyStep::OpenPreempt => SourceEvent::PreemptOpened,
            PostcopyStep::PackageDevices { ping } => {
                self.postcopy.package = package(ping, environment.guest.device);
                SourceEvent::DevicesPackaged { size: limosa_pages::ByteCount(64) }
            }
            PostcopyStep::Drain => {
                if !environment.link.preempt.is_open() {
                    lost_preempt()
                } else if self.postcopy.claimed.is_empty() && environment.link.preempt.under_way().len() == 0
                {
                    return true;
                } else {
                    self.step = Some(Step::Postcopy(step));
                    return false;
                }
            }
            PostcopyStep::Pause => {
                self.pause(environment);
                SourceEvent::Paused
            }
            PostcopyStep::Reconnect if environment.connect() => {
                self.reader_ended = false;
                SourceEvent::Reconnected
            }
            PostcopyStep::Reconnect => {
                SourceEvent::Lost(Loss { role: LinkRole::Main, reason: LossReason::Closed })
            }
        };
        self.answer(event, environment);
        true
    }

    /// The main link stays, and is told.
    fn drop_links(&mut self, environment: &mut Environment) {
        let kept = environment.rng.below(FRAMES_MAX as u64) as usize;
        environment.link.preempt.cut(kept);
        self.inbox.retain(|event| *event != lost_preempt());
        self.stop_serving(environment.mutant);
        self.postcopy.preempt_replaced = true;
        let told = [Frame::Command(Command::ReplaceLinks)];
        let result = WriteResult::LinksDropped;
        let write = Write { before: told.into(), pages: None, after: VecDeque::new(), sent: 0, result };
        self.step = Some(Step::Write(write));
    }

    /// I8: what was claimed on a link means nothing on the next.
    fn stop_serving(&mut self, mutant: Option<Mutant>) {
        self.postcopy.serving = false;
        self.postcopy.requested.clear();
        if mutant != Some(Mutant::KeepsUrgentPages) {
            self.postcopy.claimed.clear();
        }
    }

    fn pause(&mut self, environment: &mut Environment) {
        let kept = environment.rng.below(FRAMES_MAX as u64) as usize;
        environment.link.cut(kept, 0);
        environment.channels.iter_mut().for_each(|channel| channel.cut(0));
        // I8: what was heard on this connection means nothing on the next.
        self.inbox.clear();
        self.reader_ended = true;
        self.stop_serving(environment.mutant);
        (self.postcopy.bitmap_awaited, self.postcopy.preempt_replaced) = (false, false);
        if environment.mutant == Some(Mutant::ResumesInDoubt) {
            self.guest_runs = true;
        }
    }

    /// A command that goes on a connection of postcopy: requests are served from RESUME on.
    pub(super) fn before_command(&mut self, command: &Command) {
        self.postcopy.serving |= *command == Command::PostcopyResume;
    }

    /// What is for the urgent path, or the answer to its question; anything else comes back.
    pub(super) fn take_answer(
        &mut self,
        message: ReturnMessage,
        environment: &mut Environment,
    ) -> Option<ReturnMessage> {
        match message {
            ReturnMessage::RequestPages { pages, .. } if self.postcopy.serving => {
                self.serve_request((pages.start / PAGE_BYTES as u64) as usize, environment);
                None
            }
            ReturnMessage::RequestPages { .. } => None,
            ReturnMessage::RecvBitmap(received) if self.postcopy.bitmap_awaited => {
                self.postcopy.bitmap_awaited = false;
                if environment.mutant != Some(Mutant::KeepsOldDebt) {
                    self.memory.owe_missing(&received.bitmap);
                }
                self.tell(SourceEvent::BitmapsMerged { pending: self.pending(environment) });
                None
            }
            other => Some(other),
        }
    }

    fn serve_request(&mut self, page: usize, environment: &Environment) {
        if !self.postcopy.preempt {
            self.postcopy.requested.push_back(page);
            return;
        }
        let claimed = self.memory.owed.claim(PageIndex(page as u64));
        if claimed || environment.mutant == Some(Mutant::ServesWithoutClaim) {
            self.postcopy.claimed.push_back(page);
        }
    }

    /// Writes a page that was asked for, as the thread that heard the request does.
    pub fn serve(&mut self, environment: &mut Environment) -> bool {
        if self.crashed || self.finished || !self.postcopy.serving {
            return false;
        }
        let Some(page) = self.postcopy.claimed.front().copied() else { return false };
        if !environment.link.preempt.has_room(environment.now) {
            return false;
        }
        self.postcopy.claimed.pop_front();
        let frame = Frame::Page { page, generation: self.memory.pages[page] };
        if environment.write_preempt(frame).is_err() {
            self.tell(lost_preempt());
        }
        true
    }

    /// Takes over the debt of the next page of a slice: one that was asked for, if there is one (I10).
    pub(super) fn claim(&mut self, environment: &Environment) -> usize {
        let owed = &self.memory.owed;
        self.postcopy.requested.retain(|page| owed.is_owed(PageIndex(*page as u64)));
        if environment.mutant != Some(Mutant::PushesInOrder)
            && let Some(page) = self.postcopy.requested.pop_front()
            && owed.claim(PageIndex(page as u64))
        {
            return page;
        }
        let page = self.memory.claim_next().expect("something is owed");
        if self.postcopy.requested.front().is_some_and(|first| *first != page) {
            self.postcopy.overtaken = Some(page);
        }
        page
    }

    fn discards(&self) -> Command {
        let owed = (0..PAGES as u64).filter(|page| self.memory.owed.is_owed(PageIndex(*page)));
        let bytes = PAGE_BYTES as u64;
        let ranges = owed.map(|page| DiscardRange { start: page * bytes, length: bytes }).collect();
        Command::PostcopyRamDiscard { block: ram(), ranges }
    }
}

fn package(ping: u32, device: u64) -> Vec<Frame> {
    vec![
        Frame::Command(Command::PostcopyListen),
        Frame::Open { id: DEVICE, kind: SectionKind::Full(DEVICE_ENTRY) },
        Frame::Device(device),
        Frame::Footer(DEVICE),
        Frame::Command(Command::Ping(ping)),
        Frame::Command(Command::PostcopyRun),
    ]
}

/// The one block of RAM there is.
pub(in crate::sim) fn ram() -> BlockName {
    BlockName::new("ram").expect("a short name")
}

fn lost_preempt() -> SourceEvent {
    SourceEvent::Lost(Loss { role: LinkRole::Preempt, reason: LossReason::Closed })
}

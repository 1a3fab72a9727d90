//! The shell around the source machine: what the engine's coordinator is to a real one.
//!
//! It works a step at a time, so that anything can happen between two page records. Like a coordinator it looks into
//! its inbox between actions; unlike one it chooses by chance, and hands results in late.

mod postcopy;
mod step;

pub use postcopy::SourcePostcopySide;
pub(super) use postcopy::ram;

use super::channels::SendChannels;
use super::environment::Environment;
use super::guest::{RECORD_BYTES, SourceMemory};
use super::link::{Channel, FRAMES_MAX, Frame, Received};
use super::mutant::Mutant;
use limosa_pages::ByteCount;
use limosa_protocol::{
    EntryIndex, GuestFate, LinkRole, Loss, LossReason, Pending, PingPurpose, SectionKind, Source,
    SourceAction, SourceConfig, SourceEvent, SourceStep,
};
use limosa_wire::{Command, Features, ReturnMessage, SectionId};
use std::collections::VecDeque;
use step::{Slice, Step, Write, WriteResult};

/// The live section.
pub(super) const RAM: SectionId = SectionId(1);
/// Its entry on the destination.
pub(super) const RAM_ENTRY: EntryIndex = EntryIndex(0);
/// The device section.
pub(super) const DEVICE: SectionId = SectionId(2);
/// Its entry on the destination.
pub(super) const DEVICE_ENTRY: EntryIndex = EntryIndex(1);
/// What an inbox holds at most; a reader waits when it is full.
pub const INBOX_MAX: usize = 8;
/// Bytes of a section header with its footer, roughly.
const SECTION_BYTES: u64 = 32;
/// Size of the device section, as announced in pending.
const DEVICE_BYTES: ByteCount = ByteCount(64);

/// The source's process.
#[derive(Debug)]
pub struct SourceShell {
    /// The machine.
    pub machine: Source,
    /// The guest's RAM here.
    pub memory: SourceMemory,
    /// The guest runs here.
    pub guest_runs: bool,
    /// The process is gone.
    pub crashed: bool,
    /// `Finish` is done.
    pub finished: bool,
    /// What the handlers were told at the setup.
    pub agreed: Option<Features>,
    /// The guest could not be brought back.
    pub resume_failed: bool,
    /// Where pages leave beside the main channel.
    pub channels: Option<SendChannels>,
    /// What belongs to postcopy.
    pub postcopy: SourcePostcopySide,
    inbox: VecDeque<SourceEvent>,
    step: Option<Step>,
    return_path: bool,
    reader_ended: bool,
    step_fails: bool,
    resume_fails: bool,
    devices_sent: bool,
}

impl SourceShell {
    /// A source whose guest runs.
    pub fn new(config: SourceConfig, environment: &mut Environment) -> Self {
        let return_path = config.return_path;
        let preempt = config.postcopy.is_some_and(|postcopy| postcopy.preempt);
        for frame in [Frame::Header, Frame::Configuration] {
            environment.write_main(frame).expect("a fresh link takes the head of the stream");
        }
        Self {
            machine: Source::new(config, environment.instant()),
            memory: SourceMemory::new(),
            guest_runs: true,
            crashed: false,
            finished: false,
            agreed: None,
            resume_failed: false,
            channels: (!environment.channels.is_empty())
                .then(|| SendChannels::new(environment.channels.len())),
            postcopy: SourcePostcopySide::new(preempt),
            inbox: VecDeque::new(),
            step: None,
            return_path,
            reader_ended: false,
            step_fails: false,
            resume_fails: false,
            devices_sent: false,
        }
    }

    /// The process dies.
    pub fn crash(&mut self) {
        self.crashed = true;
        self.guest_runs = false;
    }

    /// The step under way, or else the next, fails.
    pub fn fail_step(&mut self) {
        self.step_fails = true;
    }

    /// The guest will not be brought back.
    pub fn fail_resume(&mut self) {
        self.resume_fails = true;
    }

    /// Puts an event into the inbox.
    pub fn tell(&mut self, event: SourceEvent) {
        self.inbox.push_back(event);
    }

    /// Events that wait.
    pub fn inbox_length(&self) -> usize {
        self.inbox.len()
    }

    /// Does one thing, if there is one to do.
    pub fn advance(&mut self, environment: &mut Environment) -> bool {
        if self.crashed || self.finished {
            return false;
        }
        if let Some(step) = self.step.take() {
            return self.perform(step, environment);
        }
        let due = self.machine.poll_timeout().is_some_and(|time| time <= environment.instant());
        if due {
            self.hand(SourceEvent::Timeout, environment);
            return true;
        }
        // Between two actions the inbox gets its chance, or a cancel would wait for the end of the migration.
        if environment.rng.one_in(2)
            && let Some(event) = self.inbox.pop_front()
        {
            self.hand(event, environment);
            return true;
        }
        if let Some(action) = self.machine.poll_action() {
            self.step = self.begin(action, environment);
            return true;
        }
        match self.inbox.pop_front() {
            Some(event) => {
                self.hand(event, environment);
                true
            }
            None => false,
        }
    }

    /// Reads the return path, as its own thread would.
    pub fn read(&mut self, environment: &mut Environment) -> bool {
        let idle = !self.return_path || self.reader_ended || self.inbox.len() >= INBOX_MAX;
        if idle || self.crashed || self.finished {
            return false;
        }
        match environment.link.back.read(environment.now) {
            Received::Nothing => return false,
            Received::Item(message) => {
                if let Some(message) = self.take_answer(message, environment) {
                    self.tell(SourceEvent::Return(message));
                }
            }
            Received::Lost(reason) => {
                self.reader_ended = true;
                self.tell(SourceEvent::Lost(Loss { role: LinkRole::ReturnPath, reason }));
            }
        }
        true
    }

    /// Sends pages on a channel, as its own thread would.
    pub fn send_on_channel(&mut self, environment: &mut Environment) -> bool {
        let Some(channels) = self.channels.as_mut().filter(|_| !self.crashed && !self.finished) else {
            return false;
        };
        channels.advance(&mut self.memory, self.guest_runs, environment)
    }

    fn begin(&mut self, action: SourceAction, environment: &mut Environment) -> Option<Step> {
        let open = |kind| Frame::Open { id: RAM, kind };
        let frames = |list: &[Frame]| list.iter().cloned().collect::<VecDeque<_>>();
        let write = |before: &[Frame], pages, after: &[Frame], result| {
            Some(Step::Write(Write { before: frames(before), pages, after: frames(after), sent: 0, result }))
        };
        match action {
            // I5: the mutant's barrier stands nowhere.
            SourceAction::SendCommand(Command::Ping(value)) if self.skips_barrier(value, environment) => {
                self.tell(SourceEvent::Return(ReturnMessage::Pong(value)));
                None
            }
            SourceAction::SendCommand(command) => {
                self.read_unwritten_answer(&command, environment);
                self.before_command(&command);
                write(&[Frame::Command(command)], None, &[], WriteResult::Command)
            }
            SourceAction::SaveSetup { features } => {
                self.agreed = Some(features);
                let before = [open(SectionKind::Start(RAM_ENTRY)), Frame::Flush];
                let frames = if self.channels.is_some() { &before[..] } else { &before[..1] };
                write(frames, None, &[Frame::Footer(RAM)], WriteResult::Setup)
            }
            SourceAction::Iterate { max_bytes, .. } => {
                let pages_left = 1 + environment.rng.below(6);
                let slice = Slice { bytes_left: max_bytes.0, pages_left, bounded: true };
                write(&[open(SectionKind::Part)], Some(slice), &[Frame::Footer(RAM)], WriteResult::Slice)
            }
            SourceAction::CompletePrecopy => {
                let before = [Frame::Command(Command::SwitchoverStart), open(SectionKind::End)];
                let slice = Slice { bytes_left: u64::MAX, pages_left: u64::MAX, bounded: false };
                write(&before, Some(slice), &[Frame::Footer(RAM)], WriteResult::Precopy)
            }
            SourceAction::SaveDevices => {
                let header = Frame::Open { id: DEVICE, kind: SectionKind::Full(DEVICE_ENTRY) };
                let body = Frame::Device(environment.guest.device);
                write(&[header, body, Frame::Footer(DEVICE)], None, &[], WriteResult::Devices)
            }
            SourceAction::SendEnd => {
                write(&[Frame::EndOfStream, Frame::VmDescription], None, &[], WriteResult::End)
            }
            SourceAction::SyncDirty => Some(Step::Sync),
            SourceAction::StopVm => Some(Step::StopVm),
            SourceAction::ResumeVm => Some(Step::ResumeVm),
            SourceAction::CloseLink => Some(Step::CloseLink),
            SourceAction::Finish => Some(Step::Finish),
            action => Some(self.begin_postcopy(action, environment.mutant)),
        }
    }

    fn perform(&mut self, step: Step, environment: &mut Environment) -> bool {
        if std::mem::take(&mut self.step_fails)
            && let Some(failed) = step.can_fail()
        {
            self.resume_failed |= failed == SourceStep::ResumeVm;
            // A guest that could not be stopped may be stopped all the same.
            if failed == SourceStep::StopVm {
                self.guest_runs = environment.rng.one_in(2);
            }
            self.answer(SourceEvent::HandlerFailed { step: failed }, environment);
            return true;
        }
        match step {
            Step::Write(write) => return self.write(write, environment),
            Step::Postcopy(step) => return self.perform_postcopy(step, environment),
            Step::Sync => {
                self.memory.sync();
                self.answer(SourceEvent::Synced { pending: self.pending(environment) }, environment);
            }
            Step::StopVm => {
                self.guest_runs = false;
                self.answer(SourceEvent::VmStopped, environment);
            }
            Step::ResumeVm if self.resume_fails => {
                self.resume_failed = true;
                self.answer(SourceEvent::HandlerFailed { step: SourceStep::ResumeVm }, environment);
            }
            Step::ResumeVm => {
                self.guest_runs = true;
                self.answer(SourceEvent::VmResumed, environment);
            }
            Step::CloseLink => self.close_link(environment),
            Step::Finish => {
                let in_doubt =
                    self.machine.outcome().is_some_and(|outcome| outcome.fate == GuestFate::InDoubt);
                if environment.mutant == Some(Mutant::ResumesInDoubt) && in_doubt {
                    self.guest_runs = true;
                }
                environment.link.main.close();
                environment.link.back.cut(0);
                environment.channels.iter_mut().for_each(Channel::close);
                self.finished = true;
            }
        }
        true
    }

    /// Writes the next frame. `false` while the link has no room.
    fn write(&mut self, mut write: Write, environment: &mut Environment) -> bool {
        if let Some(channels) = &self.channels {
            if let Some(reason) = channels.failure() {
                self.lost(reason, environment);
                return true;
            }
            if !channels.are_in_line() {
                self.step = Some(Step::Write(write));
                return false;
            }
        }
        let room = environment.link.main.has_room(environment.now)
            || environment.mutant == Some(Mutant::IgnoresFullLink);
        if let Some(slice) = &mut write.pages
            && write.before.is_empty()
        {
            if !room && slice.bounded {
                if environment.mutant == Some(Mutant::DropsClaimedPage)
                    && let Some(page) = self.memory.claim_next()
                {
                    self.memory.log[page] = false;
                }
                slice.pages_left = 0;
            }
            if slice.pages_left == 0 || slice.bytes_left == 0 || self.memory.owed.count().0 == 0 {
                write.pages = None;
                self.end_round(&mut write, environment);
                self.step = Some(Step::Write(write));
                return true;
            }
        }
        if !room {
            self.step = Some(Step::Write(write));
            return false;
        }
        let frame = match write.before.pop_front() {
            Some(frame) => Some(frame),
            // One in four is a zero page, say, which leaves on the main channel.
            None if write.pages.is_some()
                && self.channels.is_some()
                && write.result != WriteResult::Push
                && !environment.rng.one_in(4) =>
            {
                return self.submit_page(write);
            }
            None if write.pages.is_some() => Some(self.next_page(&mut write, environment)),
            None => write.after.pop_front(),
        };
        let Some(frame) = frame else {
            self.written(&write, environment);
            return true;
        };
        let flushes = frame == Frame::Flush;
        match environment.write_main(frame) {
            Ok(()) => {
                if let Some(channels) = self.channels.as_mut().filter(|_| flushes) {
                    channels.bring_into_line();
                }
                self.step = Some(Step::Write(write));
            }
            Err(reason) => self.lost(reason, environment),
        }
        true
    }

    /// Claims a page and reads it, in the order that loses no write (I2).
    fn next_page(&mut self, write: &mut Write, environment: &mut Environment) -> Frame {
        let page = self.claim(environment);
        let generation = if environment.mutant == Some(Mutant::ClearsAfterRead) {
            let generation = self.memory.pages[page];
            environment.race(page, &mut self.memory, self.guest_runs);
            self.memory.log[page] = false;
            generation
        } else {
            self.memory.log[page] = false;
            environment.race(page, &mut self.memory, self.guest_runs);
            self.memory.pages[page]
        };
        write.count_page();
        if let Some(channels) = &mut self.channels {
            channels.races_on_main();
        }
        Frame::Page { page, generation }
    }

    /// Claims a page for whichever channel is free; its bytes are read there. `false` while none can take it.
    fn submit_page(&mut self, mut write: Write) -> bool {
        let channels = self.channels.as_mut().expect("asked by the caller");
        let room = channels.has_room();
        if room {
            let page = self.memory.claim_next().expect("something is owed");
            self.memory.log[page] = false;
            channels.submit(page);
            write.count_page();
        }
        self.step = Some(Step::Write(write));
        room
    }

    /// With the last page of a round the channels are brought into line (I5). In postcopy they are silent.
    fn end_round(&self, write: &mut Write, environment: &Environment) {
        let racing = self.channels.as_ref().is_some_and(SendChannels::is_racing);
        let skips = environment.mutant == Some(Mutant::SkipsFlush) && write.result == WriteResult::Slice
            || write.result == WriteResult::Push;
        if racing && !skips && self.memory.owed.count().0 == 0 {
            write.after.push_front(Frame::Flush);
        }
    }

    fn written(&mut self, write: &Write, environment: &mut Environment) {
        let sent = ByteCount(write.sent + SECTION_BYTES);
        let pending = self.pending(environment);
        let event = match write.result {
            WriteResult::Command | WriteResult::Bitmaps => return,
            WriteResult::LinksDropped => SourceEvent::LinksDropped,
            WriteResult::Setup => SourceEvent::SetupSaved { sent },
            WriteResult::Slice => SourceEvent::Iterated { sent, pending },
            WriteResult::Precopy => SourceEvent::PrecopyCompleted { sent },
            WriteResult::Devices => SourceEvent::DevicesSaved { sent },
            WriteResult::End => SourceEvent::EndSent { sent },
            WriteResult::ForPostcopy => SourceEvent::CompletedForPostcopy { sent },
            WriteResult::DiscardsAhead { pages } => SourceEvent::DiscardedAhead { sent, pages },
            WriteResult::Discards => SourceEvent::DiscardsSent { sent },
            WriteResult::Package => SourceEvent::PackageSent { sent },
            WriteResult::Push => SourceEvent::Pushed { sent, pending },
            WriteResult::PostcopyEnd => SourceEvent::PostcopyCompleted { sent },
        };
        self.devices_sent |= write.result == WriteResult::Devices;
        self.answer(event, environment);
    }

    fn pending(&self, environment: &Environment) -> Pending {
        let queued = environment.link.main.under_way().filter(|frame| matches!(frame, Frame::Page { .. }));
        let queued = ByteCount(queued.count() as u64 * RECORD_BYTES);
        Pending { owed: self.memory.owed_bytes(), device: DEVICE_BYTES, queued }
    }

    fn lost(&mut self, reason: LossReason, environment: &mut Environment) {
        self.answer(SourceEvent::Lost(Loss { role: LinkRole::Main, reason }), environment);
    }

    fn close_link(&mut self, environment: &mut Environment) {
        if environment.mutant == Some(Mutant::FlushesOutboxOnClose) && self.devices_sent {
            for frame in [Frame::EndOfStream, Frame::VmDescription] {
                let _gone_anyway = environment.write_main(frame);
            }
        } else if environment.rng.one_in(2) {
            // A reset loses what is under way; an orderly end does not.
            let kept = environment.rng.below(FRAMES_MAX as u64) as usize;
            environment.link.main.cut(kept);
        }
        environment.link.main.close();
        environment.link.back.cut(0);
        for channel in &mut environment.channels {
            let kept = environment.rng.below(FRAMES_MAX as u64) as usize;
            channel.cut(kept);
        }
    }

    /// Hands a result in, at once or behind what waits in the inbox.
    fn answer(&mut self, event: SourceEvent, environment: &mut Environment) {
        if environment.rng.one_in(2) { self.tell(event) } else { self.hand(event, environment) }
    }

    fn hand(&mut self, event: SourceEvent, environment: &mut Environment) {
        let event = match event {
            SourceEvent::Lost(_) if environment.mutant == Some(Mutant::TakesEofForSuccess) => {
                SourceEvent::Return(ReturnMessage::Shut(0))
            }
            event => event,
        };
        self.machine.handle(event, environment.instant());
    }

    fn skips_barrier(&self, value: u32, environment: &Environment) -> bool {
        environment.mutant == Some(Mutant::SkipsBarrier)
            && matches!(PingPurpose::from_value(value), Some(PingPurpose::Round(_)))
    }

    /// I9: the mutant looks into the slot of the switchover's answer before anyone has written it.
    fn read_unwritten_answer(&mut self, command: &Command, environment: &Environment) {
        let switchover = PingPurpose::Switchover.value();
        if environment.mutant == Some(Mutant::ReadsUnwrittenAnswer) && *command == Command::Ping(switchover) {
            self.tell(SourceEvent::Return(ReturnMessage::Pong(switchover)));
        }
    }
}

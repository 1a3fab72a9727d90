//! The shell around the destination machine: reader, loader and return path in one.

mod postcopy;

pub use postcopy::DestinationPostcopySide;

use super::channels::{Line, ReceiveChannels};
use super::environment::Environment;
use super::guest::PAGES;
use super::link::{FRAMES_MAX, Frame, Received};
use super::mutant::Mutant;
use limosa_protocol::{
    Destination, DestinationAction, DestinationConfig, DestinationEvent, LinkRole, Loss, LossReason,
};
use limosa_wire::{Command, Features, PostcopyAdvice, RefusalReason, ReturnMessage, SectionId};
use std::time::Duration;

/// What kind of destination it is.
#[derive(Clone, Copy, Debug)]
pub struct DestinationHabits {
    /// When its devices acknowledge the switchover, if the source waits for it.
    pub ack_at: Option<Duration>,
    /// It knows no extensions.
    pub is_qemu: bool,
    /// Those that it offers if it does.
    pub features: Features,
    /// Its pages, if postcopy is enabled.
    pub postcopy: Option<PostcopyAdvice>,
}

/// The destination's process.
#[derive(Debug)]
pub struct DestinationShell {
    /// The machine.
    pub machine: Destination,
    /// RAM here: the generation of every page that was placed.
    pub pages: [Option<u64>; PAGES],
    /// Which pages count as received (I3: only placed ones).
    pub received: [bool; PAGES],
    /// The device register, once it is loaded.
    pub device: Option<u64>,
    /// The guest runs here.
    pub guest_runs: bool,
    /// It did at some time.
    pub guest_ran: bool,
    /// The process is gone.
    pub crashed: bool,
    /// `Finish` is done.
    pub finished: bool,
    /// What belongs to postcopy.
    pub postcopy: DestinationPostcopySide,
    /// A page whose second half is still to be done.
    half_placed: Option<(usize, u64)>,
    channels: Option<ReceiveChannels>,
    /// The main channel stands at a FLUSH record.
    at_flush: bool,
    open: Option<SectionId>,
    acting: Option<DestinationAction>,
    /// What the handlers were told at the first section.
    pub agreed: Option<Features>,
    ack_at: Option<Duration>,
    /// It is a QEMU: it knows no extensions, and what is not in QEMU's protocol it never says.
    is_qemu: bool,
    step_fails: bool,
}

impl DestinationShell {
    /// A destination that listens, for so many channels.
    pub fn new(habits: DestinationHabits, channels: usize) -> Self {
        let DestinationHabits { ack_at, is_qemu, features, postcopy } = habits;
        let config = DestinationConfig { features, postcopy, ..DestinationConfig::default() };
        Self {
            machine: Destination::new(config),
            postcopy: DestinationPostcopySide::default(),
            pages: [None; PAGES],
            received: [false; PAGES],
            device: None,
            guest_runs: false,
            guest_ran: false,
            crashed: false,
            finished: false,
            half_placed: None,
            channels: (channels > 0).then(|| ReceiveChannels::new(channels)),
            at_flush: false,
            open: None,
            acting: None,
            agreed: None,
            ack_at,
            is_qemu,
            step_fails: false,
        }
    }

    /// The process dies.
    pub fn crash(&mut self) {
        self.crashed = true;
        self.guest_runs = false;
    }

    /// The next thing that is loaded or started fails.
    pub fn fail_step(&mut self) {
        self.step_fails = true;
    }

    /// Hands an event in from outside of the stream.
    pub fn tell(&mut self, event: DestinationEvent) {
        self.machine.handle(event);
    }

    /// Does one thing, if there is one to do.
    pub fn advance(&mut self, environment: &mut Environment) -> bool {
        if self.crashed || self.finished {
            return false;
        }
        if let Some(action) = self.acting.take() {
            return self.perform(action, environment);
        }
        if let Some(action) = self.machine.poll_action() {
            self.acting = Some(action);
            return true;
        }
        if self.postcopy.is_listening() {
            return self.coordinate(environment);
        }
        if let Some((page, generation)) = self.half_placed.take() {
            self.place_second_half(page, generation, environment);
            return true;
        }
        if self.at_flush {
            return self.pass_flush(environment);
        }
        self.read(environment)
    }

    /// Receives pages on a channel, as its own thread would.
    pub fn receive_on_channel(&mut self, environment: &mut Environment) -> bool {
        let Some(channels) = self.channels.as_mut().filter(|_| !self.crashed && !self.finished) else {
            return false;
        };
        channels.advance(&mut self.pages, &mut self.received, environment)
    }

    /// When the main channel will wait for a channel no longer.
    pub fn patience_ends(&self) -> Option<Duration> {
        self.channels.as_ref().filter(|_| !self.crashed && !self.finished)?.patience_ends()
    }

    /// The devices acknowledge the switchover, as VFIO does when its first state has arrived.
    pub fn acknowledge(&mut self, environment: &mut Environment) -> bool {
        let due = self.ack_time().is_some_and(|time| time <= environment.now);
        if !due || !environment.link.back.has_room(environment.now) {
            return false;
        }
        self.ack_at = None;
        let _lost_anyway = environment.write_back(ReturnMessage::SwitchoverAck);
        true
    }

    /// When the devices will be ready, if somebody can still hear it.
    pub fn ack_time(&self) -> Option<Duration> {
        let listens = self.machine.return_path_open() && !self.crashed && !self.finished;
        self.ack_at.filter(|_| listens)
    }

    fn perform(&mut self, action: DestinationAction, environment: &mut Environment) -> bool {
        match action {
            DestinationAction::Send(ReturnMessage::Hello(_)) if self.is_qemu => {}
            DestinationAction::SendReason if self.is_qemu => {}
            DestinationAction::SendReason => {
                let reason = ReturnMessage::Refused(RefusalReason::new("it failed"));
                return self.perform(DestinationAction::Send(reason), environment);
            }
            DestinationAction::LoadSetup { .. } if std::mem::take(&mut self.step_fails) => {
                self.machine.handle(DestinationEvent::LoadFailed { section: self.open });
            }
            DestinationAction::LoadSetup { features } => self.agreed = Some(features),
            DestinationAction::Send(message) => {
                if !environment.link.back.has_room(environment.now) {
                    self.acting = Some(DestinationAction::Send(message));
                    return false;
                }
                if let Err(reason) = environment.write_back(message) {
                    self.machine.handle(DestinationEvent::Lost(Loss { role: LinkRole::ReturnPath, reason }));
                }
            }
            DestinationAction::StartGuest if std::mem::take(&mut self.step_fails) => {
                self.machine.handle(DestinationEvent::StartFailed);
            }
            DestinationAction::StartGuest => {
                (self.guest_runs, self.guest_ran) = (true, true);
                // The link may end in just this moment; it must not matter.
                if !environment.link.is_whole() && !self.postcopy.is_listening() && environment.rng.one_in(2)
                {
                    self.lost(LossReason::Closed);
                }
                self.machine.handle(DestinationEvent::GuestStarted);
            }
            DestinationAction::Finish => {
                self.finished = true;
                self.stop_guest_if_lost();
                let unread = environment.link.main.under_way().len() > 0;
                // Closing a socket with unread bytes resets it, and the last word may be lost with it.
                let kept = environment.rng.below(FRAMES_MAX as u64) as usize;
                environment.link.main.cut(0);
                environment.channels.iter_mut().for_each(|channel| channel.cut(0));
                if unread {
                    environment.link.back.cut(kept)
                } else {
                    environment.link.back.close()
                }
                environment.link.preempt.cut(0);
            }
            action => return self.perform_postcopy(action, environment),
        }
        true
    }

    fn read(&mut self, environment: &mut Environment) -> bool {
        match environment.link.main.read(environment.now) {
            Received::Nothing => return false,
            Received::Lost(reason) => self.lost(reason),
            Received::Item(frame) if std::mem::take(&mut self.step_fails) => self.refuse(&frame),
            Received::Item(frame) => self.load(frame, environment),
        }
        true
    }

    fn load(&mut self, frame: Frame, environment: &mut Environment) {
        let event = match frame {
            Frame::Header => DestinationEvent::HeaderRead,
            Frame::Configuration => DestinationEvent::ConfigurationChecked,
            Frame::Command(Command::Features(_)) if self.is_qemu => return self.lost(LossReason::Unreadable),
            Frame::Command(command) => DestinationEvent::CommandRead(command),
            Frame::Open { id, kind } => {
                self.open = Some(id);
                DestinationEvent::SectionOpened { id, kind }
            }
            Frame::Footer(id) => {
                self.open = None;
                DestinationEvent::SectionLoaded { id }
            }
            Frame::Flush if self.channels.is_some() => {
                self.at_flush = true;
                return;
            }
            Frame::Flush => return self.lost(LossReason::Unreadable),
            Frame::EndOfStream if self.channels.as_ref().is_some_and(|channels| !channels.close()) => {
                DestinationEvent::LoadFailed { section: self.open }
            }
            Frame::Package(frames) => return self.take_package(frames, environment),
            Frame::EndOfStream => DestinationEvent::EndOfStream,
            Frame::VmDescription => DestinationEvent::VmDescriptionRead,
            Frame::Page { .. } | Frame::Device(_) if self.open.is_none() => {
                return self.lost(LossReason::Unreadable);
            }
            Frame::Page { page, generation } => return self.place_first_half(page, generation, environment),
            Frame::Device(register) => {
                self.device = Some(register);
                return;
            }
        };
        self.machine.handle(event);
    }

    /// Waits at a FLUSH record until every channel is at its point (I5).
    fn pass_flush(&mut self, environment: &Environment) -> bool {
        let channels = self.channels.as_mut().expect("a FLUSH record is for them");
        let line = if environment.mutant == Some(Mutant::PassesFlush) {
            channels.pass_blindly();
            Line::Passed
        } else {
            channels.pass(environment.now)
        };
        self.at_flush = line == Line::Waits;
        if line == Line::Failed {
            self.machine.handle(DestinationEvent::LoadFailed { section: self.open });
        }
        line != Line::Waits
    }

    fn place_first_half(&mut self, page: usize, generation: u64, environment: &Environment) {
        if environment.mutant == Some(Mutant::MarksBeforePlacing) {
            self.received[page] = true;
        } else {
            self.pages[page] = Some(generation);
        }
        self.half_placed = Some((page, generation));
    }

    fn place_second_half(&mut self, page: usize, generation: u64, environment: &Environment) {
        if environment.mutant == Some(Mutant::MarksBeforePlacing) {
            self.pages[page] = Some(generation);
        } else {
            self.received[page] = true;
        }
    }

    /// A handler, or the reader, does not accept what it has read.
    fn refuse(&mut self, frame: &Frame) {
        match frame {
            Frame::Configuration => self.machine.handle(DestinationEvent::ConfigurationRefused),
            Frame::Open { .. } | Frame::Page { .. } | Frame::Device(_) => {
                self.machine.handle(DestinationEvent::LoadFailed { section: self.open });
            }
            _ => self.lost(LossReason::Unreadable),
        }
    }

    fn lost(&mut self, reason: LossReason) {
        self.machine.handle(DestinationEvent::Lost(Loss { role: LinkRole::Main, reason }));
    }
}

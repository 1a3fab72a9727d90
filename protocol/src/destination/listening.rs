//! The package: LISTEN, the devices and RUN, while pages arrive beside it.
//!
//! Until the guest is started everything that goes wrong means that it never runs here (I6).

use super::context::Context;
use super::ending::give_up;
use super::interface::{DestinationAction, DestinationEvent, SectionKind};
use super::outcome::{DestinationEnding, DestinationFailure};
use super::recovery::pause;
use super::running::Running;
use super::sections::SectionTable;
use super::state::{State, Transition, unexpected};
use limosa_wire::{Command, ReturnMessage, SectionId};

/// The package has been read; LISTEN must be the first thing in it.
#[derive(Debug)]
pub(super) struct AwaitingListen {
    sections: SectionTable,
}

/// Devices are loaded from the package, and the main link is read beside it.
#[derive(Debug)]
pub(super) struct LoadingPackage {
    sections: SectionTable,
    open: Option<SectionId>,
    /// RUN has been read. Nothing may follow it.
    run: bool,
    /// The main link has brought its end.
    ended: bool,
}

/// The package is loaded, and the guest is being started.
#[derive(Debug)]
pub(super) struct StartingInPostcopy {
    ended: bool,
    /// What went wrong meanwhile; it pauses the migration once the guest runs.
    failure: Option<DestinationFailure>,
}

impl AwaitingListen {
    pub(super) const NAME: &'static str = "awaiting listen";

    pub(super) const fn enter(sections: SectionTable) -> State {
        State::AwaitingListen(Self { sections })
    }

    pub(super) fn on(self, event: DestinationEvent, context: &mut Context) -> Transition {
        match event {
            DestinationEvent::CommandRead(Command::PostcopyListen) => {
                context.live = self.sections.live();
                context.act(DestinationAction::Listen);
                let sections = self.sections;
                Ok(State::LoadingPackage(LoadingPackage { sections, open: None, run: false, ended: false }))
            }
            event => Err(unexpected(Self::NAME, "POSTCOPY_LISTEN", &event)),
        }
    }
}

impl LoadingPackage {
    pub(super) const NAME: &'static str = "loading the package";

    pub(super) fn on(mut self, event: DestinationEvent, context: &mut Context) -> Transition {
        match event {
            DestinationEvent::SectionOpened { id, kind: kind @ SectionKind::Full(_) }
                if self.is_between() =>
            {
                self.sections.open(id, kind)?;
                self.open = Some(id);
            }
            DestinationEvent::SectionLoaded { id } if self.open == Some(id) => self.open = None,
            // It may stand in the package or behind it; either way everything before it in its stream is loaded.
            DestinationEvent::CommandRead(Command::Ping(value)) => {
                context.act(DestinationAction::Send(ReturnMessage::Pong(value)));
            }
            DestinationEvent::CommandRead(Command::PostcopyRun) if self.is_between() => self.run = true,
            DestinationEvent::PackageEnded if self.run => {
                context.act(DestinationAction::StartGuest);
                let ended = self.ended;
                return Ok(State::StartingInPostcopy(StartingInPostcopy { ended, failure: None }));
            }
            DestinationEvent::EndOfStream if !self.ended => self.ended = true,
            event => return Err(unexpected(Self::NAME, "a device, RUN, or the end of both", &event)),
        }
        Ok(State::LoadingPackage(self))
    }

    /// Whether another item of the package may come.
    fn is_between(&self) -> bool {
        self.open.is_none() && !self.run
    }
}

impl StartingInPostcopy {
    pub(super) const NAME: &'static str = "starting in postcopy";

    pub(super) fn on(self, event: DestinationEvent, context: &mut Context) -> Transition {
        let failure = match event {
            DestinationEvent::GuestStarted => return Ok(self.started(context)),
            DestinationEvent::StartFailed => {
                return Ok(give_up(DestinationEnding::Failed(DestinationFailure::Start), context));
            }
            DestinationEvent::EndOfStream if !self.ended => {
                return Ok(State::StartingInPostcopy(Self { ended: true, ..self }));
            }
            DestinationEvent::CommandRead(Command::Ping(value)) => {
                context.act(DestinationAction::Send(ReturnMessage::Pong(value)));
                return Ok(State::StartingInPostcopy(self));
            }
            // Too late; the source has let go of it.
            DestinationEvent::Cancel | DestinationEvent::PausePostcopy | DestinationEvent::GiveUp => {
                return Ok(State::StartingInPostcopy(self));
            }
            DestinationEvent::Lost(loss) => {
                context.return_path_open = false;
                DestinationFailure::Lost(loss)
            }
            DestinationEvent::LoadFailed { section } => DestinationFailure::Load { section },
            DestinationEvent::StreamRefused(failure) => failure,
            event => unexpected(Self::NAME, "GuestStarted", &event),
        };
        Ok(State::StartingInPostcopy(Self { failure: self.failure.or(Some(failure)), ..self }))
    }

    fn started(self, context: &mut Context) -> State {
        context.guest_runs = true;
        if let Some(failure) = self.failure {
            return pause(failure, context);
        }
        if context.running_answers() {
            context.act(DestinationAction::Send(ReturnMessage::Running));
        }
        Running::enter(self.ended, context)
    }
}

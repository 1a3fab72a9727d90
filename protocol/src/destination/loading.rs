//! From the first byte to EOF: nothing of what is read here makes the guest run.

use super::context::{Context, Phase};
use super::ending::{AwaitingDescription, StartingGuest};
use super::interface::{DestinationAction, DestinationEvent, command_name};
use super::listening::AwaitingListen;
use super::outcome::DestinationFailure;
use super::sections::SectionTable;
use super::state::{State, Transition, unexpected};
use limosa_wire::{Command, PostcopyAdvice, ReturnMessage, SectionId};

/// Listening, or connected and waiting for the stream to begin.
#[derive(Debug)]
pub(super) struct AwaitingHeader;

/// The stream has begun; the kind of machine comes next.
#[derive(Debug)]
pub(super) struct AwaitingConfiguration;

/// Between sections: another one, a command, or EOF may come.
#[derive(Debug)]
pub(super) struct BetweenSections {
    sections: SectionTable,
}

/// Inside of a section; only its end may come.
#[derive(Debug)]
pub(super) struct InSection {
    sections: SectionTable,
    id: SectionId,
}

impl AwaitingHeader {
    pub(super) const NAME: &'static str = "awaiting header";

    pub(super) fn on(self, event: DestinationEvent, _context: &mut Context) -> Transition {
        match event {
            DestinationEvent::HeaderRead => Ok(State::AwaitingConfiguration(AwaitingConfiguration)),
            event => Err(unexpected(Self::NAME, "header", &event)),
        }
    }
}

impl AwaitingConfiguration {
    pub(super) const NAME: &'static str = "awaiting configuration";

    pub(super) fn on(self, event: DestinationEvent, _context: &mut Context) -> Transition {
        match event {
            DestinationEvent::ConfigurationChecked => {
                Ok(State::BetweenSections(BetweenSections { sections: SectionTable::default() }))
            }
            DestinationEvent::ConfigurationRefused => Err(DestinationFailure::Configuration),
            event => Err(unexpected(Self::NAME, "configuration", &event)),
        }
    }
}

impl BetweenSections {
    pub(super) const NAME: &'static str = "between sections";

    pub(super) fn on(mut self, event: DestinationEvent, context: &mut Context) -> Transition {
        match event {
            DestinationEvent::SectionOpened { id, kind } => {
                self.sections.open(id, kind)?;
                Ok(State::InSection(InSection { sections: self.sections, id }))
            }
            DestinationEvent::CommandRead(Command::Packaged { .. }) if context.phase != Phase::Precopy => {
                Ok(AwaitingListen::enter(self.sections))
            }
            DestinationEvent::CommandRead(command) => {
                obey(&command, context)?;
                Ok(State::BetweenSections(self))
            }
            DestinationEvent::EndOfStream => {
                if context.config.require_end_sections
                    && let Some(id) = self.sections.unended()
                {
                    return Err(DestinationFailure::Unended { id });
                }
                if context.config.require_vmdescription {
                    Ok(State::AwaitingDescription(AwaitingDescription))
                } else {
                    Ok(StartingGuest::enter(context))
                }
            }
            event => Err(unexpected(Self::NAME, "section, command or EOF", &event)),
        }
    }
}

impl InSection {
    pub(super) const NAME: &'static str = "in section";

    pub(super) fn on(self, event: DestinationEvent, _context: &mut Context) -> Transition {
        match event {
            DestinationEvent::SectionLoaded { id } if id == self.id => {
                Ok(State::BetweenSections(BetweenSections { sections: self.sections }))
            }
            event => Err(unexpected(Self::NAME, "the footer of the open section", &event)),
        }
    }
}

/// Does what a command says (wire 2.1).
fn obey(command: &Command, context: &mut Context) -> Result<(), DestinationFailure> {
    match command {
        Command::OpenReturnPath if !context.config.bidirectional => Err(DestinationFailure::NoReturnPath),
        Command::OpenReturnPath => {
            // A second one changes nothing; QEMU warns of it and goes on too.
            if !context.return_path_open {
                context.return_path_open = true;
                if context.config.switchover_ack {
                    context.act(DestinationAction::Send(ReturnMessage::SwitchoverAck));
                }
            }
            Ok(())
        }
        Command::Ping(value) if context.return_path_open => {
            // Everything before it in the stream is loaded: that is what the answer proves.
            context.act(DestinationAction::Send(ReturnMessage::Pong(*value)));
            Ok(())
        }
        Command::Ping(_) => Err(unexpected(
            BetweenSections::NAME,
            "OPEN_RETURN_PATH before any PING",
            &DestinationEvent::CommandRead(command.clone()),
        )),
        Command::SwitchoverStart => Ok(()),
        Command::PostcopyAdvise(Some(advice)) => advise(*advice, command, context),
        Command::PostcopyRamDiscard { block, ranges } if context.phase != Phase::Precopy => {
            context.phase = Phase::Discarding;
            context.act(DestinationAction::Discard { block: block.clone(), ranges: ranges.clone() });
            Ok(())
        }
        Command::PostcopyAdvise(None)
        | Command::PostcopyListen
        | Command::PostcopyRun
        | Command::PostcopyRamDiscard { .. }
        | Command::Packaged { .. }
        | Command::EnableColo
        | Command::PostcopyResume
        | Command::RecvBitmap { .. } => {
            Err(DestinationFailure::Unsupported { command: command_name(command) })
        }
    }
}

/// Postcopy may follow, if it is enabled here and the pages are of the same sizes (wire 5.2).
fn advise(
    advice: PostcopyAdvice,
    command: &Command,
    context: &mut Context,
) -> Result<(), DestinationFailure> {
    let Some(here) = context.config.postcopy else {
        return Err(DestinationFailure::Unsupported { command: command_name(command) });
    };
    if !context.return_path_open || context.phase != Phase::Precopy {
        return Err(unexpected(
            BetweenSections::NAME,
            "OPEN_RETURN_PATH, then one POSTCOPY_ADVISE",
            &DestinationEvent::CommandRead(command.clone()),
        ));
    }
    if advice != here {
        return Err(DestinationFailure::Advice { source_pages: advice, here });
    }
    context.phase = Phase::Advised;
    context.act(DestinationAction::PreparePostcopy);
    Ok(())
}

//! From the first byte to EOF: nothing of what is read here makes the guest run.

use super::context::{Context, Phase};
use super::ending::{AwaitingDescription, StartingGuest};
use super::interface::{DestinationAction, DestinationEvent};
use super::listening::AwaitingListen;
use super::outcome::{DestinationFailure, SettingsMismatch};
use super::sections::SectionTable;
use super::state::{State, Transition, unexpected};
use limosa_wire::{
    Agreement, Command, EXTENSIONS_VERSION, Features, GREETING, Hello, PostcopyAdvice, ReturnMessage,
    SectionId,
};

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
                begin(context);
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

/// The first section has come: from here on it is known what the source uses.
fn begin(context: &mut Context) {
    if !std::mem::replace(&mut context.begun, true) {
        let features = context.agreed.map_or(Features::NONE, |agreement| agreement.features);
        context.act(DestinationAction::LoadSetup { features });
    }
}

/// Holds what the source has chosen, and what it says of itself, against what we have.
fn agree(agreement: &Agreement, context: &mut Context) -> Result<(), DestinationFailure> {
    let features = agreement.features.without(context.config.features);
    if !features.is_empty() {
        return Err(DestinationFailure::NotOffered { features });
    }
    if agreement.multifd != context.config.multifd {
        let (theirs, ours) = (agreement.multifd, context.config.multifd);
        return Err(DestinationFailure::Settings(SettingsMismatch { theirs, ours }));
    }
    context.agreed = Some(*agreement);
    Ok(())
}

fn out_of_order(expected: &'static str, command: &Command) -> DestinationFailure {
    unexpected(BetweenSections::NAME, expected, &DestinationEvent::CommandRead(command.clone()))
}

/// Does what a command says (wire 2.1, 14.1).
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
            if *value == GREETING && !context.greeted {
                context.greeted = true;
                let hello = Hello { version: EXTENSIONS_VERSION, features: context.config.features };
                context.act(DestinationAction::Send(ReturnMessage::Hello(hello)));
            }
            // Everything before it in the stream is loaded: that is what the answer proves.
            context.act(DestinationAction::Send(ReturnMessage::Pong(*value)));
            Ok(())
        }
        Command::Ping(_) => Err(out_of_order("OPEN_RETURN_PATH before any PING", command)),
        Command::Features(agreement) if context.greeted && !context.begun && context.agreed.is_none() => {
            agree(agreement, context)
        }
        Command::Features(_) => {
            Err(out_of_order("FEATURES once, between HELLO and the first section", command))
        }
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
        | Command::RecvBitmap { .. }
        | Command::ReplaceLinks => Err(DestinationFailure::Unsupported { command: command.name() }),
    }
}

/// Postcopy may follow, if it is enabled here and the pages are of the same sizes (wire 5.2).
fn advise(
    advice: PostcopyAdvice,
    command: &Command,
    context: &mut Context,
) -> Result<(), DestinationFailure> {
    let Some(here) = context.config.postcopy else {
        return Err(DestinationFailure::Unsupported { command: command.name() });
    };
    if !context.return_path_open || context.begun || context.phase != Phase::Precopy {
        return Err(unexpected(
            BetweenSections::NAME,
            "OPEN_RETURN_PATH, then one POSTCOPY_ADVISE before the first section",
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

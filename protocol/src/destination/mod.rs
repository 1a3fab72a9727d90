//! The destination of a migration, as a machine.

mod context;
mod ending;
mod interface;
mod listening;
mod loading;
mod outcome;
mod recovery;
mod running;
mod sections;
mod state;
mod stream;
#[cfg(test)]
mod tests;

pub use interface::{DestinationAction, DestinationConfig, DestinationEvent, EntryIndex, SectionKind};
pub use outcome::{DestinationEnding, DestinationFailure, DestinationOutcome, SettingsMismatch};
pub use sections::SECTIONS_MAX;
pub use stream::PostcopyStream;

use crate::error::LinkRole;
use crate::status::{GuestFate, MigrationStatus};
use context::Context;
use ending::give_up;
use limosa_wire::ReturnMessage;
use loading::AwaitingHeader;
use recovery::pause;
use state::State;

/// The destination's half of a migration.
///
/// It follows the stream, answers pings in its order, and starts the guest only when everything has been read, EOF
/// and vmdescription included. Whatever goes wrong before that means that the guest never runs here, and the source
/// hears SHUT(1) if it listens; the end of the connection is never taken for the end of the stream (I7).
///
/// In postcopy the guest starts with the package. Before that nothing is different; once it runs, whatever goes wrong pauses
/// the migration and never the guest, which goes on with the pages that it has.
///
/// There is no time in it: links carry their own deadlines, and a loss is an event.
#[derive(Debug)]
pub struct Destination {
    /// `None` only inside of `handle`.
    state: Option<State>,
    context: Context,
}

impl Destination {
    /// A destination that waits for its stream.
    pub fn new(config: DestinationConfig) -> Self {
        Self { state: Some(State::AwaitingHeader(AwaitingHeader)), context: Context::new(config) }
    }

    /// Takes in what happened. Anything illegal means that the guest never runs here, unless it may run already.
    pub fn handle(&mut self, event: DestinationEvent) {
        let state = self.state.take().expect("handle does not nest");
        self.state = Some(self.next(state, event));
    }

    fn next(&mut self, state: State, event: DestinationEvent) -> State {
        let context = &mut self.context;
        let finished = matches!(state, State::Finished(_));
        let next = match event {
            _ if context.guest_runs && !finished => return in_postcopy(state, event, context),
            _ if finished || context.start_taken => state.on(event, context),
            DestinationEvent::Cancel => return give_up(DestinationEnding::Cancelled, context),
            DestinationEvent::Lost(loss) => {
                // With the stream gone a last word may still reach the source; with the return path gone it cannot.
                context.return_path_open &= loss.role != LinkRole::ReturnPath;
                Err(DestinationFailure::Lost(loss))
            }
            DestinationEvent::LoadFailed { section } => Err(DestinationFailure::Load { section }),
            DestinationEvent::StreamRefused(failure) => Err(failure),
            // They mean something only when the guest runs here.
            DestinationEvent::PausePostcopy | DestinationEvent::GiveUp | DestinationEvent::PreemptEnded => {
                Ok(state)
            }
            event => state.on(event, context),
        };
        next.unwrap_or_else(|failure| give_up(DestinationEnding::Failed(failure), context))
    }

    /// The next thing to do. From the moment it is handed out it counts as possibly done.
    pub fn poll_action(&mut self) -> Option<DestinationAction> {
        self.context.take_action()
    }

    /// How it ended; `None` while it goes on. [`DestinationAction::Finish`] may still have to be taken.
    pub fn outcome(&self) -> Option<&DestinationOutcome> {
        match self.state() {
            State::Finished(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Where it stands, in QEMU's words.
    pub fn status(&self) -> MigrationStatus {
        self.state().status()
    }

    /// The state's name, for logs and tests.
    pub fn state_name(&self) -> &'static str {
        self.state().name()
    }

    /// The order of the main link from now on, for its reader: at [`DestinationAction::Listen`], and for every connection of a
    /// recovery.
    pub fn postcopy_stream(&self) -> PostcopyStream {
        PostcopyStream::new(self.context.live.clone(), self.context.config.require_end_sections)
    }

    /// Why postcopy is paused; `None` if it is not. Only then a new connection may be handed in.
    pub fn paused(&self) -> Option<&DestinationFailure> {
        match self.state() {
            State::Paused(state) => Some(state.reason()),
            _ => None,
        }
    }

    /// Whether the user may pause: the guest runs here, and the migration is connected.
    pub fn may_pause(&self) -> bool {
        let paused = matches!(self.state(), State::Pausing(_) | State::Paused(_));
        self.context.guest_runs && self.outcome().is_none() && !paused
    }

    /// What to answer to a source that wants a recovery after the end: that the guest is here, or that it never ran. `None`
    /// if it would not understand, or has nothing to recover.
    pub fn last_word(&self) -> Option<ReturnMessage> {
        match self.outcome()?.fate {
            GuestFate::OnDestination if self.context.guest_runs => Some(ReturnMessage::Shut(0)),
            GuestFate::OnSource if self.context.running_answers() => Some(ReturnMessage::NeverRan),
            _ => None,
        }
    }

    /// Whether the source has opened the return path.
    pub const fn return_path_open(&self) -> bool {
        self.context.return_path_open
    }

    fn state(&self) -> &State {
        self.state.as_ref().expect("set outside of handle")
    }
}

/// The rules that hold in every state in which the guest runs here.
fn in_postcopy(state: State, event: DestinationEvent, context: &mut Context) -> State {
    let next = match event {
        _ if matches!(state, State::Pausing(_) | State::Paused(_)) => state.on(event, context),
        DestinationEvent::Lost(loss) if loss.is_beside_main() && bears_losses(&state, context) => {
            state.on(event, context)
        }
        DestinationEvent::PreemptEnded if !bears_losses(&state, context) => Ok(state),
        DestinationEvent::Lost(loss) => Err(DestinationFailure::Lost(loss)),
        DestinationEvent::LoadFailed { section } => Err(DestinationFailure::Load { section }),
        DestinationEvent::StreamRefused(failure) => Err(failure),
        DestinationEvent::PausePostcopy => Err(DestinationFailure::PausedByUser),
        // The source cannot take the guest back, and nobody else has it.
        DestinationEvent::Cancel | DestinationEvent::GiveUp => Ok(state),
        event => state.on(event, context),
    };
    next.unwrap_or_else(|failure| pause(failure, context))
}

/// Whether a link beside the main one may be lost here without a pause.
fn bears_losses(state: &State, context: &Context) -> bool {
    matches!(state, State::Running(_)) && context.replaces_links()
}

//! The destination of a migration, as a machine.

mod context;
mod ending;
mod interface;
mod loading;
mod outcome;
mod sections;
mod state;
#[cfg(test)]
mod tests;

pub use interface::{DestinationAction, DestinationConfig, DestinationEvent, EntryIndex, SectionKind};
pub use outcome::{DestinationEnding, DestinationFailure, DestinationOutcome};
pub use sections::SECTIONS_MAX;

use crate::error::LinkRole;
use crate::status::MigrationStatus;
use context::Context;
use ending::give_up;
use loading::AwaitingHeader;
use state::State;

/// The destination's half of a precopy migration.
///
/// It follows the stream, answers pings in its order, and starts the guest only when everything has been read, EOF
/// and vmdescription included. Whatever goes wrong before that means that the guest never runs here, and the source
/// hears SHUT(1) if it listens; the end of the connection is never taken for the end of the stream (I7).
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
            _ if finished || context.start_taken => state.on(event, context),
            DestinationEvent::Cancel => return give_up(DestinationEnding::Cancelled, context),
            DestinationEvent::Lost(loss) => {
                // With the stream gone a last word may still reach the source; with the return path gone it cannot.
                context.return_path_open &= loss.role != LinkRole::ReturnPath;
                Err(DestinationFailure::Lost(loss))
            }
            DestinationEvent::LoadFailed { section } => Err(DestinationFailure::Load { section }),
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

    /// Whether the source has opened the return path.
    pub const fn return_path_open(&self) -> bool {
        self.context.return_path_open
    }

    fn state(&self) -> &State {
        self.state.as_ref().expect("set outside of handle")
    }
}

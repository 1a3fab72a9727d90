//! What must hold, whatever goes wrong. One file per invariant or group of them.

mod agreement;
mod debt;
mod ending;
mod limits;
mod one_guest;
mod placement;
mod postcopy;

use super::destination_shell::DestinationShell;
use super::environment::Environment;
use super::source_shell::SourceShell;
use limosa_wire::Features;

/// What must not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// I1: a page that the destination needs is nobody's debt.
    #[error("I1: page {page} is neither owed, logged, under way nor held")]
    LostPage {
        /// Which.
        page: usize,
    },
    /// I3: a page counts as received and is not there.
    #[error("I3: page {page} counts as received before it is placed")]
    MarkedBeforePlaced {
        /// Which.
        page: usize,
    },
    /// I4: a page came in postcopy that was there already.
    #[error("I4: page {page} came twice")]
    PlacedTwice {
        /// Which.
        page: usize,
    },
    /// I10: a page left in the background while another one was asked for.
    #[error("I10: page {page} left although another one was asked for")]
    Overtaken {
        /// Which.
        page: usize,
    },
    /// The guest's memory is not what it was.
    #[error("page {page} of the running guest is not what the guest wrote")]
    WrongPage {
        /// Which.
        page: usize,
    },
    /// I5: a barrier was passed by pages behind it.
    #[error("I5: {what} is still under way behind a barrier")]
    PassedBarrier {
        /// Page records, or device state.
        what: &'static str,
    },
    /// I6: the source runs a guest that the destination has run.
    #[error("I6: two guests")]
    TwoGuests,
    /// The two sides read the stream in two ways.
    #[error("the source uses {sent}, the destination expects {expected}")]
    Disagreement {
        /// The source's extensions.
        sent: Features,
        /// The destination's.
        expected: Features,
    },
    /// The destination began to run something that is not the guest.
    #[error("the destination starts with the wrong {what}")]
    WrongState {
        /// RAM or device.
        what: &'static str,
    },
    /// I11: a queue grew above its limit.
    #[error("I11: {queue} holds {length}, limit {limit}")]
    OverLimit {
        /// Which.
        queue: &'static str,
        /// How much it holds.
        length: usize,
        /// How much it may.
        limit: usize,
    },
    /// The outcome does not say where the guest is.
    #[error("the outcome says otherwise: {rule}")]
    WrongOutcome {
        /// What it must mean.
        rule: &'static str,
    },
    /// Nothing happens any more, or it does not end.
    #[error("stuck: source {source_state}, destination {destination_state}")]
    Stuck {
        /// The source's state.
        source_state: &'static str,
        /// The destination's state.
        destination_state: &'static str,
    },
}

/// What the checks remember between steps.
#[derive(Debug, Default)]
pub struct Checks {
    /// The return path has carried words that are not the destination's. What the source believes then, and what
    /// becomes of the guest, is the liar's fault; only the source's own rules are checked.
    pub peer_lies: bool,
    barrier: debt::BarrierWatch,
    start: one_guest::StartWatch,
}

impl Checks {
    /// Checks what must hold at any moment.
    ///
    /// # Errors
    /// What does not hold.
    pub fn after_step(
        &mut self,
        source: &SourceShell,
        destination: &DestinationShell,
        environment: &Environment,
    ) -> Result<(), Violation> {
        limits::check(source, environment)?;
        placement::check(destination, environment)?;
        postcopy::check_order(source)?;
        if self.peer_lies {
            return Ok(());
        }
        agreement::check(source, destination)?;
        one_guest::check(source, destination)?;
        self.start.check(source, destination, environment)?;
        postcopy::check_debt(source, destination, environment)?;
        self.barrier.check(source, destination, environment)
    }

    /// Checks what must hold when both sides have ended.
    ///
    /// # Errors
    /// What does not hold.
    pub fn at_end(
        &self,
        source: &SourceShell,
        destination: &DestinationShell,
        environment: &Environment,
        disturbed: bool,
    ) -> Result<(), Violation> {
        ending::check_source(source)?;
        ending::check_destination(destination)?;
        if self.peer_lies {
            return Ok(());
        }
        ending::check_pair(source, destination, environment, disturbed)
    }
}

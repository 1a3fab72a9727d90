//! What all states of a destination share.

use super::interface::{DestinationAction, DestinationConfig};
use super::sections::LiveSections;
use limosa_wire::{Agreement, Features};
use std::collections::VecDeque;

/// Most actions that wait at once (I11): three for an event, and twice that is what nobody fails to take.
const ACTIONS_MAX: usize = 6;

#[derive(Debug)]
pub(super) struct Context {
    pub(super) config: DestinationConfig,
    actions: VecDeque<DestinationAction>,
    /// The source has opened the return path, and it is not known to be lost.
    pub(super) return_path_open: bool,
    /// The source has greeted: it may be told things that a QEMU would not understand.
    pub(super) greeted: bool,
    /// What the source has chosen, if it has.
    pub(super) agreed: Option<Agreement>,
    /// The first section has opened: what the two sides agreed on is fixed.
    pub(super) begun: bool,
    /// The shell has taken `StartGuest`: the guest may run here (I6).
    pub(super) start_taken: bool,
    /// How far the source has gone towards postcopy.
    pub(super) phase: Phase,
    /// The live sections that had not ended when the package came.
    pub(super) live: LiveSections,
    /// The guest runs here, in postcopy: nothing ends the migration any more, it only pauses.
    pub(super) guest_runs: bool,
}

/// What the source has said of postcopy (wire 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing.
    Precopy,
    /// It may follow.
    Advised,
    /// Stale pages are being dropped; the package comes next.
    Discarding,
}

impl Context {
    pub(super) fn new(config: DestinationConfig) -> Self {
        let actions = VecDeque::with_capacity(ACTIONS_MAX);
        Self {
            config,
            actions,
            return_path_open: false,
            greeted: false,
            agreed: None,
            begun: false,
            start_taken: false,
            phase: Phase::Precopy,
            live: LiveSections::new(),
            guest_runs: false,
        }
    }

    /// Queues an action.
    pub(super) fn act(&mut self, action: DestinationAction) {
        assert!(self.actions.len() < ACTIONS_MAX, "the shell takes no actions");
        self.actions.push_back(action);
    }

    /// Hands the next action to the shell. From this moment it may have happened.
    pub(super) fn take_action(&mut self) -> Option<DestinationAction> {
        let action = self.actions.pop_front()?;
        self.start_taken |= action == DestinationAction::StartGuest;
        Some(action)
    }

    /// Whether the source has agreed to hear where the guest runs (wire 14.1).
    pub(super) fn running_answers(&self) -> bool {
        self.agreed.is_some_and(|agreed| agreed.features.contains(Features::RUNNING_ANSWERS))
    }

    /// Whether links beside the main one may be replaced (wire 14.4).
    pub(super) fn replaces_links(&self) -> bool {
        self.agreed.is_some_and(|agreed| agreed.features.contains(Features::LINK_REPLACEMENT))
    }

    /// Forgets the actions that the shell has not taken.
    pub(super) fn drop_actions(&mut self) {
        self.actions.clear();
    }
}

//! A link beside the main one is lost in postcopy, and the migration goes on: the others beside it are given up with it,
//! and all of them are connected anew while the main link stays.
//!
//! From the bitmaps on this is a recovery: what was on its way on the lost links is owed again (I1).

use super::context::Context;
use super::interface::{SourceAction, SourceEvent};
use super::outcome::SourceFailure;
use super::recovery::{Aim, FetchingBitmaps};
use super::state::{State, Transition};
use limosa_pages::ByteCount;
use limosa_wire::ReturnMessage;
use std::time::Instant;

/// Replacements in a row behind which nothing more has arrived than before: a path that lets connections through and no
/// pages is given up for a pause.
const IN_VAIN_MAX: u32 = 3;

/// The links beside the main one are being given up.
#[derive(Debug)]
pub(super) struct ReplacingLinks;

/// How much the replacements so far have helped.
#[derive(Debug)]
pub(super) struct Progress {
    in_vain: u32,
    /// What was owed after the last one.
    owed: ByteCount,
}

impl Default for Progress {
    fn default() -> Self {
        Self { in_vain: 0, owed: ByteCount(u64::MAX) }
    }
}

impl Progress {
    /// The destination lacks so much, after links were lost.
    pub(super) fn note(&mut self, owed: ByteCount) {
        self.in_vain = if owed < self.owed { 0 } else { self.in_vain + 1 };
        self.owed = owed;
    }
}

/// The reason to replace links in `event`, if it is one.
pub(super) fn reason(event: &SourceEvent) -> Option<SourceFailure> {
    match event {
        SourceEvent::Lost(loss) => Some(SourceFailure::Lost(*loss)),
        SourceEvent::Return(ReturnMessage::LinkLost) => Some(SourceFailure::LostThere),
        _ => None,
    }
}

impl ReplacingLinks {
    pub(super) const NAME: &'static str = "replacing links";

    /// # Errors
    /// The `reason`, if it has been in vain too often: it pauses the migration.
    pub(super) fn enter(reason: SourceFailure, context: &mut Context) -> Transition {
        if context.replacements.in_vain >= IN_VAIN_MAX {
            return Err(reason);
        }
        context.drop_actions();
        context.await_no_pong();
        context.act(SourceAction::ReplaceLinks);
        Ok(State::ReplacingLinks(Self))
    }

    pub(super) fn on(self, event: SourceEvent, context: &mut Context, now: Instant) -> Transition {
        match event {
            SourceEvent::LinksDropped => Ok(FetchingBitmaps::enter(Aim::Replace, context, now)),
            // Answers to what was under way, and the sounds of the links closing.
            _ => Ok(State::ReplacingLinks(self)),
        }
    }
}

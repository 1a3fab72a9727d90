//! I11: every queue has a limit.

use super::Violation;
use crate::sim::environment::Environment;
use crate::sim::link::FRAMES_MAX;
use crate::sim::source_shell::{INBOX_MAX, SourceShell};

/// Faults put events and frames where a full queue would not have taken them: two of each.
const FAULTS_MAX: usize = 2;

/// The results of the shell's own step and of the user's word find room beside the reader's messages.
const OWN_EVENTS_MAX: usize = 4;

pub(super) fn check(source: &SourceShell, environment: &Environment) -> Result<(), Violation> {
    let below = |queue, length, limit| {
        if length > limit { Err(Violation::OverLimit { queue, length, limit }) } else { Ok(()) }
    };
    below("main link", environment.link.main.under_way().len(), FRAMES_MAX + FAULTS_MAX)?;
    below("return path", environment.link.back.under_way().len(), FRAMES_MAX + FAULTS_MAX)?;
    for channel in &environment.channels {
        below("channel", channel.under_way().len(), FRAMES_MAX)?;
    }
    if let Some(channels) = &source.channels {
        below("queue of the channels", channels.queued().len(), channels.capacity())?;
    }
    below("inbox", source.inbox_length(), INBOX_MAX + OWN_EVENTS_MAX)
}

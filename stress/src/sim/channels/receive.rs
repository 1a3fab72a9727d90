//! The receiving end: pages are placed as they come, up to the next synchronisation point.

use super::Packet;
use crate::sim::environment::Environment;
use crate::sim::guest::PAGES;
use crate::sim::link::Received;
use limosa_protocol::LossReason;
use std::time::Duration;

/// How long all channels may be silent while the main channel waits for a SYNC packet.
pub const SYNC_PATIENCE: Duration = Duration::from_secs(5);

/// The destination's channels.
#[derive(Debug)]
pub struct ReceiveChannels {
    channels: Vec<Receiver>,
    /// FLUSH records that were passed.
    passed: u64,
    failed: bool,
    /// Since when the main channel has waited and nothing came.
    silent_since: Option<Duration>,
}

#[derive(Clone, Debug, Default)]
struct Receiver {
    /// SYNC packets that have come.
    points: u64,
    ended: bool,
    /// A page that is placed and not yet marked.
    half_placed: Option<usize>,
}

/// What the main channel finds at a FLUSH record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sim) enum Line {
    /// All are there, and go on.
    Passed,
    /// One is still on its way.
    Waits,
    /// One will never be there.
    Failed,
}

impl ReceiveChannels {
    /// So many channels, before their first synchronisation point.
    pub fn new(channels: usize) -> Self {
        Self { channels: vec![Receiver::default(); channels], passed: 0, failed: false, silent_since: None }
    }

    /// One channel does one thing, if there is one to do.
    pub fn advance(
        &mut self,
        pages: &mut [Option<u64>; PAGES],
        received: &mut [bool; PAGES],
        environment: &mut Environment,
    ) -> bool {
        if self.failed {
            return false;
        }
        let count = self.channels.len();
        let first = environment.rng.below(count as u64) as usize;
        (first..first + count).any(|channel| self.step(channel % count, pages, received, environment))
    }

    fn step(
        &mut self,
        number: usize,
        pages: &mut [Option<u64>; PAGES],
        received: &mut [bool; PAGES],
        environment: &mut Environment,
    ) -> bool {
        let channel = &mut self.channels[number];
        if let Some(page) = channel.half_placed.take() {
            received[page] = true;
            return true;
        }
        if channel.ended || channel.points > self.passed {
            return false;
        }
        let fine = match environment.channels[number].read(environment.now) {
            Received::Nothing => return false,
            // The list of blocks is not agreed on before the first point.
            Received::Item(Packet::Page { .. }) if channel.points == 0 => false,
            Received::Item(Packet::Page { page, generation }) => {
                pages[page] = Some(generation);
                channel.half_placed = Some(page);
                true
            }
            Received::Item(Packet::Sync) => {
                channel.points += 1;
                true
            }
            // Whether that was too early is known when the main channel waits again.
            Received::Lost(LossReason::Closed) => {
                channel.ended = true;
                true
            }
            Received::Lost(_) => false,
        };
        if !fine {
            self.failed = true;
            // The source must not wait for a reader that is gone.
            environment.channels[number].cut(0);
        }
        self.silent_since = self.silent_since.map(|_| environment.now);
        true
    }

    /// The main channel has come to a FLUSH record.
    pub(in crate::sim) fn pass(&mut self, now: Duration) -> Line {
        let point = self.passed + 1;
        let late = |channel: &&Receiver| channel.points < point || channel.half_placed.is_some();
        let mut late = self.channels.iter().filter(late).peekable();
        if self.failed {
            return Line::Failed;
        }
        if late.peek().is_none() {
            self.passed = point;
            self.silent_since = None;
            return Line::Passed;
        }
        let gone = late.any(|channel| channel.ended);
        let since = *self.silent_since.get_or_insert(now);
        if gone || now >= since + SYNC_PATIENCE { Line::Failed } else { Line::Waits }
    }

    /// Goes on at a FLUSH record without a look at the channels: a mistake.
    pub fn pass_blindly(&mut self) {
        self.passed += 1;
    }

    /// The stream is complete: whether the channels are, as far as can be seen.
    pub fn close(&self) -> bool {
        !self.failed && self.channels.iter().all(|channel| channel.points <= self.passed)
    }

    /// When the main channel will wait no longer.
    pub fn patience_ends(&self) -> Option<Duration> {
        self.silent_since.map(|since| since + SYNC_PATIENCE)
    }
}

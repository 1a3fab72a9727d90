//! The sending end: pages that are claimed, and the channels that take them.

use super::Packet;
use crate::sim::environment::Environment;
use crate::sim::guest::SourceMemory;
use limosa_protocol::LossReason;
use std::collections::VecDeque;

/// Pages that may wait per channel.
pub const QUEUED_PER_CHANNEL: usize = 2;

/// The source's channels.
#[derive(Debug)]
pub struct SendChannels {
    /// Claimed, and not yet read.
    queue: VecDeque<usize>,
    /// SYNC packets that each channel has written.
    written: Vec<u64>,
    /// Synchronisation points asked for.
    points: u64,
    /// A page was submitted behind the last point, or there was none yet.
    racing: bool,
    failure: Option<LossReason>,
}

impl SendChannels {
    /// So many channels, before their first synchronisation point.
    pub fn new(channels: usize) -> Self {
        let written = vec![0; channels];
        Self { queue: VecDeque::new(), written, points: 0, racing: true, failure: None }
    }

    /// Whether a page can be handed over without waiting.
    pub fn has_room(&self) -> bool {
        self.queue.len() < self.capacity()
    }

    /// Pages that may wait.
    pub fn capacity(&self) -> usize {
        self.written.len() * QUEUED_PER_CHANNEL
    }

    /// Pages that nobody has read yet: what they hold then is what is sent.
    pub fn queued(&self) -> impl ExactSizeIterator<Item = usize> {
        self.queue.iter().copied()
    }

    /// Hands over a claimed page.
    pub fn submit(&mut self, page: usize) {
        self.queue.push_back(page);
        self.racing = true;
    }

    /// Notes a page of this round that leaves on the main channel.
    pub fn races_on_main(&mut self) {
        self.racing = true;
    }

    /// Whether a page was sent since the last synchronisation point.
    pub fn is_racing(&self) -> bool {
        self.racing
    }

    /// FLUSH is on its way: every channel is to write a SYNC packet.
    pub fn bring_into_line(&mut self) {
        self.points += 1;
        self.racing = false;
    }

    /// Whether every channel has written the SYNC packets that were asked for.
    pub fn are_in_line(&self) -> bool {
        self.written.iter().all(|written| *written == self.points)
    }

    /// Why a channel could not write.
    pub fn failure(&self) -> Option<LossReason> {
        self.failure
    }

    /// One channel does one thing, if there is one to do: takes the next page and reads it, or writes its SYNC packet.
    pub fn advance(
        &mut self,
        memory: &mut SourceMemory,
        guest_runs: bool,
        environment: &mut Environment,
    ) -> bool {
        let count = self.written.len();
        let first = environment.rng.below(count as u64) as usize;
        let free = |channel: &usize| environment.channels[*channel].has_room(environment.now);
        let behind = |channel: &usize| !self.queue.is_empty() || self.written[*channel] < self.points;
        let mut candidates = (first..first + count).map(|channel| channel % count);
        let Some(channel) = candidates.find(|channel| free(channel) && behind(channel)) else { return false };
        if self.failure.is_some() {
            return false;
        }
        let packet = match self.queue.pop_front() {
            Some(page) => {
                environment.race(page, memory, guest_runs);
                Packet::Page { page, generation: memory.pages[page] }
            }
            None => {
                self.written[channel] += 1;
                Packet::Sync
            }
        };
        self.failure = environment.write_channel(channel, packet).err();
        true
    }
}

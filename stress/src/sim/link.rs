//! A connection with latency, a bounded queue in each direction, and three ways to end.

use limosa_protocol::{LossReason, SectionKind};
use limosa_wire::{Command, ReturnMessage, SectionId};
use std::collections::VecDeque;
use std::time::Duration;

/// What a direction holds at most: less than a round, so that writers feel the queue.
pub const FRAMES_MAX: usize = 12;

/// After this much silence the kernel gives a connection up (keepalive, user timeout).
pub const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What the simulated source writes. A section is cut where the link is cut, so it is several frames.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// Magic and version.
    Header,
    /// The configuration.
    Configuration,
    /// A command.
    Command(Command),
    /// Header of a section.
    Open {
        /// Its number.
        id: SectionId,
        /// Its kind.
        kind: SectionKind,
    },
    /// Every channel is to be at its next synchronisation point.
    Flush,
    /// A page of the open section and the generation of its bytes.
    Page {
        /// Which page.
        page: usize,
        /// Its content.
        generation: u64,
    },
    /// The body of the device section.
    Device(u64),
    /// End of a section.
    Footer(SectionId),
    /// PACKAGED and its blob: it is read whole or not at all.
    Package(Vec<Frame>),
    /// EOF.
    EndOfStream,
    /// The vmdescription.
    VmDescription,
}

/// Both directions of a connection, and the link beside it.
#[derive(Debug)]
pub struct Link {
    /// Source to destination.
    pub main: Channel<Frame>,
    /// Destination to source.
    pub back: Channel<ReturnMessage>,
    /// Source to destination: pages that were asked for. Unused unless it was opened.
    pub preempt: Channel<Frame>,
}

/// One direction: in order, late, bounded.
#[derive(Debug)]
pub struct Channel<T> {
    queue: VecDeque<(Duration, T)>,
    state: ChannelState,
    /// Something was lost on the way, and nobody knows.
    leaks: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChannelState {
    Open,
    /// The writer has closed it: what is queued still arrives.
    Closed,
    /// It broke: what is queued still arrives, and the writer is told.
    Broken,
    /// Nothing has arrived since.
    Silent {
        since: Duration,
    },
}

/// What a reader gets.
#[derive(Debug, PartialEq)]
pub enum Received<T> {
    /// Nothing yet.
    Nothing,
    /// The next item.
    Item(T),
    /// Nothing any more.
    Lost(LossReason),
}

impl Link {
    /// A fresh connection.
    pub fn new() -> Self {
        Self { main: Channel::new(), back: Channel::new(), preempt: Channel::new() }
    }

    /// Breaks all of it; of what is under way, so many items still arrive.
    pub fn cut(&mut self, main_kept: usize, back_kept: usize) {
        self.main.cut(main_kept);
        self.back.cut(back_kept);
        self.preempt.cut(main_kept);
    }

    /// Another link for pages that were asked for stands beside the same main one, if that is whole.
    pub fn replace_preempt(&mut self) {
        if self.main.is_open() && self.back.is_open() {
            self.preempt = Channel::new();
        }
    }

    /// Nothing arrives any more, and nobody is told.
    pub fn silence(&mut self, now: Duration) {
        self.main.silence(now);
        self.back.silence(now);
        self.preempt.silence(now);
    }

    /// Whether all of it still works.
    pub fn is_whole(&self) -> bool {
        self.main.is_open() && self.back.is_open() && self.preempt.is_open()
    }
}

impl Default for Link {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Default for Channel<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Channel<T> {
    /// A fresh one.
    pub fn new() -> Self {
        Self { queue: VecDeque::with_capacity(FRAMES_MAX), state: ChannelState::Open, leaks: false }
    }

    /// Whether nothing has happened to it yet.
    pub fn is_open(&self) -> bool {
        self.state == ChannelState::Open && !self.leaks
    }

    /// Loses one item on its way, the oldest that `wanted` accepts; whether there was one.
    pub fn lose(&mut self, wanted: impl Fn(&T) -> bool) -> bool {
        let place = self.queue.iter().position(|(_, item)| wanted(item));
        let lost = place.and_then(|place| self.queue.remove(place)).is_some();
        self.leaks |= lost;
        lost
    }

    /// What is under way, oldest first.
    pub fn under_way(&self) -> impl ExactSizeIterator<Item = &T> {
        self.queue.iter().map(|(_, item)| item)
    }

    /// Whether a write would not have to wait. One that will fail does not wait either.
    pub fn has_room(&self, now: Duration) -> bool {
        match self.state {
            ChannelState::Silent { since } if now >= since + SILENCE_MAX => true,
            ChannelState::Open | ChannelState::Silent { .. } => self.queue.len() < FRAMES_MAX,
            ChannelState::Closed | ChannelState::Broken => true,
        }
    }

    /// Writes an item that arrives after `latency`, behind everything written before it.
    ///
    /// # Errors
    /// The link is gone.
    pub fn write(&mut self, item: T, latency: Duration, now: Duration) -> Result<(), LossReason> {
        match self.state {
            ChannelState::Silent { since } if now >= since + SILENCE_MAX => Err(LossReason::TimedOut),
            ChannelState::Open | ChannelState::Silent { .. } => {
                let before = self.queue.back().map_or(Duration::ZERO, |(arrives, _)| *arrives);
                self.queue.push_back((before.max(now + latency), item));
                Ok(())
            }
            ChannelState::Closed => Err(LossReason::Closed),
            ChannelState::Broken => Err(LossReason::Broken(EPIPE)),
        }
    }

    /// Puts an item in front of everything that is under way.
    pub fn inject(&mut self, item: T) {
        self.queue.push_front((Duration::ZERO, item));
    }

    /// Takes the next item that has arrived.
    pub fn read(&mut self, now: Duration) -> Received<T> {
        if let ChannelState::Silent { since } = self.state {
            let given_up = now >= since + SILENCE_MAX;
            return if given_up { Received::Lost(LossReason::TimedOut) } else { Received::Nothing };
        }
        match self.queue.front() {
            Some((arrives, _)) if *arrives <= now => {
                let (_, item) = self.queue.pop_front().expect("there is a front");
                Received::Item(item)
            }
            Some(_) => Received::Nothing,
            None => match self.state {
                ChannelState::Closed => Received::Lost(LossReason::Closed),
                ChannelState::Broken => Received::Lost(LossReason::Broken(ECONNRESET)),
                ChannelState::Open | ChannelState::Silent { .. } => Received::Nothing,
            },
        }
    }

    /// Ends it in order: what was written arrives, then the end.
    pub fn close(&mut self) {
        if self.state == ChannelState::Open {
            self.state = ChannelState::Closed;
        }
    }

    /// Breaks it; the first `kept` items still arrive.
    pub fn cut(&mut self, kept: usize) {
        self.queue.truncate(kept);
        if !matches!(self.state, ChannelState::Silent { .. }) {
            self.state = ChannelState::Broken;
        }
    }

    /// Nothing arrives any more, and nobody is told.
    pub fn silence(&mut self, now: Duration) {
        if self.state == ChannelState::Open {
            self.state = ChannelState::Silent { since: now };
        }
    }

    /// When something can be read or given up, if nothing else happens.
    pub fn next_time(&self) -> Option<Duration> {
        match self.state {
            ChannelState::Silent { since } => Some(since + SILENCE_MAX),
            _ => self.queue.front().map(|(arrives, _)| *arrives),
        }
    }
}

const EPIPE: i32 = 32;
const ECONNRESET: i32 = 104;

#[cfg(test)]
mod tests {
    use super::*;

    const NO_TIME: Duration = Duration::ZERO;

    #[test]
    fn a_cut_loses_the_tail_and_then_tells_both_ends() {
        let mut channel = Channel::new();
        for item in 0..3 {
            channel.write(item, NO_TIME, NO_TIME).unwrap();
        }
        channel.cut(1);
        assert_eq!(channel.read(NO_TIME), Received::Item(0));
        assert_eq!(channel.read(NO_TIME), Received::Lost(LossReason::Broken(ECONNRESET)));
        assert_eq!(channel.write(3, NO_TIME, NO_TIME), Err(LossReason::Broken(EPIPE)));
    }

    #[test]
    fn a_silent_channel_is_given_up_only_after_a_while() {
        let mut channel = Channel::new();
        channel.write(1, NO_TIME, NO_TIME).unwrap();
        channel.silence(NO_TIME);
        assert_eq!(channel.read(NO_TIME), Received::Nothing);
        assert_eq!(channel.read(SILENCE_MAX), Received::Lost(LossReason::TimedOut));
    }

    #[test]
    fn what_is_written_later_never_overtakes() {
        let mut channel = Channel::new();
        channel.write(1, Duration::from_micros(9), NO_TIME).unwrap();
        channel.write(2, NO_TIME, NO_TIME).unwrap();
        assert_eq!(channel.read(Duration::from_micros(8)), Received::Nothing);
        assert_eq!(channel.read(Duration::from_micros(9)), Received::Item(1));
        assert_eq!(channel.read(Duration::from_micros(9)), Received::Item(2));
    }
}

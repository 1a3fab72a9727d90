//! What both shells stand in: time, chance, the link and the guest.

use super::channels::Packet;
use super::guest::{Guest, SourceMemory};
use super::link::{Channel, Frame, Link};
use super::mutant::Mutant;
use super::rng::Rng;
use limosa_protocol::LossReason;
use limosa_wire::ReturnMessage;
use std::time::{Duration, Instant};

/// The world outside of the two processes.
#[derive(Debug)]
pub struct Environment {
    /// Chance.
    pub rng: Rng,
    /// Time since the start of the run. It only goes on when the world says so.
    pub now: Duration,
    /// The connection.
    pub link: Link,
    /// Connections for pages beside it; there may be none.
    pub channels: Vec<Channel<Packet>>,
    /// A SYNC packet was lost: from then on rounds may race, and the destination must not start the guest.
    pub sync_lost: bool,
    /// How late each of them is at most, in microseconds.
    lateness: Vec<u64>,
    /// The same of the link for pages that were asked for.
    preempt_lateness: u64,
    /// Who would take a new connection.
    pub listener: Listener,
    /// A new connection has been made, and the destination does not know yet.
    pub connected: bool,
    /// The guest's true state.
    pub guest: Guest,
    /// The mistake that the shells make.
    pub mutant: Option<Mutant>,
    start: Instant,
}

/// Microseconds between both ends of the main link at most. A channel takes as long or a hundred times as long: whole
/// rounds overtake it where nothing stops them.
const MAIN_LATENESS: u64 = 200;

/// Who takes a connection that is made after the first was lost.
#[derive(Clone, Debug, PartialEq)]
pub enum Listener {
    /// It is refused.
    Nobody,
    /// A destination that is paused.
    Recovery,
    /// A destination that has ended, and says how.
    LastWord(ReturnMessage),
}

impl Environment {
    /// At time zero, with a fresh link and so many channels beside it.
    pub fn new(mut rng: Rng, guest: Guest, channels: usize, mutant: Option<Mutant>) -> Self {
        // The machines want instants; which one the run begins at changes nothing.
        let start = Instant::now();
        let lateness = (0..channels).map(|_| rng.choose(&[MAIN_LATENESS, 100 * MAIN_LATENESS])).collect();
        let preempt_lateness = rng.choose(&[MAIN_LATENESS, 20 * MAIN_LATENESS]);
        let channels = (0..channels).map(|_| Channel::new()).collect();
        let (link, listener) = (Link::new(), Listener::Nobody);
        let (now, connected) = (Duration::ZERO, false);
        Self {
            rng,
            now,
            link,
            channels,
            sync_lost: false,
            lateness,
            preempt_lateness,
            listener,
            connected,
            guest,
            mutant,
            start,
        }
    }

    /// The present, for the machines.
    pub fn instant(&self) -> Instant {
        self.start + self.now
    }

    /// A machine's instant, as time since the start.
    pub fn since_start(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.start)
    }

    /// Writes towards the destination.
    ///
    /// # Errors
    /// The link is gone.
    pub fn write_main(&mut self, frame: Frame) -> Result<(), LossReason> {
        let latency = self.latency();
        self.link.main.write(frame, latency, self.now)
    }

    /// Writes towards the source.
    ///
    /// # Errors
    /// The link is gone.
    pub fn write_back(&mut self, message: ReturnMessage) -> Result<(), LossReason> {
        let latency = self.latency();
        self.link.back.write(message, latency, self.now)
    }

    /// Writes towards the destination on a channel.
    ///
    /// # Errors
    /// The channel is gone.
    pub fn write_channel(&mut self, channel: usize, packet: Packet) -> Result<(), LossReason> {
        let latency = Duration::from_micros(self.rng.below(self.lateness[channel]));
        self.channels[channel].write(packet, latency, self.now)
    }

    /// The guest may write a page in the moment in which it is being sent.
    pub fn race(&mut self, page: usize, memory: &mut SourceMemory, guest_runs: bool) {
        if guest_runs && self.rng.one_in(4) && self.guest.write_page(page, &mut memory.pages) {
            memory.log[page] = true;
        }
    }

    /// Whether every connection still works in both directions.
    pub fn is_whole(&self) -> bool {
        self.link.is_whole() && self.channels.iter().all(Channel::is_open)
    }

    /// Writes on the link for pages that were asked for.
    ///
    /// # Errors
    /// The link is gone.
    pub fn write_preempt(&mut self, frame: Frame) -> Result<(), LossReason> {
        let latency = Duration::from_micros(self.rng.below(self.preempt_lateness));
        self.link.preempt.write(frame, latency, self.now)
    }

    /// Makes a new connection in place of the lost one; `false` if nobody takes it.
    pub fn connect(&mut self) -> bool {
        match &self.listener {
            Listener::Nobody => return false,
            Listener::Recovery => {
                self.link = Link::new();
                self.connected = true;
            }
            Listener::LastWord(word) => {
                let word = word.clone();
                self.link = Link::new();
                self.write_back(word).expect("a fresh link takes a word");
                self.link.back.close();
            }
        }
        self.listener = Listener::Nobody;
        true
    }

    fn latency(&mut self) -> Duration {
        Duration::from_micros(self.rng.below(MAIN_LATENESS))
    }
}

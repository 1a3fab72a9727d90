//! What both shells stand in: time, chance, the link and the guest.

use super::guest::Guest;
use super::link::{Frame, Link};
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
    /// The guest's true state.
    pub guest: Guest,
    /// The mistake that the shells make.
    pub mutant: Option<Mutant>,
    start: Instant,
}

impl Environment {
    /// At time zero, with a fresh link.
    pub fn new(rng: Rng, guest: Guest, mutant: Option<Mutant>) -> Self {
        // The machines want instants; which one the run begins at changes nothing.
        Self { rng, now: Duration::ZERO, link: Link::new(), guest, mutant, start: Instant::now() }
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

    fn latency(&mut self) -> Duration {
        Duration::from_micros(self.rng.below(200))
    }
}

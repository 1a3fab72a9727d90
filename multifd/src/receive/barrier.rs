//! Where the channels wait for the main channel, and it for them.

use crate::error::{Connection, ReceiveError, ReceiveFailure};
use crate::statistics::{AllCounters, ChannelCounters};
use limosa_transport::ShutdownHandle;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::Duration;

/// The synchronisation points of all channels, and how each channel ended.
#[derive(Debug)]
pub(super) struct Barrier {
    state: Mutex<State>,
    counters: AllCounters,
    patience: Duration,
    on_failure: Option<ShutdownHandle>,
    /// For the main channel: a channel has come to its point, or ended.
    arrived: Condvar,
    /// For the channels: the main channel is there too.
    released: Condvar,
}

#[derive(Debug)]
struct State {
    channels: Vec<ChannelState>,
    /// Synchronisation points that the main channel has passed.
    passed: u64,
    failure: Option<ReceiveError>,
    closed: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct ChannelState {
    number: Option<u8>,
    /// Synchronisation points that it has come to.
    points: u64,
    /// It ended between two packets.
    ended: bool,
}

impl Barrier {
    pub(super) fn new(counters: AllCounters, patience: Duration, on_failure: Option<ShutdownHandle>) -> Self {
        let channels = vec![ChannelState::default(); counters.len()];
        Self {
            state: Mutex::new(State { channels, passed: 0, failure: None, closed: false }),
            counters,
            patience,
            on_failure,
            arrived: Condvar::new(),
            released: Condvar::new(),
        }
    }

    pub(super) fn counters(&self, accepted: usize) -> &ChannelCounters {
        &self.counters[accepted]
    }

    /// Gives the connection its channel number.
    pub(super) fn name(&self, accepted: usize, number: u8) -> Result<(), ReceiveFailure> {
        let mut state = self.state.lock();
        let channels = state.channels.len();
        if usize::from(number) >= channels {
            return Err(ReceiveFailure::ChannelNumber { channels, got: number });
        }
        if state.channels.iter().any(|channel| channel.number == Some(number)) {
            return Err(ReceiveFailure::DuplicateChannel { got: number });
        }
        state.channels[accepted].number = Some(number);
        Ok(())
    }

    /// A channel has come to its next synchronisation point.
    pub(super) fn arrive(&self, accepted: usize) {
        self.state.lock().channels[accepted].points += 1;
        self.arrived.notify_one();
    }

    /// Waits until the main channel has come there, too. `false` if there is no reason to read on.
    pub(super) fn wait_release(&self, accepted: usize) -> bool {
        let mut state = self.state.lock();
        let point = state.channels[accepted].points;
        while state.passed < point && state.failure.is_none() && !state.closed {
            self.released.wait(&mut state);
        }
        state.failure.is_none() && !state.closed
    }

    /// The main channel has come to its next synchronisation point: waits for every channel and releases them.
    pub(super) fn wait_all(&self) -> Result<(), ReceiveError> {
        let mut state = self.state.lock();
        let point = state.passed + 1;
        let mut seen = None;
        loop {
            if let Some(error) = &state.failure {
                return Err(error.clone());
            }
            let Some(late) = state.channels.iter().position(|channel| channel.points < point) else {
                state.passed = point;
                self.released.notify_all();
                return Ok(());
            };
            let gone = |channel: &ChannelState| channel.ended && channel.points < point;
            if let Some(accepted) = state.channels.iter().position(gone) {
                let ended = ReceiveFailure::EndedBeforeSync { point };
                return Err(self.fail_locked(&mut state, accepted, self.packets(accepted), ended));
            }
            if self.arrived.wait_for(&mut state, self.patience).timed_out() {
                let bytes = self.counters.iter().map(|counters| counters.bytes()).sum::<u64>();
                if seen.replace(bytes) == Some(bytes) {
                    let lost = ReceiveFailure::LostSync { point, after: self.patience };
                    return Err(self.fail_locked(&mut state, late, self.packets(late), lost));
                }
            }
        }
    }

    /// A channel has come to its end between two packets.
    ///
    /// Whether that is too early is not known yet: a source that nobody answers ends its channels with its last
    /// word on the main channel, which may be read later. It was too early if the main channel waits for this one
    /// again.
    pub(super) fn end(&self, accepted: usize) {
        self.state.lock().channels[accepted].ended = true;
        self.arrived.notify_one();
    }

    /// A channel has failed, after `packet` whole packets. The first failure counts, unless the migration is over.
    pub(super) fn fail(&self, accepted: usize, packet: u64, failure: ReceiveFailure) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        self.fail_locked(&mut state, accepted, packet, failure);
        // Other failures are found by the owner's own calls.
        if let Some(link) = &self.on_failure {
            link.shutdown();
        }
    }

    pub(super) fn failure(&self) -> Option<ReceiveError> {
        self.state.lock().failure.clone()
    }

    /// The migration is over: nobody waits any more, and what happens to channels is no failure.
    pub(super) fn close(&self) -> Result<(), ReceiveError> {
        let mut state = self.state.lock();
        let ahead = |channel: &ChannelState| channel.points > state.passed;
        if let Some(accepted) = state.channels.iter().position(ahead) {
            let point = state.channels[accepted].points;
            let unnamed = ReceiveFailure::UnnamedSync { point };
            self.fail_locked(&mut state, accepted, self.packets(accepted), unnamed);
        }
        state.closed = true;
        self.released.notify_all();
        state.failure.clone().map_or(Ok(()), Err)
    }

    /// The migration is given up: nobody waits any more, and nobody asks how the channels are.
    pub(super) fn abandon(&self) {
        self.state.lock().closed = true;
        self.released.notify_all();
    }

    /// Notes a failure and wakes everybody. Returns the first one.
    fn fail_locked(
        &self,
        state: &mut State,
        accepted: usize,
        packet: u64,
        failure: ReceiveFailure,
    ) -> ReceiveError {
        let connection = Connection { accepted, channel: state.channels[accepted].number };
        let error = ReceiveError { connection, packet, failure: Arc::new(failure) };
        let first = state.failure.get_or_insert(error).clone();
        self.arrived.notify_all();
        self.released.notify_all();
        first
    }

    fn packets(&self, accepted: usize) -> u64 {
        self.counters[accepted].packets()
    }
}

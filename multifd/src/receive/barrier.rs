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
    end: End,
}

/// Whether the migration is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    NotYet,
    /// It is complete; what is left on the channels is being looked at.
    Closing,
    /// It is given up: what happens to channels is no failure.
    Abandoned,
}

#[derive(Clone, Copy, Debug, Default)]
struct ChannelState {
    number: Option<u8>,
    /// Synchronisation points that it has come to.
    points: u64,
    /// It ended between two packets, behind this many other channels.
    ended: Option<usize>,
    /// The last of them was none of a synchronisation point.
    behind_sync: bool,
}

impl Barrier {
    pub(super) fn new(counters: AllCounters, patience: Duration, on_failure: Option<ShutdownHandle>) -> Self {
        let channels = vec![ChannelState::default(); counters.len()];
        Self {
            state: Mutex::new(State { channels, passed: 0, failure: None, end: End::NotYet }),
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
        while state.passed < point && state.failure.is_none() && state.end == End::NotYet {
            self.released.wait(&mut state);
        }
        // At the end a point that was named is still behind us, and there may be bytes behind it.
        state.failure.is_none()
            && match state.end {
                End::NotYet => true,
                End::Closing => state.passed >= point,
                End::Abandoned => false,
            }
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
            // The others may have ended because the source has noticed the first.
            let gone = |channel: &ChannelState| channel.ended.filter(|_| channel.points < point);
            let order = state.channels.iter().enumerate();
            let first = order.filter_map(|(accepted, channel)| Some((gone(channel)?, accepted))).min();
            if let Some((_, accepted)) = first {
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
    /// again. `behind_sync`: pages came behind its last point.
    pub(super) fn end(&self, accepted: usize, behind_sync: bool) {
        let mut state = self.state.lock();
        let others = state.channels.iter().filter(|channel| channel.ended.is_some()).count();
        let channel = &mut state.channels[accepted];
        (channel.ended, channel.behind_sync) = (Some(others), behind_sync);
        self.arrived.notify_one();
    }

    /// A channel has failed, after `packet` whole packets. The first failure counts, unless the migration is given
    /// up.
    pub(super) fn fail(&self, accepted: usize, packet: u64, failure: ReceiveFailure) {
        let mut state = self.state.lock();
        if state.end == End::Abandoned {
            return;
        }
        self.fail_locked(&mut state, accepted, packet, failure);
        // Other failures are found by the owner's own calls, as those are that come while it closes the channels.
        if let Some(link) = self.on_failure.as_ref().filter(|_| state.end == End::NotYet) {
            link.shutdown();
        }
    }

    pub(super) fn failure(&self) -> Option<ReceiveError> {
        self.state.lock().failure.clone()
    }

    /// The migration is complete: nobody waits any more. A packet that a channel has not read yet is one too many.
    pub(super) fn closing(&self) {
        self.state.lock().end = End::Closing;
        self.released.notify_all();
    }

    /// Whether the main channel has said that the migration is complete.
    pub(super) fn is_closing(&self) -> bool {
        self.state.lock().end == End::Closing
    }

    /// How it went, when every channel has ended.
    pub(super) fn closed(&self) -> Result<(), ReceiveError> {
        let mut state = self.state.lock();
        let ahead = |channel: &ChannelState| channel.points > state.passed;
        if let Some(accepted) = state.channels.iter().position(ahead) {
            let point = state.channels[accepted].points;
            let unnamed = ReceiveFailure::UnnamedSync { point };
            self.fail_locked(&mut state, accepted, self.packets(accepted), unnamed);
        }
        if let Some(accepted) = state.channels.iter().position(|channel| channel.behind_sync) {
            let behind = ReceiveFailure::BehindLastSync { point: state.channels[accepted].points };
            self.fail_locked(&mut state, accepted, self.packets(accepted), behind);
        }
        state.failure.clone().map_or(Ok(()), Err)
    }

    /// The migration is given up: nobody waits any more, and nobody asks how the channels are.
    pub(super) fn abandon(&self) {
        self.state.lock().end = End::Abandoned;
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

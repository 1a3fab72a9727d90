//! One queue for all channels: whoever is free takes the next batch.

use super::SendBatch;
use crate::error::SendError;
use crate::statistics::QueueStatistics;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;

/// Batches between the coordinator and the channels, and what both have to say to each other.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    channels: usize,
    capacity: usize,
    /// For channels: there is something to do.
    work: Condvar,
    /// For the coordinator: there is room, or a channel has sent its SYNC packet.
    progress: Condvar,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<SendBatch>,
    /// Batches that are sent: their allocations are used again.
    spare: Vec<SendBatch>,
    /// Synchronisation points asked for so far.
    points: u64,
    /// Channels that have written their SYNC packet of the latest point.
    written: usize,
    /// Most batches that ever waited.
    depth_max: usize,
    end: Option<End>,
    failure: Option<SendError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// After what is in the queue.
    Orderly,
    /// Now.
    Abort,
}

/// What a channel has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Send the pages of the batch.
    Batch,
    /// Send a SYNC packet, and say so.
    Sync,
    /// End the link.
    Close,
    /// End without a word: the migration has failed.
    Abort,
}

impl Queue {
    pub(super) fn new(channels: usize, capacity: usize) -> Self {
        Self { state: Mutex::default(), channels, capacity, work: Condvar::new(), progress: Condvar::new() }
    }

    /// Takes `batch` and leaves an empty one; waits for room.
    pub(super) fn submit(&self, batch: &mut SendBatch) -> Result<(), SendError> {
        let mut state = self.state.lock();
        while state.failure.is_none() && state.batches.len() >= self.capacity {
            self.progress.wait(&mut state);
        }
        state.check()?;
        if batch.content.is_empty() && batch.untouched.is_empty() {
            return Ok(());
        }
        let mut spare = state.spare.pop().unwrap_or_else(|| SendBatch::new(batch.block));
        spare.block = batch.block;
        state.batches.push_back(std::mem::replace(batch, spare));
        state.depth_max = state.depth_max.max(state.batches.len());
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Asks for a SYNC packet on every channel and waits for all of them.
    pub(super) fn sync(&self) -> Result<(), SendError> {
        let mut state = self.state.lock();
        state.points += 1;
        state.written = 0;
        self.work.notify_all();
        while state.failure.is_none() && state.written < self.channels {
            self.progress.wait(&mut state);
        }
        state.check()
    }

    /// The next thing to do for a channel that has sent `points` SYNC packets. Waits for it. If it is a batch, it
    /// takes the place of `batch`, whose pages are sent.
    ///
    /// Batches come first. Nobody submits while a synchronisation point is waited for, so what the queue
    /// held when it was asked for is taken by then; a channel that still sends its part syncs after it.
    pub(super) fn next(&self, points: u64, batch: &mut SendBatch) -> Job {
        let mut state = self.state.lock();
        loop {
            if state.is_over() {
                return Job::Abort;
            }
            if state.take(batch) {
                drop(state);
                self.progress.notify_one();
                return Job::Batch;
            }
            if points < state.points {
                return Job::Sync;
            }
            if state.end == Some(End::Orderly) {
                return Job::Close;
            }
            self.work.wait(&mut state);
        }
    }

    /// As [`Self::next`] if there is a batch now; otherwise leaves `batch` alone and says `false`.
    pub(super) fn try_next(&self, batch: &mut SendBatch) -> bool {
        let mut state = self.state.lock();
        let taken = !state.is_over() && state.take(batch);
        drop(state);
        if taken {
            self.progress.notify_one();
        }
        taken
    }

    /// A channel has written its SYNC packet of the latest point.
    pub(super) fn synced(&self) {
        let mut state = self.state.lock();
        state.written += 1;
        if state.written == self.channels {
            self.progress.notify_one();
        }
    }

    /// A channel has failed. The first failure counts.
    pub(super) fn fail(&self, error: SendError) {
        let mut state = self.state.lock();
        state.failure.get_or_insert(error);
        self.progress.notify_all();
        self.work.notify_all();
    }

    pub(super) fn failure(&self) -> Option<SendError> {
        self.state.lock().failure.clone()
    }

    /// Lets the channels end when the queue is empty.
    pub(super) fn close(&self) {
        self.end(End::Orderly);
    }

    /// Lets the channels end at once.
    pub(super) fn abort(&self) {
        self.end(End::Abort);
    }

    pub(super) fn statistics(&self) -> QueueStatistics {
        let state = self.state.lock();
        QueueStatistics { depth: state.batches.len(), depth_max: state.depth_max, capacity: self.capacity }
    }

    fn end(&self, end: End) {
        self.state.lock().end = Some(end);
        self.work.notify_all();
    }
}

impl State {
    fn check(&self) -> Result<(), SendError> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn is_over(&self) -> bool {
        self.failure.is_some() || self.end == Some(End::Abort)
    }

    /// Puts the first batch in the place of `batch`, which becomes a spare one.
    fn take(&mut self, batch: &mut SendBatch) -> bool {
        let Some(next) = self.batches.pop_front() else { return false };
        let mut spare = std::mem::replace(batch, next);
        spare.clear();
        self.spare.push(spare);
        true
    }
}

//! One queue for all channels: whoever is free takes the next batch.

use super::SendBatch;
use crate::error::SendError;
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
#[derive(Debug)]
pub(super) enum Job {
    /// Send these pages.
    Batch(SendBatch),
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

    /// The next thing to do for a channel that has sent `points` SYNC packets, and is done with `sent`. Waits for
    /// it.
    ///
    /// Batches come first. Nobody submits while a synchronisation point is waited for, so what the queue
    /// held when it was asked for is taken by then; a channel that still sends its part syncs after it.
    pub(super) fn next(&self, points: u64, sent: Option<SendBatch>) -> Job {
        let mut state = self.state.lock();
        if let Some(mut batch) = sent {
            batch.clear();
            state.spare.push(batch);
        }
        loop {
            if state.failure.is_some() || state.end == Some(End::Abort) {
                return Job::Abort;
            }
            if let Some(batch) = state.batches.pop_front() {
                drop(state);
                self.progress.notify_one();
                return Job::Batch(batch);
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

    pub(super) fn depth(&self) -> usize {
        self.state.lock().batches.len()
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
}

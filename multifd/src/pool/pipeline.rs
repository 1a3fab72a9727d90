//! The packets of one channel that are under way on the pool.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;

/// A packet on the pool.
#[derive(Debug)]
pub(crate) struct Task<T> {
    /// Its result; the worker lets go of the other end when there is none.
    result: Receiver<T>,
}

/// The tasks of one channel, in the order of its packets. Dropping it waits for all of them: nothing of a channel
/// is at work when the channel is gone.
#[derive(Debug)]
pub(crate) struct Pipeline<T> {
    tasks: VecDeque<Task<T>>,
}

impl<T> Task<T> {
    pub(super) fn new(result: Receiver<T>) -> Self {
        Self { result }
    }

    /// Waits for the result; `None` if there is none: it failed, which is reported, or was abandoned.
    fn wait(self) -> Option<T> {
        self.result.recv().ok()
    }
}

impl<T> Pipeline<T> {
    pub(crate) fn new() -> Self {
        Self { tasks: VecDeque::new() }
    }

    pub(crate) fn push(&mut self, task: Task<T>) {
        self.tasks.push_back(task);
    }

    /// Waits for the oldest task. `None` if there is no task, `Some(None)` if it has no result.
    pub(crate) fn oldest(&mut self) -> Option<Option<T>> {
        self.tasks.pop_front().map(Task::wait)
    }
}

impl<T> Drop for Pipeline<T> {
    fn drop(&mut self) {
        while self.oldest().is_some() {}
    }
}

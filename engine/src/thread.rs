//! Starting a thread without losing what it was to own.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Runs `body` on `state` in a thread called `name`.
///
/// # Errors
/// If there is no thread to be had: `state` comes back, because a guest's list must not be lost with a thread.
pub(crate) fn spawn<S: Send + 'static, T: Send + 'static>(
    name: &str,
    state: S,
    body: impl FnOnce(S) -> T + Send + 'static,
) -> Result<JoinHandle<T>, (io::Error, S)> {
    // Handed over after the start: a closure that was not started drops what it holds.
    let (hand_over, handed) = crossbeam_channel::bounded(1);
    let spawned = Builder::new()
        .name(name.to_owned())
        .spawn(move || body(handed.recv().expect("handed over right after the start")));
    match spawned {
        Ok(thread) => {
            hand_over.send(state).unwrap_or_else(|_| unreachable!("the thread waits for it"));
            Ok(thread)
        }
        Err(error) => Err((error, state)),
    }
}

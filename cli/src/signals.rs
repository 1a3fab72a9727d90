//! SIGINT and SIGTERM, which ask a program to end and leave nothing behind.

use nix::sys::signal::{SigSet, Signal};
use std::io;

/// The signals, held back in every thread until [`Self::then`] waits for them.
pub(crate) struct HeldBack(SigSet);

/// Holds the signals back in this thread, and in all that it starts from now on. Programs that they start hold them back
/// too, until they decide otherwise.
///
/// # Errors
/// What the kernel says.
pub(crate) fn hold_back() -> io::Result<HeldBack> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    Ok(HeldBack(signals))
}

impl HeldBack {
    /// Lets a thread wait for the first of the signals, and do `act`. The next one finds nobody in its way and ends the
    /// process at once, should `act` not lead to its end.
    pub(crate) fn then(self, act: impl FnOnce(Signal) + Send + 'static) {
        std::thread::spawn(move || {
            if let Ok(signal) = self.0.wait() {
                act(signal);
            }
            if self.0.thread_unblock().is_ok() {
                loop {
                    std::thread::park();
                }
            }
        });
    }
}

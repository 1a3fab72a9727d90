//! What wakes the thread that waits for the host's end.

use parking_lot::{Condvar, Mutex};

/// A bell that others ring and one thread waits for.
#[derive(Debug, Default)]
pub(super) struct Bell {
    state: Mutex<State>,
    rung: Condvar,
}

#[derive(Debug, Default)]
struct State {
    quit: bool,
    look: bool,
}

/// Why the bell rang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ring {
    /// The VMM shall end. Rings for ever.
    Quit,
    /// An incoming migration has ended.
    Look,
}

impl Bell {
    pub(super) fn ring(&self, ring: Ring) {
        let mut state = self.state.lock();
        match ring {
            Ring::Quit => state.quit = true,
            Ring::Look => state.look = true,
        }
        self.rung.notify_all();
    }

    /// Waits until it has rung since the last answer.
    pub(super) fn wait(&self) -> Ring {
        let mut state = self.state.lock();
        loop {
            if state.quit {
                return Ring::Quit;
            }
            if std::mem::take(&mut state.look) {
                return Ring::Look;
            }
            self.rung.wait(&mut state);
        }
    }
}

//! Waking a migration's threads out of whatever they wait for.

use limosa_transport::ShutdownHandle;

/// All that a migration can be blocked in: its main link, and those beside it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    main: Option<ShutdownHandle>,
    beside: Vec<ShutdownHandle>,
}

impl Stop {
    /// Also ends this one, which stands beside the main link.
    pub(crate) fn add(&mut self, handle: ShutdownHandle) {
        self.beside.push(handle);
    }

    /// Ends them all. Doing it twice does nothing more.
    pub(crate) fn stop(&self) {
        self.main.iter().chain(&self.beside).for_each(ShutdownHandle::shutdown);
    }

    /// Ends all but the main link, and forgets them.
    pub(crate) fn stop_beside(&mut self) {
        self.beside.drain(..).for_each(|handle| handle.shutdown());
    }
}

impl From<ShutdownHandle> for Stop {
    fn from(main: ShutdownHandle) -> Self {
        Self { main: Some(main), beside: Vec::new() }
    }
}

//! Waking a migration's threads out of whatever they wait for.

use limosa_transport::ShutdownHandle;
use parking_lot::Mutex;
use std::sync::Arc;

/// All that a migration can be blocked in: its main link, and those beside it. Clones know of the same links.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    main: Option<ShutdownHandle>,
    beside: Arc<Mutex<Vec<ShutdownHandle>>>,
}

impl Stop {
    /// Also ends this one, which stands beside the main link.
    pub(crate) fn add(&self, handle: ShutdownHandle) {
        self.beside.lock().push(handle);
    }

    /// Ends them all. Doing it twice does nothing more.
    pub(crate) fn stop(&self) {
        self.main.iter().for_each(ShutdownHandle::shutdown);
        self.beside.lock().iter().for_each(ShutdownHandle::shutdown);
    }

    /// Ends all but the main link, and forgets them.
    pub(crate) fn stop_beside(&self) {
        self.beside.lock().drain(..).for_each(|handle| handle.shutdown());
    }
}

impl From<ShutdownHandle> for Stop {
    fn from(main: ShutdownHandle) -> Self {
        Self { main: Some(main), beside: Arc::default() }
    }
}

//! Waking a migration's threads out of whatever they wait for.

use limosa_transport::ShutdownHandle;

/// All that a migration can be blocked in: its main link, and the channels beside it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Vec<ShutdownHandle>);

impl Stop {
    /// Also ends this one.
    pub(crate) fn add(&mut self, handle: ShutdownHandle) {
        self.0.push(handle);
    }

    /// Ends them all. Doing it twice does nothing more.
    pub(crate) fn stop(&self) {
        self.0.iter().for_each(ShutdownHandle::shutdown);
    }
}

impl From<ShutdownHandle> for Stop {
    fn from(handle: ShutdownHandle) -> Self {
        Self(vec![handle])
    }
}

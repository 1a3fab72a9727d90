//! Ending all channels from another thread.

use limosa_transport::ShutdownHandle;
use std::sync::Arc;

/// Ends all channels from any thread: who is blocked in one of them wakes at once, and the owner's calls fail.
#[derive(Clone, Debug)]
pub struct ChannelsShutdown {
    links: Arc<[ShutdownHandle]>,
}

impl ChannelsShutdown {
    pub(crate) fn new(links: impl Iterator<Item = ShutdownHandle>) -> Self {
        Self { links: links.collect() }
    }

    /// Ends the channels. Bytes on their way may still arrive, or not.
    pub fn shutdown(&self) {
        self.links.iter().for_each(ShutdownHandle::shutdown);
    }

    /// Lets at most about `least` bytes wait in our kernel on each, or as many as a long path holds.
    pub(crate) fn limit_queues(&self, least: usize) {
        self.links.iter().for_each(|link| link.limit_queues(least));
    }

    /// Ends the channels behind what has come on them.
    pub(crate) fn end_receiving(&self) {
        self.links.iter().for_each(ShutdownHandle::end_receiving);
    }
}

//! Ending a link, or a wait for one, from another thread.

use crate::descriptor::{Descriptor, Direction};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// Ends a [`Link`](crate::Link) or a [`Listener`](crate::Listener) from any thread: who is blocked in it wakes at
/// once, and every later operation fails with [`Failure::ShutDown`](crate::Failure::ShutDown).
///
/// A handle does not keep the link open. Shutting down twice, or after the link is gone, does nothing.
#[derive(Clone, Debug)]
pub struct ShutdownHandle {
    stop: Arc<Stop>,
    /// Set for a socket, which the kernel can shut down under a blocked thread.
    socket: Weak<Descriptor>,
}

/// Whether somebody has asked to end, and for those who wait in `poll(2)`: how they hear of it.
#[derive(Debug)]
pub(crate) struct Stop {
    asked: AtomicBool,
    bell: Option<(PipeReader, PipeWriter)>,
}

impl ShutdownHandle {
    pub(crate) fn new(stop: &Arc<Stop>, socket: Weak<Descriptor>) -> Self {
        Self { stop: Arc::clone(stop), socket }
    }

    /// Ends the link. Bytes on their way may still arrive at the peer, or not.
    pub fn shutdown(&self) {
        if self.stop.asked.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(socket) = self.socket.upgrade() {
            socket.shut_down();
        }
        self.stop.ring();
    }

    /// As [`LinkWriter::limit_queue`](crate::LinkWriter::limit_queue) and
    /// [`LinkReader::limit_queue`](crate::LinkReader::limit_queue), for whoever owns the two. Of no effect on a link that is gone,
    /// or if the kernel does not take it.
    pub fn limit_queues(&self, least: usize) {
        if let Some(socket) = self.socket.upgrade() {
            for direction in [Direction::Sending, Direction::Receiving] {
                // A queue that stays long is slow, and nothing else.
                let _ = socket.limit_queue(direction, least);
            }
        }
    }

    /// Ends only what comes in: the reader still gets the bytes that are here already, and then the end of the
    /// stream, without waiting. The peer does not hear of it. A link that is no socket is shut down.
    pub fn end_receiving(&self) {
        match self.socket.upgrade() {
            Some(socket) => socket.end_receiving(),
            None => self.shutdown(),
        }
    }
}

impl Stop {
    /// For threads that block in a call which `shutdown(2)` ends.
    pub(crate) fn without_bell() -> Self {
        Self { asked: AtomicBool::new(false), bell: None }
    }

    /// For threads that block in `poll(2)`.
    pub(crate) fn with_bell() -> io::Result<Self> {
        Ok(Self { asked: AtomicBool::new(false), bell: Some(io::pipe()?) })
    }

    /// Whether the end was asked for.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Becomes readable, for good, when the end is asked for.
    pub(crate) fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(|(listening, _)| listening.as_fd())
    }

    fn ring(&self) {
        if let Some((_, ringing)) = &self.bell {
            // One byte, once, into an empty pipe: it neither blocks nor fails.
            (&mut &*ringing).write_all(&[1]).expect("an empty pipe takes a byte");
        }
    }
}

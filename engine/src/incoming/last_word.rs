//! What a destination that has ended still says to a source that does not know it.

use super::DRAIN_TIME;
use super::loader::close;
use crate::error::StartError;
use crate::thread;
use limosa_transport::{Address, Link, Listener, ShutdownHandle, TransportError};
use limosa_wire::ReturnMessage;
use std::thread::JoinHandle;

/// The last word of an incoming migration: that the guest is here with all its memory, or that it never ran here.
///
/// The source waits for it in postcopy-paused if its connection was lost just before (I7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastWord(pub(super) ReturnMessage);

/// Tells every source that connects the last word; dropping it ends that.
#[derive(Debug)]
pub struct LastWordListener {
    address: Address,
    stop: ShutdownHandle,
    thread: Option<JoinHandle<()>>,
}

impl LastWord {
    /// Listens at `address` for the source to come back (`migrate` with `resume`), and tells it.
    ///
    /// # Errors
    /// If nothing can listen there, or there is no thread to be had.
    pub fn tell_at(&self, address: &Address) -> Result<LastWordListener, StartError> {
        let listener = Listener::bind(address)?;
        let address = listener.local_address().clone();
        let stop = listener.shutdown_handle();
        let word = self.0.clone();
        let tell = move |listener: Listener| {
            while let Ok(link) = listener.accept(None) {
                // One that is lost again comes back again.
                let _ = say(link, &word);
            }
        };
        let thread =
            thread::spawn("last-word", listener, tell).map_err(|(error, _)| StartError::Thread(error))?;
        Ok(LastWordListener { address, stop, thread: Some(thread) })
    }
}

impl LastWordListener {
    /// Where it listens; with the port that the kernel chose if 0 was asked for.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for LastWordListener {
    fn drop(&mut self) {
        self.stop.shutdown();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // A panic in it has been printed.
        }
    }
}

fn say(link: Link, word: &ReturnMessage) -> Result<(), TransportError> {
    let (reader, mut writer) = link.split();
    writer.set_deadline(Some(DRAIN_TIME))?;
    let mut bytes = Vec::new();
    word.encode(&mut bytes);
    writer.write_all(&bytes)?;
    // What the source asks meanwhile is read, and needs no other answer.
    close(Some(reader), Some(writer), true);
    Ok(())
}

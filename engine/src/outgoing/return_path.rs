//! The thread that hears the destination: bytes in, messages out.

use super::urgent::Urgent;
use crate::error::{LoadFault, loss_reason};
use crate::stop::Stop;
use crate::stream::StreamReader;
use crossbeam_channel::{Receiver, Sender};
use limosa_pages::BlockName;
use limosa_postcopy::RequestError;
use limosa_protocol::{LinkRole, Loss, LossReason};
use limosa_transport::{LinkReader, TransportError};
use limosa_wire::{RequestedPages, ReturnDecoder, ReturnMessage};
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// Messages that may wait for the coordinator: a destination in precopy answers one PING at a time.
const INBOX: usize = 16;

/// What the return path brings, and what comes of serving requests. The last is always a `Lost`; a thread that panics closes
/// the channel instead.
#[derive(Debug)]
pub(super) enum Heard {
    Message(ReturnMessage),
    /// Pages that were asked for cannot leave any more on the channel of their own. The return path goes on.
    PreemptLost(Loss, TransportError),
    /// Nothing more will come.
    Lost(Loss, Box<dyn Error + Send + Sync>),
}

/// The thread that listens to the destination.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) heard: Receiver<Heard>,
    thread: JoinHandle<()>,
}

impl Peer {
    /// Starts the thread that owns `link`, the receiving direction. It serves requests for pages itself, and ends those of
    /// `links` that the destination has lost.
    pub(super) fn listen(link: LinkReader, urgent: Arc<Urgent>, links: Stop) -> io::Result<Self> {
        let (inbox, heard) = crossbeam_channel::bounded(INBOX);
        let thread = Builder::new().name("return-path".to_owned()).spawn(move || {
            Listener { reader: StreamReader::with_read_size(link, 4096), urgent, links, inbox }.run()
        })?;
        Ok(Self { heard, thread })
    }

    /// Waits until the thread has ended, and drops what it still had to say. Its link must be shut down.
    pub(super) fn silence(self) {
        // A thread that waits to be heard goes on when nobody will hear it.
        drop(self.heard);
        let _ = self.thread.join(); // A panic closes the channel, which the coordinator has seen.
    }
}

struct Listener {
    reader: StreamReader,
    urgent: Arc<Urgent>,
    links: Stop,
    inbox: Sender<Heard>,
}

impl Listener {
    fn run(mut self) {
        let mut decoder = ReturnDecoder::new();
        loop {
            let heard = match self.reader.decode(|bytes| decoder.next(bytes)) {
                Ok(ReturnMessage::RequestPages { block, pages }) => match self.serve(block, pages) {
                    Some(heard) => heard,
                    None => continue,
                },
                Ok(message) => {
                    if message == ReturnMessage::LinkLost {
                        // The coordinator may be blocked in one that is dead, and could not hear of it.
                        self.links.stop_beside();
                    }
                    Heard::Message(message)
                }
                Err(fault) => Heard::Lost(loss(&fault), Box::new(fault)),
            };
            let is_last = matches!(heard, Heard::Lost(..));
            // A coordinator that is gone has its outcome; the link is shut and nobody waits for this thread.
            if self.inbox.send(heard).is_err() || is_last {
                return;
            }
        }
    }

    /// Serves a request. What comes of it is heard only if it is not as it should be.
    fn serve(&self, block: Option<BlockName>, pages: RequestedPages) -> Option<Heard> {
        match self.urgent.serve(block.as_ref(), pages) {
            Some(Ok(_)) => None,
            Some(Err(RequestError::Transport(error))) => {
                let loss = Loss { role: LinkRole::Preempt, reason: loss_reason(&error) };
                Some(Heard::PreemptLost(loss, error))
            }
            Some(Err(error)) => {
                let loss = Loss { role: LinkRole::ReturnPath, reason: LossReason::Unreadable };
                Some(Heard::Lost(loss, Box::new(error)))
            }
            // The machine says what it thinks of one that comes too soon.
            None => Some(Heard::Message(ReturnMessage::RequestPages { block, pages })),
        }
    }
}

fn loss(fault: &LoadFault) -> Loss {
    let reason = match fault {
        LoadFault::Transport(error) => loss_reason(error),
        LoadFault::Ended { .. } => LossReason::Closed,
        _ => LossReason::Unreadable,
    };
    Loss { role: LinkRole::ReturnPath, reason }
}

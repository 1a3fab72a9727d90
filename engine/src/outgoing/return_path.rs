//! The thread that hears the destination: bytes in, messages out.

use crate::error::{LoadFault, loss_reason};
use crate::stream::StreamReader;
use crossbeam_channel::{Receiver, Sender};
use limosa_protocol::{LinkRole, Loss, LossReason};
use limosa_transport::LinkReader;
use limosa_wire::{ReturnDecoder, ReturnMessage};
use std::io;

/// Messages that may wait for the coordinator: a destination in precopy answers one PING at a time.
const INBOX: usize = 16;

/// What the return path brings. The last is always a `Lost`; a thread that panics closes the channel instead.
#[derive(Debug)]
pub(super) enum Heard {
    Message(ReturnMessage),
    /// Nothing more will come.
    Lost(Loss, LoadFault),
}

/// Starts the thread that owns `link`, the receiving direction.
pub(super) fn spawn(link: LinkReader) -> io::Result<Receiver<Heard>> {
    let (inbox, receiver) = crossbeam_channel::bounded(INBOX);
    std::thread::Builder::new().name("return-path".to_owned()).spawn(move || listen(link, &inbox))?;
    Ok(receiver)
}

fn listen(link: LinkReader, inbox: &Sender<Heard>) {
    let mut reader = StreamReader::with_read_size(link, 4096);
    let mut decoder = ReturnDecoder::new();
    loop {
        let heard = match reader.decode(|bytes| decoder.next(bytes)) {
            Ok(message) => Heard::Message(message),
            Err(fault) => Heard::Lost(loss(&fault), fault),
        };
        let is_last = matches!(heard, Heard::Lost(..));
        // A coordinator that is gone has its outcome; the link is shut and nobody waits for this thread.
        if inbox.send(heard).is_err() || is_last {
            return;
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

//! The reader of the main link from LISTEN on: pages come in while the coordinator loads devices, and later while the
//! guest runs.

use super::postcopy::Said;
use crate::error::{LoadFault, loss_reason};
use crate::ram::RamArrivals;
use crate::stream::StreamReader;
use crossbeam_channel::Sender;
use limosa_protocol::{
    DestinationEvent, DestinationFailure, EntryIndex, LinkRole, Loss, LossReason, PostcopyStream, SectionKind,
};
use limosa_wire::{Command, ContinueKind, SectionId, StartKind, StreamDecoder, StreamItem};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};

/// A stream, and what divides it into items.
pub(super) struct Feed {
    pub(super) stream: StreamDecoder,
    pub(super) input: StreamReader,
}

/// What the thread owns.
pub(super) struct MainReader {
    pub(super) feed: Feed,
    /// What may come, and when.
    pub(super) order: PostcopyStream,
    pub(super) arrivals: RamArrivals,
    /// The section that the pages come in.
    pub(super) ram: SectionId,
    pub(super) say: Sender<Said>,
    /// Bytes of the connection so far, for the figures.
    pub(super) received: Arc<AtomicU64>,
}

/// Why the thread reads no more.
enum Stopped {
    /// The end of the stream was read.
    Ended,
    Refused(DestinationFailure),
    Failed(LoadFault, Option<SectionId>),
}

impl MainReader {
    /// Starts the thread. It gives the stream back when it ends.
    pub(super) fn start(self) -> io::Result<JoinHandle<StreamReader>> {
        Builder::new().name("postcopy-main".to_owned()).spawn(move || self.run())
    }

    fn run(mut self) -> StreamReader {
        let stopped = loop {
            if let Err(stopped) = self.next() {
                break stopped;
            }
            self.received.store(self.feed.input.offset(), Ordering::Relaxed);
        };
        let last = match stopped {
            Stopped::Ended => match self.arrivals.finish() {
                Ok(()) => Said::Event(DestinationEvent::EndOfStream),
                Err(fault) => Said::Failed(DestinationEvent::LoadFailed { section: None }, fault),
            },
            Stopped::Refused(failure) => Said::Event(DestinationEvent::StreamRefused(failure)),
            Stopped::Failed(fault, section) => Said::Failed(event_of(&fault, section), fault),
        };
        self.say(last);
        self.feed.input
    }

    /// Reads an item, and what belongs to it.
    fn next(&mut self) -> Result<(), Stopped> {
        let Feed { stream, input } = &mut self.feed;
        let item = input.decode(|bytes| stream.next(bytes)).map_err(|fault| Stopped::Failed(fault, None))?;
        match item {
            StreamItem::SectionContinue { kind, id } => {
                let kind = match kind {
                    ContinueKind::Part => SectionKind::Part,
                    ContinueKind::End => SectionKind::End,
                };
                self.judge(DestinationEvent::SectionOpened { id, kind })?;
                self.read_section(id).map_err(|fault| Stopped::Failed(fault, Some(id)))
            }
            StreamItem::SectionStart(header) => {
                // It is refused, whatever it is.
                let entry = EntryIndex(0);
                let kind = match header.kind {
                    StartKind::Start => SectionKind::Start(entry),
                    StartKind::Full => SectionKind::Full(entry),
                };
                self.judge(DestinationEvent::SectionOpened { id: header.id, kind })
            }
            StreamItem::Footer(id) => self.judge(DestinationEvent::SectionLoaded { id }),
            StreamItem::Command(command) => {
                if command == Command::ReplaceLinks {
                    // Before anybody says what has come: nothing more comes on them then (I8).
                    self.arrivals.drop_channels();
                }
                self.judge(DestinationEvent::CommandRead(command))
            }
            StreamItem::EndOfStream => {
                // Said with what comes of it, when the channels have ended too.
                self.order.on(DestinationEvent::EndOfStream).map_err(Stopped::Refused)?;
                Err(Stopped::Ended)
            }
            StreamItem::Header | StreamItem::Configuration(_) | StreamItem::VmDescription(_) => {
                unreachable!("the decoder is past the first two, and is not asked after the end")
            }
        }
    }

    fn read_section(&mut self, id: SectionId) -> Result<(), LoadFault> {
        if id != self.ram {
            return Err(LoadFault::UnknownSectionId { id: id.0 });
        }
        self.arrivals.read_section(&mut self.feed.input)?;
        self.feed.stream.end_of_body();
        Ok(())
    }

    /// Asks whether an item may come, and passes on what concerns the coordinator.
    fn judge(&mut self, event: DestinationEvent) -> Result<(), Stopped> {
        if let Some(event) = self.order.on(event).map_err(Stopped::Refused)? {
            self.say(Said::Event(event));
        }
        Ok(())
    }

    fn say(&self, said: Said) {
        // A coordinator that is gone needs to hear nothing.
        drop(self.say.send(said));
    }
}

/// What a failure on the main link is to the machine.
fn event_of(fault: &LoadFault, section: Option<SectionId>) -> DestinationEvent {
    let reason = match fault {
        LoadFault::Transport(error) => loss_reason(error),
        LoadFault::Ended { .. } => LossReason::Closed,
        LoadFault::Wire(_) if section.is_none() => LossReason::Unreadable,
        _ => return DestinationEvent::LoadFailed { section },
    };
    DestinationEvent::Lost(Loss { role: LinkRole::Main, reason })
}

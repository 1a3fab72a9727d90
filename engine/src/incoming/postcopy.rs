//! The destination in postcopy: what the coordinator owns beside the list, and how it pauses and goes on.

use super::connections::accept_channels;
use super::main_reader::{Feed, MainReader};
use super::{DRAIN_TIME, IncomingConfig};
use crate::error::{LoadFault, loss_reason};
use crate::ram::{OnLoss, PostcopyRam};
use crate::stream::{PUSH_QUEUE, StreamReader};
use crossbeam_channel::{Receiver, Sender, never, select};
use limosa_multifd::ReceiveError;
use limosa_pages::{BlockName, PageCount};
use limosa_postcopy::{FaultReport, FaultThread, LatencyHold, PostcopyStatistics, PreemptError, UffdSink};
use limosa_protocol::{DestinationEvent, KernelThread, LinkRole, Loss, LossReason, PostcopyStream};
use limosa_transport::{Link, LinkReader, LinkWriter, Listener, Role, ShutdownHandle};
use limosa_wire::{Features, ReturnMessage, SectionId, StreamDecoder};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// What may wait for the coordinator. Each thread says little: a command, its end.
const INBOX: usize = 64;

/// How long the source may take to connect the links beside the main one. It does so before it sends what makes us wait.
const LINKS_PATIENCE: Duration = Duration::from_secs(10);

/// How long the last pages may take after the end of the stream: those that are still on the channel for urgent pages.
const LAST_PAGES: Duration = Duration::from_secs(10);

/// How often is looked whether they have come. At the end of a migration nobody else waits for the coordinator.
const LAST_PAGES_LOOK: Duration = Duration::from_millis(1);

/// What the threads beside the coordinator, and the operator, say to it.
#[derive(Debug)]
pub(super) enum Said {
    /// For the machine.
    Event(DestinationEvent),
    /// For the machine, with what lies behind it.
    Failed(DestinationEvent, LoadFault),
    /// A source has connected to a listener of a recovery.
    Connected(Listener, Link),
    /// The operator wants it to listen for a recovery.
    Recover(Listener),
}

/// Both ends of the inbox, made before there is postcopy.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) say: Sender<Said>,
    pub(super) said: Receiver<Said>,
}

/// How the operator wants his guest to come in postcopy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IncomingPostcopy {
    /// Pages that a vCPU waits for come on a connection of their own (capability `postcopy-preempt`).
    pub preempt: bool,
}

/// What is needed to go on with the guest's memory once the guest may run.
pub(super) struct Postcopy {
    ram: PostcopyRam,
    /// The section that the pages come in.
    section: SectionId,
    faults: FaultThread,
    connection: Option<Connection>,
    /// Maps what has come before the guest touches it.
    mapper: Option<JoinHandle<()>>,
    /// Waits for a recovery.
    acceptor: Option<ShutdownHandle>,
    inbox: Inbox,
    /// Bytes of the present connection.
    received: Arc<AtomicU64>,
    /// Its channels are those that carry the push.
    config: IncomingConfig,
    /// Links beside the main one that are lost are replaced.
    replaces_links: bool,
    /// Short waits for the processor while the guest waits for pages, where we may have them.
    _hold: Option<LatencyHold>,
}

/// One connection, and its threads.
struct Connection {
    main: ShutdownHandle,
    reader: JoinHandle<StreamReader>,
    /// What its reader says; it dies with the connection (I8).
    said: Receiver<Said>,
    /// Where its other links come from.
    listener: Option<Listener>,
}

impl Inbox {
    pub(super) fn new() -> Self {
        let (say, said) = crossbeam_channel::bounded(INBOX);
        Self { say, said }
    }
}

impl Postcopy {
    /// Watches for faults, and asks for nothing before there is a connection.
    pub(super) fn listen(
        ram: PostcopyRam,
        section: SectionId,
        (config, features): (IncomingConfig, Features),
        inbox: Inbox,
        received: Arc<AtomicU64>,
        vcpus: &[KernelThread],
    ) -> Result<Self, LoadFault> {
        let sink = Arc::clone(ram.sink());
        sink.watch_threads(vcpus);
        let say = inbox.say.clone();
        // Without waiting: the coordinator may be waiting for that thread. A full inbox has enough to say.
        let report = move |report| drop(say.try_send(of_fault_thread(report)));
        let faults = FaultThread::start(Arc::clone(&sink), report)?;
        let mapper = start_mapper(sink).ok(); // Without it the guest faults a little more.
        Ok(Self {
            ram,
            section,
            faults,
            connection: None,
            mapper,
            acceptor: None,
            inbox,
            received,
            config,
            replaces_links: features.contains(Features::LINK_REPLACEMENT),
            _hold: LatencyHold::acquire(),
        })
    }

    /// Where pages go, for the figures.
    pub(super) fn sink(&self) -> &Arc<UffdSink> {
        self.ram.sink()
    }

    /// Takes a connection over: `feed` is read by a thread of its own, and requests go out on `answers`.
    pub(super) fn connect(
        &mut self,
        main: ShutdownHandle,
        mut feed: Feed,
        order: PostcopyStream,
        answers: LinkWriter,
        listener: Option<Listener>,
    ) -> Result<(), LoadFault> {
        feed.input.limit_queue(PUSH_QUEUE)?;
        self.faults.connect(answers).map_err(|_| LoadFault::NoFaultThread)?;
        let (say, said) = crossbeam_channel::bounded(INBOX);
        let on_loss = self.replaces_links.then(|| {
            let say = say.clone();
            // A coordinator that is gone needs to hear nothing.
            Box::new(move |error| drop(say.send(of_channel(error)))) as OnLoss
        });
        let reader = MainReader {
            feed,
            order,
            arrivals: self.ram.arrivals(on_loss),
            ram: self.section,
            say,
            received: Arc::clone(&self.received),
        };
        let reader = reader.start().map_err(LoadFault::Thread)?;
        self.connection = Some(Connection { main, reader, said, listener });
        Ok(())
    }

    /// Takes the connections of a recovery that belong to the main one.
    pub(super) fn take_links(&mut self) -> Result<(), LoadFault> {
        if let Some(wanted) = &self.config.channels {
            let connection = self.connection.as_mut().expect("taken while connected");
            let listener = connection.listener.as_mut().ok_or(LoadFault::SingleConnection)?;
            let links = accept_channels(listener, wanted, &self.config, Instant::now() + LINKS_PATIENCE)?;
            self.ram.open_channels(links)?;
        }
        self.take_preempt()
    }

    /// Takes the connection for urgent pages, where there is to be one.
    pub(super) fn take_preempt(&mut self) -> Result<(), LoadFault> {
        if !self.config.uses_preempt() {
            return Ok(());
        }
        let connection = self.connection.as_mut().expect("taken while connected");
        let listener = connection.listener.as_mut().ok_or(LoadFault::SingleConnection)?;
        let mut link = listener.accept(Some(Instant::now() + LINKS_PATIENCE))?;
        link.set_role(Role::Preempt);
        self.faults.receive(link.split().0).map_err(|_| LoadFault::NoFaultThread)
    }

    /// Asks for all that is missed.
    pub(super) fn ask(&self) -> Result<(), LoadFault> {
        self.faults.ask().map_err(|_| LoadFault::NoFaultThread)
    }

    /// Says something to the source, behind what was said before.
    pub(super) fn send(&self, message: ReturnMessage) -> Result<(), LoadFault> {
        self.faults.send(message).map_err(|_| LoadFault::NoFaultThread)
    }

    /// Tells the source what is here of a block.
    pub(super) fn send_bitmap(&self, block: &BlockName) -> Result<(), LoadFault> {
        let unknown = || LoadFault::UnknownBlock { name: block.as_str().to_owned() };
        self.send(ReturnMessage::RecvBitmap(self.ram.received_pages(block).ok_or_else(unknown)?))
    }

    /// What was said next, if anything is within `patience`; `None` waits for ever.
    pub(super) fn hear(&self, patience: Option<Duration>) -> Option<Said> {
        let nobody = never();
        let mut reader = self.connection.as_ref().map_or(&nobody, |connection| &connection.said);
        let expired = patience.map_or_else(never, crossbeam_channel::after);
        loop {
            select! {
                recv(self.inbox.said) -> said => return Some(said.expect("the other end is here too")),
                recv(reader) -> said => match said {
                    Ok(said) => return Some(said),
                    // It has said its last word.
                    Err(_) => reader = &nobody,
                },
                recv(expired) -> _ => return None,
            }
        }
    }

    /// Waits for the pages that are still under way; what else is said meanwhile comes first.
    pub(super) fn await_pages(&self) -> Said {
        let deadline = Instant::now() + LAST_PAGES;
        loop {
            match self.ram.missing() {
                PageCount(0) => return Said::Event(DestinationEvent::AllReceived),
                pages if Instant::now() >= deadline => {
                    return Said::Event(DestinationEvent::PagesMissing { pages });
                }
                _ => {}
            }
            if let Some(said) = self.hear(Some(LAST_PAGES_LOOK)) {
                return said;
            }
        }
    }

    /// Ends the connection and all threads that read from it, and forgets what they have said (I8).
    pub(super) fn pause(&mut self) {
        // One that has ended is told of by its report.
        let _ = self.faults.disconnect();
        if let Some(connection) = self.connection.take() {
            connection.end();
        }
        self.ram.forget_channels();
        self.ram.sink().forget_unfinished();
        self.keep_said(|said| matches!(said, Said::Recover(_) | Said::Connected(..)));
    }

    /// Gives the links beside the main one up, and forgets how they ended (I8). The reader of the main one has dropped the
    /// channels: it reads nothing but questions and answers until there are others.
    pub(super) fn drop_links(&mut self) -> Result<(), LoadFault> {
        self.faults.rest().map_err(|_| LoadFault::NoFaultThread)?;
        self.ram.sink().forget_unfinished();
        self.keep_said(|said| {
            let of_preempt = |event: &DestinationEvent| match event {
                DestinationEvent::PreemptEnded => true,
                DestinationEvent::Lost(loss) => loss.role == LinkRole::Preempt,
                _ => false,
            };
            !matches!(said, Said::Event(event) | Said::Failed(event, _) if of_preempt(event))
        });
        Ok(())
    }

    /// Drops what waits in the inbox, but for what is still wanted.
    fn keep_said(&self, wanted: impl Fn(&Said) -> bool) {
        let kept: Vec<Said> = self.inbox.said.try_iter().filter(wanted).collect();
        for said in kept {
            // There is room for what has just come out.
            drop(self.inbox.say.try_send(said));
        }
    }

    /// Waits at `listener` for the source to come back; an earlier wait ends.
    pub(super) fn await_source(&mut self, listener: Listener) -> Result<(), LoadFault> {
        self.stop_accepting();
        self.acceptor = Some(listener.shutdown_handle());
        let say = self.inbox.say.clone();
        let accept = move || {
            // Without a connection the operator says where to listen next.
            if let Ok(link) = listener.accept(None) {
                drop(say.send(Said::Connected(listener, link)));
            }
        };
        Builder::new().name("postcopy-recovery".to_owned()).spawn(accept).map_err(LoadFault::Thread)?;
        Ok(())
    }

    /// A source has come back: its connection is read from here on, without a header (wire 5.9).
    pub(super) fn reconnect(
        &mut self,
        listener: Listener,
        link: Link,
        order: PostcopyStream,
    ) -> Result<(), LoadFault> {
        self.acceptor = None;
        let main = link.shutdown_handle();
        let (reader, writer) = link.split();
        let feed = Feed { stream: StreamDecoder::without_header(), input: StreamReader::new(reader) };
        self.connect(main, feed, order, writer, Some(listener))
    }

    /// Ends everything, behind what was ordered to be said; the connection comes back, to be closed with manners.
    ///
    /// The memory of a guest that runs here and is `lost` is watched for the rest of the process's life: whoever touches
    /// a page that never came waits, and does not read zeros.
    pub(super) fn finish(mut self, lost: bool) -> Finished {
        self.stop_accepting();
        let answers = self.faults.stop().ok().flatten();
        let mut main = None;
        if let Some(Connection { main: link, reader, said, .. }) = self.connection {
            drop(said);
            // One that still reads takes what the source sends: unread bytes would destroy our last word (wire 2.3).
            let deadline = Instant::now() + DRAIN_TIME;
            while !reader.is_finished() && Instant::now() < deadline {
                std::thread::sleep(LAST_PAGES_LOOK);
            }
            if !reader.is_finished() {
                link.shutdown();
            }
            main = reader.join().ok().map(StreamReader::into_link);
        }
        if self.ram.missing() == PageCount(0) {
            // Unwatched by being dropped otherwise.
            let _ = self.ram.sink().end();
        } else if lost {
            std::mem::forget(Arc::clone(self.ram.sink()));
        }
        if let Some(mapper) = self.mapper {
            let _ = mapper.join();
        }
        Finished { statistics: self.ram.sink().statistics(), main, answers }
    }

    fn stop_accepting(&mut self) {
        if let Some(listener) = self.acceptor.take() {
            listener.shutdown();
        }
    }
}

/// What is left of a postcopy.
pub(super) struct Finished {
    pub(super) statistics: PostcopyStatistics,
    pub(super) main: Option<LinkReader>,
    pub(super) answers: Option<LinkWriter>,
}

impl Connection {
    /// Shuts all its links down, and waits for its threads.
    fn end(self) {
        self.main.shutdown();
        // A reader that waits to be heard goes on when nobody will hear it.
        drop(self.said);
        drop(self.reader.join()); // A panic has closed nothing that is still needed.
    }
}

fn start_mapper(sink: Arc<UffdSink>) -> io::Result<JoinHandle<()>> {
    // A page that cannot be mapped ahead is mapped, or fails, when the guest touches it.
    Builder::new().name("postcopy-map".to_owned()).spawn(move || drop(sink.map_received()))
}

/// What a report of the fault thread is to the machine.
fn of_fault_thread(report: FaultReport) -> Said {
    match report {
        FaultReport::Lost(error) => {
            let loss = Loss { role: LinkRole::ReturnPath, reason: loss_reason(&error) };
            Said::Failed(DestinationEvent::Lost(loss), error.into())
        }
        FaultReport::Failed(failure) => {
            Said::Failed(DestinationEvent::LoadFailed { section: None }, failure.into())
        }
        FaultReport::PreemptEnded(Ok(())) => Said::Event(DestinationEvent::PreemptEnded),
        FaultReport::PreemptEnded(Err(error)) => of_preempt(error),
    }
}

fn of_preempt(error: PreemptError) -> Said {
    let reason = match &error {
        PreemptError::Transport(error) => loss_reason(error),
        _ => LossReason::Unreadable,
    };
    Said::Failed(DestinationEvent::Lost(Loss { role: LinkRole::Preempt, reason }), error.into())
}

fn of_channel(error: ReceiveError) -> Said {
    let number = error.connection.channel.map_or(error.connection.accepted as u16, u16::from);
    let loss = Loss { role: LinkRole::Channel(number), reason: LossReason::Closed };
    Said::Failed(DestinationEvent::Lost(loss), error.into())
}

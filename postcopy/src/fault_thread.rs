//! The thread that hears the guest's faults, asks the source for the pages, and puts in what comes on the preempt channel.
//!
//! It owns the return path's sending half from LISTEN on, so a request leaves without a queue and without a lock: from the
//! kernel's word to the socket in one thread. Everybody else's messages go through its inbox. The answer comes to the same
//! thread, which is awake or about to be: one thread fewer to be woken between a fault and its page.
//!
//! It waits in one place only, for all of these at once. What a link does not take now is kept, and a page that has come in
//! part is kept until the rest comes, so that a peer that reads nothing, or sends a byte at a time, keeps nobody else waiting.

use crate::error::{PlaceError, PreemptError, UffdError};
use crate::preempt::{PreemptReader, Reading};
use crate::sink::UffdSink;
use crate::uffd::{FaultEvent, FaultReader};
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use limosa_pages::BlockId;
use limosa_transport::{LinkReader, LinkWriter, ShutdownHandle, TransportError};
use limosa_wire::{RequestedPages, ReturnMessage};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

/// Orders that may wait for the thread: a recovery sends one received bitmap for each RAM block, of which guests have a
/// handful. Whoever finds the inbox full waits.
const ORDERS: usize = 64;

/// What the fault thread has to say. After `Failed` it has ended, and the guest's faults are served no more.
#[derive(Debug)]
pub enum FaultReport {
    /// The return path is lost. Faults are noted, and asked for after [`FaultThread::connect`] and
    /// [`FaultThread::ask`].
    Lost(TransportError),
    /// Nothing more comes on the preempt channel: `Ok` if the peer ended it between two records.
    PreemptEnded(Result<(), PreemptError>),
    /// The thread cannot go on.
    Failed(FaultFailure),
}

/// Why a fault thread ended.
#[derive(Debug, thiserror::Error)]
pub enum FaultFailure {
    /// Faults cannot be read.
    #[error(transparent)]
    Uffd(#[from] UffdError),
    /// A page that is here cannot be mapped.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The thread cannot wait for faults.
    #[error("the fault thread cannot wait")]
    Poll(#[source] io::Error),
    /// The thread panicked.
    #[error("the fault thread panicked")]
    Panicked,
}

/// The fault thread has ended and takes no more orders; its last [`FaultReport`] says why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the fault thread has ended")]
pub struct FaultThreadEnded;

/// The running thread. Dropping it ends it, whatever it does.
pub struct FaultThread {
    orders: Option<Sender<Order>>,
    bell: Arc<EventFd>,
    /// Of the return path: ends the wait for it to take more.
    link: Mutex<Option<ShutdownHandle>>,
    thread: Option<JoinHandle<Option<LinkWriter>>>,
}

enum Order {
    Send(ReturnMessage),
    Connect(LinkWriter),
    Receive(LinkReader),
    Ask,
    /// Dropped when it has been followed.
    Rest(Sender<()>),
    /// Dropped when it has been followed.
    Disconnect(Sender<()>),
}

/// The return path, and the block that the last request named.
struct Connection {
    link: LinkWriter,
    block: Option<BlockId>,
    /// What the kernel has not taken yet, behind `sent` bytes that it has. While there is any, nothing is added: it holds a
    /// message, or requests for all that is waited for, at most [`WAITING_PAGES_MAX`](limosa_protocol::WAITING_PAGES_MAX)
    /// times 12 bytes and the names of blocks, and a message.
    unsent: Vec<u8>,
    sent: usize,
}

/// What the thread waits for. Room on the return path is not among it: it is tried after every wait, so that its deadline
/// is heeded whatever else there is to do.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    faults: bool,
    bell: bool,
    /// Something has come on the preempt channel, or its end.
    answers: bool,
}

struct Worker {
    sink: Arc<UffdSink>,
    orders: Receiver<Order>,
    bell: Arc<EventFd>,
    /// The bell has rung, and not all that was ordered has been done: it waits until everything before it is sent.
    ordered: bool,
    connection: Option<Connection>,
    preempt: Option<PreemptReader>,
    report: Box<dyn FnMut(FaultReport) + Send>,
    reader: FaultReader,
    faults: Vec<FaultEvent>,
}

/// Reports a panic when the thread unwinds.
struct Guard(Worker);

impl FaultThread {
    /// Starts the thread. It asks for what is missed as soon as there is a connection and [`Self::ask`] was called.
    ///
    /// `report` is called in the thread; it must not wait for the thread.
    ///
    /// # Errors
    /// If the kernel gives no thread or no event descriptor.
    pub fn start(
        sink: Arc<UffdSink>,
        report: impl FnMut(FaultReport) + Send + 'static,
    ) -> Result<Self, UffdError> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell =
            EventFd::from_value_and_flags(0, flags).map_err(|errno| UffdError::Thread(errno.into()))?;
        let bell = Arc::new(bell);
        let (orders, inbox) = crossbeam_channel::bounded(ORDERS);
        let worker = Worker {
            sink,
            orders: inbox,
            bell: Arc::clone(&bell),
            ordered: false,
            connection: None,
            preempt: None,
            report: Box::new(report),
            reader: FaultReader::new(),
            faults: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("postcopy-fault".to_owned())
            .spawn(move || Guard(worker).run())
            .map_err(UffdError::Thread)?;
        Ok(Self { orders: Some(orders), bell, link: Mutex::default(), thread: Some(thread) })
    }

    /// Gives the thread a return path. It sends messages on it at once, requests only after [`Self::ask`].
    ///
    /// # Errors
    /// [`FaultThreadEnded`].
    pub fn connect(&self, link: LinkWriter) -> Result<(), FaultThreadEnded> {
        *self.link.lock() = Some(link.shutdown_handle());
        self.order(Order::Connect(link))
    }

    /// Puts in the pages that come on the preempt channel `link`, in the place of an earlier one, until its end, which is
    /// reported, or until [`Self::disconnect`]. Call it before [`Self::ask`].
    ///
    /// # Errors
    /// [`FaultThreadEnded`].
    pub fn receive(&self, link: LinkReader) -> Result<(), FaultThreadEnded> {
        self.order(Order::Receive(link))
    }

    /// Asks for everything that is missed, now and from now on: after LISTEN, and after RESUME_ACK of a recovery. The
    /// first request of a connection names its block, and the first after [`Self::rest`] (wire 5.7).
    ///
    /// # Errors
    /// [`FaultThreadEnded`].
    pub fn ask(&self) -> Result<(), FaultThreadEnded> {
        self.order(Order::Ask)
    }

    /// Sends a message, in the order of the calls. Without a connection it is dropped with the connection that it was meant
    /// for (I8).
    ///
    /// # Errors
    /// [`FaultThreadEnded`].
    pub fn send(&self, message: ReturnMessage) -> Result<(), FaultThreadEnded> {
        self.order(Order::Send(message))
    }

    /// Gives the preempt channel up, and asks for nothing before [`Self::ask`]; the return path stays. When this returns, all
    /// that there is to report of the channel has been reported.
    ///
    /// # Errors
    /// [`FaultThreadEnded`].
    pub fn rest(&self) -> Result<(), FaultThreadEnded> {
        self.order_and_wait(Order::Rest)
    }

    /// Gives the return path and the preempt channel up: from here on faults are noted only. When this returns, both are
    /// closed on this side and all that there is to report of them has been reported.
    ///
    /// # Errors
    /// [`FaultThreadEnded`].
    pub fn disconnect(&self) -> Result<(), FaultThreadEnded> {
        self.shut_link();
        self.order_and_wait(Order::Disconnect)
    }

    /// Ends the thread after what was ordered, and gives the return path back, if there is one.
    ///
    /// Threads that wait for pages go on waiting: end the sink, or drop it.
    ///
    /// # Errors
    /// [`FaultThreadEnded`] if it had ended before.
    pub fn stop(mut self) -> Result<Option<LinkWriter>, FaultThreadEnded> {
        self.finish()
    }

    fn order_and_wait(&self, order: impl FnOnce(Sender<()>) -> Order) -> Result<(), FaultThreadEnded> {
        let (following, followed) = crossbeam_channel::bounded::<()>(1);
        self.order(order(following))?;
        let _ = followed.recv(); // Ends when the order is dropped: it was followed, or the thread has ended.
        Ok(())
    }

    fn order(&self, order: Order) -> Result<(), FaultThreadEnded> {
        let orders = self.orders.as_ref().expect("only `finish` takes it");
        orders.send(order).map_err(|_| FaultThreadEnded)?;
        self.ring();
        Ok(())
    }

    fn ring(&self) {
        // A full counter, which fails, has rung 2^64 - 2 times and is heard all the same.
        let _ = self.bell.write(1);
    }

    fn shut_link(&self) {
        if let Some(link) = self.link.lock().take() {
            link.shutdown();
            // A pipe that was shut down on this side wakes nobody who waits for room in it.
            self.ring();
        }
    }

    fn finish(&mut self) -> Result<Option<LinkWriter>, FaultThreadEnded> {
        self.orders = None;
        self.ring();
        let Some(thread) = self.thread.take() else { return Ok(None) };
        thread.join().map_err(|_| FaultThreadEnded)
    }
}

impl Drop for FaultThread {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.shut_link();
            let _ = self.finish(); // Its report has said how it ended.
        }
    }
}

impl Guard {
    fn run(mut self) -> Option<LinkWriter> {
        if let Err(failure) = self.0.run() {
            (self.0.report)(FaultReport::Failed(failure));
        }
        self.0.connection.take().map(|connection| connection.link)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0.report)(FaultReport::Failed(FaultFailure::Panicked));
        }
    }
}

impl Worker {
    fn run(&mut self) -> Result<(), FaultFailure> {
        loop {
            let ready = self.wait()?;
            if ready.answers {
                self.receive();
            }
            if ready.faults {
                self.serve_faults()?;
            }
            if self.has_unsent() {
                self.write();
                self.request();
            }
            if ready.bell {
                // Before the inbox is read: what is ordered after that rings again.
                let _ = self.bell.read(); // EAGAIN only if nobody has rung.
                self.ordered = true;
            }
            if self.ordered && !self.has_unsent() && !self.follow_orders() {
                return Ok(());
            }
        }
    }

    /// Waits until there is something to do; says what.
    fn wait(&self) -> Result<Ready, FaultFailure> {
        let unsent = self.connection.as_ref().filter(|connection| !connection.unsent.is_empty());
        let room = unsent.and_then(|connection| connection.link.descriptor().ok());
        let answers = self.preempt.as_ref().and_then(|preempt| preempt.descriptor().ok());
        let nothing = || PollFd::new(self.bell.as_fd(), PollFlags::empty());
        let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut watched = [
            watch(self.sink.descriptor()),
            watch(self.bell.as_fd()),
            answers.map_or_else(nothing, watch),
            room.map_or_else(nothing, |fd| PollFd::new(fd, PollFlags::POLLOUT)),
        ];
        // A link that takes nothing is looked at when its deadline is over.
        let patience = unsent.and_then(|connection| connection.link.deadline());
        let patience = patience.map_or(PollTimeout::NONE, |patience| {
            PollTimeout::try_from(patience.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut watched, patience) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Ready::default()),
            Err(errno) => return Err(FaultFailure::Poll(errno.into())),
        }
        let ready = |at: usize| watched[at].any().unwrap_or(true);
        Ok(Ready { faults: ready(0), bell: ready(1), answers: answers.is_some() && ready(2) })
    }

    fn has_unsent(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| !connection.unsent.is_empty())
    }

    /// Puts in what has come on the preempt channel.
    fn receive(&mut self) {
        let Some(preempt) = &mut self.preempt else { return };
        let outcome = match preempt.receive(&self.sink) {
            Ok(Reading::Open) => return,
            Ok(Reading::Ended) => Ok(()),
            Err(error) => Err(error),
        };
        self.preempt = None;
        (self.report)(FaultReport::PreemptEnded(outcome));
    }

    fn serve_faults(&mut self) -> Result<(), FaultFailure> {
        self.faults.clear();
        self.sink.read_faults(&mut self.reader, &mut self.faults)?;
        let noticed = Instant::now();
        for fault in &self.faults {
            self.sink.fault(*fault, noticed)?;
        }
        self.request();
        Ok(())
    }

    /// Does what was ordered, as long as all that there is to send is sent; `false` at the end.
    fn follow_orders(&mut self) -> bool {
        while !self.has_unsent() {
            match self.orders.try_recv() {
                Ok(Order::Send(message)) => {
                    if let Some(connection) = &mut self.connection {
                        message.encode(&mut connection.unsent);
                    }
                    self.write();
                }
                Ok(Order::Connect(link)) => {
                    self.sink.table().pause();
                    self.connection = Some(Connection { link, block: None, unsent: Vec::new(), sent: 0 });
                }
                Ok(Order::Receive(link)) => {
                    self.preempt = Some(PreemptReader::new(link));
                    self.receive(); // Bytes that somebody peeked at make no descriptor readable.
                }
                Ok(Order::Ask) => {
                    if self.connection.is_some() {
                        self.sink.table().resume();
                    }
                    self.request();
                }
                Ok(Order::Rest(_following)) => {
                    self.preempt = None;
                    self.sink.table().pause();
                    if let Some(connection) = &mut self.connection {
                        // Whoever serves on another channel has heard no request yet (wire 5.7).
                        connection.block = None;
                    }
                }
                Ok(Order::Disconnect(_following)) => {
                    self.drop_connection();
                    self.preempt = None;
                }
                Err(TryRecvError::Empty) => {
                    self.ordered = false;
                    return true;
                }
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true // The rest waits for room.
    }

    /// Asks for whatever is to be asked, with one write; later, if something else is still to be sent.
    fn request(&mut self) {
        let Some(connection) = self.connection.as_mut().filter(|connection| connection.unsent.is_empty())
        else {
            return;
        };
        {
            let mut table = self.sink.table();
            let now = Instant::now();
            while let Some((id, page)) = table.next_request(now) {
                let block = self.sink.block(id);
                let named = (connection.block != Some(id)).then(|| block.name().clone());
                connection.block = Some(id);
                let length =
                    u32::try_from(block.layout().page_size.bytes()).expect("host pages are below 4 GiB");
                let pages = RequestedPages { start: page.byte_offset(), length };
                ReturnMessage::RequestPages { block: named, pages }.encode(&mut connection.unsent);
            }
        }
        self.write();
    }

    /// Sends what the kernel takes of what is to be sent.
    fn write(&mut self) {
        let Some(Connection { link, unsent, sent, .. }) = &mut self.connection else { return };
        if *sent < unsent.len() {
            match link.write_ready(&unsent[*sent..]) {
                Ok(count) => *sent += count,
                Err(error) => {
                    self.drop_connection();
                    return (self.report)(FaultReport::Lost(error));
                }
            }
        }
        if *sent == unsent.len() {
            unsent.clear();
            *sent = 0;
        }
    }

    fn drop_connection(&mut self) {
        self.connection = None;
        self.sink.table().pause();
    }
}

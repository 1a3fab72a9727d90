//! The thread that hears the guest's faults and asks the source for the pages.
//!
//! It owns the return path's sending half from LISTEN on, so a request leaves without a queue and without a lock: from the
//! kernel's word to the socket in one thread. Everybody else's messages go through its inbox.

use crate::error::{PlaceError, UffdError};
use crate::sink::UffdSink;
use crate::uffd::{FaultEvent, FaultReader};
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use limosa_pages::BlockId;
use limosa_transport::{LinkWriter, ShutdownHandle, TransportError};
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
    /// Ends a write in which the thread may be blocked.
    link: Mutex<Option<ShutdownHandle>>,
    thread: Option<JoinHandle<Option<LinkWriter>>>,
}

enum Order {
    Send(ReturnMessage),
    Connect(LinkWriter),
    Ask,
    /// Dropped when it has been followed.
    Disconnect(Sender<()>),
}

/// The return path, and the block that the last request named.
struct Connection {
    link: LinkWriter,
    block: Option<BlockId>,
}

struct Worker {
    sink: Arc<UffdSink>,
    orders: Receiver<Order>,
    bell: Arc<EventFd>,
    connection: Option<Connection>,
    report: Box<dyn FnMut(FaultReport) + Send>,
    reader: FaultReader,
    faults: Vec<FaultEvent>,
    message: Vec<u8>,
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
            connection: None,
            report: Box::new(report),
            reader: FaultReader::new(),
            faults: Vec::new(),
            message: Vec::new(),
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

    /// Asks for everything that is missed, now and from now on: after LISTEN, and after RESUME_ACK of a recovery. The
    /// first request names its block (wire 5.7).
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

    /// Gives the return path up: from here on faults are noted only. A write in which the thread is blocked ends. When
    /// this returns, all that there is to report of the connection has been reported.
    ///
    /// # Errors
    /// [`FaultThreadEnded`].
    pub fn disconnect(&self) -> Result<(), FaultThreadEnded> {
        self.shut_link();
        let (following, followed) = crossbeam_channel::bounded::<()>(1);
        self.order(Order::Disconnect(following))?;
        let _ = followed.recv(); // Ends when the order is dropped: it was followed, or the thread has ended.
        Ok(())
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
            let (faults, orders) = self.wait()?;
            if faults {
                self.serve_faults()?;
            }
            if orders && !self.follow_orders() {
                return Ok(());
            }
        }
    }

    /// Waits for faults or orders; says which of them there are.
    fn wait(&self) -> Result<(bool, bool), FaultFailure> {
        let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut descriptors = [watch(self.sink.descriptor()), watch(self.bell.as_fd())];
        loop {
            match poll(&mut descriptors, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(FaultFailure::Poll(errno.into())),
                Ok(_) => {
                    let ready = |at: usize| descriptors[at].any().unwrap_or(true);
                    return Ok((ready(0), ready(1)));
                }
            }
        }
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

    /// Does what was ordered; `false` at the end.
    fn follow_orders(&mut self) -> bool {
        // Read before the inbox: what is ordered after that rings again.
        let _ = self.bell.read(); // EAGAIN if somebody else's order was followed with the last ones.
        loop {
            match self.orders.try_recv() {
                Ok(Order::Send(message)) => {
                    self.message.clear();
                    message.encode(&mut self.message);
                    self.write();
                }
                Ok(Order::Connect(link)) => {
                    self.sink.table().pause();
                    self.connection = Some(Connection { link, block: None });
                }
                Ok(Order::Ask) => {
                    if self.connection.is_some() {
                        self.sink.table().resume();
                    }
                    self.request();
                }
                Ok(Order::Disconnect(_following)) => self.drop_connection(),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Asks for whatever is to be asked, with one write.
    fn request(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        self.message.clear();
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
                ReturnMessage::RequestPages { block: named, pages }.encode(&mut self.message);
            }
        }
        if !self.message.is_empty() {
            self.write();
        }
    }

    fn write(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        if let Err(error) = connection.link.write_all(&self.message) {
            self.drop_connection();
            (self.report)(FaultReport::Lost(error));
        }
    }

    fn drop_connection(&mut self) {
        self.connection = None;
        self.sink.table().pause();
    }
}

//! The destination's side: a thread that reads the stream and drives the [`limosa_protocol::Destination`] machine.

mod connections;
mod last_word;
mod listening;
mod loader;
mod main_reader;
mod postcopy;

pub use last_word::{LastWord, LastWordListener};
pub use postcopy::IncomingPostcopy;

use crate::error::{NotNow, NotStarted, RecoverError, StartError};
use crate::observer::Observer;
use crate::ram::{RamCounters, RamStatistics};
use crate::savevm::{ChannelSync, SaveVm};
use crate::stop::Stop;
use crate::thread;
use crate::vm::Vm;
use connections::Origin;
use crossbeam_channel::Sender;
use limosa_multifd::{ChannelStatistics, SYNC_PATIENCE};
use limosa_pages::ByteCount;
use limosa_postcopy::{PostcopyStatistics, UffdSink};
use limosa_protocol::{DestinationEvent, DestinationOutcome, MigrationStatus};
use limosa_transport::{Address, Link, Listener};
use limosa_wire::multifd::Compression;
use loader::Loader;
use parking_lot::Mutex;
use postcopy::{Inbox, Said};
use std::num::NonZeroU8;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// After a failure the source's bytes are read on and dropped for this long at most: closing a socket with unread
/// bytes resets the connection, and a reset would destroy our SHUT on its way (wire 2.3).
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// What an incoming migration needs besides its guest.
#[derive(Clone, Debug)]
pub struct IncomingConfig {
    /// Agree to the switchover as soon as the return path opens (capability `switchover-ack`).
    pub switchover_ack: bool,
    /// Let the guest run once it is here, if it ran there. Otherwise it stays paused.
    pub autostart: bool,
    /// Refuse a stream that ends without a vmdescription. Machines with `suppress-vmdesc` send none.
    pub require_vmdescription: bool,
    /// How long the source may neither send nor take an answer before the link counts as lost; not zero. `None` waits
    /// for ever.
    pub read_deadline: Option<Duration>,
    /// Channels for pages beside the main one (capability `multifd`); the source must have as many.
    pub channels: Option<IncomingChannels>,
    /// How long the channels may take to come in once the first section has. A source that was set to fewer will never
    /// make more, and both sides should hear of it.
    pub channel_patience: Duration,
    /// How long the channels may be silent while the main one waits for them at a synchronisation point; not zero.
    pub sync_patience: Duration,
    /// The guest may come before its memory (capability `postcopy-ram`). `None` refuses that.
    pub postcopy: Option<IncomingPostcopy>,
    /// Threads that decompress for all channels together; `None` is one per processor.
    pub codec_workers: Option<NonZeroU8>,
}

/// The multifd channels of an incoming migration. All but the number follow from the source's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncomingChannels {
    /// How many.
    pub count: u8,
    /// How pages are compressed on them.
    pub compression: Compression,
    /// When they are brought into line.
    pub sync: ChannelSync,
    /// The guest's UUID; zeros if it has none.
    pub uuid: [u8; 16],
}

/// A migration on its way in. Dropping the handle does not stop it; [`Self::cancel`] does.
pub struct Incoming {
    shared: Arc<Shared>,
    orders: Sender<Said>,
    address: Option<Address>,
    thread: JoinHandle<(IncomingReport, SaveVm)>,
}

/// A live view of an incoming migration.
#[derive(Clone, Debug)]
pub struct IncomingStatistics {
    /// Where it stands.
    pub status: MigrationStatus,
    /// Time since the first byte; the whole time once it has ended.
    pub total_time: Duration,
    /// Bytes read.
    pub received: ByteCount,
    /// What the RAM handler counts; zeros if the guest has none.
    pub ram: RamStatistics,
    /// What each multifd channel has done; empty without channels.
    pub channels: Vec<ChannelStatistics>,
    /// How faults were served; `None` before the guest came in postcopy.
    pub postcopy: Option<PostcopyStatistics>,
    /// Why it failed, or is paused.
    pub error: Option<String>,
}

/// How an incoming migration ended.
#[derive(Clone, Debug)]
pub struct IncomingReport {
    /// The machine's verdict: what happened, and where the guest is.
    pub outcome: DestinationOutcome,
    /// The figures at the end; `error` says why it failed.
    pub statistics: IncomingStatistics,
    /// For a source whose connection was lost just before the end; `None` if it would not understand.
    pub last_word: Option<LastWord>,
}

/// What the loader shows to other threads.
struct Shared {
    view: Mutex<View>,
    cancelled: AtomicBool,
    /// Wakes the loader out of a blocked accept or read; `None` once a cancel comes too late.
    stop: Mutex<Option<Stop>>,
    /// Bytes of the present connection, once its reader is beside the loader.
    received: Arc<AtomicU64>,
    /// What watches for faults, for its figures.
    faults: Mutex<Option<Arc<UffdSink>>>,
}

struct View {
    statistics: IncomingStatistics,
    began: Option<Instant>,
    ended: bool,
    counters: Option<Arc<RamCounters>>,
}

impl Default for IncomingConfig {
    fn default() -> Self {
        Self {
            switchover_ack: false,
            autostart: true,
            require_vmdescription: true,
            read_deadline: None,
            channels: None,
            channel_patience: Duration::from_secs(10),
            sync_patience: SYNC_PATIENCE,
            postcopy: None,
            codec_workers: None,
        }
    }
}

impl IncomingConfig {
    /// Whether urgent pages come on a connection of their own.
    fn uses_preempt(&self) -> bool {
        self.postcopy.is_some_and(|postcopy| postcopy.preempt)
    }
}

impl Incoming {
    /// Waits at `address` for the guest that `savevm` describes; returns as soon as it listens.
    ///
    /// # Errors
    /// If nothing can listen there; the list comes back beside the error.
    pub fn listen(
        address: &Address,
        config: IncomingConfig,
        savevm: SaveVm,
        vm: Arc<dyn Vm>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, NotStarted> {
        match Listener::bind(address) {
            Ok(listener) => Self::spawn(Origin::Listener(listener), config, savevm, vm, observer),
            Err(error) => Err(NotStarted::new(error.into(), savevm)),
        }
    }

    /// Receives over a link that is connected already.
    ///
    /// # Errors
    /// If there is no thread to be had; the list comes back beside the error.
    pub fn over(
        link: Link,
        config: IncomingConfig,
        savevm: SaveVm,
        vm: Arc<dyn Vm>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, NotStarted> {
        Self::spawn(Origin::Link(link), config, savevm, vm, observer)
    }

    /// Where it listens; with the port that the kernel chose if 0 was asked for.
    pub fn address(&self) -> Option<&Address> {
        self.address.as_ref()
    }

    /// Gives up: the guest will never run here. Without effect once it may.
    pub fn cancel(&self) {
        // Under the lock, so that the loader either sees it before it takes the guest over, or not at all.
        let stop = self.shared.stop.lock();
        self.shared.cancelled.store(true, Ordering::Release);
        if let Some(stop) = &*stop {
            stop.stop();
        }
    }

    /// Closes the connection of a postcopy (`migrate-pause`). The guest runs on, on the pages that it has.
    ///
    /// # Errors
    /// [`NotNow::NotActive`] unless the guest runs here and its pages follow.
    pub fn pause_postcopy(&self) -> Result<(), NotNow> {
        use MigrationStatus::{PostcopyActive, PostcopyRecover};
        self.order_in(&[PostcopyActive, PostcopyRecover], NotNow::NotActive, DestinationEvent::PausePostcopy)
    }

    /// Listens at `address` for the source of a paused postcopy to come back (`migrate-recover`); where, with the port
    /// that the kernel chose if 0 was asked for. It stops listening where it did before.
    ///
    /// # Errors
    /// [`RecoverError`] if postcopy is not paused, or nothing can listen there.
    pub fn recover_postcopy(&self, address: &Address) -> Result<Address, RecoverError> {
        if self.status() != MigrationStatus::PostcopyPaused {
            return Err(NotNow::NotPaused.into());
        }
        let listener = Listener::bind(address)?;
        let address = listener.local_address().clone();
        self.orders.send(Said::Recover(listener)).map_err(|_| NotNow::Ended)?;
        Ok(address)
    }

    /// Gives up a paused postcopy: the guest lacks memory that nobody will bring, and is lost.
    ///
    /// It is not stopped, because nothing can stop a thread that waits for a page: it goes on until it touches memory that
    /// never came, and then waits as long as the process lives. Never reuse its machine, and do not wait for its vCPUs.
    ///
    /// # Errors
    /// [`NotNow::NotPaused`].
    pub fn give_up_postcopy(&self) -> Result<(), NotNow> {
        self.order_in(&[MigrationStatus::PostcopyPaused], NotNow::NotPaused, DestinationEvent::GiveUp)
    }

    fn order_in(
        &self,
        statuses: &[MigrationStatus],
        refusal: NotNow,
        order: DestinationEvent,
    ) -> Result<(), NotNow> {
        if !statuses.contains(&self.status()) {
            return Err(refusal);
        }
        self.orders.send(Said::Event(order)).map_err(|_| NotNow::Ended)
    }

    fn status(&self) -> MigrationStatus {
        self.shared.view.lock().statistics.status
    }

    /// The figures now.
    pub fn statistics(&self) -> IncomingStatistics {
        self.shared.statistics()
    }

    /// Whether the outcome is known, and [`Self::wait`] returns soon.
    pub fn has_ended(&self) -> bool {
        self.shared.view.lock().ended || self.thread.is_finished()
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// If the loader did.
    pub fn wait(self) -> (IncomingReport, SaveVm) {
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn spawn(
        origin: Origin,
        config: IncomingConfig,
        savevm: SaveVm,
        vm: Arc<dyn Vm>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, NotStarted> {
        let (address, shutdown) = match &origin {
            Origin::Listener(listener) => {
                (Some(listener.local_address().clone()), listener.shutdown_handle())
            }
            Origin::Link(link) => (None, link.shutdown_handle()),
        };
        if let Err(error) = check_postcopy(&config, &savevm) {
            return Err(NotStarted::new(error, savevm));
        }
        let inbox = Inbox::new();
        let orders = inbox.say.clone();
        let shared = Arc::new(Shared::new(savevm.count_anew(), shutdown.into()));
        let loader = Loader::new(config, savevm, vm, observer, Arc::clone(&shared));
        match thread::spawn("incoming", loader, |loader| loader.run(origin, inbox)) {
            Ok(thread) => Ok(Self { shared, orders, address, thread }),
            Err((error, loader)) => Err(NotStarted::new(StartError::Thread(error), loader.into_savevm())),
        }
    }
}

/// Whether faults can be watched here, before anybody connects.
fn check_postcopy(config: &IncomingConfig, savevm: &SaveVm) -> Result<(), StartError> {
    match &config.postcopy {
        Some(_) => Ok(savevm.can_postcopy()?),
        None => Ok(()),
    }
}

impl IncomingReport {
    /// Whether the guest is here.
    pub fn is_completed(&self) -> bool {
        self.outcome.status() == MigrationStatus::Completed
    }
}

impl Shared {
    fn new(counters: Option<Arc<RamCounters>>, stop: Stop) -> Self {
        let statistics = IncomingStatistics {
            status: MigrationStatus::Setup,
            total_time: Duration::ZERO,
            received: ByteCount(0),
            ram: RamStatistics::default(),
            postcopy: None,
            channels: Vec::new(),
            error: None,
        };
        Self {
            view: Mutex::new(View { statistics, began: None, ended: false, counters }),
            cancelled: AtomicBool::new(false),
            stop: Mutex::new(Some(stop)),
            received: Arc::default(),
            faults: Mutex::new(None),
        }
    }

    fn statistics(&self) -> IncomingStatistics {
        // First: they are in the view by the time that they are gone from here.
        let faults = self.faults.lock().as_ref().map(|faults| faults.statistics());
        let view = self.view.lock();
        let mut statistics = view.statistics.clone();
        if let (Some(began), false) = (view.began, view.ended) {
            statistics.total_time = began.elapsed();
        }
        if let Some(counters) = &view.counters {
            statistics.ram = counters.snapshot();
            statistics.channels = counters.channels();
        }
        statistics.postcopy = faults.or(statistics.postcopy);
        statistics
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

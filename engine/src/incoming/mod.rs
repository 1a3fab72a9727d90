//! The destination's side: a thread that reads the stream and drives the [`limosa_protocol::Destination`] machine.

mod connections;
mod loader;

use crate::error::{NotStarted, StartError};
use crate::observer::Observer;
use crate::ram::{RamCounters, RamStatistics};
use crate::savevm::{ChannelSync, SaveVm};
use crate::stop::Stop;
use crate::thread;
use crate::vm::Vm;
use connections::Origin;
use limosa_pages::ByteCount;
use limosa_protocol::{DestinationOutcome, MigrationStatus};
use limosa_transport::{Address, Link, Listener};
use limosa_wire::multifd::Compression;
use loader::Loader;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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
    /// Why it failed.
    pub error: Option<String>,
}

/// How an incoming migration ended.
#[derive(Clone, Debug)]
pub struct IncomingReport {
    /// The machine's verdict: what happened, and where the guest is.
    pub outcome: DestinationOutcome,
    /// The figures at the end; `error` says why it failed.
    pub statistics: IncomingStatistics,
}

/// What the loader shows to other threads.
struct Shared {
    view: Mutex<View>,
    cancelled: AtomicBool,
    /// Wakes the loader out of a blocked accept or read; `None` once a cancel comes too late.
    stop: Mutex<Option<Stop>>,
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
        }
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
        let shared = Arc::new(Shared::new(savevm.count_anew(), shutdown.into()));
        let loader = Loader::new(config, savevm, vm, observer, Arc::clone(&shared));
        match thread::spawn("incoming", loader, |loader| loader.run(origin)) {
            Ok(thread) => Ok(Self { shared, address, thread }),
            Err((error, loader)) => Err(NotStarted::new(StartError::Thread(error), loader.into_savevm())),
        }
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
            error: None,
        };
        Self {
            view: Mutex::new(View { statistics, began: None, ended: false, counters }),
            cancelled: AtomicBool::new(false),
            stop: Mutex::new(Some(stop)),
        }
    }

    fn statistics(&self) -> IncomingStatistics {
        let view = self.view.lock();
        let mut statistics = view.statistics.clone();
        if let (Some(began), false) = (view.began, view.ended) {
            statistics.total_time = began.elapsed();
        }
        if let Some(counters) = &view.counters {
            statistics.ram = counters.snapshot();
        }
        statistics
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

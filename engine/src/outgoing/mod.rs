//! The source's side: a coordinator thread that drives the [`limosa_protocol::Source`] machine.

mod connect;
mod coordinator;
mod return_path;
mod steps;
mod timeline;

pub use timeline::{Downtime, Round};

use crate::error::{NotStarted, StartError};
use crate::observer::Observer;
use crate::parameters::{Capabilities, Parameters};
use crate::ram::{RamCounters, RamStatistics};
use crate::savevm::{ChannelSync, SaveVm};
use crate::stop::Stop;
use crate::thread;
use crate::vm::Vm;
use coordinator::{Control, Coordinator};
use crossbeam_channel::{Sender, TrySendError};
use limosa_pages::ByteCount;
use limosa_protocol::{GuestFate, MigrationStatus, SourceOutcome};
use limosa_transport::{Address, Link};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Control messages that may wait: a user sends a handful, and one who sends more waits.
const CONTROL_QUEUE: usize = 64;

/// What an outgoing migration needs besides its guest.
#[derive(Clone, Debug)]
pub struct OutgoingConfig {
    /// Tunables.
    pub parameters: Parameters,
    /// Features. A file has no return path, whatever is said here.
    pub capabilities: Capabilities,
    /// Say when the guest has stopped (command SWITCHOVER_START). QEMU before 10.0 refuses it.
    pub announce_switchover: bool,
    /// When multifd channels are brought into line; QEMU's machines up to 8.0 do it with every section.
    pub channel_sync: ChannelSync,
    /// How long one blocking write may make no progress before the link counts as lost.
    pub write_deadline: Duration,
}

/// A migration on its way out. Dropping the handle does not stop it; [`Self::cancel`] does.
pub struct Outgoing {
    shared: Arc<Shared>,
    control: Sender<Control>,
    thread: JoinHandle<(OutgoingReport, SaveVm)>,
}

/// A live view of an outgoing migration.
#[derive(Clone, Debug)]
pub struct OutgoingStatistics {
    /// Where it stands.
    pub status: MigrationStatus,
    /// Time since it was asked for; the whole time once it has ended.
    pub total_time: Duration,
    /// Time until RAM began to move.
    pub setup_time: Duration,
    /// Downtime if the guest were stopped now, as estimated.
    pub expected_downtime: Option<Duration>,
    /// Downtime, once it is over.
    pub downtime: Option<Downtime>,
    /// Bytes written to the main channel.
    pub transferred: ByteCount,
    /// Of those, written while the guest stood still.
    pub downtime_bytes: ByteCount,
    /// Bytes per second, as estimated for the switchover decision.
    pub bandwidth: Option<ByteCount>,
    /// Times the dirty log was read.
    pub passes: u64,
    /// What the RAM handler counts; zeros if the guest has none.
    pub ram: RamStatistics,
    /// Rounds so far.
    pub rounds: Vec<Round>,
    /// Why it failed, and what could not be undone on this side.
    pub error: Option<String>,
}

/// How an outgoing migration ended.
#[derive(Clone, Debug)]
pub struct OutgoingReport {
    /// The machine's verdict: what happened, and where the guest is.
    pub outcome: SourceOutcome,
    /// The figures at the end; `error` says why it failed.
    pub statistics: OutgoingStatistics,
}

/// Where a migration's stream goes.
enum Target {
    Address(Address),
    Link(Link),
}

/// What the coordinator shows to other threads.
struct Shared {
    view: Mutex<View>,
    cancelled: AtomicBool,
    /// Wakes the coordinator out of a blocked write; set from when there is a link until the commit point.
    stop: Mutex<Option<Stop>>,
}

struct View {
    statistics: OutgoingStatistics,
    started: Instant,
    ended: bool,
    counters: Option<Arc<RamCounters>>,
}

impl Default for OutgoingConfig {
    fn default() -> Self {
        Self {
            parameters: Parameters::default(),
            capabilities: Capabilities { return_path: true, ..Capabilities::default() },
            announce_switchover: true,
            channel_sync: ChannelSync::PerRound,
            write_deadline: Duration::from_secs(30),
        }
    }
}

impl OutgoingConfig {
    fn validate(&self) -> Result<(), StartError> {
        self.parameters.validate()?;
        self.capabilities.validate()?;
        Ok(())
    }
}

impl Outgoing {
    /// Starts a migration of `vm` to `address`; returns at once.
    ///
    /// `savevm` describes the guest and comes back from [`Self::wait`]. The guest goes on running until the
    /// switchover; where it is afterwards is in the report.
    ///
    /// # Errors
    /// Parameters that are out of range, or no thread to be had; the list comes back beside the error. A link
    /// that cannot be made is a failed migration, not an error here.
    pub fn start(
        address: Address,
        config: OutgoingConfig,
        savevm: SaveVm,
        vm: Arc<dyn Vm>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, NotStarted> {
        Self::spawn(Target::Address(address), config, savevm, vm, observer)
    }

    /// As [`Self::start`], over a link that is connected already.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn over(
        link: Link,
        config: OutgoingConfig,
        savevm: SaveVm,
        vm: Arc<dyn Vm>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, NotStarted> {
        Self::spawn(Target::Link(link), config, savevm, vm, observer)
    }

    /// Calls the migration off: the guest goes on here. Without effect once the destination may run it.
    pub fn cancel(&self) {
        {
            // Under the lock, so that the coordinator either sees it before the commit point, or not at all.
            let stop = self.shared.stop.lock();
            self.shared.cancelled.store(true, Ordering::Release);
            if let Some(stop) = &*stop {
                stop.stop();
            }
        }
        // A full inbox wakes the coordinator just as well, and one without a reader has ended.
        let (Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) =
            self.control.try_send(Control::Wake);
    }

    /// Lets a switchover that waits in `pre-switchover` go on.
    pub fn continue_switchover(&self) {
        self.tell(Control::Continue);
    }

    /// Changes the tunables of the running migration.
    ///
    /// # Errors
    /// If a value is out of range; nothing is changed then.
    pub fn set_parameters(&self, parameters: Parameters) -> Result<(), StartError> {
        parameters.validate()?;
        self.tell(Control::Parameters(parameters));
        Ok(())
    }

    /// The figures now.
    pub fn statistics(&self) -> OutgoingStatistics {
        self.shared.statistics()
    }

    /// Whether the outcome is known, and [`Self::wait`] returns soon.
    pub fn has_ended(&self) -> bool {
        self.shared.view.lock().ended || self.thread.is_finished()
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// If the coordinator did.
    pub fn wait(self) -> (OutgoingReport, SaveVm) {
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn tell(&self, message: Control) {
        // A migration that has ended hears nothing any more, and needs to hear nothing.
        drop(self.control.send(message));
    }

    fn spawn(
        target: Target,
        config: OutgoingConfig,
        savevm: SaveVm,
        vm: Arc<dyn Vm>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, NotStarted> {
        if let Err(error) = config.validate() {
            return Err(NotStarted::new(error, savevm));
        }
        let (control, inbox) = crossbeam_channel::bounded(CONTROL_QUEUE);
        let shared = Arc::new(Shared::new(savevm.count_anew()));
        let coordinator = Coordinator::new(config, savevm, vm, observer, Arc::clone(&shared), inbox);
        match thread::spawn("migration", coordinator, |coordinator| coordinator.run(target)) {
            Ok(thread) => Ok(Self { shared, control, thread }),
            Err((error, coordinator)) => {
                Err(NotStarted::new(StartError::Thread(error), coordinator.into_savevm()))
            }
        }
    }
}

impl OutgoingReport {
    /// Where the guest is.
    pub fn guest(&self) -> GuestFate {
        self.outcome.fate
    }

    /// Whether the destination has the guest.
    pub fn is_completed(&self) -> bool {
        self.outcome.status() == MigrationStatus::Completed
    }
}

impl Shared {
    fn new(counters: Option<Arc<RamCounters>>) -> Self {
        let statistics = OutgoingStatistics {
            status: MigrationStatus::Setup,
            total_time: Duration::ZERO,
            setup_time: Duration::ZERO,
            expected_downtime: None,
            downtime: None,
            transferred: ByteCount(0),
            downtime_bytes: ByteCount(0),
            bandwidth: None,
            passes: 0,
            ram: RamStatistics::default(),
            rounds: Vec::new(),
            error: None,
        };
        let view = View { statistics, started: Instant::now(), ended: false, counters };
        Self { view: Mutex::new(view), cancelled: AtomicBool::new(false), stop: Mutex::new(None) }
    }

    fn statistics(&self) -> OutgoingStatistics {
        let view = self.view.lock();
        let mut statistics = view.statistics.clone();
        if !view.ended {
            statistics.total_time = view.started.elapsed();
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

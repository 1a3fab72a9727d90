//! The source's side: a coordinator thread that drives the [`limosa_protocol::Source`] machine.

mod connect;
mod coordinator;
mod postcopy;
mod recovery;
mod return_path;
mod steps;
mod timeline;
mod urgent;

pub use timeline::{Downtime, Round};

use crate::error::{NotNow, NotStarted, StartError};
use crate::observer::Observer;
use crate::parameters::{Capabilities, Parameters};
use crate::ram::{RamCounters, RamStatistics};
use crate::savevm::{ChannelSync, SaveVm};
use crate::stop::Stop;
use crate::thread;
use crate::vm::Vm;
use coordinator::{Control, Coordinator};
use crossbeam_channel::{Sender, TrySendError};
use limosa_compress::ChoiceReport;
use limosa_multifd::ChannelStatistics;
use limosa_pages::ByteCount;
use limosa_postcopy::UrgentStatistics;
use limosa_protocol::{GuestFate, MigrationStatus, OperatorWord, SourceOutcome};
use limosa_transport::{Address, Link};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use urgent::Urgent;

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
    /// Whether the capability is on.
    postcopy: bool,
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
    /// What each multifd channel has done; empty without channels.
    pub channels: Vec<ChannelStatistics>,
    /// Which method their packets were compressed with, and why; `None` unless the codec is [`Codec::Auto`](crate::Codec).
    pub choices: Option<ChoiceReport>,
    /// Rounds so far.
    pub rounds: Vec<Round>,
    /// Bytes pushed after the guest had moved.
    pub postcopy_bytes: ByteCount,
    /// How often postcopy was paused.
    pub pauses: u32,
    /// How often links beside the main one were lost in postcopy and replaced, without a pause.
    pub replacements: u32,
    /// Pages that the destination has asked for; `None` before postcopy.
    pub urgent: Option<UrgentStatistics>,
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
    /// The links of a postcopy, to be ended by a pause; `None` while there is none.
    pausable: Mutex<Option<Stop>>,
    /// Who serves requests, for its figures.
    urgent: Mutex<Option<Arc<Urgent>>>,
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
        self.parameters.validate_with(&self.capabilities)?;
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

    /// Lets the guest move now, and its memory follow (`migrate-start-postcopy`). It happens at the next slice.
    ///
    /// # Errors
    /// [`NotNow::NoPostcopy`] without the capability, [`NotNow::Ended`].
    pub fn start_postcopy(&self) -> Result<(), NotNow> {
        if !self.postcopy {
            return Err(NotNow::NoPostcopy);
        }
        self.order(Control::StartPostcopy)
    }

    /// Closes the connection of a postcopy (`migrate-pause`). The guest runs on there, on the pages that it has, until
    /// [`Self::resume_postcopy`].
    ///
    /// # Errors
    /// [`NotNow::NotActive`] unless the guest has moved and its pages follow.
    pub fn pause_postcopy(&self) -> Result<(), NotNow> {
        // Ending the links too: the coordinator may be blocked in one.
        let links = self.shared.pausable.lock().take().ok_or(NotNow::NotActive)?;
        self.order(Control::Pause)?;
        links.stop();
        Ok(())
    }

    /// Goes on with a paused postcopy, over a new connection to `address` (`migrate` with `resume`).
    ///
    /// # Errors
    /// [`NotNow::NotPaused`].
    pub fn resume_postcopy(&self, address: Address) -> Result<(), NotNow> {
        self.order_if_paused(Control::Resume(address))
    }

    /// Ends a paused postcopy by the word of an operator who has looked at the destination.
    ///
    /// # Errors
    /// [`NotNow::NotPaused`].
    pub fn end_postcopy(&self, word: OperatorWord) -> Result<(), NotNow> {
        self.order_if_paused(Control::Operator(word))
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

    fn order_if_paused(&self, message: Control) -> Result<(), NotNow> {
        match self.shared.view.lock().statistics.status {
            MigrationStatus::PostcopyPaused => {}
            _ => return Err(NotNow::NotPaused),
        }
        self.order(message)
    }

    fn order(&self, message: Control) -> Result<(), NotNow> {
        self.control.send(message).map_err(|_| NotNow::Ended)
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
        let postcopy = config.capabilities.postcopy_ram;
        let (control, inbox) = crossbeam_channel::bounded(CONTROL_QUEUE);
        let shared = Arc::new(Shared::new(savevm.count_anew()));
        let coordinator = Coordinator::new(config, savevm, vm, observer, Arc::clone(&shared), inbox);
        match thread::spawn("migration", coordinator, |coordinator| coordinator.run(target)) {
            Ok(thread) => Ok(Self { shared, control, postcopy, thread }),
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
            channels: Vec::new(),
            choices: None,
            rounds: Vec::new(),
            postcopy_bytes: ByteCount(0),
            pauses: 0,
            replacements: 0,
            urgent: None,
            error: None,
        };
        let view = View { statistics, started: Instant::now(), ended: false, counters };
        Self {
            view: Mutex::new(view),
            cancelled: AtomicBool::new(false),
            stop: Mutex::new(None),
            pausable: Mutex::new(None),
            urgent: Mutex::new(None),
        }
    }

    /// From now on a pause ends these links.
    fn let_pause(&self, links: Stop) {
        *self.pausable.lock() = Some(links);
    }

    /// There is nothing to pause.
    fn refuse_pause(&self) {
        *self.pausable.lock() = None;
    }

    fn statistics(&self) -> OutgoingStatistics {
        let view = self.view.lock();
        let mut statistics = view.statistics.clone();
        if !view.ended {
            statistics.total_time = view.started.elapsed();
        }
        if let Some(counters) = &view.counters {
            statistics.ram = counters.snapshot();
            statistics.channels = counters.channels();
            statistics.choices = counters.choices();
        }
        drop(view);
        statistics.urgent = self.urgent.lock().as_ref().and_then(|urgent| urgent.statistics());
        statistics
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

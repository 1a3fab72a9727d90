//! What can go wrong, and where. Facts only: the machines decide what follows.

use crate::parameters::ParameterError;
use crate::savevm::{EntryIdentity, SaveVm};
use crate::vm::VmError;
use limosa_multifd::{PlaceError, ReceiveError, SendError};
use limosa_pages::{ByteCount, PageCount};
use limosa_postcopy::{FaultFailure, PreemptError, UffdError};
use limosa_protocol::LossReason;
use limosa_ram::{DirtyLogError, RamError};
use limosa_transport::{Failure, TransportError};
use limosa_vmstate::HookError;
use limosa_wire::WireError;
use limosa_wire::devices::{DescriptionError, DeviceError};
use std::error::Error;
use std::fmt;
use std::time::Duration;
use thiserror::Error as ThisError;

/// A section that could not be saved. The guest stays on the source.
#[derive(Debug, ThisError)]
#[error("section {idstr}/{instance_id} failed in {phase}")]
pub struct SaveError {
    /// Name of the section.
    pub idstr: String,
    /// Which of several with one name.
    pub instance_id: u32,
    /// What the walk was doing.
    pub phase: SavePhase,
    /// Why.
    pub source: SaveFault,
}

/// The walks of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavePhase {
    /// START sections.
    Setup,
    /// Learning what changed.
    Sync,
    /// PART sections.
    Iterate,
    /// END sections.
    Complete,
    /// FULL sections.
    Devices,
    /// Pages that follow the guest.
    Push,
    /// After the migration.
    Cleanup,
}

/// Why a handler could not save.
#[derive(Debug, ThisError)]
pub enum SaveFault {
    /// The link failed under it.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Guest memory could not be read.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The dirty log failed.
    #[error(transparent)]
    DirtyLog(#[from] DirtyLogError),
    /// The guest has no dirty log, so a running guest cannot be followed.
    #[error("the guest has no dirty log; it can receive a migration, not start one")]
    NoDirtyLog,
    /// A multifd channel failed.
    #[error(transparent)]
    Channel(#[from] SendError),
    /// A device refused.
    #[error(transparent)]
    Device(#[from] limosa_vmstate::SaveError),
    /// More device state than a destination takes at once.
    #[error("a package of {size} bytes exceeds the limit of {limit}")]
    PackageTooLong {
        /// What the devices have.
        size: ByteCount,
        /// What may be sent.
        limit: ByteCount,
    },
    /// A live entry of the host's own failed, for a reason of its own.
    #[error("{0}")]
    Handler(#[source] HookError),
}

/// A stream that could not be loaded. The guest has not run here and will not.
#[derive(Debug, ThisError)]
#[error("{place} at byte {offset} of the stream")]
pub struct LoadError {
    /// Which part of the stream.
    pub place: Place,
    /// Bytes consumed when it happened.
    pub offset: u64,
    /// Why.
    pub source: Box<LoadFault>,
}

/// Part of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Magic and version.
    Header,
    /// Machine name, capabilities, UUID.
    Configuration,
    /// Between two sections.
    BetweenSections,
    /// Inside a section.
    Section {
        /// Its name.
        idstr: String,
        /// Which of several.
        instance_id: u32,
    },
    /// After the last section.
    End,
}

/// Why a stream could not be loaded.
#[derive(Debug, ThisError)]
pub enum LoadFault {
    /// The bytes are no message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The link failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The connection ended where the stream did not.
    #[error("the connection ended where at least {wanted} more bytes were expected")]
    Ended {
        /// Bytes the next item still needs.
        wanted: usize,
    },
    /// One item is longer than the reader will ever hold.
    #[error("an item of {needed} bytes exceeds the limit of {limit}")]
    ItemTooLong {
        /// Bytes it would take.
        needed: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Guest memory failed.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A multifd channel failed.
    #[error(transparent)]
    Channel(#[from] ReceiveError),
    /// A received page could not be placed.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Something of postcopy failed.
    #[error(transparent)]
    Postcopy(Box<PostcopyFault>),
    /// That thread has ended before.
    #[error("nobody serves the faults of the guest any more")]
    NoFaultThread,
    /// No thread could be had.
    #[error("a thread could not be started")]
    Thread(#[source] std::io::Error),
    /// A second main stream where channels were expected.
    #[error("a second migration stream came while its channels were waited for")]
    SecondStream,
    /// The source has made fewer channels than were waited for.
    #[error("{got} of {expected} multifd channels came within {patience:?}")]
    MissingChannels {
        /// Our setting.
        expected: u8,
        /// Those that came.
        got: u8,
        /// How long they had, counted from the first section.
        patience: Duration,
    },
    /// The source has made more channels than were waited for.
    #[error("the source makes more multifd channels than the {expected} that are set here")]
    ExtraChannel {
        /// Our setting; 0 without multifd.
        expected: u8,
    },
    /// No more connections could be accepted.
    #[error("waiting for the multifd channels")]
    Accept(#[source] Box<TransportError>),
    /// Channels were asked for where there is one connection only.
    #[error("a single connection cannot have multifd channels beside it")]
    SingleConnection,
    /// The host's operator gave up.
    #[error("cancelled")]
    Cancelled,
    /// A connection that was lost, or silent for too long, before its first four bytes were here.
    #[error("a connection came that did not say what it is for")]
    Unintroduced(#[source] Box<TransportError>),
    /// A connection that is neither the stream nor one of its channels.
    #[error("a connection begins with {got:02x?}, which is neither a migration stream nor a channel of one")]
    Stranger {
        /// Its first bytes.
        got: Vec<u8>,
    },
    /// A device refused its state.
    #[error(transparent)]
    Device(#[from] limosa_vmstate::LoadError),
    /// A live entry of the host's own failed, for a reason of its own.
    #[error("{0}")]
    Handler(#[source] HookError),
    /// The peer sends another machine.
    #[error("the peer's machine is {got:?}, ours is {expected:?}")]
    Machine {
        /// Ours.
        expected: String,
        /// The peer's.
        got: String,
    },
    /// The peer requires what we do not have on, or the reverse.
    #[error("capability {name}: the peer has it {}, we have it {}", on_off(*.peer), on_off(!*.peer))]
    Capability {
        /// Its name.
        name: &'static str,
        /// Whether the peer has it on.
        peer: bool,
    },
    /// The peer's guest has another UUID.
    #[error("the peer's guest has another UUID than ours")]
    Uuid,
    /// Target pages of another size.
    #[error("the peer has target pages of 2^{got} bytes, ours have 2^{expected}")]
    PageBits {
        /// Ours.
        expected: u32,
        /// The peer's.
        got: u32,
    },
    /// No entry of this name.
    #[error("there is no {idstr}/{instance_id} here")]
    UnknownSection {
        /// The peer's name.
        idstr: String,
        /// The peer's instance.
        instance_id: u32,
    },
    /// A section id that no START has introduced.
    #[error("section id {id} was never started")]
    UnknownSectionId {
        /// The peer's number.
        id: u32,
    },
    /// A live entry came as a device, or the reverse.
    #[error("the section is of the wrong kind: {got}, where this entry expects {expected}")]
    SectionKind {
        /// What the entry is.
        expected: &'static str,
        /// What came.
        got: &'static str,
    },
    /// The stream ended without an entry that this guest cannot do without.
    #[error("the stream ended without {idstr}/{instance_id}")]
    Missing {
        /// Its name.
        idstr: String,
        /// Its instance.
        instance_id: u32,
    },
    /// A version that this entry cannot read.
    #[error("version {got} was sent; {minimum} to {maximum} can be read")]
    Version {
        /// The peer's.
        got: u32,
        /// Our oldest.
        minimum: u32,
        /// Our newest.
        maximum: u32,
    },
    /// A RAM block that we do not have.
    #[error("there is no RAM block {name:?} here")]
    UnknownBlock {
        /// The peer's name.
        name: String,
    },
    /// A RAM block of another length.
    #[error("RAM block {name:?} has {got} bytes there and {expected} here")]
    BlockLength {
        /// Its name.
        name: String,
        /// Ours.
        expected: ByteCount,
        /// The peer's.
        got: ByteCount,
    },
    /// A RAM block on pages of another size, which postcopy places whole.
    #[error("RAM block {name:?} is on pages of {got} bytes there and of {expected} here")]
    BlockPageSize {
        /// Its name.
        name: String,
        /// Ours.
        expected: u64,
        /// The peer's.
        got: u64,
    },
    /// A RAM block of ours that the peer does not send.
    #[error("the peer does not have RAM block {name:?}")]
    MissingBlock {
        /// Its name.
        name: String,
    },
    /// The peer lists one RAM block twice.
    #[error("the peer lists RAM block {name:?} twice")]
    RepeatedBlock {
        /// Its name.
        name: String,
    },
    /// A page outside its block.
    #[error("offset {offset:#x} is outside RAM block {name:?} of {length} bytes")]
    PageOutside {
        /// Its block.
        name: String,
        /// Byte offset.
        offset: u64,
        /// Length of the block.
        length: ByteCount,
    },
    /// The stream has ended, and not every page was in it.
    #[error("{} pages of RAM block {name:?} never came, the first is at offset {offset:#x}", pages.0)]
    MissingPages {
        /// The block.
        name: String,
        /// How many.
        pages: PageCount,
        /// Byte offset of the first.
        offset: u64,
    },
    /// A received bitmap that does not fit its block.
    #[error("the received bitmap of RAM block {name:?} has {got} bytes, expected {expected}")]
    BitmapLength {
        /// The block.
        name: String,
        /// What the block needs.
        expected: u64,
        /// What came.
        got: u64,
    },
    /// A page before the list of blocks.
    #[error("a page came before the list of RAM blocks")]
    PageBeforeSetup,
    /// An XBZRLE record that is none.
    #[error("a delta for offset {offset:#x} cannot be applied")]
    Delta {
        /// Byte offset of the page.
        offset: u64,
        /// Why.
        source: limosa_compress::xbzrle::XbzrleError,
    },
    /// Device sections that cannot be told from one another.
    #[error("the device sections cannot be divided")]
    Devices(#[from] DeviceError),
    /// A vmdescription that is none.
    #[error("the vmdescription cannot be read")]
    Description(#[from] DescriptionError),
    /// A record of a mode that this stream is not in.
    #[error("a {record} record in a plain precopy stream")]
    UnexpectedRecord {
        /// Which.
        record: &'static str,
    },
}

/// What a running migration was told and does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ThisError)]
pub enum NotNow {
    /// The capability is off.
    #[error("capability postcopy-ram is off")]
    NoPostcopy,
    /// Only while the guest runs on the destination and its pages follow.
    #[error("postcopy is not active")]
    NotActive,
    /// Only while a postcopy is paused.
    #[error("postcopy is not paused")]
    NotPaused,
    /// It has ended.
    #[error("the migration has ended")]
    Ended,
}

/// A recovery that could not be listened for.
#[derive(Debug, ThisError)]
pub enum RecoverError {
    /// There is nothing to recover.
    #[error(transparent)]
    NotNow(#[from] NotNow),
    /// Nothing can listen there.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// What can fail only in postcopy.
#[derive(Debug, ThisError)]
pub enum PostcopyFault {
    /// Faults of the guest cannot be watched.
    #[error(transparent)]
    Watch(#[from] UffdError),
    /// A page could not be put before the eyes of the guest, or taken back.
    #[error(transparent)]
    Place(#[from] limosa_postcopy::PlaceError),
    /// The channel of urgent pages failed.
    #[error(transparent)]
    Preempt(#[from] PreemptError),
    /// The thread that serves faults ended.
    #[error(transparent)]
    FaultThread(#[from] FaultFailure),
}

/// They are large and rare, so they are boxed on their way.
macro_rules! boxed_faults {
    ($($fault:ty),*) => {
        $(impl From<$fault> for LoadFault {
            fn from(fault: $fault) -> Self {
                Self::Postcopy(Box::new(fault.into()))
            }
        })*
    };
}

boxed_faults!(UffdError, limosa_postcopy::PlaceError, PreemptError, FaultFailure);

/// A migration that could not be begun.
#[derive(Debug, ThisError)]
pub enum StartError {
    /// A parameter or capability is not acceptable.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// The link could not be made.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The guest could not be asked.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Channels beside a link that is the only one.
    #[error("multifd needs an address that takes several connections, tcp or unix")]
    SingleConnection,
    /// Faults of the guest cannot be watched here.
    #[error(transparent)]
    Faults(#[from] UffdError),
    /// Postcopy to where nobody answers.
    #[error("postcopy-ram needs a destination that runs the guest; a file does not")]
    NobodyToAsk,
    /// No thread could be had.
    #[error("a thread could not be started")]
    Thread(#[from] std::io::Error),
}

/// A migration that was not begun; the guest's list comes back untouched.
#[derive(Debug, ThisError)]
#[error("the migration was not started")]
pub struct NotStarted {
    /// Why.
    #[source]
    pub reason: StartError,
    /// The list that was handed in.
    pub savevm: Box<SaveVm>,
}

impl NotStarted {
    pub(crate) fn new(reason: StartError, savevm: SaveVm) -> Self {
        Self { reason, savevm: Box::new(savevm) }
    }
}

impl fmt::Display for SavePhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Setup => "setup",
            Self::Sync => "sync",
            Self::Iterate => "iterate",
            Self::Complete => "complete",
            Self::Devices => "device state",
            Self::Push => "push",
            Self::Cleanup => "cleanup",
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("header"),
            Self::Configuration => f.write_str("configuration"),
            Self::BetweenSections => f.write_str("between sections"),
            Self::Section { idstr, instance_id } => write!(f, "section {idstr}/{instance_id}"),
            Self::End => f.write_str("end of stream"),
        }
    }
}

impl SaveError {
    pub(crate) fn new(entry: &EntryIdentity, phase: SavePhase, source: SaveFault) -> Self {
        Self { idstr: entry.idstr.clone(), instance_id: entry.instance_id, phase, source }
    }
}

/// An error and its causes in one line, from the outermost to the first.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // A transparent error says the same as its cause.
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// The machine's word for what a transport says.
pub(crate) fn loss_reason(error: &TransportError) -> LossReason {
    match &error.failure {
        Failure::TimedOut { .. } => LossReason::TimedOut,
        Failure::Lost(os) | Failure::Refused(os) | Failure::InUse(os) | Failure::Os(os) => {
            os.raw_os_error().map_or(LossReason::Closed, LossReason::Broken)
        }
        _ => LossReason::Closed,
    }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

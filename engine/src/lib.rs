//! The coordinator, the savevm list and the public API of Limosa.
//!
//! A host describes its guest as a [`SaveVm`]: RAM ([`RamHandler`]), devices (anything that is a
//! [`limosa_vmstate::Device`]), other live state ([`LiveState`]). It implements [`Vm`], so that the guest can be
//! stopped and resumed. [`Outgoing`] then moves the guest to another host while it runs; [`Incoming`] receives it.
//! Both run on threads of their own around the pure machines of `limosa-protocol`, and both end with a report that
//! says where the guest is.
//!
//! The stream is QEMU's, version 3: an unmodified QEMU can be on either side.
//!
//! Trade-off taken: one thread per direction and blocking calls. A migration is few and long; what it needs is a
//! straight line from the dirty page to the socket, not a scheduler.
//!
//! **Deliberately absent:** an async runtime, global state, a second way to say that a migration is over.
#![forbid(unsafe_code)]

mod capture;
mod error;
mod extensions;
mod global_state;
mod incoming;
mod observer;
mod outgoing;
mod parameters;
mod ram;
mod savevm;
mod stop;
mod stream;
mod thread;
mod vm;
mod vmdescription;

pub use capture::{CapturedDevice, CapturedGuest};
pub use error::{
    LoadError, LoadFault, NotNow, NotStarted, Place, RecoverError, SaveError, SaveFault, SavePhase,
    StartError,
};
pub use incoming::{
    Incoming, IncomingChannels, IncomingConfig, IncomingPostcopy, IncomingReport, IncomingStatistics,
    LastWord, LastWordListener,
};
pub use limosa_compress::ChoiceReport;
pub use limosa_multifd::{ChannelStatistics, Codec};
pub use limosa_wire::Features;
pub use limosa_wire::multifd::Compression;
pub use observer::{NoObserver, Observer};
pub use outgoing::{Downtime, Outgoing, OutgoingConfig, OutgoingReport, OutgoingStatistics, Round};
pub use parameters::{Capabilities, DOWNTIME_LIMIT_MAX, ParameterError, Parameters, ZeroPageDetection};
pub use ram::{RamCounters, RamHandler, RamStatistics};
pub use savevm::{
    Budget, ChannelSync, EntryIdentity, LiveState, LoadSetup, Opaque, Priority, SaveSetup, SaveStateEntry,
    SaveVm, Switchover,
};
pub use stream::{StreamReader, StreamWriter};
pub use vm::{RunState, Vm, VmError};

pub use limosa_postcopy::{LatencySummary, PostcopyStatistics, UrgentStatistics};
pub use limosa_protocol::{
    AutoPostcopy, BlocktimeReport, DestinationEnding, DestinationFailure, DestinationOutcome, GuestFate,
    KernelThread, MigrationStatus, OperatorWord, SettingsMismatch, SourceEnding, SourceFailure,
    SourceOutcome,
};

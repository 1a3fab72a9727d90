//! The pure state machines of a migration.
//!
//! [`Source`] and [`Destination`] decide; a shell around each does what they say and tells them what came of it.
//! [`Convergence`] decides when to switch over, [`TokenBucket`] what may leave until then. A test, a simulator
//! and the real engine drive the same machines.
//!
//! ```
//! use limosa_protocol::{GuestFate, Source, SourceAction, SourceConfig, SourceEvent};
//! use limosa_wire::Features;
//! use std::time::Instant;
//!
//! let config = SourceConfig { return_path: false, ..SourceConfig::default() };
//! let mut source = Source::new(config, Instant::now());
//! let features = Features::NONE;
//! assert_eq!(source.poll_action(), Some(SourceAction::SaveSetup { features }));
//!
//! source.handle(SourceEvent::Cancel, Instant::now());
//! assert_eq!(source.poll_action(), Some(SourceAction::CloseLink));
//! assert_eq!(source.poll_action(), Some(SourceAction::Finish));
//! assert_eq!(source.outcome().unwrap().fate, GuestFate::OnSource);
//! ```
//!
//! Trade-off taken: the machines know steps, not bytes. A slice of RAM is "iterate this much" and "this much is
//! left", so the bytes of the guest never pass through here, and what a handler does inside of its step is out of
//! sight.
//!
//! **Deliberately absent:** sockets, clocks (time is an argument), threads, guest memory, logging, the order of
//! sections inside a step (the savevm list has it), what becomes of a page that was asked for (the urgent path has it).
#![forbid(unsafe_code)]

mod bandwidth;
mod convergence;
mod destination;
mod error;
mod faults;
mod ping;
mod source;
mod status;
mod token_bucket;
mod units;

pub use bandwidth::{BandwidthEstimate, BandwidthSample, SAMPLE_BYTES_MIN};
pub use convergence::{
    AUTO_ROUNDS_MIN, AutoPostcopy, Convergence, ConvergenceConfig, DOWNTIME_LIMIT_DEFAULT, GAIN_MIN,
    GAIN_PART, POLISH_PART, POLISH_ROUNDS_MAX, POLISH_TIME_MIN, Rest, RoundSample, Verdict,
};
pub use destination::{
    Destination, DestinationAction, DestinationConfig, DestinationEnding, DestinationEvent,
    DestinationFailure, DestinationOutcome, EntryIndex, PostcopyStream, SECTIONS_MAX, SectionKind,
    SettingsMismatch,
};
pub use error::{LinkRole, Loss, LossReason, ProtocolError, Unexpected};
pub use faults::{
    AnsweredFault, Blocktime, BlocktimeReport, FaultTable, KernelThread, PageFault, WAITING_PAGES_MAX,
};
pub use ping::{PingPurpose, ROUNDS_MAX};
pub use source::{
    EMPTY_SLICES_MAX, FeatureWishes, OperatorWord, ParameterChange, Pending, REST, SLICE_BYTES_MAX,
    SLICE_TIME_MAX, Source, SourceAction, SourceConfig, SourceCounters, SourceEnding, SourceEvent,
    SourceFailure, SourceOutcome, SourcePostcopy, SourceStep, SourceTimeouts, Timeline, Wait,
};
pub use status::{GuestFate, MigrationStatus};
pub use token_bucket::{BURST, SLICE_WORTH_SENDING, TokenBucket};
pub use units::BytesPerSecond;

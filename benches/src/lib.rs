//! End-to-end measurements: the same guest memory moved by Limosa and by QEMU, one after the other.
//!
//! A [`Scenario`] says what is moved. [`measure`] moves it once, with one [`Program`] at both ends: a source over a
//! shared, prefilled memory file and a destination with memory of its own, on this host, over TCP. Both programs are
//! driven by the same QMP client and asked for the same figures; [`Summary`] sets their medians side by side.
//!
//! The machine that measures is never quiet, and back-to-back blocks of one program mislead by a factor of two. So
//! repetitions alternate between the programs, and what counts is the ratio.
//!
//! A [`Pair`] of mappings is moved through multifd channels inside this process, beside what its sockets and its memory
//! can do at all.
//!
//! The crate's criterion benches measure the parts: bitmaps, zero test, records, deltas, vectored sends.
//!
//! Trade-off taken: figures and ratios are printed and never asserted. A slow machine is not a wrong program.
//!
//! **Deliberately absent:** thresholds, plots, statistics beyond median and range.
#![forbid(unsafe_code)]

mod channels;
mod error;
mod memory_file;
mod migration;
mod program;
mod scenario;
mod summary;
mod vmm;
mod warm_memory;

pub use channels::{
    ChannelBenchError, Kind as ChannelKind, Layout, Pair, Setting as ChannelSetting, read_bandwidth,
};
pub use error::{BenchError, conclude};
pub use memory_file::MemoryFile;
pub use migration::{DowntimeParts, Measurement, measure};
pub use program::{Limosa, Program, Qemu};
pub use scenario::{Busy, GuestKind, Route, SCENARIOS, Scenario};
pub use summary::{Best, Spread, Summary};

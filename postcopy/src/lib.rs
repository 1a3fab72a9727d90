//! Pages on demand: the guest runs on the destination before its memory has come (wire 5).
//!
//! On the destination, [`UffdSink`] watches guest memory for accesses to missing pages and is where pages come in, from any
//! number of threads. The [`FaultThread`] reads the faults, asks the source for their pages, each once, on the
//! return path, which it owns, and puts in what comes on the preempt channel. On the source, an
//! [`UrgentServer`] in the thread of the return path claims what is asked for and sends it at once.
//!
//! A fault passes two threads and no queue: the fault thread writes the request, the source's return-path thread
//! writes the page, the fault thread places it, and the kernel wakes the guest.
//!
//! When the connection is lost the guest goes on with what it has. Faults are noted, and asked for again when
//! [`FaultThread::connect`] and [`FaultThread::ask`] have given the thread a new connection.
//!
//! Trade-off taken: one thread and one table of faults for all vCPUs, because waking a second thread costs more than the work
//! of the first.
//!
//! **Deliberately absent:** the decision to switch, the messages of the main channel, the background push, connecting and
//! accepting, policy of any kind.

mod error;
mod fault_thread;
mod hint;
mod histogram;
mod landed;
mod latency_hold;
mod preempt;
mod sink;
mod statistics;
mod uffd;
mod urgent;

pub use error::{PlaceError, PreemptError, RequestError, UffdError};
pub use fault_thread::{FaultFailure, FaultReport, FaultThread, FaultThreadEnded};
pub use hint::FaultHint;
pub use histogram::{LatencyHistogram, LatencySummary};
pub use latency_hold::LatencyHold;
pub use sink::UffdSink;
pub use statistics::PostcopyStatistics;
pub use uffd::{discard, probe};
pub use urgent::{REQUEST_BYTES_MAX, Served, URGENT_QUEUE, UrgentPages, UrgentServer, UrgentStatistics};

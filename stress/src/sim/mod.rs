//! The seeded simulator: both machines of `limosa-protocol`, and around each a shell that is all malice.
//!
//! A [`Scenario`] is a seed spelled out: settings, guest, faults. A [`World`] runs it: at every step chance says who
//! acts (the source's coordinator, its return-path reader, the destination, the guest, the user), [`Checks`] says
//! what must hold, and a [`Fault`] strikes in the state it was meant for. After the last fault the run must end, both
//! sides with an outcome: that is the liveness half. The same seed is the same run.
//!
//! In postcopy the guest faults, pages leave on two links, and after a cut a user reconnects the two sides, or says what he
//! has seen on the other one.
//!
//! [`Mutant`]s are mistakes of a shell, one per invariant. They show that the checks would notice.
//!
//! Trade-off taken: pages are generation numbers and a slice is a few of them, so a run takes microseconds and
//! thousands fit into a test; what happens inside of a real record is for the rings outside of this one.
//!
//! **Deliberately absent:** threads, sockets, real time, guest memory.

mod channels;
mod check;
mod destination_shell;
mod environment;
mod fault;
mod guest;
mod link;
mod mutant;
mod rng;
mod scenario;
mod source_shell;
mod world;

pub use channels::{Packet, QUEUED_PER_CHANNEL, ReceiveChannels, SYNC_PATIENCE, SendChannels};
pub use check::{Checks, Violation};
pub use destination_shell::{DestinationPostcopySide, DestinationShell};
pub use environment::{Environment, Listener};
pub use fault::Fault;
pub use guest::{Guest, PAGES, SourceMemory};
pub use link::{Channel, FRAMES_MAX, Frame, Link, Received, SILENCE_MAX};
pub use mutant::Mutant;
pub use rng::Rng;
pub use scenario::{Place, Scenario, Side, Strike};
pub use source_shell::{INBOX_MAX, SourcePostcopySide, SourceShell};
pub use world::{Report, STEPS_MAX, World};

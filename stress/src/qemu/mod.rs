//! The real-peer ring: an unmodified QEMU as the other side of a migration.
//!
//! [`Setup::start`] runs a [`Qemu`] with a guest of our own ([`Payload`]) that counts on COM1 and checks its own
//! memory while it dirties it, so continuity after a migration is read from the serial port. What a stream
//! carried is held against QEMU's own view of its guest ([`Qemu::save_memory`]).
//!
//! Trade-off taken: everything is driven over QMP and waited for by events, sockets and the guest's output, with
//! one generous deadline ([`PATIENCE`]); nothing sleeps, so a fast machine is fast and a slow one passes.
//!
//! **Deliberately absent:** a guest operating system, firmware of others in anything that is kept.

mod binary;
mod channels;
mod continuity;
mod engine;
mod foreign;
mod memory;
mod migration;
mod payload;
mod process;
mod reader;
mod retouched;
mod ring;
mod serial;
mod setup;
mod tap;

pub use binary::{Accelerator, Binary, Release};
pub use channels::{ChannelSetting, Peer};
pub use continuity::assert_goes_on;
pub use engine::{Transport, send};
pub use foreign::{ForeignGuest, Still};
pub use memory::{Difference, Saved, Window, compare_pages};
pub use payload::{FLASH_BYTES, Inconsistent, Payload, SECTOR_BYTES, TICK_ADDRESS, WORKING_SET_START};
pub use process::{PATIENCE, Qemu, QemuError};
pub use reader::{IndependentReader, ReaderError};
pub use retouched::Retouched;
pub use ring::leave_out;
pub use serial::{Line, Serial, lines_across};
pub use setup::{Backing, Boot, Machine, Setup};
pub use tap::{Conversation, Tap};

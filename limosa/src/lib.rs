//! A live-migration engine for virtual machines, over QEMU's migration stream.
//!
//! This crate is the front door for authors of VMMs: it re-exports the public API of the engine and what belongs to
//! it. Describe the guest as a [`SaveVm`], implement [`Vm`], and start [`Outgoing`] on one host and [`Incoming`] on
//! the other.
//!
//! ```
//! use limosa::pages::{BlockName, ByteCount};
//! use limosa::ram::{GuestRam, RamBlock, dirty_log::FakeDirtyLog};
//! use limosa::transport::Link;
//! use limosa::{Configuration, Incoming, IncomingConfig, NoObserver, Outgoing, OutgoingConfig};
//! use limosa::{RamHandler, RunState, SaveVm, Vm, VmError};
//! use std::sync::Arc;
//!
//! struct Stopped; // a guest without vCPUs
//! impl Vm for Stopped {
//!     fn stop(&self) -> Result<(), VmError> { Ok(()) }
//!     fn resume(&self) -> Result<(), VmError> { Ok(()) }
//!     fn run_state(&self) -> RunState { RunState::Paused }
//! }
//!
//! fn guest() -> Result<(GuestRam, SaveVm), Box<dyn std::error::Error>> {
//!     let ram = GuestRam::new(vec![RamBlock::memfd(BlockName::new("ram")?, ByteCount(1 << 20))?])?;
//!     let log = FakeDirtyLog::new(ram.layout());
//!     let mut savevm = SaveVm::new(Configuration { machine: "example".into(), ..Configuration::default() });
//!     savevm.register_ram(RamHandler::new(ram.clone(), Some(Box::new(log))));
//!     Ok((ram, savevm))
//! }
//!
//! let ((_, here), (_, there)) = (guest()?, guest()?);
//! let (near, far) = Link::pair()?;
//! let observer = Arc::new(NoObserver);
//! let incoming = Incoming::over(far, IncomingConfig::default(), there, Arc::new(Stopped), observer.clone())?;
//! let outgoing = Outgoing::over(near, OutgoingConfig::default(), here, Arc::new(Stopped), observer)?;
//! assert!(outgoing.wait().0.is_completed());
//! assert!(incoming.wait().0.is_completed());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Deliberately absent:** anything of its own.
#![forbid(unsafe_code)]

pub use limosa_engine::*;
pub use limosa_pages as pages;
pub use limosa_ram as ram;
pub use limosa_transport as transport;
pub use limosa_transport::Address;
pub use limosa_vmstate as vmstate;
pub use limosa_wire::Configuration;

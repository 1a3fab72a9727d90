//! The reference VMM: a machine small enough to read, whose guest proves that it survived its migration.
//!
//! A [`Machine`] has RAM, a serial port, and a guest that is either executed by KVM or, where there is none, by threads
//! of this process. The built-in guest ([`Dirtier`]) writes pages at a set rate over a set part of its memory. Every
//! page carries its number, a generation and a checksum, and its whole content follows from them; how often each page was
//! written follows from one counter per worker. So [`Machine::verify`] knows every byte that memory must have at any
//! moment: a page that was lost, torn or sent too early cannot hide.
//!
//! An embedder's VMM does what this one does: it gives the engine its [`RAM`](Machine::ram), a
//! [dirty log](Machine::dirty_log), [`pause`](Machine::pause) and [`resume`](Machine::resume), and the list of its
//! [devices](Machine::devices), each an annotated struct; [`Machine::savevm`] puts them together. A [`Host`] is a machine
//! with a QMP monitor, through which it migrates.
//!
//! ```
//! use limosa_pages::ByteCount;
//! use limosa_vmm::{Dirtier, GuestConfig, GuestKind, Machine, Program, Rate};
//!
//! let dirtier = Dirtier { rate: Rate::PagesPerSecond(1000), ..Dirtier::default() };
//! let machine = Machine::new(&GuestConfig {
//!     kind: GuestKind::Process,
//!     memory: ByteCount(8 << 20),
//!     program: Program::Dirtier(dirtier),
//!     ..GuestConfig::default()
//! })?;
//! machine.resume()?;
//! machine.pause();
//! assert!(machine.verify()?.is_clean());
//! # Ok::<(), limosa_vmm::VmmError>(())
//! ```
//!
//! Trade-off taken: the guest has no operating system. It shows what a migration does to memory and to vCPUs, and nothing
//! of drivers; a boot sector ([`Program::BootSector`]) is the door to more.
//!
//! **Deliberately absent:** disks, networks, firmware, interrupts of the serial port, hot-plug.

mod config;
mod content;
mod error;
mod guest_map;
mod guest_state;
mod host;
mod kvm;
mod machine;
mod pace;
mod prefill;
mod process;
mod report;
mod run_control;
mod savevm;
mod serial;
mod system_image;
mod verify;
mod walk;
mod workload;

pub use config::{BOOT_SECTOR_BYTES, GuestConfig, GuestKind, Program, SerialBuffer, SerialOutput};
pub use content::Content;
pub use error::VmmError;
pub use guest_map::{RAM_PAGES_MAX, WORKERS_MAX};
pub use host::{Host, NotRunnable, Occurrence, QuitCause, Refused};
pub use kvm::{KvmUnusable, kvm_usable};
pub use machine::{DeviceEntry, Machine};
pub use pace::Rate;
pub use prefill::write_memory_file;
pub use report::{BadPage, Contradiction, EXAMPLES_MAX, PageFault, VerifyReport, WorkerProgress};
pub use run_control::{GuestEnd, RunState, StuckReason};
pub use system_image::Executor;
pub use walk::Walk;
pub use workload::{Dirtier, Prefill, Workload, Writing};

//! The guest's configuration, as the part of its state that an incoming VMM learns from the stream.

use crate::content::Content;
use crate::pace::Rate;
use crate::run_control::RunControl;
use crate::system_image::Executor;
use crate::workload::{Workload, Writing};
use limosa_pages::PageCount;
use limosa_vmstate::VmState;
use std::sync::Arc;
use thiserror::Error;

/// Codes of [`GuestState::program`].
const PROGRAM_UNKNOWN: u8 = 0;
const PROGRAM_DIRTIER: u8 = 1;
const PROGRAM_BOOT_SECTOR: u8 = 2;

/// Code of a prefill that is no content: pages begin as zeros.
const PREFILL_NONE: u8 = u8::MAX;
/// Code of [`Rate::Unlimited`]; any other number is pages per second.
const RATE_UNLIMITED: u64 = u64::MAX;

/// What a guest executes, as far as its VMM has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KnownProgram {
    /// An incoming guest that has not arrived.
    Unknown,
    Dirtier(Workload),
    BootSector,
}

/// Executor, size and workload of the guest.
///
/// What a VMM must be started with is compared; the rest is adopted.
#[derive(VmState)]
#[vmstate(name = "limosa-guest", pre_save = Self::pre_save, post_load = Self::post_load)]
pub(crate) struct GuestState {
    #[vmstate(equal)]
    executor: u8,
    #[vmstate(equal)]
    memory_pages: u64,
    #[vmstate(equal)]
    vcpus: u32,
    program: u8,
    seed: u64,
    content: u8,
    prefill: u8,
    working_set: u64,
    writing: u8,
    rate: u64,
    #[vmstate(skip)]
    control: Arc<RunControl>,
}

/// A configuration from the stream that no VMM can have saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum GuestStateError {
    #[error("{field} has the code {got}, which means nothing")]
    UnknownCode { field: &'static str, got: u8 },
    #[error("a working set of {pages} pages does not fit {vcpus} workers and {memory_pages} pages of RAM")]
    WorkingSet { pages: u64, vcpus: u32, memory_pages: u64 },
}

impl GuestState {
    pub(crate) fn new(
        executor: Executor,
        memory: PageCount,
        vcpus: u32,
        program: KnownProgram,
        control: Arc<RunControl>,
    ) -> Self {
        let executor = match executor {
            Executor::Kvm => 0,
            Executor::Process => 1,
        };
        let mut state = Self {
            executor,
            memory_pages: memory.0,
            vcpus,
            program: PROGRAM_UNKNOWN,
            seed: 0,
            content: 0,
            prefill: PREFILL_NONE,
            working_set: 0,
            writing: 0,
            rate: 0,
            control,
        };
        match program {
            KnownProgram::Unknown => {}
            KnownProgram::BootSector => state.program = PROGRAM_BOOT_SECTOR,
            KnownProgram::Dirtier(workload) => {
                state.program = PROGRAM_DIRTIER;
                state.seed = workload.seed;
                state.content = workload.content.code();
                state.prefill = workload.prefill.map_or(PREFILL_NONE, Content::code);
                state.working_set = workload.working_set.0;
                state.writing = workload.writing.code();
            }
        }
        state
    }

    /// What the built-in guest does; `None` if the guest is another one or has not arrived.
    pub(crate) fn workload(&self) -> Option<Workload> {
        match self.program() {
            Ok(KnownProgram::Dirtier(workload)) => Some(workload),
            Ok(KnownProgram::Unknown | KnownProgram::BootSector) => None,
            // A stream that broke off inside this device: it has not arrived, and never will.
            Err(_) => None,
        }
    }

    fn program(&self) -> Result<KnownProgram, GuestStateError> {
        let unknown = |field, got| GuestStateError::UnknownCode { field, got };
        match self.program {
            PROGRAM_UNKNOWN => return Ok(KnownProgram::Unknown),
            PROGRAM_BOOT_SECTOR => return Ok(KnownProgram::BootSector),
            PROGRAM_DIRTIER => {}
            got => return Err(unknown("program", got)),
        }
        let content = |field, code| Content::from_code(code).ok_or(unknown(field, code));
        let workload = Workload {
            seed: self.seed,
            content: content("content", self.content)?,
            prefill: match self.prefill {
                PREFILL_NONE => None,
                code => Some(content("prefill", code)?),
            },
            working_set: PageCount(self.working_set),
            writing: Writing::from_code(self.writing).ok_or(unknown("writing", self.writing))?,
            workers: self.vcpus,
        };
        if !workload.fits(PageCount(self.memory_pages)) {
            return Err(GuestStateError::WorkingSet {
                pages: self.working_set,
                vcpus: self.vcpus,
                memory_pages: self.memory_pages,
            });
        }
        Ok(KnownProgram::Dirtier(workload))
    }

    fn pre_save(&mut self) {
        self.rate = match self.control.rate() {
            Rate::Idle => 0,
            Rate::PagesPerSecond(rate) => rate.min(RATE_UNLIMITED - 1),
            Rate::Unlimited => RATE_UNLIMITED,
        };
    }

    fn post_load(&mut self, _version: u32) -> Result<(), GuestStateError> {
        self.program()?;
        self.control.set_rate(match self.rate {
            0 => Rate::Idle,
            RATE_UNLIMITED => Rate::Unlimited,
            rate => Rate::PagesPerSecond(rate),
        });
        Ok(())
    }
}

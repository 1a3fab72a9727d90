//! A machine: RAM, a guest that executes, a serial port.

use crate::config::{GuestConfig, GuestKind, Program};
use crate::error::VmmError;
use crate::guest_map::{BOOT_SECTOR, RAM_BLOCK, RAM_PAGES_MAX, SYSTEM_PAGES, WORKERS_MAX};
use crate::guest_state::{GuestState, KnownProgram};
use crate::kvm::{KvmGuest, KvmUnusable, kvm_usable};
use crate::pace::Rate;
use crate::prefill;
use crate::process::ProcessGuest;
use crate::report::{VerifyReport, WorkerProgress};
use crate::run_control::{RunControl, RunState};
use crate::serial::Serial;
use crate::system_image::{Executor, system_image};
use crate::verify::{self, Moment};
use crate::workload::{Prefill, Workload, content_pages};
use limosa::KernelThread;
use limosa_pages::{BlockId, BlockName, ByteCount, PAGE_BYTES, PageCount};
use limosa_ram::dirty_log::{DirtyLog, HostWrites};
use limosa_ram::{GuestRam, RamBlock};
use limosa_vmstate::Device;
use parking_lot::Mutex;
use std::sync::Arc;

/// Smallest RAM: the first MiB and one page of content.
const RAM_PAGES_MIN: PageCount = PageCount(SYSTEM_PAGES.0 + 1);

/// A virtual machine that can be paused, saved, loaded and verified.
///
/// It begins paused. All methods may be called from any thread.
pub struct Machine {
    // Dropped first: its threads use everything below.
    guest: Box<dyn Guest>,
    executor: Executor,
    kvm_unusable: Option<KvmUnusable>,
    ram: GuestRam,
    control: Arc<RunControl>,
    state: Arc<Mutex<GuestState>>,
    serial: Arc<Mutex<Serial>>,
    host_writes: Arc<HostWrites>,
}

/// A device, and the identity that its section has in a migration stream.
pub struct DeviceEntry {
    /// Name of the section.
    pub idstr: &'static str,
    /// Which of several of that name.
    pub instance: u32,
    /// The device. It may be saved and loaded while the guest is paused.
    pub device: Box<dyn Device>,
}

/// What executes: the one thing in which the kinds of guest differ.
pub(crate) trait Guest: Send + Sync {
    /// Brings `worker` out of the guest soon, if it has been told to stop.
    fn kick(&self, worker: u32);
    /// A log of what the guest writes, together with `host_writes`.
    fn dirty_log(&self, host_writes: Arc<HostWrites>) -> Result<Box<dyn DirtyLog>, VmmError>;
    /// The executing parts' state, in the order in which it should be loaded.
    fn devices(&self) -> Vec<DeviceEntry>;
    /// The steps that each worker has in its registers. Only while paused.
    fn register_steps(&self) -> Vec<u64>;
}

impl DeviceEntry {
    pub(crate) fn new(idstr: &'static str, instance: u32, device: Box<dyn Device>) -> Self {
        Self { idstr, instance, device }
    }
}

impl Machine {
    /// A machine as ordered, paused before its first instruction; prefilled, unless it is incoming.
    ///
    /// # Errors
    /// An impossible order, or what the kernel refuses.
    pub fn new(config: &GuestConfig) -> Result<Self, VmmError> {
        let memory = checked_memory(config.memory)?;
        if !(1..=WORKERS_MAX).contains(&config.vcpus) {
            return Err(VmmError::Vcpus { got: config.vcpus, maximum: WORKERS_MAX });
        }
        let (executor, kvm_unusable) = choose_executor(config.kind)?;
        let (program, rate) = known_program(config, executor, memory)?;
        let name = BlockName::new(RAM_BLOCK)?;
        let block = match &config.memory_file {
            Some(path) => RamBlock::file(name, path, config.memory)?,
            None => RamBlock::memfd(name, config.memory)?,
        };
        write_memory(&block, config, executor, &program);
        let ram = GuestRam::new(vec![block])?;
        let control = Arc::new(RunControl::new(config.vcpus, rate));
        let state = GuestState::new(executor, memory, config.vcpus, program, Arc::clone(&control));
        let state = Arc::new(Mutex::new(state));
        let serial = Arc::new(Mutex::new(Serial::new(&config.serial)?));
        let guest: Box<dyn Guest> = match executor {
            Executor::Kvm => {
                Box::new(KvmGuest::new(ram.clone(), config.vcpus, &config.program, &serial, &control)?)
            }
            Executor::Process => Box::new(ProcessGuest::new(ram.clone(), config.vcpus, &state, &control)?),
        };
        let host_writes = Arc::new(HostWrites::new(ram.layout()));
        Ok(Self { guest, executor, kvm_unusable, ram, control, state, serial, host_writes })
    }

    /// What executes the guest.
    pub fn executor(&self) -> Executor {
        self.executor
    }

    /// Why the machine, whose kind was left open, has no guest under KVM; `None` if it has, or was not asked to.
    pub fn kvm_unusable(&self) -> Option<&KvmUnusable> {
        self.kvm_unusable.as_ref()
    }

    /// The guest's memory: one block, `pc.ram`.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Stops the guest, and returns when nothing of it executes any more: its memory and its devices stand still.
    ///
    /// Harmless if it is paused. Cost: some ten microseconds per running vCPU.
    pub fn pause(&self) {
        self.control.pause(|worker| self.guest.kick(worker));
    }

    /// Lets the guest run. Harmless if it runs.
    ///
    /// # Errors
    /// [`VmmError::Ended`] if the guest has stopped itself.
    pub fn resume(&self) -> Result<(), VmmError> {
        self.control.resume().map_err(VmmError::Ended)
    }

    /// Whether the guest runs.
    pub fn run_state(&self) -> RunState {
        self.control.run_state()
    }

    /// The kernel's numbers of the threads that execute the guest, vCPU by vCPU.
    pub fn vcpu_threads(&self) -> Vec<KernelThread> {
        self.control.kernel_threads()
    }

    /// How fast the workers may go, all together.
    pub fn rate(&self) -> Rate {
        self.control.rate()
    }

    /// Changes how fast the workers may go. A running guest obeys within milliseconds.
    pub fn set_rate(&self, rate: Rate) {
        self.control.set_rate(rate);
    }

    /// A dirty log of the guest's memory, not started. One at a time.
    ///
    /// # Errors
    /// [`VmmError::DirtyLog`] if the kernel has none to give.
    pub fn dirty_log(&self) -> Result<Box<dyn DirtyLog>, VmmError> {
        self.guest.dirty_log(Arc::clone(&self.host_writes))
    }

    /// Where devices report what they write into the guest's memory.
    pub fn host_writes(&self) -> &Arc<HostWrites> {
        &self.host_writes
    }

    /// All devices, in the order in which they should be saved and loaded. The same list on both sides, if both were
    /// made with the same executor, memory and vCPUs. Each call makes new handles to the same devices.
    pub fn devices(&self) -> Vec<DeviceEntry> {
        let mut devices = vec![
            DeviceEntry::new("guest", 0, Box::new(Arc::clone(&self.state))),
            DeviceEntry::new("serial", 0, Box::new(Arc::clone(&self.serial))),
        ];
        devices.extend(self.guest.devices());
        devices
    }

    /// Bytes for the guest to read from COM1; returns how many there was room for.
    pub fn serial_input(&self, bytes: &[u8]) -> usize {
        self.serial.lock().receive(bytes)
    }

    /// What the built-in guest does; `None` if the guest is another one or has not arrived.
    pub fn workload(&self) -> Option<Workload> {
        self.state.lock().workload()
    }

    /// How far each worker of the built-in guest is; empty for another guest. May be asked while it runs.
    pub fn progress(&self) -> Vec<WorkerProgress> {
        let Some(workload) = self.workload() else { return Vec::new() };
        verify::read_progress(self.block(), workload.workers)
    }

    /// Checks every byte of the guest's memory against the steps its workers have done.
    ///
    /// Of a paused guest all pages are compared but the one that each worker is in the middle of; of a running guest,
    /// all that did not change meanwhile. Do not pause or resume during the check.
    ///
    /// # Errors
    /// [`VmmError::NothingToVerify`] unless it is the built-in guest.
    ///
    /// Cost: about 1 us per page that holds content, on all processors.
    pub fn verify(&self) -> Result<VerifyReport, VmmError> {
        let workload = self.workload().ok_or(VmmError::NothingToVerify)?;
        let (moment, steps) = match self.run_state() {
            RunState::Running => (Moment::Running, None),
            RunState::Paused | RunState::Ended(_) => (Moment::Paused, Some(self.guest.register_steps())),
        };
        Ok(verify::verify(self.block(), self.executor, &workload, moment, steps.as_deref()))
    }

    fn block(&self) -> &RamBlock {
        self.ram.block(BlockId(0))
    }
}

/// The pages in `memory` bytes.
///
/// # Errors
/// [`VmmError::Memory`] if no guest can have so many, or so few.
pub(crate) fn checked_memory(memory: ByteCount) -> Result<PageCount, VmmError> {
    let pages = PageCount(memory.0 / PAGE_BYTES as u64);
    if memory != pages.bytes() || !(RAM_PAGES_MIN..=RAM_PAGES_MAX).contains(&pages) {
        let (minimum, maximum) = (RAM_PAGES_MIN.bytes(), RAM_PAGES_MAX.bytes());
        return Err(VmmError::Memory { got: memory, minimum, maximum });
    }
    Ok(pages)
}

fn choose_executor(kind: GuestKind) -> Result<(Executor, Option<KvmUnusable>), VmmError> {
    match kind {
        GuestKind::Process => Ok((Executor::Process, None)),
        GuestKind::Kvm => Ok(kvm_usable().map(|()| (Executor::Kvm, None))?),
        GuestKind::Auto => Ok(match kvm_usable() {
            Ok(()) => (Executor::Kvm, None),
            Err(reason) => (Executor::Process, Some(reason)),
        }),
    }
}

fn known_program(
    config: &GuestConfig,
    executor: Executor,
    memory: PageCount,
) -> Result<(KnownProgram, Rate), VmmError> {
    match &config.program {
        Program::Incoming => Ok((KnownProgram::Unknown, Rate::Idle)),
        Program::BootSector(_) if executor == Executor::Process => Err(VmmError::BootSectorWithoutKvm),
        Program::BootSector(_) => Ok((KnownProgram::BootSector, Rate::Idle)),
        Program::Dirtier(dirtier) => {
            let content = content_pages(memory);
            let workload = dirtier.workload(memory, config.vcpus).ok_or(VmmError::WorkingSet {
                pages: dirtier.working_set.unwrap_or(content),
                workers: config.vcpus,
                content,
            })?;
            Ok((KnownProgram::Dirtier(workload), dirtier.rate))
        }
    }
}

/// Puts the program, and what it was ordered to begin with, into RAM.
fn write_memory(block: &RamBlock, config: &GuestConfig, executor: Executor, program: &KnownProgram) {
    if let KnownProgram::Dirtier(workload) = program {
        block.copy_in(0, &system_image(executor, workload, block.pages()));
    }
    match (&config.program, program) {
        (Program::BootSector(sector), _) => block.copy_in(BOOT_SECTOR, &sector[..]),
        (Program::Dirtier(dirtier), KnownProgram::Dirtier(workload)) => match dirtier.prefill {
            Prefill::Write(_) => prefill::fill(block, workload),
            Prefill::Untouched | Prefill::Present(_) => {}
        },
        _ => {}
    }
}

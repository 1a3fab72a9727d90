//! The guest without a hypervisor: threads of this process that write its memory.
//!
//! A worker does what the machine code of the KVM guest does, in the same order, and can be stopped between two
//! pages. Its state is a few numbers, saved as a device of its own.

mod memory;

use crate::content::{PAGE_WORDS, PageClass, PageWords};
use crate::error::VmmError;
use crate::guest_map::{control, control_page};
use crate::guest_state::GuestState;
use crate::machine::{DeviceEntry, Guest};
use crate::pace::Pacer;
use crate::run_control::{Order, RunControl, ThreadGuard};
use crate::walk::Walk;
use crate::workload::{Workload, Writing};
use limosa_pages::PageIndex;
use limosa_ram::GuestRam;
use limosa_ram::dirty_log::{DirtyLog, HostWrites, PagemapDirtyLog};
use limosa_vmstate::VmState;
use memory::WorkerMemory;
use parking_lot::Mutex;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

/// Workers over the guest mapping of RAM.
pub(crate) struct ProcessGuest {
    ram: GuestRam,
    control: Arc<RunControl>,
    workers: Vec<Arc<Mutex<WorkerState>>>,
    threads: Vec<JoinHandle<()>>,
}

/// What a worker has in place of registers. It must agree with the worker's control page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, VmState)]
#[vmstate(name = "limosa-worker")]
pub(crate) struct WorkerState {
    /// Pages finished. Where the worker is, and in which generation, follows from it.
    steps: u64,
}

impl ProcessGuest {
    /// Parked workers; they learn from `state` what to do each time they are started.
    pub(crate) fn new(
        ram: GuestRam,
        vcpus: u32,
        state: &Arc<Mutex<GuestState>>,
        control: &Arc<RunControl>,
    ) -> Result<Self, VmmError> {
        let mut guest = Self { ram, control: Arc::clone(control), workers: Vec::new(), threads: Vec::new() };
        for worker in 0..vcpus {
            let registers = Arc::new(Mutex::new(WorkerState { steps: 0 }));
            let thread = WorkerThread {
                worker,
                vcpus,
                memory: WorkerMemory::new(guest.ram.clone()),
                registers: Arc::clone(&registers),
                state: Arc::clone(state),
                control: Arc::clone(control),
            };
            guest.workers.push(registers);
            guest.threads.push(
                std::thread::Builder::new()
                    .name(format!("worker {worker}"))
                    .spawn(move || thread.run())
                    .map_err(|source| VmmError::Thread { worker, source })?,
            );
        }
        Ok(guest)
    }
}

impl Guest for ProcessGuest {
    /// Nothing: a worker looks after every page whether it should stop, and waits where it can be woken.
    fn kick(&self, _worker: u32) {}

    fn dirty_log(&self, host_writes: Arc<HostWrites>) -> Result<Box<dyn DirtyLog>, VmmError> {
        Ok(Box::new(PagemapDirtyLog::new(self.ram.clone(), host_writes)?))
    }

    fn devices(&self) -> Vec<DeviceEntry> {
        (0..)
            .zip(&self.workers)
            .map(|(instance, worker)| DeviceEntry::new("worker", instance, Box::new(Arc::clone(worker))))
            .collect()
    }

    fn register_steps(&self) -> Vec<u64> {
        self.workers.iter().map(|worker| worker.lock().steps).collect()
    }
}

impl Drop for ProcessGuest {
    fn drop(&mut self) {
        self.control.dismiss(|_| {});
        for thread in self.threads.drain(..) {
            // A worker that panicked has reported it through its guard.
            let _ = thread.join();
        }
    }
}

struct WorkerThread {
    worker: u32,
    vcpus: u32,
    memory: WorkerMemory,
    registers: Arc<Mutex<WorkerState>>,
    state: Arc<Mutex<GuestState>>,
    control: Arc<RunControl>,
}

impl WorkerThread {
    fn run(self) {
        let _guard = ThreadGuard::of(&self.control, self.worker);
        let mut words: PageWords = [0; PAGE_WORDS];
        while self.control.park(self.worker, || {}) == Order::Run {
            // Parking again is what releases the registers to whoever saves them.
            let mut registers = self.registers.lock();
            let Some(workload) = self.state.lock().workload() else {
                self.control.wait_for_stop();
                continue;
            };
            let walk = workload.walk(self.worker);
            let mut pacer = Pacer::new(self.control.rate(), self.vcpus, Instant::now());
            let mut granted = 0;
            while !self.control.stop_wanted() {
                if granted == 0 {
                    granted = self.control.wait_for_steps(&mut pacer);
                } else {
                    self.step(&workload, &walk, &mut registers, &mut words);
                    granted -= 1;
                }
            }
        }
    }

    /// Writes one page: declares it, writes it, counts it, withdraws the declaration.
    fn step(&self, workload: &Workload, walk: &Walk, registers: &mut WorkerState, words: &mut PageWords) {
        let page = walk.page_at(registers.steps);
        let generation = 1 + registers.steps / walk.len.0;
        let control = control_page(self.worker);
        self.memory.publish_word(control + control::IN_FLIGHT as u64 * 8, page.0);
        self.write_page(workload, page, generation, words);
        registers.steps += 1;
        self.memory.publish_word(control + control::STEPS as u64 * 8, registers.steps);
        self.memory.publish_word(control + control::IN_FLIGHT as u64 * 8, 0);
    }

    fn write_page(&self, workload: &Workload, page: PageIndex, generation: u64, words: &mut PageWords) {
        let recipe = workload.recipe(page, generation);
        if workload.writing == Writing::Light && generation > 1 && recipe.class != PageClass::Zero {
            self.memory.increment_word(page.byte_offset() + 16);
            self.memory.increment_word(page.byte_offset() + 24);
        } else {
            recipe.write_into(words);
            self.memory.write_page(page, words);
        }
    }
}

//! A machine on each side of a migration, and what must hold of the two together.
#![allow(dead_code, reason = "each test binary uses the parts that it needs")]

use limosa::pages::{BlockId, ByteCount, PageCount};
use limosa::{SaveVm, Vm, VmError};
use limosa_stress::qemu::PATIENCE;
use limosa_vmm::{
    Content, Dirtier, GuestConfig, GuestKind, Machine, Prefill, Program, Rate, RunState, WorkerProgress,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

pub(crate) const MEMORY: ByteCount = ByteCount(32 << 20);

/// What the guest writes again and again, as fast as it can. A prime, so that the vCPUs' shares differ.
pub(crate) const WORKING_SET: PageCount = PageCount(2039);

/// Steps that every worker does between two migrations.
pub(crate) const STEPS: u64 = 50;

/// How many machines run the guest.
#[derive(Debug, Default)]
pub(crate) struct Census {
    pub(crate) running: AtomicUsize,
    pub(crate) most: AtomicUsize,
}

/// A machine with its list, and the engine's hold on it.
pub(crate) struct Place {
    pub(crate) handle: Arc<Handle>,
    pub(crate) savevm: Option<SaveVm>,
}

pub(crate) struct Handle {
    pub(crate) machine: Machine,
    pub(crate) run_state: Mutex<limosa::RunState>,
    pub(crate) census: Arc<Census>,
}

impl Census {
    fn add(&self) {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
    }

    fn remove(&self) {
        self.running.fetch_sub(1, Ordering::SeqCst);
    }

    /// One runs now, and there were never two.
    pub(crate) fn assert_one(&self, when: &str) {
        assert_eq!(self.running.load(Ordering::SeqCst), 1, "{when}");
        assert_eq!(self.most.load(Ordering::SeqCst), 1, "{when}: never two at a time");
    }
}

impl Place {
    pub(crate) fn new(kind: GuestKind, vcpus: u32, program: Program, census: &Arc<Census>) -> Self {
        let run_state = match program {
            Program::Incoming => limosa::RunState::InMigrate,
            _ => limosa::RunState::Paused,
        };
        let machine = machine(kind, vcpus, program);
        let savevm = Some(machine.savevm().expect("a list"));
        let census = Arc::clone(census);
        Self { handle: Arc::new(Handle { machine, run_state: Mutex::new(run_state), census }), savevm }
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.handle.machine
    }

    pub(crate) fn vm(&self) -> Arc<dyn Vm> {
        Arc::clone(&self.handle) as Arc<_>
    }

    pub(crate) fn lend(&mut self) -> SaveVm {
        self.savevm.take().expect("lent to one migration at a time")
    }

    /// Waits until every worker has written some pages.
    pub(crate) fn work(&self) {
        let before = self.machine().progress();
        let begin = Instant::now();
        let behind = |now: &WorkerProgress, before: &WorkerProgress| now.steps < before.steps + STEPS;
        while self.machine().progress().iter().zip(&before).any(|(now, before)| behind(now, before)) {
            assert!(begin.elapsed() < PATIENCE, "the guest does not go on");
            std::thread::yield_now();
        }
    }

    /// Pauses the guest, checks every page of it, and lets it go on.
    pub(crate) fn check(&self, when: &dyn std::fmt::Display) {
        self.handle.stop().expect("it stops");
        let report = self.machine().verify().expect("it is the built-in guest");
        assert!(report.is_clean(), "{when}: {report:#?}");
        let looked_at = report.pages_checked + report.pages_in_flight;
        assert_eq!(looked_at, self.machine().ram().block(BlockId(0)).pages(), "{when}");
        self.handle.resume().expect("it goes on");
    }
}

impl Vm for Handle {
    fn stop(&self) -> Result<(), VmError> {
        let mut run_state = self.run_state.lock();
        if *run_state == limosa::RunState::Running {
            self.machine.pause();
            self.census.remove();
        }
        *run_state = limosa::RunState::Paused;
        Ok(())
    }

    fn resume(&self) -> Result<(), VmError> {
        let mut run_state = self.run_state.lock();
        // Counted before the first instruction: too many is what must be seen.
        self.census.add();
        self.machine.resume().map_err(VmError::new)?;
        *run_state = limosa::RunState::Running;
        Ok(())
    }

    fn run_state(&self) -> limosa::RunState {
        *self.run_state.lock()
    }
}

pub(crate) fn machine(kind: GuestKind, vcpus: u32, program: Program) -> Machine {
    let config = GuestConfig { kind, memory: MEMORY, vcpus, program, ..GuestConfig::default() };
    Machine::new(&config).expect("a machine")
}

pub(crate) fn assert_one_runs(census: &Census, here: &Place, there: &Place, when: &str) {
    let states = (here.machine().run_state(), there.machine().run_state());
    assert_eq!(states, (RunState::Paused, RunState::Running), "{when}");
    census.assert_one(when);
}

pub(crate) fn assert_no_step_back(left: &[WorkerProgress], arrived: &[WorkerProgress], when: &str) {
    assert_eq!(left.len(), arrived.len(), "{when}");
    for (left, arrived) in left.iter().zip(arrived) {
        assert!(left.steps <= arrived.steps, "{when}: {left:?} became {arrived:?}");
    }
}

/// A guest that writes its working set as fast as it can, with a memory full of pages of all kinds.
pub(crate) fn busy(seed: u64) -> Program {
    Program::Dirtier(Dirtier {
        seed,
        content: Content::Mixed,
        prefill: Prefill::Write(Content::Mixed),
        working_set: Some(WORKING_SET),
        rate: Rate::Unlimited,
        ..Dirtier::default()
    })
}

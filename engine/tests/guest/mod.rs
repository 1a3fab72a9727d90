//! A guest made of one thread and a few devices, small enough to be compared byte by byte.
#![allow(dead_code, reason = "each test binary uses the parts that it needs")]

pub(crate) mod memory;

use limosa_engine::{
    IncomingReport, MigrationStatus, Observer, OutgoingReport, Priority, RamHandler, RunState, SaveVm, Vm,
    VmError,
};
use limosa_pages::{BlockId, BlockName, ByteCount, PAGE_BYTES};
use limosa_ram::dirty_log::{DirtyLog, FakeDirtyLog, HostWrites};
use limosa_ram::{GuestRam, RamBlock, RamError};
use limosa_vmstate::VmState;
use limosa_wire::Configuration;
use nix::sys::memfd::{MFdFlags, memfd_create};
use parking_lot::{Condvar, Mutex};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Two blocks, one of them not a multiple of a batch.
pub(crate) const BLOCKS: [(&str, u64); 2] = [("main.ram", 1500), ("small.ram", 3)];

/// A guest whose whole stream is a few kilobytes: a page of content, a zero page, an untouched one, and a second block.
pub(crate) const TINY_BLOCKS: [(&str, u64); 2] = [("main.ram", 3), ("small.ram", 1)];

/// Target pages of a huge page of 2 MiB.
pub(crate) const HUGE_PAGES: u64 = 512;

/// A block on huge pages, and one on small ones.
pub(crate) const HUGE_BLOCKS: [(&str, u64); 2] = [("huge.ram", 4 * HUGE_PAGES), ("small.ram", 300)];

/// The device that every test guest has.
#[derive(Clone, Debug, Default, PartialEq, Eq, VmState)]
#[vmstate(name = "counter", version = 2, minimum_version = 1)]
pub(crate) struct Counter {
    pub(crate) writes: u64,
    #[vmstate(buffer)]
    pub(crate) tag: [u8; 8],
}

/// What the writing thread and the engine share.
#[derive(Debug)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug)]
struct GateState {
    run_state: RunState,
    /// The writer stands still.
    idle: bool,
    over: bool,
}

pub(crate) struct Guest {
    pub(crate) ram: GuestRam,
    pub(crate) counter: Arc<Mutex<Counter>>,
    pub(crate) writes: Arc<HostWrites>,
    gate: Arc<Gate>,
    writer: Option<JoinHandle<()>>,
    savevm: Option<SaveVm>,
}

impl Guest {
    /// A guest that runs and writes to pages below `hot` of its first block as fast as it can.
    pub(crate) fn running(hot: u64) -> Self {
        let guest = Self::new(RunState::Running, hot, &BLOCKS, |log| Box::new(log));
        guest.fill(1);
        guest
    }

    /// A small guest that runs and writes nothing.
    pub(crate) fn tiny() -> Self {
        Self::tiny_with_log(|log| Box::new(log))
    }

    /// The same with a dirty log of the test's own, made around one that works.
    pub(crate) fn tiny_with_log(log: impl FnOnce(FakeDirtyLog) -> Box<dyn DirtyLog>) -> Self {
        let guest = Self::new(RunState::Running, 0, &TINY_BLOCKS, log);
        guest.fill(1);
        guest.counter.lock().writes = 0x0102_0304_0506_0708;
        guest
    }

    /// The place that a small guest's state can come to.
    pub(crate) fn tiny_incoming() -> Self {
        Self::new(RunState::InMigrate, 0, &TINY_BLOCKS, |log| Box::new(log))
    }

    /// A guest that waits for its state.
    pub(crate) fn incoming(hot: u64) -> Self {
        Self::new(RunState::InMigrate, hot, &BLOCKS, |log| Box::new(log))
    }

    /// The same in memory that only its own mapping reaches.
    pub(crate) fn incoming_private(hot: u64) -> Self {
        Self::in_memory(RamBlock::anonymous, RunState::InMigrate, hot, &BLOCKS, |log| Box::new(log))
    }

    /// A guest with huge pages, one that runs and one that waits for its state; `None` where there are none to be had.
    pub(crate) fn huge_pair(hot: u64) -> Option<(Self, Self)> {
        let new = |run_state| Self::in_memory(huge, run_state, hot, &HUGE_BLOCKS, |log| Box::new(log));
        let count = |of: &str| -> Option<u64> {
            let file = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{of}_hugepages");
            std::fs::read_to_string(file).ok()?.trim().parse().ok()
        };
        let free = count("free")?.saturating_sub(count("resv")?);
        let needed = 2 * HUGE_BLOCKS[0].1 / HUGE_PAGES;
        if free < needed {
            eprintln!("LEFT OUT: {needed} free huge pages (vm.nr_hugepages), there are {free}");
            return None;
        }
        let (source, destination) = (new(RunState::Running), new(RunState::InMigrate));
        source.fill(1);
        Some((source, destination))
    }

    fn new(
        run_state: RunState,
        hot: u64,
        blocks: &[(&str, u64)],
        wrap: impl FnOnce(FakeDirtyLog) -> Box<dyn DirtyLog>,
    ) -> Self {
        Self::in_memory(RamBlock::memfd, run_state, hot, blocks, wrap)
    }

    fn in_memory(
        memory: fn(BlockName, ByteCount) -> Result<RamBlock, RamError>,
        run_state: RunState,
        hot: u64,
        blocks: &[(&str, u64)],
        wrap: impl FnOnce(FakeDirtyLog) -> Box<dyn DirtyLog>,
    ) -> Self {
        let blocks = blocks.iter().map(|(name, pages)| {
            memory(BlockName::new(*name).unwrap(), ByteCount(pages * PAGE_BYTES as u64)).unwrap()
        });
        let ram = GuestRam::new(blocks.collect()).unwrap();
        let log = FakeDirtyLog::new(ram.layout());
        let writes = log.writes();
        let counter = Arc::new(Mutex::new(Counter::default()));
        let mut savevm = SaveVm::new(configuration());
        savevm.register_ram(RamHandler::new(ram.clone(), Some(wrap(log))));
        savevm.register_device("counter", 0, Priority::Default, Box::new(Arc::clone(&counter)));
        let gate = Arc::new(Gate {
            state: Mutex::new(GateState { run_state, idle: true, over: false }),
            changed: Condvar::new(),
        });
        let writer = (hot > 0).then(|| spawn_writer(&ram, &counter, &writes, &gate, hot));
        Self { ram, counter, writes, gate, writer, savevm: Some(savevm) }
    }

    /// Fills a third of the pages with content, leaves a third zero and a third untouched.
    fn fill(&self, seed: u64) {
        for (id, block) in self.ram.iter() {
            for page in (0..block.pages().0).filter(|page| page % 3 != 2) {
                let byte = if page % 3 == 0 { (page * 31 + seed * 7 + u64::from(id.0)) as u8 | 1 } else { 0 };
                block.copy_in(page * PAGE_BYTES as u64, &[byte; PAGE_BYTES]);
            }
        }
    }

    pub(crate) fn take_savevm(&mut self) -> SaveVm {
        self.savevm.take().expect("the list is lent to one migration at a time")
    }

    pub(crate) fn give_back(&mut self, savevm: SaveVm) {
        self.savevm = Some(savevm);
    }

    /// The engine's hold on this guest.
    pub(crate) fn vm(&self) -> Arc<dyn Vm> {
        Arc::new(Handle { gate: Arc::clone(&self.gate), stop_fails: false })
    }

    /// A hold that cannot stop the guest.
    pub(crate) fn unstoppable(&self) -> Arc<dyn Vm> {
        Arc::new(Handle { gate: Arc::clone(&self.gate), stop_fails: true })
    }

    pub(crate) fn run_state(&self) -> RunState {
        self.gate.state.lock().run_state
    }

    /// All bytes of RAM. The guest must stand still.
    pub(crate) fn memory(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (_, block) in self.ram.iter() {
            let start = bytes.len();
            bytes.resize(start + block.length().0 as usize, 0);
            block.copy_out(0, &mut bytes[start..]);
        }
        bytes
    }

    /// Waits until the guest has written `more` times from now.
    pub(crate) fn let_write(&self, more: u64) {
        let target = self.counter.lock().writes + more;
        while self.counter.lock().writes < target {
            std::thread::yield_now();
        }
    }

    pub(crate) fn stop(&self) {
        self.vm().stop().unwrap();
    }

    /// What an operator does after a failure: puts the guest into the run state that a test begins with.
    pub(crate) fn put_into(&self, run_state: RunState) {
        self.gate.state.lock().run_state = run_state;
        self.gate.changed.notify_all();
    }
}

/// Memory for [`HUGE_BLOCKS`]: on huge pages if it is a whole number of them.
fn huge(name: BlockName, length: ByteCount) -> Result<RamBlock, RamError> {
    if !length.0.is_multiple_of(HUGE_PAGES * PAGE_BYTES as u64) {
        return RamBlock::memfd(name, length);
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    let file = memfd_create(c"limosa-test", flags).expect("there are free ones");
    RamBlock::file(name, format!("/proc/self/fd/{}", file.as_raw_fd()).as_ref(), length)
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.gate.state.lock().over = true;
        self.gate.changed.notify_all();
        if let Some(writer) = self.writer.take() {
            writer.join().unwrap();
        }
    }
}

pub(crate) fn configuration() -> Configuration {
    Configuration { machine: "test-guest".to_owned(), ..Configuration::default() }
}

fn spawn_writer(
    ram: &GuestRam,
    counter: &Arc<Mutex<Counter>>,
    writes: &Arc<HostWrites>,
    gate: &Arc<Gate>,
    hot: u64,
) -> JoinHandle<()> {
    let (ram, counter) = (ram.clone(), Arc::clone(counter));
    let (writes, gate) = (Arc::clone(writes), Arc::clone(gate));
    std::thread::spawn(move || {
        let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
        loop {
            {
                let mut state = gate.state.lock();
                while !state.over && state.run_state != RunState::Running {
                    state.idle = true;
                    gate.changed.notify_all();
                    gate.changed.wait(&mut state);
                }
                if state.over {
                    return;
                }
                state.idle = false;
            }
            for _ in 0..16 {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let page = (noise >> 33) % hot;
                let mut counter = counter.lock();
                counter.writes += 1;
                counter.tag = counter.writes.to_le_bytes();
                let offset = page * PAGE_BYTES as u64 + (noise >> 20) % 512 * 8;
                memory::write_word(&ram, BlockId(0), offset, counter.writes.to_le());
                // After the write, as a log that misses nothing demands.
                writes.mark(BlockId(0), offset, 8);
            }
        }
    })
}

struct Handle {
    gate: Arc<Gate>,
    stop_fails: bool,
}

impl Vm for Handle {
    fn stop(&self) -> Result<(), VmError> {
        if self.stop_fails {
            return Err(VmError::new("the guest does not obey"));
        }
        let mut state = self.gate.state.lock();
        state.run_state = RunState::Paused;
        while !state.idle {
            self.gate.changed.wait(&mut state);
        }
        Ok(())
    }

    fn resume(&self) -> Result<(), VmError> {
        self.gate.state.lock().run_state = RunState::Running;
        self.gate.changed.notify_all();
        Ok(())
    }

    fn run_state(&self) -> RunState {
        self.gate.state.lock().run_state
    }
}

/// Remembers what it was told.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    statuses: Mutex<Vec<MigrationStatus>>,
    passes: Mutex<Vec<u64>>,
}

impl Recorder {
    pub(crate) fn statuses(&self) -> Vec<&'static str> {
        self.statuses.lock().iter().map(|status| status.as_str()).collect()
    }

    pub(crate) fn passes(&self) -> Vec<u64> {
        self.passes.lock().clone()
    }
}

impl Observer for Recorder {
    fn status(&self, status: MigrationStatus) {
        self.statuses.lock().push(status);
    }

    fn pass(&self, number: u64) {
        self.passes.lock().push(number);
    }
}

pub(crate) fn assert_completed(outgoing: &OutgoingReport, incoming: &IncomingReport) {
    assert!(outgoing.is_completed(), "source: {outgoing:?}, destination: {incoming:?}");
    assert!(incoming.is_completed(), "destination: {incoming:?}");
}

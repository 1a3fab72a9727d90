//! A handler, a log, a device or the host itself fails: the guest is where it should be, and the lists go on working.

use super::guest::{Guest, assert_completed};
use super::{Ended, assert_migrates_now, assert_on_source, migrate_over};
use limosa_engine::{
    Budget, GuestFate, LiveState, LoadFault, OutgoingConfig, Priority, RunState, SaveFault, SaveSetup,
    StreamReader, StreamWriter, Switchover, Vm, VmError,
};
use limosa_pages::{BlockId, ByteCount, DirtyMap, PageCount, PageRun};
use limosa_ram::Populated;
use limosa_ram::dirty_log::{DirtyLog, DirtyLogError, FakeDirtyLog};
use limosa_transport::Link;
use limosa_vmstate::{HookError, VmState};
use parking_lot::Mutex;
use std::sync::Arc;

/// A step of a migration that a test lets fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    SaveSetup,
    Sync,
    Iterate,
    Complete,
    SaveCleanup,
    SaveDevice,
    LogStart,
    LogSync,
    LogClear,
    LoadSetup,
    LoadStart,
    LoadPart,
    LoadEnd,
    LoadComplete,
    LoadCleanup,
    LoadDevice,
    Stop,
    Resume,
}

/// What is to fail, shared by a test and all that it has registered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults(Arc<Mutex<Vec<Step>>>);

impl Faults {
    pub(crate) fn set(&self, step: Step) {
        self.0.lock().push(step);
    }

    fn heal(&self) {
        self.0.lock().clear();
    }

    fn at(&self, step: Step) -> bool {
        self.0.lock().contains(&step)
    }

    fn check(&self, step: Step) -> Result<(), HookError> {
        if self.at(step) { Err(format!("the test wants {step:?} to fail").into()) } else { Ok(()) }
    }
}

/// Live state of one number, sent in a START, a PART and an END section.
pub(crate) struct Disk {
    faults: Faults,
    pending: bool,
    sections: u8,
}

impl Disk {
    pub(crate) fn new(faults: &Faults) -> Self {
        Self { faults: faults.clone(), pending: false, sections: 0 }
    }

    fn save(&self, step: Step) -> Result<(), SaveFault> {
        self.faults.check(step).map_err(SaveFault::Handler)
    }

    fn load(&self, step: Step) -> Result<(), LoadFault> {
        self.faults.check(step).map_err(LoadFault::Handler)
    }
}

impl LiveState for Disk {
    fn save_setup(&mut self, _setup: &SaveSetup<'_>, out: &mut StreamWriter) -> Result<(), SaveFault> {
        self.pending = true;
        out.buffer().push(1);
        self.save(Step::SaveSetup)
    }

    fn sync(&mut self) -> Result<(), SaveFault> {
        self.save(Step::Sync)
    }

    fn state_pending(&self) -> ByteCount {
        ByteCount(u64::from(self.pending))
    }

    fn save_live_iterate(&mut self, out: &mut StreamWriter, _budget: &mut Budget) -> Result<(), SaveFault> {
        self.pending = false;
        out.buffer().push(2);
        self.save(Step::Iterate)
    }

    fn save_live_complete_precopy(&mut self, out: &mut StreamWriter) -> Result<(), SaveFault> {
        out.buffer().push(3);
        self.save(Step::Complete)
    }

    fn save_cleanup(&mut self) -> Result<(), SaveFault> {
        self.pending = false;
        self.save(Step::SaveCleanup)
    }

    fn load_setup(&mut self, _setup: &limosa_engine::LoadSetup) -> Result<(), LoadFault> {
        self.sections = 0;
        self.load(Step::LoadSetup)
    }

    fn load_state(&mut self, input: &mut StreamReader) -> Result<(), LoadFault> {
        self.sections += 1;
        assert_eq!(input.take(1)?, [self.sections]);
        self.load([Step::LoadStart, Step::LoadPart, Step::LoadEnd][usize::from(self.sections) - 1])
    }

    fn load_complete(&mut self) -> Result<(), LoadFault> {
        self.load(Step::LoadComplete)
    }

    fn load_cleanup(&mut self) -> Result<(), LoadFault> {
        self.load(Step::LoadCleanup)
    }

    fn switchover(&mut self, _change: Switchover) {}
}

/// A device that a test can break on either side.
#[derive(Clone, Debug, Default, VmState)]
#[vmstate(name = "fragile", version = 1, pre_save = Self::before, post_load = Self::after)]
struct Fragile {
    value: u32,
    #[vmstate(skip)]
    faults: Faults,
}

impl Fragile {
    fn before(&mut self) -> Result<(), HookError> {
        self.faults.check(Step::SaveDevice)
    }

    fn after(&mut self, _version: u32) -> Result<(), HookError> {
        self.faults.check(Step::LoadDevice)
    }
}

struct FragileLog {
    log: FakeDirtyLog,
    faults: Faults,
}

impl FragileLog {
    fn check(&self, step: Step) -> Result<(), DirtyLogError> {
        self.faults.check(step).map_err(|reason| DirtyLogError::Unavailable {
            what: "the log of the test",
            remedy: "nothing helps",
            source: std::io::Error::other(reason),
        })
    }
}

impl DirtyLog for FragileLog {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        self.check(Step::LogStart)?;
        self.log.start()
    }

    fn populated(&mut self, block: BlockId) -> Result<Populated, DirtyLogError> {
        self.log.populated(block)
    }

    fn sync_into(&mut self, dirty: &DirtyMap) -> Result<PageCount, DirtyLogError> {
        self.check(Step::LogSync)?;
        self.log.sync_into(dirty)
    }

    fn clear_before_read(&mut self, block: BlockId, run: PageRun) -> Result<(), DirtyLogError> {
        self.check(Step::LogClear)?;
        self.log.clear_before_read(block, run)
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        self.log.stop()
    }
}

/// A host that does not always obey.
struct FragileVm {
    vm: Arc<dyn Vm>,
    faults: Faults,
}

impl Vm for FragileVm {
    fn stop(&self) -> Result<(), VmError> {
        self.faults.check(Step::Stop).map_err(VmError::new)?;
        self.vm.stop()
    }

    fn resume(&self) -> Result<(), VmError> {
        self.faults.check(Step::Resume).map_err(VmError::new)?;
        self.vm.resume()
    }

    fn run_state(&self) -> RunState {
        self.vm.run_state()
    }
}

/// Two guests in which everything can be broken, each with faults of its own.
struct Bench {
    source: Guest,
    destination: Guest,
    here: Faults,
    there: Faults,
}

impl Bench {
    fn new() -> Self {
        let (here, there) = (Faults::default(), Faults::default());
        let faults = here.clone();
        let mut source = Guest::tiny_with_log(|log| Box::new(FragileLog { log, faults }));
        let mut destination = Guest::tiny_incoming();
        for (guest, faults) in [(&mut source, &here), (&mut destination, &there)] {
            let mut savevm = guest.take_savevm();
            savevm.register_live("disk", 0, 1, Priority::Default, Box::new(Disk::new(faults)));
            let fragile = Fragile { value: 7, faults: faults.clone() };
            savevm.register_device("fragile", 0, Priority::Default, Box::new(fragile));
            guest.give_back(savevm);
        }
        Self { source, destination, here, there }
    }

    fn run(&mut self) -> Ended {
        let (here, there) = Link::pair().unwrap();
        let vm = |guest: &Guest, faults: &Faults| -> Arc<dyn Vm> {
            Arc::new(FragileVm { vm: guest.vm(), faults: faults.clone() })
        };
        let observer = || Arc::new(limosa_engine::NoObserver);
        let (savevm, host) = (self.destination.take_savevm(), vm(&self.destination, &self.there));
        let config = limosa_engine::IncomingConfig::default();
        let incoming = limosa_engine::Incoming::over(there, config, savevm, host, observer()).unwrap();
        let (savevm, host) = (self.source.take_savevm(), vm(&self.source, &self.here));
        let config = OutgoingConfig::default();
        let outgoing = limosa_engine::Outgoing::over(here, config, savevm, host, observer()).unwrap();
        super::end(outgoing, incoming, &mut self.source, &mut self.destination)
    }

    fn heal(&mut self) {
        self.here.heal();
        self.there.heal();
        assert_migrates_now(&mut self.source, &mut self.destination);
    }
}

#[track_caller]
fn assert_contains(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

#[test]
fn a_handler_that_cannot_save_ends_the_migration_with_the_guest_here() {
    let mut bench = Bench::new();
    for (step, parts) in [
        (Step::SaveSetup, ["section disk/0 failed in setup", "wants SaveSetup to fail"]),
        (Step::Sync, ["section disk/0 failed in sync", "wants Sync to fail"]),
        (Step::Iterate, ["section disk/0 failed in iterate", "wants Iterate to fail"]),
        (Step::Complete, ["section disk/0 failed in complete", "wants Complete to fail"]),
        (Step::SaveDevice, ["section fragile/0 failed in device state", "wants SaveDevice to fail"]),
        (Step::LogStart, ["section ram/0 failed in setup", "wants LogStart to fail"]),
        (Step::LogSync, ["section ram/0 failed in sync", "wants LogSync to fail"]),
        (Step::LogClear, ["section ram/0 failed in iterate", "wants LogClear to fail"]),
        (Step::Stop, ["stopping the guest failed", "wants Stop to fail"]),
    ] {
        bench.here.set(step);
        let ended = bench.run();
        assert_contains(ended.source_error(), &parts);
        assert_eq!(ended.outgoing.guest(), GuestFate::OnSource, "{step:?}");
        assert!(!ended.outgoing.outcome.resume_failed);
        assert!(!ended.incoming.is_completed());
        assert_contains(ended.destination_error(), &["at byte", "of the stream"]);
        assert_on_source(&bench.source, &bench.destination, &format!("{step:?}"));
        bench.heal();
    }
}

#[test]
fn a_handler_that_cannot_load_sends_the_guest_back() {
    let mut bench = Bench::new();
    for (step, parts) in [
        (Step::LoadStart, ["section disk/0 at byte", "wants LoadStart to fail"]),
        (Step::LoadPart, ["section disk/0 at byte", "wants LoadPart to fail"]),
        (Step::LoadEnd, ["section disk/0 at byte", "wants LoadEnd to fail"]),
        (Step::LoadDevice, ["section fragile/0 at byte", "wants LoadDevice to fail"]),
        (Step::LoadComplete, ["section disk/0 at byte", "wants LoadComplete to fail"]),
        (Step::LoadCleanup, ["section disk/0 at byte", "wants LoadCleanup to fail"]),
        (Step::Resume, ["the guest could not be started", "wants Resume to fail"]),
    ] {
        bench.there.set(step);
        let ended = bench.run();
        assert_contains(ended.destination_error(), &parts);
        assert_contains(ended.source_error(), &["the destination refused: ", parts[1]]);
        assert_eq!(ended.outgoing.guest(), GuestFate::OnSource, "{step:?}");
        assert_on_source(&bench.source, &bench.destination, &format!("{step:?}"));
        bench.heal();
    }
}

#[test]
fn a_destination_that_cannot_even_begin_says_so() {
    let mut bench = Bench::new();
    bench.there.set(Step::LoadSetup);
    let ended = bench.run();
    assert_contains(ended.destination_error(), &["section disk/0 at byte", "wants LoadSetup to fail"]);
    assert_eq!(ended.outgoing.guest(), GuestFate::OnSource);
    assert_on_source(&bench.source, &bench.destination, "load setup");
    bench.heal();
}

#[test]
fn a_source_that_cannot_resume_its_guest_says_that_too() {
    let mut bench = Bench::new();
    bench.here.set(Step::Complete);
    bench.here.set(Step::Resume);
    let ended = bench.run();
    assert_contains(
        ended.source_error(),
        &["section disk/0 failed in complete", "resuming the guest failed", "wants Resume to fail"],
    );
    assert_eq!(ended.outgoing.guest(), GuestFate::OnSource);
    assert!(ended.outgoing.outcome.resume_failed);
    assert_eq!(bench.source.run_state(), RunState::Paused);
    assert_eq!(bench.destination.run_state(), RunState::InMigrate);
    bench.source.put_into(RunState::Running);
    bench.heal();
}

#[test]
fn a_cleanup_that_fails_after_a_failure_is_told_beside_it() {
    let mut bench = Bench::new();
    bench.here.set(Step::Iterate);
    bench.here.set(Step::SaveCleanup);
    let ended = bench.run();
    assert_contains(
        ended.source_error(),
        &["section disk/0 failed in iterate", "section disk/0 failed in cleanup"],
    );
    assert_on_source(&bench.source, &bench.destination, "cleanup");
    bench.heal();
}

#[test]
fn a_cleanup_that_fails_does_not_undo_a_migration() {
    let mut bench = Bench::new();
    bench.here.set(Step::SaveCleanup);
    let ended = bench.run();
    assert_completed(&ended.outgoing, &ended.incoming);
    assert_eq!(bench.destination.run_state(), RunState::Running);
}

#[test]
fn a_guest_without_a_dirty_log_is_not_sent() {
    let mut source = Guest::tiny();
    let mut savevm = limosa_engine::SaveVm::new(super::guest::configuration());
    savevm.register_ram(limosa_engine::RamHandler::new(source.ram.clone(), None));
    let own_list = source.take_savevm();
    source.give_back(savevm);
    let mut destination = Guest::tiny_incoming();
    let links = Link::pair().unwrap();
    let ended = migrate_over(links, &mut source, &mut destination, OutgoingConfig::default());
    assert_contains(ended.source_error(), &["section ram/0 failed in setup", "no dirty log"]);
    assert_on_source(&source, &destination, "no dirty log");
    source.give_back(own_list);
    assert_migrates_now(&mut source, &mut destination);
}

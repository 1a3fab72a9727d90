//! A guest's memory and devices, carried to another machine by hand, go on there as if nothing had happened.

mod ring;

use limosa_pages::{BlockId, DirtyMap, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_ram::dirty_log::PagemapDirtyLog;
use limosa_vmm::{Content, Dirtier, GuestConfig, GuestKind, Machine, Prefill, Program, Rate};
use limosa_vmstate::{LoadProblem, SliceInput};
use ring::{WORKING_SET, busy, for_each_kind, incoming, kvm, leave_out, let_work, machine, pause_and_verify};

#[test]
fn a_loaded_guest_continues_without_a_step_back() {
    for_each_kind("save and load", |kind| {
        for vcpus in [1, 3] {
            let mut here = machine(kind, vcpus, Dirtier { content: Content::Mixed, ..busy() });
            for _ in 0..5 {
                here.resume().expect("it runs");
                let_work(&here, WORKING_SET.0 / 2);
                here.pause();
                let there = incoming(kind, vcpus);
                copy_memory(&here, &there, |_| true);
                carry_devices(&here, &there);
                assert_eq!(there.progress(), here.progress());
                assert_eq!(there.workload(), here.workload());
                assert_eq!(there.rate(), Rate::Unlimited);
                pause_and_verify(&there);
                here = there;
            }
            here.resume().expect("it runs");
            let_work(&here, WORKING_SET.0);
            pause_and_verify(&here);
        }
    });
}

#[test]
fn copying_what_the_log_reports_makes_memories_identical() {
    for_each_kind("dirty log", |kind| {
        if kind == GuestKind::Process
            && let Err(reason) = PagemapDirtyLog::detect()
        {
            return leave_out("dirty log of the process guest", &reason);
        }
        let prefill = Prefill::Write(Content::Random);
        let here = machine(kind, 2, Dirtier { content: Content::Mixed, prefill, ..busy() });
        let there = incoming(kind, 2);
        here.resume().expect("it runs");
        let mut log = here.dirty_log().expect("there is a log");
        let dirty = DirtyMap::clean(here.ram().layout());
        log.start().expect("it starts");
        dirty.owe_all();
        for _ in 0..10 {
            copy_owed(&here, &there, &dirty, &mut *log);
            let_work(&here, 50);
            log.sync_into(&dirty).expect("it answers");
        }
        here.pause();
        log.sync_into(&dirty).expect("it answers");
        assert!(dirty.count() < here.ram().block(BlockId(0)).pages(), "the log tells pages apart");
        copy_owed(&here, &there, &dirty, &mut *log);
        log.stop().expect("it stops");
        assert_eq!(first_difference(&here, &there), None);
        carry_devices(&here, &there);
        there.resume().expect("it runs");
        let_work(&there, WORKING_SET.0);
        pause_and_verify(&there);
    });
}

#[test]
fn a_page_that_was_not_copied_is_found_after_the_move() {
    for_each_kind("forgotten page", |kind| {
        let here = machine(kind, 1, busy());
        here.resume().expect("it runs");
        let_work(&here, 2 * WORKING_SET.0);
        here.pause();
        let there = incoming(kind, 1);
        // Page 300 is in the working set; whether the worker is in the middle of it is decided by chance.
        let forgotten = if here.progress()[0].in_flight == Some(PageIndex(300)) { 301 } else { 300 };
        copy_memory(&here, &there, |page| page.0 != forgotten);
        carry_devices(&here, &there);
        let report = there.verify().expect("it is the built-in guest");
        assert_eq!(report.pages_bad, PageCount(1));
        assert_eq!(report.examples[0].page, PageIndex(forgotten));
    });
}

#[test]
fn a_machine_of_another_shape_refuses_the_guest() {
    for_each_kind("other shape", |kind| {
        let here = machine(kind, 1, busy());
        let smaller = GuestConfig {
            kind,
            memory: limosa_pages::ByteCount(4 << 20),
            program: Program::Incoming,
            ..GuestConfig::default()
        };
        let there = Machine::new(&smaller).expect("the machine can be made");
        let saved = here.devices()[0].device.save().expect("it saves");
        let refusal = there.devices()[0].device.load(1, &mut SliceInput::new(&saved.body));
        let error = refusal.expect_err("the memories differ");
        assert!(matches!(error.problem, LoadProblem::NotEqual { .. }), "{error}");
        assert!(error.to_string().contains("memory_pages"), "{error}");
    });
}

#[test]
fn a_process_guest_does_not_load_into_vcpus() {
    if !kvm("executors") {
        return;
    }
    let here = machine(GuestKind::Process, 1, busy());
    let there = incoming(GuestKind::Kvm, 1);
    let saved = here.devices()[0].device.save().expect("it saves");
    let refusal = there.devices()[0].device.load(1, &mut SliceInput::new(&saved.body));
    assert!(refusal.expect_err("the executors differ").to_string().contains("executor"));
}

#[test]
fn a_configuration_that_means_nothing_is_refused_byte_by_byte() {
    let here = machine(GuestKind::Process, 1, busy());
    let body = here.devices()[0].device.save().expect("it saves").body;
    // 1 executor + 8 memory + 4 vCPUs, then program; 8 seed, then content; prefill; 8 working set, then writing.
    for place in [13, 22, 23, 32] {
        let there = incoming(GuestKind::Process, 1);
        let mut broken = body.clone();
        broken[place] = 0x7f;
        let refusal = there.devices()[0].device.load(1, &mut SliceInput::new(&broken));
        assert!(matches!(refusal.expect_err("no such code").problem, LoadProblem::Refused(_)), "{place}");
        assert_eq!(there.workload(), None);
    }
}

#[test]
fn a_configuration_that_breaks_off_anywhere_leaves_a_machine_that_can_be_asked() {
    let here = machine(GuestKind::Process, 1, busy());
    let mut body = here.devices()[0].device.save().expect("it saves").body;
    // A content that does not exist: only a whole load would refuse it.
    body[22] = 0x7f;
    for length in 0..body.len() {
        let there = incoming(GuestKind::Process, 1);
        let broken = there.devices()[0].device.load(1, &mut SliceInput::new(&body[..length]));
        assert!(matches!(broken.expect_err("it breaks off").problem, LoadProblem::Input(_)), "{length}");
        assert_eq!(there.workload(), None, "{length}");
        assert_eq!(there.progress(), [], "{length}");
    }
}

#[test]
fn a_running_vcpu_refuses_to_be_saved() {
    if !kvm("save while running") {
        return;
    }
    let here = machine(GuestKind::Kvm, 1, busy());
    here.resume().expect("it runs");
    let_work(&here, 1);
    let mut devices = here.devices();
    let vcpu = devices.iter_mut().find(|entry| entry.idstr == "cpu").expect("there is a vCPU");
    let error = vcpu.device.save().expect_err("it is running");
    assert!(error.to_string().contains("running"), "{error}");
}

fn copy_memory(from: &Machine, to: &Machine, wanted: impl Fn(PageIndex) -> bool) {
    let mut bytes = [0; PAGE_BYTES];
    for page in from.ram().block(BlockId(0)).whole().pages().filter(|page| wanted(*page)) {
        from.ram().block(BlockId(0)).copy_out(page.byte_offset(), &mut bytes);
        to.ram().block(BlockId(0)).copy_in(page.byte_offset(), &bytes);
    }
}

/// What a migration does in a round: claim, clear, read, send.
fn copy_owed(from: &Machine, to: &Machine, dirty: &DirtyMap, log: &mut dyn limosa_ram::DirtyLog) {
    let mut next = PageIndex(0);
    while let Some(run) = dirty.block(BlockId(0)).claim_next(next, PageCount(64)) {
        log.clear_before_read(BlockId(0), run).expect("it clears");
        copy_memory(from, to, |page| run.contains(page));
        next = run.end();
    }
}

fn first_difference(one: &Machine, other: &Machine) -> Option<PageIndex> {
    let read = |machine: &Machine, page: PageIndex| {
        let mut bytes = [0; PAGE_BYTES];
        machine.ram().block(BlockId(0)).copy_out(page.byte_offset(), &mut bytes);
        bytes
    };
    let whole: PageRun = one.ram().block(BlockId(0)).whole();
    whole.pages().find(|page| read(one, *page) != read(other, *page))
}

fn carry_devices(from: &Machine, to: &Machine) {
    for (mut source, mut target) in from.devices().into_iter().zip(to.devices()) {
        assert_eq!((source.idstr, source.instance), (target.idstr, target.instance));
        let saved = source.device.save().expect("it saves");
        let mut input = SliceInput::new(&saved.body);
        target.device.load(source.device.version(), &mut input).expect("it loads");
        assert_eq!(input.rest(), b"", "{} takes its whole body", source.idstr);
    }
}

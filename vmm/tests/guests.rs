//! Both kinds of guest run, stop, and have the memory that they must have.

mod ring;

use limosa_pages::{BlockId, ByteCount, PAGE_BYTES, PageCount, PageIndex};
use limosa_vmm::{
    BadPage, Content, Contradiction, Dirtier, GuestConfig, GuestKind, Machine, PageFault, Prefill, Program,
    Rate, RunState, VmmError, Writing, write_memory_file,
};
use ring::{
    WORKING_SET, busy, for_each_kind, let_work, machine, pause_and_verify, total_steps, within_patience,
};
use std::time::Instant;

/// First page above the first MiB, and first of the working set.
const FIRST_CONTENT_PAGE: u64 = 256;

#[test]
fn a_busy_guest_of_any_content_verifies_after_several_rounds() {
    for_each_kind("busy guest", |kind| {
        for content in Content::ALL {
            for writing in [Writing::Full, Writing::Light] {
                let machine = machine(kind, 1, Dirtier { content, writing, ..busy() });
                machine.resume().expect("it runs");
                let_work(&machine, 3 * WORKING_SET.0);
                pause_and_verify(&machine);
            }
        }
    });
}

#[test]
fn three_workers_share_the_working_set() {
    for_each_kind("three workers", |kind| {
        let machine = machine(kind, 3, Dirtier { content: Content::Mixed, ..busy() });
        machine.resume().expect("it runs");
        let_work(&machine, WORKING_SET.0);
        pause_and_verify(&machine);
        assert_eq!(machine.progress().len(), 3);
    });
}

#[test]
fn a_new_machine_is_paused_and_verifies_whatever_it_was_prefilled_with() {
    for_each_kind("prefill", |kind| {
        for prefill in Content::ALL.map(Prefill::Write).into_iter().chain([Prefill::Untouched]) {
            let machine = machine(kind, 2, Dirtier { prefill, ..Dirtier::default() });
            pause_and_verify(&machine);
            assert_eq!(total_steps(&machine), 0);
        }
    });
}

#[test]
fn prefilled_pages_outside_the_working_set_stay_as_they_were() {
    for_each_kind("prefill and work", |kind| {
        let prefill = Prefill::Write(Content::Random);
        let machine = machine(kind, 1, Dirtier { prefill, content: Content::Text, ..busy() });
        machine.resume().expect("it runs");
        let_work(&machine, WORKING_SET.0 / 2);
        pause_and_verify(&machine);
    });
}

#[test]
fn a_running_guest_verifies_but_for_what_it_writes_meanwhile() {
    for_each_kind("verify while running", |kind| {
        let machine = machine(kind, 2, Dirtier { rate: Rate::PagesPerSecond(2000), ..busy() });
        machine.resume().expect("it runs");
        let_work(&machine, 10);
        let report = machine.verify().expect("it is the built-in guest");
        assert!(report.is_clean(), "{report:#?}");
        assert_eq!(machine.run_state(), RunState::Running);
    });
}

#[test]
fn a_limited_guest_never_does_more_than_its_rate_allows() {
    for_each_kind("rate", |kind| {
        const RATE: u64 = 20_000;
        let machine = machine(kind, 2, Dirtier { rate: Rate::PagesPerSecond(RATE), ..busy() });
        let begin = Instant::now();
        machine.resume().expect("it runs");
        // Each of the two workers: 1000 steps, a tenth of a second.
        let_work(&machine, 1000);
        machine.pause();
        // One step for nothing when a worker is resumed.
        let allowed = 2 + RATE as u128 * begin.elapsed().as_nanos() / 1_000_000_000;
        assert!(u128::from(total_steps(&machine)) <= allowed, "{} of {allowed}", total_steps(&machine));
    });
}

#[test]
fn an_idle_guest_does_nothing_until_its_rate_is_raised() {
    for_each_kind("idle", |kind| {
        let machine = machine(kind, 1, Dirtier { rate: Rate::Idle, ..busy() });
        machine.resume().expect("it runs");
        machine.pause();
        assert_eq!(total_steps(&machine), 0);
        machine.resume().expect("it runs");
        machine.set_rate(Rate::Unlimited);
        let_work(&machine, 1);
        pause_and_verify(&machine);
    });
}

#[test]
fn thousands_of_pauses_never_miss_the_guest() {
    for_each_kind("pauses", |kind| {
        for rate in [Rate::Unlimited, Rate::PagesPerSecond(100_000), Rate::Idle] {
            let machine = machine(kind, 2, Dirtier { rate, ..busy() });
            within_patience("1000 pauses take effect", move || {
                for _ in 0..1000 {
                    machine.resume().expect("it runs");
                    machine.pause();
                    assert_eq!(machine.run_state(), RunState::Paused);
                }
                pause_and_verify(&machine);
            });
        }
    });
}

#[test]
fn any_corrupted_byte_is_found_where_it_is() {
    for_each_kind("corruption", |kind| {
        let prefill = Prefill::Write(Content::Mixed);
        let machine = machine(kind, 1, Dirtier { content: Content::Mixed, prefill, ..busy() });
        machine.resume().expect("it runs");
        let_work(&machine, WORKING_SET.0 + 7);
        machine.pause();
        let in_flight = machine.progress()[0].in_flight;
        let block = machine.ram().block(BlockId(0));
        // 2053 is a prime greater than half a page: pages and places in them of every sort.
        let places = (0..block.length().0)
            .step_by(2053 * 13)
            .filter(|place| Some(PageIndex::containing(*place)) != in_flight && !is_live_word(*place));
        for place in places {
            let mut byte = [0];
            block.copy_out(place, &mut byte);
            block.copy_in(place, &[byte[0] ^ 0x10]);
            let report = machine.verify().expect("it is the built-in guest");
            assert_eq!(report.pages_bad, PageCount(1), "byte {place:#x}");
            assert_eq!(report.examples[0].page, PageIndex::containing(place));
            block.copy_in(place, &byte);
        }
        pause_and_verify(&machine);
    });
}

#[test]
fn a_stale_page_is_found_with_both_generations() {
    for_each_kind("stale page", |kind| {
        let machine = machine(kind, 1, busy());
        machine.resume().expect("it runs");
        let_work(&machine, WORKING_SET.0);
        machine.pause();
        let block = machine.ram().block(BlockId(0));
        let page = settled_page(&machine);
        let mut stale = [0; PAGE_BYTES];
        block.copy_out(page.byte_offset(), &mut stale);
        let old = generation(&machine, page);
        machine.resume().expect("it runs");
        let_work(&machine, 3 * WORKING_SET.0);
        pause_and_verify(&machine);
        // A page in flight could not be told from a stale one: let the worker leave it.
        while machine.progress()[0].in_flight == Some(page) {
            machine.resume().expect("it runs");
            machine.pause();
        }
        block.copy_in(page.byte_offset(), &stale);
        let report = machine.verify().expect("it is the built-in guest");
        let fault = PageFault::Generation { expected: generation(&machine, page), got: old };
        assert_eq!(report.examples, [BadPage { page, fault }]);
    });
}

#[test]
fn a_lost_page_and_a_misplaced_page_are_told_apart() {
    let machine =
        machine(GuestKind::Process, 1, Dirtier { prefill: Prefill::Write(Content::Random), ..busy() });
    let block = machine.ram().block(BlockId(0));
    let (lost, misplaced) = (PageIndex(300), PageIndex(301));
    let mut other = [0; PAGE_BYTES];
    block.copy_out(PageIndex(302).byte_offset(), &mut other);
    block.copy_in(lost.byte_offset(), &[0; PAGE_BYTES]);
    block.copy_in(misplaced.byte_offset(), &other);
    let report = machine.verify().expect("it is the built-in guest");
    assert_eq!(
        report.examples,
        [
            BadPage { page: lost, fault: PageFault::Missing { expected: 0 } },
            BadPage { page: misplaced, fault: PageFault::Misplaced { got: PageIndex(302) } },
        ]
    );
}

#[test]
fn a_counter_that_disagrees_with_the_registers_is_a_contradiction() {
    for_each_kind("registers", |kind| {
        let machine = machine(kind, 1, Dirtier { content: Content::Zero, ..busy() });
        machine.resume().expect("it runs");
        let_work(&machine, 10);
        machine.pause();
        let steps = machine.progress()[0].steps;
        // Zero pages cannot tell; only the register can.
        machine.ram().block(BlockId(0)).copy_in(0x8_0000, &(steps + 2).to_le_bytes());
        let report = machine.verify().expect("it is the built-in guest");
        assert!(
            report.contradictions.iter().any(|found| matches!(
                found,
                Contradiction::Steps { worker: 0, control_page, .. } if *control_page == steps + 2
            )),
            "{report:#?}"
        );
    });
}

#[test]
fn a_memory_file_is_the_guest_that_was_written_into_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("memory");
    write_memory_file(&path, ring::MEMORY, Content::Mixed, 9).expect("it is written");
    for_each_kind("memory file", |kind| {
        let dirtier = Dirtier { seed: 9, prefill: Prefill::Present(Content::Mixed), ..Dirtier::default() };
        let machine = Machine::new(&GuestConfig {
            kind,
            memory: ring::MEMORY,
            memory_file: Some(path.clone()),
            program: Program::Dirtier(dirtier),
            ..GuestConfig::default()
        })
        .expect("the machine can be made");
        pause_and_verify(&machine);
    });
}

#[test]
fn impossible_orders_are_refused_with_what_was_possible() {
    let order = |memory, vcpus, working_set| {
        let program = Program::Dirtier(Dirtier { working_set, ..Dirtier::default() });
        let config =
            GuestConfig { kind: GuestKind::Process, memory, vcpus, program, ..GuestConfig::default() };
        Machine::new(&config).err().expect("it is impossible")
    };
    assert!(matches!(order(ByteCount(1 << 20), 1, None), VmmError::Memory { .. }));
    assert!(matches!(order(ByteCount((8 << 20) + 1), 1, None), VmmError::Memory { .. }));
    assert!(matches!(order(ring::MEMORY, 0, None), VmmError::Vcpus { got: 0, .. }));
    assert!(matches!(order(ring::MEMORY, 65, None), VmmError::Vcpus { got: 65, maximum: 64 }));
    assert!(matches!(order(ring::MEMORY, 2, Some(PageCount(1))), VmmError::WorkingSet { .. }));
}

/// Steps and declaration change with every step: the verifier believes them, and checks the pages by them.
fn is_live_word(place: u64) -> bool {
    (0x8_0000..0x8_0010).contains(&place)
}

/// A page of the working set that nobody is writing.
fn settled_page(machine: &Machine) -> PageIndex {
    let in_flight = machine.progress()[0].in_flight;
    (FIRST_CONTENT_PAGE..)
        .map(PageIndex)
        .find(|page| Some(*page) != in_flight)
        .expect("one is in flight at most")
}

fn generation(machine: &Machine, page: PageIndex) -> u64 {
    let walk = machine.workload().expect("it is the built-in guest").walk(0);
    walk.generation_after(page, machine.progress()[0].steps).expect("it is of the working set")
}

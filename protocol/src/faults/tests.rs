#![allow(clippy::disallowed_methods, reason = "a test needs an instant to begin with")]

use super::*;
use limosa_pages::PageCount;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const BLOCK: BlockId = BlockId(3);

fn fault(page: u64, thread: u32, noticed: Instant) -> PageFault {
    PageFault { block: BLOCK, page: PageIndex(page), thread: KernelThread(thread), noticed }
}

fn one(page: u64) -> PageRun {
    PageRun::new(PageIndex(page), PageCount(1))
}

fn asked(table: &mut FaultTable, now: Instant) -> Vec<u64> {
    std::iter::from_fn(|| table.next_request(now)).map(|(_, page)| page.0).collect()
}

#[test]
fn a_page_that_many_threads_miss_is_asked_for_once() {
    let now = Instant::now();
    let mut table = FaultTable::new();
    table.resume();
    (0..50).for_each(|thread| table.fault(fault(7, thread, now)));
    assert_eq!(asked(&mut table, now), [7]);
    table.fault(fault(7, 1, now));
    assert_eq!(asked(&mut table, now), [0; 0], "woken too early, and not answered yet");

    assert_eq!(table.answer(BLOCK, one(7), now).len(), 1);
    table.fault(fault(7, 1, now));
    assert_eq!(asked(&mut table, now), [7], "dropped by the guest and missed again");
}

#[test]
fn faults_without_a_connection_are_asked_when_there_is_one_longest_waiting_first() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let mut table = FaultTable::new();
    table.fault(fault(9, 1, at(0)));
    assert_eq!(asked(&mut table, at(1)), [0; 0], "nobody to ask");
    table.resume();
    table.fault(fault(4, 2, at(2)));
    assert_eq!(asked(&mut table, at(3)), [9, 4]);

    table.pause();
    table.fault(fault(1, 3, at(4)));
    table.answer(BLOCK, one(4), at(5));
    assert_eq!(asked(&mut table, at(6)), [0; 0]);
    table.resume();
    assert_eq!(asked(&mut table, at(7)), [9, 1], "page 4 came before the connection was lost");
    let answered = table.answer(BLOCK, PageRun::new(PageIndex(0), PageCount(10)), at(8));
    assert_eq!(answered.iter().map(|fault| fault.asked).collect::<Vec<_>>(), [Some(at(7)); 2]);
}

#[test]
fn the_guest_is_blocked_overall_only_while_every_vcpu_waits() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let ms = Duration::from_millis;
    let mut table = FaultTable::new();
    table.watch_threads(&[KernelThread(1), KernelThread(2)]);
    table.fault(fault(10, 1, at(0)));
    table.fault(fault(10, 77, at(1))); // A device's thread counts for nobody.
    table.fault(fault(20, 2, at(5)));
    table.answer(BLOCK, one(10), at(8));
    table.answer(BLOCK, one(20), at(20));
    let report = table.blocktime(at(30));
    assert_eq!(report, BlocktimeReport { overall: ms(3), threads: vec![ms(8), ms(15)] });

    // Both wait for one page, one of them after a signal took it out of another wait; the waits last.
    table.fault(fault(30, 1, at(30)));
    table.fault(fault(31, 1, at(32)));
    table.fault(fault(31, 2, at(33)));
    let report = table.blocktime(at(40));
    assert_eq!(report, BlocktimeReport { overall: ms(3 + 7), threads: vec![ms(8 + 10), ms(15 + 7)] });
}

#[test]
fn a_full_table_notes_no_more_pages_and_goes_on_when_one_has_come() {
    let now = Instant::now();
    let mut table = FaultTable::new();
    table.resume();
    let max = WAITING_PAGES_MAX as u64;
    (0..max + 10).for_each(|page| table.fault(fault(page, 1, now)));
    assert_eq!(asked(&mut table, now).len(), WAITING_PAGES_MAX);
    assert_eq!(table.answer(BLOCK, one(max), now), [], "it was not noted");
    table.answer(BLOCK, one(0), now);
    table.fault(fault(max, 1, now));
    assert_eq!(asked(&mut table, now), [max]);
}

#[derive(Clone, Debug)]
enum Step {
    Fault(u64, u32),
    Ask,
    Answer(u64, u64),
    Pause,
    Resume,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..24_u64, 0..4_u32).prop_map(|(page, thread)| Step::Fault(page, thread)),
        3 => Just(Step::Ask),
        3 => (0..24_u64, 1..6_u64).prop_map(|(page, count)| Step::Answer(page, count)),
        1 => Just(Step::Pause),
        1 => Just(Step::Resume),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    /// Against a model of three lines per step: between two losses of the connection no missing page is asked for
    /// twice, and once there is a connection none is left unasked.
    #[test]
    fn every_missing_page_is_asked_for_exactly_once_per_connection(steps in steps()) {
        let start = Instant::now();
        let mut table = FaultTable::new();
        let mut model: BTreeMap<u64, bool> = BTreeMap::new();
        let mut connected = false;
        for (tick, step) in (0..).zip(steps) {
            let now = start + Duration::from_millis(tick);
            match step {
                Step::Fault(page, thread) => {
                    table.fault(fault(page, thread, now));
                    model.entry(page).or_insert(false);
                }
                Step::Ask => {
                    let mut got = asked(&mut table, now);
                    got.sort_unstable();
                    let expected: Vec<u64> = if connected {
                        model.iter().filter(|(_, asked)| !**asked).map(|(page, _)| *page).collect()
                    } else {
                        Vec::new()
                    };
                    prop_assert_eq!(&got, &expected);
                    got.iter().for_each(|page| { model.insert(*page, true); });
                }
                Step::Answer(page, count) => {
                    let run = PageRun::new(PageIndex(page), PageCount(count));
                    let waited = run.pages().filter(|page| model.contains_key(&page.0)).count();
                    prop_assert_eq!(table.waits_for(BLOCK, run), waited > 0);
                    prop_assert_eq!(table.answer(BLOCK, run, now).len(), waited);
                    run.pages().for_each(|page| { model.remove(&page.0); });
                }
                Step::Pause => {
                    table.pause();
                    connected = false;
                    model.values_mut().for_each(|asked| *asked = false);
                }
                Step::Resume => {
                    table.resume();
                    connected = true;
                }
            }
            let waiting: Vec<u64> = table.waiting().map(|(_, page)| page.0).collect();
            prop_assert_eq!(waiting, model.keys().copied().collect::<Vec<_>>());
        }
    }
}

//! Guests on huge pages: what the guest touches comes in pieces of 2 MiB, whole and once.

use super::guest::memory::read_word;
use super::guest::{Guest, HUGE_PAGES, assert_completed};
use super::{Setting, assert_same_but_for_writes, start};
use limosa_engine::Codec;
use limosa_pages::{BlockId, PAGE_BYTES};
use parking_lot::Mutex;

const SETTINGS: [(bool, u8, Codec); 4] =
    [(false, 0, Codec::None), (true, 0, Codec::None), (false, 2, Codec::None), (true, 3, Codec::Lz4)];

/// Huge pages are few: one pair of guests at a time.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn huge_pages_follow_whole_on_every_way_and_after_a_recovery() {
    let _turn = TURN.lock();
    for (preempt, channels, codec) in SETTINGS {
        for pauses in [0, 2] {
            let Some((mut source, mut destination)) = Guest::huge_pair(40) else { return };
            source.let_write(1000);
            let setting = Setting { preempt, autostart: true, channels, codec, ..Setting::default() };
            let migration = start(&mut source, &mut destination, setting);
            migration.wait_until(|migration| migration.outgoing.statistics().ram.normal.0 > 100);
            migration.outgoing.start_postcopy().unwrap();
            for _ in 0..pauses {
                migration.wait_both("postcopy-active");
                migration.wait_until(|migration| migration.outgoing.statistics().downtime.is_some());
                migration.outgoing.pause_postcopy().unwrap();
                migration.wait_both("postcopy-paused");
                migration.recover();
            }
            let (outgoing, incoming) = migration.wait(&mut source, &mut destination);
            assert_completed(&outgoing, &incoming);
            assert_eq!(outgoing.statistics.pauses, pauses);
            let sent = source.counter.lock().writes;
            destination.let_write(1000);
            destination.stop();
            assert_same_but_for_writes(&source, &destination, sent);
            let came = incoming.statistics.postcopy.unwrap();
            assert!(came.pages_by_fault.0 >= HUGE_PAGES, "{setting:?}: {came:?}");
            assert_eq!(came.pages_twice.0, 0, "{setting:?}: {came:?}");
        }
    }
}

#[test]
fn a_huge_page_can_be_read_there_before_it_has_come() {
    let _turn = TURN.lock();
    let Some((mut source, mut destination)) = Guest::huge_pair(0) else { return };
    let expected = source.memory();
    let ram = destination.ram.clone();
    let setting = Setting { preempt: true, channels: 2, ..Setting::default() };
    let migration = start(&mut source, &mut destination, setting);
    migration.outgoing.start_postcopy().unwrap();
    migration.wait_until(|migration| migration.there.statuses().contains(&"postcopy-active"));
    for page in (0..4 * HUGE_PAGES).rev() {
        let offset = page * PAGE_BYTES as u64;
        let word = read_word(&ram, BlockId(0), offset).to_le_bytes();
        assert_eq!(word, expected[offset as usize..offset as usize + 8], "page {page}");
    }
    let (outgoing, incoming) = migration.wait(&mut source, &mut destination);
    assert_completed(&outgoing, &incoming);
    assert!(destination.memory() == expected);
}

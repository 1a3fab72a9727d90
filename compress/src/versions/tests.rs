use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

/// Bytes of one set.
const SET: u64 = (WAYS * (PAGE_BYTES + size_of::<Slot>())) as u64;

fn key(page: u64) -> PageKey {
    PageKey { block: BlockId(1), page: PageIndex(page) }
}

fn page(byte: u8) -> Page {
    [byte; PAGE_BYTES]
}

#[test]
fn a_version_is_seen_from_the_next_interval_on() {
    let mut versions = PageVersions::new(ByteCount(SET));
    assert!(versions.keep(key(5), Interval(1), &page(1)));
    assert_eq!(versions.before(key(5), Interval(1)), None);
    assert_eq!(versions.before(key(5), Interval(2)), Some(&page(1)));
    assert!(versions.keep(key(5), Interval(2), &page(2)));
    assert_eq!(versions.before(key(5), Interval(2)), None, "the version of interval 1 is gone");
    assert_eq!(versions.before(key(5), Interval(3)), Some(&page(2)));
    assert_eq!(versions.held(), 1);
}

#[test]
fn a_forgotten_version_is_gone() {
    let mut versions = PageVersions::new(ByteCount(SET));
    assert!(versions.keep(key(5), Interval(1), &page(1)));
    versions.forget(key(5));
    versions.forget(key(6));
    assert_eq!((versions.before(key(5), Interval(2)), versions.held()), (None, 0));
}

#[test]
fn the_same_page_of_another_block_is_another_page() {
    let mut versions = PageVersions::new(ByteCount(SET));
    assert!(versions.keep(key(5), Interval(1), &page(1)));
    let other = PageKey { block: BlockId(2), page: PageIndex(5) };
    assert_eq!(versions.before(other, Interval(2)), None);
}

#[test]
fn a_full_set_keeps_what_was_sent_in_this_interval_or_the_one_before() {
    let mut versions = PageVersions::new(ByteCount(SET));
    for number in 0..WAYS as u64 {
        assert!(versions.keep(key(number), Interval(1), &page(1)));
    }
    assert!(!versions.keep(key(100), Interval(1), &page(2)));
    assert!(!versions.keep(key(100), Interval(2), &page(2)));
    assert!(versions.keep(key(3), Interval(2), &page(3)), "its own place is always there");
    assert!(versions.keep(key(100), Interval(3), &page(2)), "the others are two intervals old");
    assert_eq!(versions.before(key(3), Interval(3)), Some(&page(3)));
    assert_eq!((versions.held(), versions.capacity()), (WAYS, WAYS));
}

#[test]
fn a_budget_below_one_set_keeps_nothing() {
    let mut versions = PageVersions::new(ByteCount(SET - 1));
    assert!(!versions.keep(key(0), Interval(1), &page(1)));
    versions.forget(key(0));
    assert_eq!((versions.before(key(0), Interval(2)), versions.capacity()), (None, 0));
}

#[test]
fn the_budget_bounds_versions_and_their_slots() {
    let versions = PageVersions::new(ByteCount(1 << 20));
    let bytes = versions.slots.len() * size_of::<Slot>() + versions.pages.len();
    assert!(bytes <= 1 << 20 && bytes + SET as usize > 1 << 20, "{bytes} bytes");
}

#[test]
fn most_of_a_working_set_as_large_as_the_cache_finds_room() {
    let mut versions = PageVersions::new(ByteCount(SET * 512));
    let room = versions.capacity() as u64;
    let kept = (0..room).filter(|&number| versions.keep(key(number), Interval(1), &page(1))).count();
    // Keys that fell at random would fill 86 % of sets of eight.
    assert!(kept as u64 > room * 17 / 20, "{kept} of {room}");
}

#[test]
#[should_panic = "counted from 1"]
fn interval_zero_is_a_bug() {
    PageVersions::new(ByteCount(SET)).keep(key(0), Interval(0), &page(0));
}

proptest! {
    #[test]
    fn what_is_found_is_what_was_sent_last(
        steps in prop::collection::vec((0_u64..40, 0_u8..8), 1..200)
    ) {
        let mut versions = PageVersions::new(ByteCount(SET * 3));
        let mut sent: HashMap<u64, (u64, u8)> = HashMap::new();
        for (number, (at, what)) in steps.into_iter().enumerate() {
            let now = Interval(number as u64 / 20 + 1);
            let found = versions.before(key(at), now).map(|page| page[0]);
            if let Some(byte) = found {
                prop_assert_eq!(sent.get(&at).map(|&(_, byte)| byte), Some(byte));
                prop_assert!(sent[&at].0 < now.0);
            }
            if what == 0 {
                versions.forget(key(at));
                sent.remove(&at);
            } else {
                let byte = number as u8;
                if versions.keep(key(at), now, &page(byte)) {
                    sent.insert(at, (now.0, byte));
                } else {
                    sent.remove(&at);
                }
            }
            prop_assert_eq!(versions.held() <= versions.capacity(), true);
            prop_assert!(versions.held() >= sent.len().min(1));
        }
    }
}

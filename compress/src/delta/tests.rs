use super::*;
use proptest::prelude::*;

const EVEN: Page = [7; PAGE_BYTES];

fn record(old: &Page, new: &Page) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    encode(old, new, &mut out).then_some(out)
}

fn refused(bytes: &[u8], records: usize) -> DeltaError {
    DeltaRecords::new(bytes, records).expect_err("these are no records")
}

#[test]
fn one_changed_byte_makes_seventeen_bytes() {
    let mut new = EVEN;
    // Line 1, word 2, byte 3.
    new[64 + 16 + 3] = 0x80;
    let expected = [&[0, 0, 0, 0, 0, 0, 0, 0b10, 0b100][..], &[7, 7, 7, 0x80, 7, 7, 7, 7]].concat();
    assert_eq!(record(&EVEN, &new), Some(expected));
}

#[test]
fn the_same_page_makes_an_empty_record() {
    assert_eq!(record(&EVEN, &EVEN), Some(vec![0; MIN_DELTA_BYTES]));
}

#[test]
fn the_last_word_of_the_last_line_counts() {
    let mut new = EVEN;
    new[PAGE_BYTES - 1] = 0;
    let bytes = record(&EVEN, &new).expect("one word");
    assert_eq!(bytes[..9], [0x80, 0, 0, 0, 0, 0, 0, 0, 0x80]);
    let mut page = EVEN;
    DeltaRecords::new(&bytes, 1).expect("our own").for_each(|record| record.apply(&mut page));
    assert_eq!(page, new);
}

#[test]
fn a_record_of_exactly_the_limit_is_made_and_one_word_more_is_not() {
    // Words alone in their lines take nine bytes, further words of a line eight: 8 + 64 + 8 * 119 = 1024.
    let changed = |words: usize| {
        let mut new = EVEN;
        let lines = (0..64).map(|line| line * 64);
        let second = (0..words - 64).map(|word| word % 64 * 64 + word / 64 * 8 + 8);
        lines.chain(second).for_each(|at| new[at] = 1);
        new
    };
    let bytes = record(&EVEN, &changed(119)).expect("at the limit");
    assert_eq!(bytes.len(), MAX_DELTA_BYTES);
    assert_eq!(DeltaRecords::new(&bytes, 1).expect("our own").count(), 1);
    let mut out = vec![1, 2, 3];
    assert!(!encode(&EVEN, &changed(120), &mut out));
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn a_record_cut_anywhere_is_truncated() {
    let mut new = EVEN;
    new[..100].fill(1);
    let bytes = record(&EVEN, &new).expect("two lines");
    for end in 0..bytes.len() {
        assert!(matches!(refused(&bytes[..end], 1), DeltaError::Truncated { at: 0, .. }), "cut at {end}");
    }
}

#[test]
fn bytes_behind_the_last_record_are_refused() {
    let bytes = [0; MIN_DELTA_BYTES * 2];
    assert_eq!(refused(&bytes, 1), DeltaError::Trailing { records: 1, unread: MIN_DELTA_BYTES });
    assert_eq!(refused(&bytes[..1], 0), DeltaError::Trailing { records: 0, unread: 1 });
}

#[test]
fn a_changed_line_without_a_changed_word_is_refused() {
    let second = [0, 0, 0, 0, 0, 0, 0, 0b1001, 0b1, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let bytes = [&[0; MIN_DELTA_BYTES][..], &second].concat();
    assert_eq!(refused(&bytes, 2), DeltaError::EmptyLine { at: MIN_DELTA_BYTES, line: 3 });
}

#[test]
fn a_record_longer_than_any_is_refused() {
    let bytes = [&[0xff; 8 + LINES][..], &[1; PAGE_BYTES]].concat();
    assert_eq!(refused(&bytes, 1), DeltaError::TooLong { at: 0, got: bytes.len() });
}

proptest! {
    #[test]
    fn whatever_changes_in_a_page_comes_back(
        changes in prop::collection::vec((0..PAGE_BYTES, any::<u8>()), 0..200),
        before in 0_usize..3,
    ) {
        let mut new = EVEN;
        changes.iter().for_each(|&(at, byte)| new[at] = byte);
        let mut bytes = vec![0; before * MIN_DELTA_BYTES];
        let start = bytes.len();
        let words = changes.iter().filter(|(at, _)| new[*at] != 7).map(|(at, _)| at / 8);
        let words: std::collections::BTreeSet<_> = words.collect();
        let lines: std::collections::BTreeSet<_> = words.iter().map(|word| word / 8).collect();
        let length = 8 + lines.len() + 8 * words.len();
        prop_assert_eq!(encode(&EVEN, &new, &mut bytes), length <= MAX_DELTA_BYTES);
        if length <= MAX_DELTA_BYTES {
            prop_assert_eq!(bytes.len() - start, length);
            let mut page = EVEN;
            let records = DeltaRecords::new(&bytes, before + 1);
            records.expect("our own").for_each(|record| record.apply(&mut page));
            prop_assert!(page == new);
        }
    }

    #[test]
    fn no_bytes_panic_and_none_reach_beyond_the_page(
        lines in prop::sample::select(vec![0, 1, 0x8000_0000_0000_0001, u64::MAX]),
        rest in prop::collection::vec(any::<u8>(), 0..1500),
        records in 0_usize..4,
    ) {
        let bytes = [&lines.to_be_bytes()[..], &rest].concat();
        if let Ok(found) = DeltaRecords::new(&bytes, records) {
            prop_assert_eq!(found.clone().count(), records);
            found.for_each(|record| record.apply(&mut EVEN.clone()));
        }
    }
}

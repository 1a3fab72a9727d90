use super::*;
use proptest::prelude::*;

fn encoded(old: &Page, new: &Page) -> (Encoded, Vec<u8>) {
    let mut out = vec![0xee];
    let result = encode(old, new, &mut out);
    assert_eq!(out.remove(0), 0xee, "what was in the output before must stay");
    (result, out)
}

fn page(changes: &[(usize, &[u8])]) -> Page {
    let mut page = [0; PAGE_BYTES];
    for (start, bytes) in changes {
        page[*start..start + bytes.len()].copy_from_slice(bytes);
    }
    page
}

/// The format byte by byte, without a limit: nothing shared with the encoder under test.
fn reference(old: &Page, new: &Page) -> Vec<u8> {
    fn length(length: usize, out: &mut Vec<u8>) {
        match length {
            0..=127 => out.push(length as u8),
            _ => out.extend([(length & 0x7f) as u8 | 0x80, (length >> 7) as u8]),
        }
    }
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(start) = (at..PAGE_BYTES).find(|&i| old[i] != new[i]) {
        let end = (start..PAGE_BYTES).find(|&i| old[i] == new[i]).unwrap_or(PAGE_BYTES);
        length(start - at, &mut out);
        length(end - start, &mut out);
        out.extend(&new[start..end]);
        at = end;
    }
    out
}

#[test]
fn a_first_byte_that_changed_is_the_recorded_encoding() {
    assert_eq!(encoded(&page(&[]), &page(&[(0, &[0x80])])), (Encoded::Delta(3), vec![0x00, 0x01, 0x80]));
}

#[test]
fn a_last_byte_that_changed_has_a_two_byte_run_before_it() {
    // 4095 = 0x1f * 128 + 0x7f.
    let expected = vec![0xff, 0x1f, 0x01, 0x42];
    assert_eq!(encoded(&page(&[]), &page(&[(4095, &[0x42])])), (Encoded::Delta(4), expected));
}

#[test]
fn runs_alternate_and_trailing_equal_bytes_are_left_out() {
    let new = page(&[(2, &[1, 2, 3]), (133, &[4])]);
    let expected = vec![2, 3, 1, 2, 3, 0x80, 0x01, 1, 4];
    assert_eq!(encoded(&page(&[]), &new), (Encoded::Delta(9), expected));
}

#[test]
fn identical_pages_need_nothing() {
    let same = page(&[(7, b"same")]);
    assert_eq!(encoded(&same, &same), (Encoded::Same, vec![]));
}

#[test]
fn an_encoding_one_byte_short_of_the_page_is_made_and_one_as_long_is_not() {
    // 00, two length bytes and the new bytes.
    let changed = [0xaa; PAGE_BYTES];
    assert_eq!(encoded(&page(&[]), &page(&[(0, &changed[..4092])])).0, Encoded::Delta(ENCODED_BYTES_MAX));
    assert_eq!(encoded(&page(&[]), &page(&[(0, &changed[..4093])])), (Encoded::Overflow, vec![]));
    assert_eq!(encoded(&page(&[]), &changed), (Encoded::Overflow, vec![]));
}

#[test]
fn an_encoding_as_long_as_the_page_is_still_accepted() {
    let mut delta = vec![0, 0xfd, 0x1f];
    delta.extend([9; 4093]);
    let mut got = page(&[]);
    assert_eq!(decode(&delta, &mut got), Ok(()));
    assert_eq!(got, page(&[(0, &[9; 4093])]));
}

#[test]
fn bytes_that_are_no_encoding_are_refused_and_leave_the_page_alone() {
    let long = vec![0; ACCEPTED_BYTES_MAX + 1];
    let cases: [(&[u8], XbzrleError); 12] = [
        (&[], XbzrleError::Truncated { at: 0, missing: 3 }),
        (&long, XbzrleError::TooLong { got: 4097 }),
        (&[0], XbzrleError::Truncated { at: 1, missing: 1 }),
        (&[0x80], XbzrleError::Truncated { at: 1, missing: 1 }),
        (&[5], XbzrleError::Truncated { at: 1, missing: 1 }),
        (&[0, 4, 1, 2], XbzrleError::Truncated { at: 4, missing: 2 }),
        (&[0x80, 0x80, 1], XbzrleError::LongLength { at: 0 }),
        (&[0, 0], XbzrleError::EmptyRun { at: 1 }),
        (&[0, 1, 9, 0, 1, 9], XbzrleError::EmptyRun { at: 3 }),
        (&[0, 1, 9, 0x81, 0x20, 1, 9], XbzrleError::BeyondPage { at: 3, end: 4098 }),
        (&[0xff, 0x1f, 2, 9, 9], XbzrleError::BeyondPage { at: 2, end: 4097 }),
        (&[0xff, 0x7f, 1, 9], XbzrleError::BeyondPage { at: 0, end: 0x3fff }),
    ];
    for (delta, expected) in cases {
        let before = page(&[(0, b"before")]);
        let mut after = before;
        assert_eq!(decode(delta, &mut after), Err(expected), "{delta:x?}");
        assert!(after == before, "{delta:x?} changed the page");
    }
}

fn any_page() -> impl Strategy<Value = Page> {
    prop::collection::vec(any::<u8>(), PAGE_BYTES).prop_map(|bytes| bytes.try_into().unwrap())
}

/// A page and what a guest made of it: a few stores of a few bytes, some of them without an effect.
fn page_and_change() -> impl Strategy<Value = (Page, Page)> {
    let store = (0..PAGE_BYTES, prop::collection::vec(0..4_u8, 0..40));
    (any_page(), prop::collection::vec(store, 0..40)).prop_map(|(mut old, stores)| {
        for byte in &mut old {
            *byte %= 4;
        }
        let mut new = old;
        for (start, bytes) in stores {
            for (to, from) in new[start..].iter_mut().zip(bytes) {
                *to = from;
            }
        }
        (old, new)
    })
}

proptest! {
    #[test]
    fn what_was_encoded_decodes_to_the_new_page((old, new) in page_and_change()) {
        let (result, delta) = encoded(&old, &new);
        let expected = reference(&old, &new);
        match result {
            Encoded::Same => prop_assert!(old == new),
            Encoded::Overflow => prop_assert!(expected.len() > ENCODED_BYTES_MAX),
            Encoded::Delta(bytes) => {
                prop_assert_eq!(bytes, delta.len());
                prop_assert_eq!(&delta, &expected);
                let mut page = old;
                prop_assert_eq!(decode(&delta, &mut page), Ok(()));
                prop_assert!(page == new);
            }
        }
    }

    #[test]
    fn unrelated_pages_are_sent_raw((old, new) in (any_page(), any_page())) {
        prop_assert_eq!(encoded(&old, &new), (Encoded::Overflow, vec![]));
    }

    #[test]
    fn any_bytes_are_decoded_or_refused_without_a_change(delta in prop::collection::vec(any::<u8>(), 0..64)) {
        let before = page(&[]);
        let mut after = before;
        if decode(&delta, &mut after).is_err() {
            prop_assert!(after == before);
        }
    }

    #[test]
    fn a_damaged_encoding_is_decoded_or_refused_without_a_change(
        (old, new) in page_and_change(),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let (result, mut delta) = encoded(&old, &new);
        prop_assume!(matches!(result, Encoded::Delta(_)));
        let at = at.index(delta.len());
        delta[at] = value;
        delta.truncate(cut.index(delta.len()) + 1);
        let mut page = old;
        if decode(&delta, &mut page).is_err() {
            prop_assert!(page == old);
        }
    }
}

//! The device tail of a stream: no description or section panics, and a division leaves out no byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use limosa_wire::devices::{DeviceSection, VmDescription, find_end, split_by_footers, split_by_sizes};
use limosa_wire::encode;

fuzz_target!(|input: (&[u8], &[u8])| {
    let (tail, json) = input;
    if let Some(end) = find_end(tail) {
        let _ = VmDescription::parse(&tail[end.description..]);
    }
    if let Ok(description) = VmDescription::parse(json)
        && let Ok(sections) = split_by_sizes(tail, &description)
    {
        assert_in_order(tail, &sections);
    }
    if let Ok(sections) = split_by_footers(tail) {
        assert_in_order(tail, &sections);
    }
});

/// Every section with its header and footer is found in `tail`, one behind the other.
fn assert_in_order(tail: &[u8], sections: &[DeviceSection<'_>]) {
    let mut at = 0;
    for section in sections {
        let mut bytes = Vec::new();
        encode::section_start(&section.header, &mut bytes);
        bytes.extend_from_slice(section.body);
        encode::footer(section.header.id, &mut bytes);
        let start =
            section.body.as_ptr() as usize - tail.as_ptr() as usize - (bytes.len() - section.body.len() - 5);
        assert!(start >= at);
        assert_eq!(tail[start..start + bytes.len()], bytes);
        at = start + bytes.len();
    }
}

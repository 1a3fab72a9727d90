//! What may follow a struct's fields.

use crate::{complaint, hex, load};
use limosa_vmstate::{Device, Input, SliceInput, VmState, body_length};
use serde_json::json;

#[derive(Default, Debug, PartialEq, VmState)]
#[vmstate(name = "uart", pre_load = Self::reset_fifo)]
struct Uart {
    divider: u16,
    #[vmstate(subsection(needed = Self::has_fifo))]
    fifo: UartFifo,
    core: UartCore,
    #[vmstate(subsection)]
    timeout: Option<UartTimeout>,
    end: u8,
}

#[derive(Default, Debug, PartialEq, VmState)]
#[vmstate(name = "uart/fifo", version = 2, minimum_version = 1)]
struct UartFifo {
    control: u8,
    #[vmstate(since = 2)]
    level: u8,
}

#[derive(Default, Debug, PartialEq, VmState)]
#[vmstate(name = "uart/timeout")]
struct UartTimeout {
    #[vmstate(timer)]
    expiry: u64,
    #[vmstate(subsection)]
    reason: Option<UartTimeoutReason>,
}

#[derive(Default, Debug, PartialEq, VmState)]
#[vmstate(name = "uart/timeout/reason")]
struct UartTimeoutReason {
    code: u8,
}

/// A nested struct with a subsection of its own.
#[derive(Default, Debug, PartialEq, VmState)]
#[vmstate(name = "core")]
struct UartCore {
    mode: u8,
    #[vmstate(subsection)]
    extra: Option<UartCoreExtra>,
}

#[derive(Default, Debug, PartialEq, VmState)]
#[vmstate(name = "core/extra")]
struct UartCoreExtra {
    value: u8,
}

impl Uart {
    fn has_fifo(&self) -> bool {
        self.fifo.control != 0
    }

    fn reset_fifo(&mut self) {
        self.fifo = UartFifo::default();
    }
}

const FIFO: &str = "05 09 756172742f6669666f 00000002 07 08";
const EXTRA: &str = "05 0a 636f72652f6578747261 00000001 2a";
const REASON: &str = "05 13 756172742f74696d656f75742f726561736f6e 00000001 2b";
const TIMEOUT: &str = "05 0c 756172742f74696d656f7574 00000001 0000000000000009";

fn full() -> Uart {
    Uart {
        divider: 1,
        fifo: UartFifo { control: 7, level: 8 },
        core: UartCore { mode: 2, extra: Some(UartCoreExtra { value: 42 }) },
        timeout: Some(UartTimeout { expiry: 9, reason: Some(UartTimeoutReason { code: 43 }) }),
        end: 3,
    }
}

fn body(parts: &[&str]) -> Vec<u8> {
    hex(&parts.concat())
}

#[test]
fn subsections_follow_the_fields_of_the_struct_they_belong_to() {
    let expected = body(&["0001 02", EXTRA, "03", FIFO, TIMEOUT, REASON]);
    assert_eq!(full().save().unwrap().body, expected);
    let mut loaded = Uart::default();
    load(&mut loaded, &expected).unwrap();
    assert_eq!(loaded, full());
}

#[test]
fn subsections_that_are_not_needed_are_neither_sent_nor_described() {
    let saved = Uart { divider: 1, end: 3, ..Uart::default() }.save().unwrap();
    assert_eq!(saved.body, hex("0001 00 03"));
    assert!(!saved.description.contains_key("subsections"));
}

#[test]
fn subsections_are_described_with_their_names_and_versions() {
    let saved = full().save().unwrap();
    let expected = json!([
        {"vmsd_name": "uart/fifo", "version": 2, "fields": [
            {"name": "control", "type": "uint8", "size": 1},
            {"name": "level", "type": "uint8", "size": 1},
        ]},
        {"vmsd_name": "uart/timeout", "version": 1, "fields": [{"name": "expiry", "type": "timer", "size": 8}],
         "subsections": [
            {"vmsd_name": "uart/timeout/reason", "version": 1, "fields": [
                {"name": "code", "type": "uint8", "size": 1},
            ]},
        ]},
    ]);
    assert_eq!(saved.description["subsections"], expected);
    // The nested struct's subsection counts as part of its field: 1 + 1 + 1 + 10 + 4 + 1.
    assert_eq!(saved.description["fields"][1]["size"], 18);
    assert_eq!(body_length(&saved.description).unwrap(), saved.body.len() as u64);
}

#[test]
fn subsections_may_come_in_any_order() {
    let mut loaded = Uart::default();
    load(&mut loaded, &body(&["0001 02", EXTRA, "03", TIMEOUT, REASON, FIFO])).unwrap();
    assert_eq!(loaded, full());
}

#[test]
fn an_absent_subsection_leaves_the_pre_load_value_and_empties_an_option() {
    let mut device = full();
    load(&mut device, &hex("0001 02 03")).unwrap();
    let core = UartCore { mode: 2, extra: None };
    assert_eq!(device, Uart { divider: 1, core, end: 3, ..Uart::default() });
}

#[test]
fn a_subsection_of_an_older_version_lacks_the_newer_fields() {
    let mut loaded = Uart::default();
    load(&mut loaded, &hex("0001 02 03 05 09 756172742f6669666f 00000001 07")).unwrap();
    assert_eq!(loaded.fifo, UartFifo { control: 7, level: 0 });
}

#[test]
fn a_subsection_of_an_unknown_version_is_refused() {
    let got = complaint(&mut Uart::default(), &hex("0001 02 03 05 09 756172742f6669666f 00000003 07 08"));
    assert_eq!(got, "uart.fifo, at offset 19: version 3 is not one of 1 to 2");
}

#[test]
fn an_unknown_subsection_of_this_device_is_refused() {
    // "uart/x" of the device, and "core!" of the struct in it: whatever begins with the name belongs.
    let got = complaint(&mut Uart::default(), &hex("0001 02 03 05 06 756172742f78 00000001"));
    assert_eq!(got, "uart, at offset 4: unknown subsection \"uart/x\"");
    let got = complaint(&mut Uart::default(), &hex("0001 02 05 05 636f726521 00000001 03"));
    assert_eq!(got, "uart.core, at offset 3: unknown subsection \"core!\"");
}

#[test]
fn a_repeated_subsection_is_refused() {
    let got = complaint(&mut Uart::default(), &body(&["0001 02 03", FIFO, FIFO]));
    assert_eq!(got, "uart.fifo, at offset 21: subsection \"uart/fifo\" comes twice");
}

#[test]
fn what_only_looks_like_a_subsection_is_left_for_others() {
    // A name that is no longer than the device's, another device's, one cut off, and a tag alone.
    for tail in ["05 04 75617274 00000001", "05 06 7561727a2f78", "05 09 7561", "05", "7e 00000005"] {
        let bytes = body(&["0001 02 03", tail]);
        let mut input = SliceInput::new(&bytes);
        Uart::default().load(1, &mut input).unwrap();
        assert_eq!(input.rest(), hex(tail), "{tail}");
        assert_eq!(input.offset(), 4);
    }
}

#[test]
fn an_error_in_a_subsection_names_the_field_it_is_in() {
    let got = complaint(
        &mut Uart::default(),
        &body(&["0001 02 03", TIMEOUT, "05 13 756172742f74696d656f75742f726561736f6e 00000001"]),
    );
    assert_eq!(got, "uart.timeout.reason.code, at offset 55: the stream ends here; bytes missing: 1");
}

//! Each kind of field that is one value.

use crate::{complaint, described_fields, hex, load};
use limosa_vmstate::{Device, Unused, VmState};
use serde_json::json;

#[derive(Default, Debug, PartialEq, VmState)]
#[vmstate(name = "scalars")]
struct Scalars {
    flag: bool,
    a: u8,
    b: u16,
    c: u32,
    d: u64,
    e: i8,
    f: i16,
    g: i32,
    h: i64,
    r#type: u8,
}

const SCALARS: &str = "01 02 0304 05060708 090a0b0c0d0e0f10 ff fffe fffffffd fffffffffffffffc 2a";

fn scalars() -> Scalars {
    Scalars {
        flag: true,
        a: 2,
        b: 0x0304,
        c: 0x0506_0708,
        d: 0x090a_0b0c_0d0e_0f10,
        e: -1,
        f: -2,
        g: -3,
        h: -4,
        r#type: 42,
    }
}

#[test]
fn scalars_are_big_endian_and_of_their_natural_width() {
    assert_eq!(scalars().save().unwrap().body, hex(SCALARS));
    let mut loaded = Scalars::default();
    load(&mut loaded, &hex(SCALARS)).unwrap();
    assert_eq!(loaded, scalars());
}

#[test]
fn scalars_are_described_by_name_type_and_size() {
    let field =
        |name: &str, type_name: &str, size: u64| json!({"name": name, "type": type_name, "size": size});
    let expected = json!([
        field("flag", "bool", 1),
        field("a", "uint8", 1),
        field("b", "uint16", 2),
        field("c", "uint32", 4),
        field("d", "uint64", 8),
        field("e", "int8", 1),
        field("f", "int16", 2),
        field("g", "int32", 4),
        field("h", "int64", 8),
        field("type", "uint8", 1),
    ]);
    assert_eq!(described_fields(&mut scalars()), expected);
}

#[test]
fn a_bool_of_two_is_refused() {
    let mut body = hex(SCALARS);
    body[0] = 2;
    assert_eq!(
        complaint(&mut Scalars::default(), &body),
        "scalars.flag, at offset 0: a bool has the value 2; expected 0 or 1"
    );
}

#[test]
fn a_body_that_ends_early_names_the_field_and_where_it_begins() {
    let body = hex(SCALARS);
    assert_eq!(
        complaint(&mut Scalars::default(), &body[..10]),
        "scalars.d, at offset 8: the stream ends here; bytes missing: 6"
    );
}

#[derive(VmState)]
#[vmstate(name = "special")]
struct Special {
    #[vmstate(timer)]
    expiry: u64,
    #[vmstate(equal)]
    slots: u32,
    #[vmstate(equal)]
    wide: u64,
    #[vmstate(buffer)]
    data: [u8; 3],
    #[vmstate(bitmap)]
    seen: [u64; 2],
    padding: Unused<2>,
    renamed: RenamedPart,
    #[vmstate(name = "padding")]
    more: Unused<9>,
}

#[derive(VmState)]
#[vmstate(name = "renamed")]
struct RenamedPart {
    #[vmstate(name = "queue.count")]
    count: u8,
}

const SPECIAL: &str = "ffffffffffffffff 00000004 0000000000000005 616263 \
                       0000000000000001 8000000000000000 0000 07 000000000000000000";

fn special() -> Special {
    Special {
        expiry: u64::MAX,
        slots: 4,
        wide: 5,
        data: *b"abc",
        seen: [1, 1 << 63],
        padding: Unused,
        renamed: RenamedPart { count: 7 },
        more: Unused,
    }
}

#[test]
fn special_encodings_have_their_bytes() {
    assert_eq!(special().save().unwrap().body, hex(SPECIAL));
    let mut loaded = Special { expiry: 0, data: [0; 3], seen: [0; 2], ..special() };
    load(&mut loaded, &hex(SPECIAL)).unwrap();
    assert_eq!((loaded.expiry, loaded.data, loaded.seen), (u64::MAX, *b"abc", [1, 1 << 63]));
    assert_eq!(loaded.renamed.count, 7);
}

#[test]
fn special_encodings_have_qemus_type_names() {
    let expected = json!([
        {"name": "expiry", "type": "timer", "size": 8},
        {"name": "slots", "type": "uint32 equal", "size": 4},
        {"name": "wide", "type": "int64 equal", "size": 8},
        {"name": "data", "type": "buffer", "size": 3},
        {"name": "seen", "type": "bitmap", "size": 16},
        {"name": "unused", "type": "unused_buffer", "size": 2},
        {"name": "renamed", "type": "struct", "struct": {
            "vmsd_name": "renamed", "version": 1, "fields": [{"name": "queue.count", "type": "uint8", "size": 1}]
        }, "size": 1},
        {"name": "padding", "type": "unused_buffer", "size": 9},
    ]);
    assert_eq!(described_fields(&mut special()), expected);
}

#[test]
fn unused_bytes_may_be_anything() {
    let mut body = hex(SPECIAL);
    let end = body.len();
    body[end - 9..].fill(0xee);
    load(&mut special(), &body).unwrap();
}

#[test]
fn an_equal_field_that_differs_is_refused_with_both_values() {
    let mut here = Special { slots: 8, ..special() };
    assert_eq!(
        complaint(&mut here, &hex(SPECIAL)),
        "special.slots, at offset 8: the source has 4, here it is 8; they must be equal"
    );
    assert_eq!(here.slots, 8);
}

#[derive(Default, VmState)]
#[vmstate(name = "conditional")]
struct Conditional {
    kind: u8,
    #[vmstate(exists = Self::has_detail)]
    detail: u16,
    end: u8,
}

impl Conditional {
    fn has_detail(&self) -> bool {
        self.kind == 1
    }
}

#[test]
fn a_field_that_does_not_exist_takes_no_bytes() {
    let mut with = Conditional { kind: 1, detail: 0x0203, end: 4 };
    let mut without = Conditional { kind: 0, detail: 0x0203, end: 4 };
    assert_eq!(with.save().unwrap().body, [1, 2, 3, 4]);
    assert_eq!(without.save().unwrap().body, [0, 4]);
    let mut loaded = Conditional::default();
    load(&mut loaded, &[1, 2, 3, 4]).unwrap();
    assert_eq!((loaded.detail, loaded.end), (0x0203, 4));
    load(&mut loaded, &[0, 9]).unwrap();
    assert_eq!((loaded.detail, loaded.end), (0x0203, 9));
}

/// A host's handles may be of any type, known by a parameter or not.
#[derive(VmState)]
#[vmstate(name = "generic", needed = Self::is_used)]
struct Generic<Host, const N: usize>
where
    Host: Clone,
{
    registers: [u8; N],
    #[vmstate(skip)]
    host: Host,
    #[vmstate(subsection)]
    part: Option<GenericPart>,
}

#[derive(Default, VmState)]
#[vmstate(name = "generic/part")]
struct GenericPart {
    value: u8,
}

impl<Host: Clone, const N: usize> Generic<Host, N> {
    fn is_used(&self) -> bool {
        self.registers.iter().any(|&register| register != 0)
    }
}

#[test]
fn a_skipped_field_of_any_type_stays_as_it_is() {
    let mut device = Generic { registers: [1, 2], host: String::from("here"), part: None };
    assert_eq!(device.save().unwrap().body, [1, 2]);
    load(&mut device, &[3, 4]).unwrap();
    assert_eq!((device.registers, device.host.as_str()), ([3, 4], "here"));
}

#[test]
fn a_device_knows_whether_it_is_needed() {
    let device = |registers| Generic { registers, host: (), part: None };
    assert!(Device::needed(&device([0, 1])));
    assert!(!Device::needed(&device([0, 0])));
}

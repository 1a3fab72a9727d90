//! Fields of several elements.

use crate::{complaint, described_fields, hex, load};
use limosa_vmstate::{Device, VmState};
use serde_json::json;

#[derive(Clone, Default, Debug, PartialEq, VmState)]
#[vmstate(name = "channel")]
struct Channel {
    count: u16,
    gate: bool,
}

#[derive(Default, Debug, PartialEq, VmState)]
#[vmstate(name = "fixed")]
struct Fixed {
    bytes: [u8; 3],
    lone: [u16; 1],
    empty: [u32; 0],
    matrix: [[u16; 2]; 2],
    channels: [Channel; 2],
    #[vmstate(timer)]
    timers: [u64; 2],
    #[vmstate(equal)]
    fixed: [u8; 2],
}

const FIXED: &str = "010203 0004 0005 0006 0007 0008 0009 00 000a 01 \
                     0000000000000001 0000000000000002 0000";

fn fixed() -> Fixed {
    Fixed {
        bytes: [1, 2, 3],
        lone: [4],
        empty: [],
        matrix: [[5, 6], [7, 8]],
        channels: [Channel { count: 9, gate: false }, Channel { count: 10, gate: true }],
        timers: [1, 2],
        fixed: [0, 0],
    }
}

#[test]
fn fixed_arrays_are_their_elements_in_order() {
    assert_eq!(fixed().save().unwrap().body, hex(FIXED));
    let mut loaded = Fixed::default();
    load(&mut loaded, &hex(FIXED)).unwrap();
    assert_eq!(loaded, fixed());
}

#[test]
fn an_array_of_equal_elements_is_described_once_and_one_of_none_not_at_all() {
    let expected = json!([
        {"name": "bytes", "array_len": 3, "type": "uint8", "size": 1},
        {"name": "lone", "type": "uint16", "size": 2},
        {"name": "matrix", "array_len": 4, "type": "uint16", "size": 2},
        {"name": "channels", "array_len": 2, "type": "struct", "struct": {
            "vmsd_name": "channel", "version": 1, "fields": [
                {"name": "count", "type": "uint16", "size": 2},
                {"name": "gate", "type": "bool", "size": 1},
            ]
        }, "size": 3},
        {"name": "timers", "array_len": 2, "type": "timer", "size": 8},
        {"name": "fixed", "array_len": 2, "type": "uint8 equal", "size": 1},
    ]);
    assert_eq!(described_fields(&mut fixed()), expected);
}

#[test]
fn an_error_inside_an_array_names_the_element() {
    let mut body = hex(FIXED);
    body[18] = 7;
    assert_eq!(
        complaint(&mut Fixed::default(), &body),
        "fixed.channels[1].gate, at offset 18: a bool has the value 7; expected 0 or 1"
    );
}

#[derive(Default, Debug, PartialEq, VmState)]
#[vmstate(name = "variable")]
struct Variable {
    length: u8,
    #[vmstate(count = length, max = 4)]
    words: Vec<u16>,
    #[vmstate(count = "length", max = 4)]
    channels: Vec<Channel>,
    buffer_length: i32,
    #[vmstate(buffer, count = buffer_length, max = 300)]
    buffer: Vec<u8>,
    bits: u32,
    #[vmstate(bitmap, count = bits, max = 128)]
    bitmap: Vec<u64>,
}

const VARIABLE: &str =
    "02 0001 0002 0003 00 0004 01 00000003 616263 00000041 0000000000000001 0000000000000001";

fn variable() -> Variable {
    Variable {
        length: 2,
        words: vec![1, 2],
        channels: vec![Channel { count: 3, gate: false }, Channel { count: 4, gate: true }],
        buffer_length: 3,
        buffer: b"abc".to_vec(),
        bits: 65,
        bitmap: vec![1, 1],
    }
}

#[test]
fn variable_arrays_follow_their_counts() {
    assert_eq!(variable().save().unwrap().body, hex(VARIABLE));
    let mut loaded = Variable::default();
    load(&mut loaded, &hex(VARIABLE)).unwrap();
    assert_eq!(loaded, variable());
}

#[test]
fn a_count_is_set_from_its_vector_before_saving() {
    let mut stale = Variable { length: 99, buffer_length: -1, ..variable() };
    assert_eq!(stale.save().unwrap().body, hex(VARIABLE));
    assert_eq!((stale.length, stale.buffer_length), (2, 3));
}

#[test]
fn loading_shrinks_what_was_longer() {
    let mut device = variable();
    load(&mut device, &hex("00 00000000 00000000")).unwrap();
    assert_eq!(device, Variable::default());
}

#[test]
fn an_empty_variable_array_is_not_described_and_an_empty_buffer_is() {
    let expected = json!([
        {"name": "length", "type": "uint8", "size": 1},
        {"name": "buffer_length", "type": "int32", "size": 4},
        {"name": "buffer", "type": "buffer", "size": 0},
        {"name": "bits", "type": "uint32", "size": 4},
        {"name": "bitmap", "type": "bitmap", "size": 0},
    ]);
    assert_eq!(described_fields(&mut Variable::default()), expected);
}

#[test]
fn a_count_over_the_limit_is_refused_before_anything_grows() {
    let mut device = Variable::default();
    let got = complaint(&mut device, &hex("05"));
    assert_eq!(got, "variable.words, at offset 1: the count is 5; expected 0 to 4");
    assert_eq!(device.words.capacity(), 0);
    let got = complaint(&mut device, &hex("00 7fffffff"));
    assert_eq!(got, "variable.buffer, at offset 5: the count is 2147483647; expected 0 to 300");
    assert_eq!(device.buffer.capacity(), 0);
    let got = complaint(&mut device, &hex("00 00000000 ffffffff"));
    assert_eq!(got, "variable.bitmap, at offset 9: the count is 4294967295; expected 0 to 128");
    assert_eq!(device.bitmap.capacity(), 0);
}

#[test]
fn a_negative_count_is_refused() {
    let got = complaint(&mut Variable::default(), &hex("00 ffffffff"));
    assert_eq!(got, "variable.buffer, at offset 5: the count is -1; expected 0 to 300");
}

#[test]
fn too_many_elements_cannot_be_saved() {
    let mut device =
        Variable { words: vec![0; 5], channels: vec![Channel::default(); 5], ..Variable::default() };
    assert_eq!(device.save().unwrap_err().to_string(), "variable.words: 5 elements; at most 4 can be saved");
}

#[test]
fn arrays_that_share_a_count_must_be_of_one_length() {
    let mut device =
        Variable { words: vec![0; 2], channels: vec![Channel::default(); 3], ..Variable::default() };
    let got = device.save().unwrap_err().to_string();
    assert_eq!(got, "variable.words: 2 elements, but the count field says 3");
}

#[test]
fn a_bitmap_whose_words_do_not_fit_its_bits_cannot_be_saved() {
    let mut device = Variable { bits: 64, ..variable() };
    let got = device.save().unwrap_err().to_string();
    assert_eq!(got, "variable.bitmap: 2 words in a bitmap of 64 bits; at most 128 bits can be saved");
}

#[derive(Default, VmState)]
#[vmstate(name = "narrow")]
struct Narrow {
    length: u8,
    #[vmstate(buffer, count = length, max = 1000)]
    bytes: Vec<u8>,
}

#[test]
fn elements_that_the_count_field_cannot_count_cannot_be_saved() {
    let mut device = Narrow { length: 0, bytes: vec![0; 256] };
    assert_eq!(
        device.save().unwrap_err().to_string(),
        "narrow.bytes: 256 elements; at most 255 can be saved"
    );
}

#[derive(Clone, Default, Debug, PartialEq, VmState)]
#[vmstate(name = "queue")]
struct Queue {
    length: u8,
    #[vmstate(count = length, max = 8)]
    entries: Vec<u8>,
}

#[derive(Default, VmState)]
#[vmstate(name = "queues")]
struct Queues {
    queues: [Queue; 2],
}

#[test]
fn elements_of_different_lengths_are_described_one_by_one() {
    let mut device =
        Queues { queues: [Queue { length: 0, entries: vec![] }, Queue { length: 0, entries: vec![7, 8] }] };
    let queue = |index: u64, fields: serde_json::Value, size: u64| {
        json!({"name": "queues", "index": index, "type": "struct", "struct": {
            "vmsd_name": "queue", "version": 1, "fields": fields
        }, "size": size})
    };
    let expected = json!([
        queue(0, json!([{"name": "length", "type": "uint8", "size": 1}]), 1),
        queue(
            1,
            json!([
                {"name": "length", "type": "uint8", "size": 1},
                {"name": "entries", "array_len": 2, "type": "uint8", "size": 1},
            ]),
            3
        ),
    ]);
    assert_eq!(described_fields(&mut device), expected);
}

/// A struct that holds itself: the only way to nest without an end.
#[derive(Default, VmState)]
#[vmstate(name = "tree")]
struct Tree {
    length: u8,
    #[vmstate(count = length, max = 2)]
    children: Vec<Tree>,
}

#[test]
fn nesting_without_an_end_is_refused() {
    let got = complaint(&mut Tree::default(), &[1; 100_000]);
    assert!(got.ends_with("structs are nested more than 16 deep"), "{got}");
    let mut deep = Tree::default();
    for _ in 0..17 {
        deep = Tree { length: 0, children: vec![deep] };
    }
    let got = deep.save().unwrap_err().to_string();
    assert!(got.ends_with("structs are nested more than 16 deep"), "{got}");
}

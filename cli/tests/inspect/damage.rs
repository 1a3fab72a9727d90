//! Streams that are cut or damaged: what came before is shown, and the error says where and why.

use crate::command::{feed, inspect};
use crate::stream::{PAGE, RAM, Stream, block, section_start};
use limosa_wire::{ContinueKind, SectionId, StartKind, encode};
use serde_json::json;
use std::io::Write;
use std::process::Command;

/// RAM and two devices.
fn small() -> Stream {
    let mut stream = Stream::of_machine("test");
    stream.start_ram(&[block("ram0", 2)]);
    stream.part(|ram| ram.page(0, 0));
    stream.end(|ram| ram.zero(0, 1));
    stream.device(3, "timer", &[1; 24], 24);
    stream.device(4, "globalstate", &[2; 104], 104);
    stream
}

#[test]
fn a_stream_that_is_cut_anywhere_says_so_with_the_offset() {
    let sections = small();
    let end = sections.offset();
    let bytes = sections.finish();
    // Behind the end mark a stream without vmdescription is whole.
    let whole = end as usize + 1;
    for cut in (1..bytes.len()).filter(|cut| *cut != whole) {
        // Inside the page every byte is like its neighbour.
        if (300..4200).contains(&cut) && cut % 500 != 0 {
            continue;
        }
        let said = inspect(&bytes[..cut], &["--json"]);
        let offset = format!("the stream is cut off at offset {cut:#x}, in ");
        said.failed_with(&[&offset]);
        let error = &said.json()["error"];
        assert_eq!((&error["kind"], &error["offset"]), (&json!("truncated"), &json!(cut)), "{error}");
    }
    assert_eq!(inspect(&bytes[..whole], &[]).code, Some(0));
}

#[test]
fn a_stream_cut_in_a_device_shows_the_devices_before_it() {
    let stream = small();
    let cut = stream.offset() as usize - 20;
    let said = inspect(&stream.finish()[..cut], &["--json"]);
    said.failed_with(&["in the FULL section of \"globalstate\" (id 4)", "only a vmdescription tells"]);
    let report = said.json();
    let devices = report["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 1);
    assert_eq!((&devices[0]["idstr"], &devices[0]["bytes"]), (&json!("timer"), &json!(24)));
    assert_eq!((&report["ram"][0]["normal"], &report["ram"][0]["untouched"]), (&json!(1), &json!(0)));
}

#[test]
fn a_stream_cut_in_a_page_counts_the_records_so_far() {
    let mut stream = Stream::of_machine("test");
    stream.start_ram(&[block("ram0", 4)]);
    stream.part(|ram| {
        ram.zero(0, 0);
        ram.page(0, 1);
    });
    // Of the page 96 bytes are left, behind it the mark and the footer are gone.
    let cut = stream.bytes.len() - 8 - 5 - 4000;
    let said = inspect(&stream.bytes[..cut], &[]);
    said.failed_with(&["in the PART section of \"ram\" (id 1)", "lacks at least 4000 bytes"]);
    assert!(said.stdout.contains("ram0"), "{}", said.stdout);
}

#[test]
fn impossible_records_name_their_block_and_offset() {
    let at = |stream: &Stream| format!("offset {:#x}", stream.offset() + 5);
    let mut stream = Stream::of_machine("test");
    stream.start_ram(&[block("ram0", 2)]);
    let offset = at(&stream);
    stream.part(|ram| ram.zero(0, 2));
    let place = "in the PART section of \"ram\" (id 1)";
    inspect(&stream.bytes, &[]).failed_with(&[place, &offset, "0x2000 lies outside of block \"ram0\""]);

    let mut stream = Stream::of_machine("test");
    stream.start_ram(&[block("ram0", 2)]);
    let offset = at(&stream);
    stream.part(|ram| ram.zero_of("pc.ram", 0));
    inspect(&stream.bytes, &[]).failed_with(&[place, &offset, "block \"pc.ram\" is not in the block list"]);

    let mut stream = Stream::of_machine("test");
    stream.start_ram(&[block("ram0", 2), block("ram0", 2)]);
    inspect(&stream.bytes, &[]).failed_with(&["two blocks are called \"ram0\""]);
}

#[test]
fn damaged_bytes_are_told_with_field_and_value() {
    let mut stream = Stream::with_zero_ram(1);
    let footer = stream.bytes.len() - 5;
    stream.bytes[footer] = 0x7f;
    let offset = format!("{footer:#x}");
    inspect(&stream.bytes, &[]).failed_with(&[
        "in the END section of \"ram\"",
        &offset,
        "expected 0x7e, got 0x7f",
    ]);

    let mut version = Stream::of_machine("test").bytes;
    version[7] = 2;
    inspect(&version, &[]).failed_with(&["stream version", "expected 0x3, got 0x2"]);

    let mut stream = Stream::of_machine("test");
    stream.bytes.push(0x55);
    inspect(&stream.bytes, &[]).failed_with(&["between two sections", "section type", "0x55 is unknown"]);
}

#[test]
fn sections_that_are_not_open_or_open_already_are_errors() {
    let mut stream = Stream::of_machine("test");
    let offset = format!("offset {:#x}", stream.offset());
    encode::section_continue(ContinueKind::Part, SectionId(9), &mut stream.bytes);
    inspect(&stream.bytes, &[]).failed_with(&[&offset, "section 9, which is not open"]);

    let mut stream = Stream::with_zero_ram(1);
    stream.part(|_| {});
    inspect(&stream.bytes, &[]).failed_with(&["section 1, which is not open"]);

    let mut stream = Stream::with_zero_ram(1);
    section_start(StartKind::Start, RAM, "ram", 0, 4, &mut stream.bytes);
    inspect(&stream.bytes, &[]).failed_with(&["\"ram\"", "is taken"]);
}

#[test]
fn a_damaged_device_in_a_whole_stream_names_the_section_and_its_described_size() {
    let mut stream = Stream::with_zero_ram(1);
    stream.device(3, "timer", &[1; 24], 24);
    let footer = stream.bytes.len() - 5;
    stream.device(4, "globalstate", &[2; 104], 104);
    let mut bytes = stream.finish();
    bytes[footer] = 0;
    inspect(&bytes, &[])
        .failed_with(&["in the FULL section of \"timer\" (id 3)", "the vmdescription says 24 bytes"]);
}

#[test]
fn a_description_of_other_devices_is_an_error() {
    let mut stream = Stream::with_zero_ram(1);
    let without = stream.bytes.len();
    stream.device(3, "timer", &[1; 24], 24);
    let with = stream.bytes.len();
    let mut bytes = stream.finish();
    bytes.drain(without..with);
    inspect(&bytes, &[])
        .failed_with(&["lists 1 devices, the stream has 0", "\"timer\" is described but absent"]);
}

#[test]
fn announced_lengths_take_no_memory() {
    // A block of 4 EiB, and a vmdescription that is not there.
    let mut stream = Stream::of_machine("test");
    stream.start_ram(&[block("ram0", (1 << 62) / PAGE)]);
    stream.end(|ram| ram.zero(0, 1));
    encode::end_of_stream(&mut stream.bytes);
    stream.bytes.push(0x06);
    stream.bytes.extend((64_u32 << 20).to_be_bytes());
    stream.bytes.extend(b"{\"page_size\": 4096");
    let bytes = stream.bytes;
    let mut command = Command::new("sh");
    let script = "ulimit -v 131072 && exec \"$0\" inspect - --json";
    command.args(["-c", script, env!("CARGO_BIN_EXE_limosa")]);
    let said = feed(command, |stdin| stdin.write_all(&bytes));
    said.failed_with(&["in the vmdescription", "cut off"]);
    let report = said.json();
    assert_eq!((&report["ram"][0]["zero"], &report["ram"][0]["untouched"]), (&json!(1), &json!(null)));
}

#[test]
fn a_device_part_beyond_the_limit_is_an_error_with_the_limit() {
    const LIMIT: usize = 320 << 20;
    let mut stream = Stream::with_zero_ram(1);
    section_start(StartKind::Full, SectionId(3), "endless", 0, 1, &mut stream.bytes);
    let mut command = Command::new(env!("CARGO_BIN_EXE_limosa"));
    command.args(["inspect", "-", "--json"]);
    let said = feed(command, |stdin| {
        stdin.write_all(&stream.bytes)?;
        let zeros = vec![0; 1 << 20];
        (0..=LIMIT / zeros.len()).try_for_each(|_| stdin.write_all(&zeros))
    });
    said.failed_with(&["in the FULL section of \"endless\" (id 3)", &format!("{LIMIT} bytes")]);
    assert_eq!(said.json()["error"]["kind"], "too-large");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_limosa"));
    command.args(["inspect", "/nowhere/stream"]);
    feed(command, |_| Ok(())).failed_with(&["/nowhere/stream cannot be opened"]);
}

//! Streams without fault: every number of the report.

use crate::command::{feed, inspect, inspect_json};
use crate::stream::{PAGE, RAM, Stream, block, section_start};
use limosa_pages::PageSize;
use limosa_wire::dirty_bitmap::{DirtyBitmapChunk, DirtyBitmapItem};
use limosa_wire::{Command, Configuration, ContinueKind, PostcopyAdvice, SectionId, StartKind, encode};
use serde_json::{Value, json};
use std::io::Write;

/// Three of the columns of the element list: what, offset, size.
fn elements(report: &Value) -> Vec<(String, u64, u64)> {
    let rows = report["elements"].as_array().expect("a list of elements");
    let row = |row: &Value| {
        let what = row["kind"].as_str().or(row["command"].as_str()).or(row["element"].as_str());
        let number = |key: &str| row[key].as_u64().expect("a number");
        (what.expect("a name").to_owned(), number("offset"), number("bytes"))
    };
    rows.iter().map(row).collect()
}

#[test]
fn elements_follow_each_other_without_a_gap_and_parts_share_a_row() {
    let mut stream = Stream::of_machine("pc-test");
    stream.command(&Command::OpenReturnPath);
    stream.command(&Command::Ping(1));
    stream.start_ram(&[block("ram0", 4)]);
    (0..3).for_each(|page| stream.part(|ram| ram.zero(0, page)));
    stream.command(&Command::SwitchoverStart);
    stream.end(|ram| ram.page(0, 3));
    stream.device(7, "timer", &[1; 24], 24);
    let bytes = stream.finish();

    let report = inspect_json(&bytes, &[]);
    let rows = elements(&report);
    let names: Vec<&str> = rows.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "header",
            "configuration",
            "OPEN_RETURN_PATH",
            "PING",
            "start",
            "part",
            "SWITCHOVER_START",
            "end",
            "full",
            "end-of-stream",
            "vmdescription",
        ]
    );
    let mut at = 0;
    for (name, offset, size) in &rows {
        assert_eq!(*offset, at, "{name}");
        at += size;
    }
    assert_eq!(at, bytes.len() as u64);
    assert_eq!(report["elements"][5]["count"], 3);
    assert_eq!(report["elements"][3]["detail"], "0x1");
    assert_eq!(report["configuration"]["machine"], "pc-test");
    assert_eq!((&report["bytes"], &report["trailing_bytes"]), (&json!(bytes.len()), &json!(0)));
    assert_eq!(report["vmdescription"]["page_size"], 4096);
}

#[test]
fn ram_is_counted_per_block_with_repeated_and_untouched_pages() {
    let mut stream = Stream::of_machine("test");
    stream.start_ram(&[block("ram0", 8), block("rom", 2)]);
    stream.part(|ram| {
        ram.zero(0, 0);
        ram.page(0, 1);
        ram.page(0, 1);
        ram.page(1, 0);
        ram.flush();
    });
    stream.end(|ram| {
        ram.xbzrle(0, 1, &[0, 1, 0x80]);
        ram.zero(0, 7);
    });
    let report = inspect_json(&stream.finish(), &[]);
    // Heads: 8 bytes, a name of 1 + 4 or 1 + 3 where the block changes, one byte in a zero record, 3 in XBZRLE.
    let ram0 = (8 + 5 + 1) + 2 * (8 + PAGE) + (8 + 5 + 3 + 3) + (8 + 1);
    assert_eq!(
        report["ram"],
        json!([
            {"name": "ram0", "length": 8 * PAGE, "host_page_bytes": null, "guest_address": null, "pages": 8,
             "zero": 2, "normal": 2, "xbzrle": 1, "xbzrle_bytes": 3, "bytes": ram0, "repeated": 2, "untouched": 5},
            {"name": "rom", "length": 2 * PAGE, "host_page_bytes": null, "guest_address": null, "pages": 2,
             "zero": 0, "normal": 1, "xbzrle": 0, "xbzrle_bytes": 0, "bytes": 8 + 4 + PAGE, "repeated": 0,
             "untouched": 1},
        ])
    );
    assert_eq!(report["multifd_flushes"], 1);
}

#[test]
fn configuration_is_shown_with_capabilities_and_uuid() {
    let configuration = Configuration {
        machine: "virt".into(),
        target_page_bits: Some(12),
        capabilities: Some(vec!["x-ignore-shared".into()]),
        uuid: Some(*b"0123456789abcdef"),
    };
    let mut stream = Stream::new(&configuration);
    let mut block = block("ram0", 1);
    block.guest_address = Some(0x10_0000);
    stream.start_ram(&[block]);
    stream.end(|_| {});
    let report = inspect_json(&stream.finish(), &[]);
    assert_eq!(
        report["configuration"],
        json!({"machine": "virt", "target_page_bits": 12, "capabilities": ["x-ignore-shared"],
               "uuid": "30313233-3435-3637-3839-616263646566"})
    );
    assert_eq!(report["ram"][0]["guest_address"], 0x10_0000);
}

#[test]
fn postcopy_that_was_only_advised_reads_as_precopy_with_its_page_sizes() {
    let advice = PostcopyAdvice { page_size_summary: 0x20_1000, target_page_size: 0x1000 };
    let mut stream = Stream::of_machine("test");
    stream.command(&Command::PostcopyAdvise(Some(advice)));
    let mut large = block("hugepages", 1024);
    large.page_size = PageSize::new(2 << 20);
    stream.start_ram(&[large, block("rom", 1)]);
    stream.end(|ram| ram.zero(1, 0));
    let report = inspect_json(&stream.finish(), &[]);
    assert_eq!(report["ram"][0]["host_page_bytes"], 2 << 20);
    assert_eq!(report["ram"][1]["host_page_bytes"], Value::Null);
    assert_eq!(report["ram"][1]["zero"], 1);
}

#[test]
fn dirty_bitmaps_are_passed_over_and_listed() {
    let mut stream = Stream::of_machine("test");
    stream.command(&Command::PostcopyAdvise(None));
    stream.start_ram(&[block("ram0", 1)]);
    let id = SectionId(2);
    let chunk = |kind, out: &mut Vec<u8>| DirtyBitmapChunk { node: None, bitmap: None, kind }.encode(out);
    let out = &mut stream.bytes;
    section_start(StartKind::Start, id, "dirty-bitmap", 0, 1, out);
    chunk(DirtyBitmapItem::Start { granularity: 65536, enabled: true, persistent: false }, out);
    chunk(DirtyBitmapItem::EndOfSection, out);
    encode::footer(id, out);
    encode::section_continue(ContinueKind::End, id, out);
    chunk(DirtyBitmapItem::Bits { first_sector: 0, sectors: 8, data: Some(vec![0xff; 32]) }, out);
    chunk(DirtyBitmapItem::EndOfSection, out);
    encode::footer(id, out);
    stream.end(|ram| ram.zero(0, 0));
    let report = inspect_json(&stream.finish(), &[]);
    let bitmap = |row: &&Value| row["idstr"] == "dirty-bitmap";
    assert_eq!(report["elements"].as_array().unwrap().iter().filter(bitmap).count(), 2);
}

#[test]
fn footers_have_the_last_word_over_described_sizes() {
    // A description tells an array by its first element; where elements differ, its size is wrong.
    let mut body = vec![9; 40];
    // The footer's five bytes inside of the body, without anything plausible behind them.
    body[8..13].copy_from_slice(&[0x7e, 0, 0, 0, 3]);
    let mut stream = Stream::with_zero_ram(1);
    stream.device(3, "array", &body, 36);
    stream.device(4, "globalstate", &[0; 8], 8);
    let report = inspect_json(&stream.finish(), &[]);
    let array = &report["devices"][0];
    assert_eq!((&array["bytes"], &array["described_bytes"]), (&json!(40), &json!(36)));
    assert_eq!(report["devices"][1]["vmsd_name"], "globalstate-format");
}

#[test]
fn a_device_that_is_sent_before_ram_is_divided_by_its_footer() {
    let mut stream = Stream::of_machine("test");
    stream.device(9, "virtio-mem-device-early", &[0x7e; 100], 100);
    stream.start_ram(&[block("ram0", 2)]);
    stream.end(|ram| ram.page(0, 0));
    stream.device(10, "timer", &[0; 24], 24);
    // Bytes behind the description: before RAM it is not looked for in the middle of what is there.
    let mut bytes = stream.finish();
    bytes.extend([0; 9]);
    let report = inspect_json(&bytes, &[]);
    assert_eq!(report["devices"][0]["bytes"], 100);
    assert_eq!(report["devices"][1]["vmsd_name"], "timer-format");
}

#[test]
fn bytes_behind_the_end_are_counted_with_and_without_a_description() {
    let mut stream = Stream::with_zero_ram(1);
    stream.device(3, "timer", &[1; 24], 24);
    let mut bytes = stream.finish();
    let whole = bytes.len();
    bytes.extend([0xee; 5000]);
    let report = inspect_json(&bytes, &[]);
    assert_eq!(report["trailing_bytes"], 5000);
    assert_eq!(report["devices"][0]["vmsd_name"], "timer-format");
    let last = elements(&report).pop().unwrap();
    assert_eq!(last, ("trailing-bytes".to_owned(), whole as u64, 5000));

    let mut stream = Stream::with_zero_ram(1);
    stream.device(3, "timer", &[1; 24], 24);
    encode::end_of_stream(&mut stream.bytes);
    let report = inspect_json(&stream.bytes, &[]);
    assert_eq!(report["vmdescription"], json!({"state": "absent"}));
    assert_eq!(report["devices"][0]["bytes"], 24);
    encode::vm_description(b"", &mut stream.bytes);
    assert_eq!(inspect_json(&stream.bytes, &[])["vmdescription"], json!({"state": "empty"}));
}

#[test]
fn fields_of_a_device_are_decoded_by_their_types() {
    let fields = json!([
        {"name": "count", "type": "uint16", "size": 2},
        {"name": "delta", "type": "int32", "size": 4},
        {"name": "on", "type": "bool", "size": 1},
        {"name": "words", "array_len": 3, "type": "uint8", "size": 1},
        {"name": "alarm", "type": "timer", "size": 8},
        {"name": "state", "type": "buffer", "size": 8},
        {"name": "inner", "type": "struct", "size": 1, "struct": {
            "vmsd_name": "inner-format", "version": 2, "fields": [{"name": "x", "type": "uint8", "size": 1}]}},
    ]);
    let mut body = vec![0x01, 0x02];
    body.extend((-2_i32).to_be_bytes());
    body.extend([1, 7, 7, 8]);
    body.extend([0xff; 8]);
    body.extend(b"running\0");
    body.push(5);
    let mut stream = Stream::with_zero_ram(1);
    stream.device_with_fields(3, "serial", &body, fields);
    let bytes = stream.finish();

    let report = inspect_json(&bytes, &["--device", "serial"]);
    let fields = report["device_values"][0]["fields"].as_array().unwrap();
    let values: Vec<&Value> = fields.iter().map(|field| &field["value"]).collect();
    let inner = json!({"vmsd_name": "inner-format", "version": 2, "fields": [
        {"name": "x", "type": "uint8", "offset": 26, "bytes": 1, "value": 5}]});
    let hex = "72756e6e696e6700";
    assert_eq!(
        values,
        [&json!(0x102), &json!(-2), &json!(true), &json!([7, 7, 8]), &json!(-1), &json!(hex), &inner]
    );
    let text = inspect(&bytes, &["--device", "serial-format"]).stdout;
    for line in
        ["count  258 (0x102)  uint16", "alarm  not armed  timer", "state  \"running\", 8 bytes  buffer"]
    {
        assert!(text.contains(line), "no {line:?} in: {text}");
    }
    inspect(&bytes, &["--device", "nope"]).failed_with(&["no device \"nope\"", "it has serial"]);
}

#[test]
fn text_escapes_what_a_terminal_would_obey() {
    let mut stream = Stream::of_machine("\u{1b}[2J");
    stream.start_ram(&[block("ram\u{7}", 1)]);
    stream.end(|ram| ram.zero(0, 0));
    let said = inspect(&stream.finish(), &[]);
    assert_eq!(said.code, Some(0));
    assert!(said.stdout.chars().all(|c| c == '\n' || !c.is_control()), "{:?}", said.stdout);
    assert!(said.stdout.contains("\\u{1b}[2J"));
}

#[test]
fn a_file_is_read_like_stdin() {
    let bytes = Stream::with_zero_ram(3).finish();
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(&bytes).expect("a few bytes fit");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_limosa"));
    command.arg("inspect").arg(file.path()).arg("--json");
    let said = feed(command, |_| Ok(()));
    let mut report = said.json();
    assert_eq!(report["stream"], file.path().display().to_string());
    report["stream"] = json!("stdin");
    assert_eq!(report, inspect_json(&bytes, &[]));
}

#[test]
fn memory_does_not_grow_with_ram() {
    const PAGES: u64 = (512 << 20) / PAGE;
    const PART_PAGES: u64 = 1024;
    let mut command = std::process::Command::new("sh");
    // 256 MiB of address space in all, for half a GiB of pages.
    let script = "ulimit -v 262144 && exec \"$0\" inspect - --json";
    command.args(["-c", script, env!("CARGO_BIN_EXE_limosa")]);
    let said = feed(command, |stdin| {
        let mut stream = Stream::of_machine("test");
        stream.start_ram(&[block("ram0", PAGES)]);
        for first in (0..PAGES).step_by(PART_PAGES as usize) {
            stream.part(|ram| (first..first + PART_PAGES).for_each(|page| ram.page(0, page)));
            stdin.write_all(&stream.bytes)?;
            stream.bytes.clear();
        }
        stream.end(|_| {});
        stdin.write_all(&stream.finish())
    });
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    let report = said.json();
    assert_eq!((&report["ram"][0]["normal"], &report["ram"][0]["untouched"]), (&json!(PAGES), &json!(0)));
    assert_eq!(report["elements"][3]["count"], PAGES / PART_PAGES);
    assert_eq!(report["elements"][3]["id"], RAM.0);
}

use super::*;
use crate::{Command, SectionHeader, SectionId, StartKind, encode};

fn section(id: u32, idstr: &str, body: &[u8], out: &mut Vec<u8>) {
    let header = SectionHeader {
        kind: StartKind::Full,
        id: SectionId(id),
        idstr: idstr.to_owned(),
        instance_id: 0,
        version_id: 1,
    };
    encode::section_start(&header, out);
    out.extend_from_slice(body);
    encode::footer(SectionId(id), out);
}

fn bodies(sections: &[DeviceSection<'_>]) -> Vec<(String, Vec<u8>)> {
    sections.iter().map(|section| (section.header.idstr.clone(), section.body.to_vec())).collect()
}

const JSON: &[u8] = br#"{"configuration": {"vmsd_name": "configuration", "fields": [{"size": 4}]}, "page_size": 4096,
    "devices": [
    {"name": "timer", "instance_id": 0, "vmsd_name": "timer", "version": 2, "fields": [
        {"name": "ticks", "type": "int64", "size": 8},
        {"name": "words", "array_len": 3, "type": "uint16", "size": 2},
        {"name": "list", "type": "qtailq", "vmsd_name": "a", "vmsd_name": "b", "fields": [], "size": 1}],
     "subsections": [{"vmsd_name": "timer/sub", "version": 1, "fields": [{"name": "x", "size": 4}],
        "subsections": [{"vmsd_name": "timer/sub/deep", "version": 1, "fields": []}]}]},
    {"name": "old", "instance_id": 3, "size": 7, "fields": [{"name": "data", "size": 7, "type": "buffer"}]}]}"#;

#[test]
fn sizes_add_up_over_arrays_lists_and_subsections() {
    let description = VmDescription::parse(JSON).unwrap();
    assert_eq!(description.page_size, Some(4096));
    let [timer, old] = description.devices.as_slice() else { panic!("two devices") };
    // 8 + 3 x 2 + 1, and two subsections: (6 + 9 + 4) + (6 + 14).
    assert_eq!((timer.body_bytes, timer.version), (15 + 19 + 20, Some(2)));
    let expected =
        DescribedDevice { idstr: "old".into(), instance_id: 3, body_bytes: 7, ..Default::default() };
    assert_eq!(*old, expected);
}

#[test]
fn hostile_descriptions_are_errors() {
    let deep = format!("{{\"devices\": [{}", r#"{"subsections": [{"vmsd_name": "a", "#.repeat(100_000));
    let nested = format!(
        r#"{{"devices": [{}{}]}}"#,
        r#"{"vmsd_name": "a", "subsections": ["#.repeat(MAX_SUBSECTION_DEPTH + 2),
        "]}".repeat(MAX_SUBSECTION_DEPTH + 2)
    );
    let many = format!(r#"{{"devices": [{{}}{}]}}"#, ", {}".repeat(MAX_DESCRIBED_DEVICES));
    let long = format!(r#"{{"devices": [{{"name": "{}"}}]}}"#, "x".repeat(256));
    let hostile = [
        deep.as_str(),
        nested.as_str(),
        many.as_str(),
        long.as_str(),
        r#"{"devices": [{"fields": [{"size": 18446744073709551615, "array_len": 2}]}]}"#,
        r#"{"devices": [{"fields": [{"size": 18446744073709551615}, {"size": 1}]}]}"#,
        r#"{"devices": [{"fields": [{"size": -1}]}]}"#,
        r#"{"devices": [{"fields": [{"name": "no size"}]}]}"#,
        r#"{"devices": 3}"#,
        "[]",
        "",
    ];
    for json in hostile {
        assert!(VmDescription::parse(json.as_bytes()).is_err(), "{:.60}", json);
    }
}

#[test]
fn a_section_of_another_size_than_described_is_an_error() {
    let mut tail = Vec::new();
    section(1, "timer", &[0; 8], &mut tail);
    let description = |size: u64| {
        let json = format!(r#"{{"devices": [{{"name": "timer", "fields": [{{"size": {size}}}]}}]}}"#);
        VmDescription::parse(json.as_bytes()).unwrap()
    };
    assert_eq!(split_by_sizes(&tail, &description(8)).unwrap().len(), 1);
    assert!(matches!(split_by_sizes(&tail, &description(7)), Err(DeviceError::Stream { .. })));
    assert!(matches!(split_by_sizes(&tail, &description(1 << 40)), Err(DeviceError::Truncated { .. })));
    let none = VmDescription::default();
    assert!(matches!(split_by_sizes(&tail, &none), Err(DeviceError::NotDescribed { .. })));
}

#[test]
fn the_end_is_found_when_the_whole_description_is_there() {
    let mut tail = Vec::new();
    section(1, "timer", b"\x00\x06\x00\x00\x00\x02{}", &mut tail);
    let end_of_stream = tail.len();
    encode::end_of_stream(&mut tail);
    encode::vm_description(br#"{"devices": []}"#, &mut tail);
    assert_eq!(find_end(&tail), Some(TailEnd { end_of_stream, description: end_of_stream + 6 }));
    assert_eq!(find_end(&tail[..tail.len() - 1]), None);
    assert_eq!(find_end(&[]), None);
}

#[test]
fn a_footer_inside_device_bytes_is_not_taken_for_the_end() {
    let mut tail = Vec::new();
    Command::PostcopyListen.encode(&mut tail);
    // The first body holds its own footer, and even a whole further section that leads nowhere.
    let mut decoy = Vec::new();
    encode::footer(SectionId(4), &mut decoy);
    section(9, "decoy", b"", &mut decoy);
    decoy.push(0xff);
    section(4, "first", &decoy, &mut tail);
    section(6, "second", b"body", &mut tail);
    Command::Ping(3).encode(&mut tail);
    Command::PostcopyRun.encode(&mut tail);
    let expected = [("first".to_owned(), decoy), ("second".to_owned(), b"body".to_vec())];
    assert_eq!(bodies(&split_by_footers(&tail).unwrap()), expected);
}

#[test]
fn sections_that_break_off_have_no_division() {
    let mut tail = Vec::new();
    section(1, "timer", b"body", &mut tail);
    for end in 1..tail.len() {
        assert!(matches!(split_by_footers(&tail[..end]), Err(DeviceError::NoDivision)), "{end} bytes");
    }
}

#[test]
fn a_tail_made_of_footers_is_given_up() {
    // Every false footer has a section behind it that searches the rest in vain.
    let mut tail = Vec::new();
    section(1, "first", b"", &mut tail);
    for id in 2..3000 {
        section(id, "a", b"", &mut tail);
        encode::footer(SectionId(1), &mut tail);
    }
    tail.push(0xff);
    assert!(matches!(split_by_footers(&tail), Err(DeviceError::TooAmbiguous { .. })));
}

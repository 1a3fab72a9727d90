//! Devices of QEMU 10.0, written again as structs: their recorded bodies load, and what is saved again is the
//! recorded bytes and the recorded description.

use crate::{description_reader, hex, load};
use limosa_vmstate::{Device, Unused, VmState, body_length};
use serde_json::Value;

/// Loads the recorded `body`, saves it again and compares both with the recording.
#[track_caller]
fn assert_as_recorded(device: &mut impl Device, body: &str, entry: &str) -> Value {
    let body = hex(body);
    load(device, &body).unwrap();
    let saved = device.save().unwrap();
    assert_eq!(saved.body, body);
    assert_eq!(body_length(&saved.description).unwrap(), body.len() as u64);
    let recorded: Value = serde_json::from_str(entry).unwrap();
    let idstr = recorded["name"].as_str().unwrap();
    // Compared as text: the order of the keys counts too.
    assert_eq!(saved.clone().into_entry(idstr, 0).to_string(), recorded.to_string());
    description_reader::read(saved)
}

#[derive(VmState)]
#[vmstate(name = "globalstate", version = 1)]
struct GlobalState {
    size: u32,
    #[vmstate(buffer)]
    runstate: [u8; 32],
    has_vm_was_suspended: u8,
    vm_was_suspended: u8,
    #[vmstate(buffer)]
    unused: [u8; 66],
}

#[test]
fn globalstate_is_as_recorded() {
    let mut device = GlobalState {
        size: 0,
        runstate: [0; 32],
        has_vm_was_suspended: 0,
        vm_was_suspended: 0,
        unused: [0; 66],
    };
    let body = format!("00000008 72756e6e696e6700{} 01 00 {}", "00".repeat(24), "00".repeat(66));
    let entry = r#"{"name": "globalstate", "instance_id": 0, "vmsd_name": "globalstate", "version": 1, "fields": [
        {"name": "size", "type": "uint32", "size": 4},
        {"name": "runstate", "type": "buffer", "size": 32},
        {"name": "has_vm_was_suspended", "type": "uint8", "size": 1},
        {"name": "vm_was_suspended", "type": "uint8", "size": 1},
        {"name": "unused", "type": "buffer", "size": 66}]}"#;
    assert_as_recorded(&mut device, &body, entry);
    assert_eq!(device.save().unwrap().body.len(), 104);
    assert!(device.runstate.starts_with(b"running\0"));
}

#[derive(Default, VmState)]
#[vmstate(name = "hpet", version = 2, minimum_version = 1)]
struct Hpet {
    config: u64,
    isr: u64,
    hpet_counter: u64,
    num_timers_save: u8,
    #[vmstate(name = "timer", count = num_timers_save, max = 32)]
    timers: Vec<HpetTimer>,
}

#[derive(Default, VmState)]
#[vmstate(name = "hpet_timer", version = 1)]
struct HpetTimer {
    tn: u8,
    config: u64,
    cmp: u64,
    fsb: u64,
    period: u64,
    wrap_flag: u8,
    #[vmstate(timer)]
    qemu_timer: u64,
}

#[test]
fn a_variable_array_of_structs_is_as_recorded() {
    let timer = |number| {
        format!("{number:02x} 0000000400000030 ffffffffffffffff {} 00 ffffffffffffffff", "00".repeat(16))
    };
    let body = format!("{} 03 {} {} {}", "00".repeat(24), timer(0), timer(1), timer(2));
    let entry = r#"{"name": "hpet", "instance_id": 0, "vmsd_name": "hpet", "version": 2, "fields": [
        {"name": "config", "type": "uint64", "size": 8},
        {"name": "isr", "type": "uint64", "size": 8},
        {"name": "hpet_counter", "type": "uint64", "size": 8},
        {"name": "num_timers_save", "type": "uint8", "size": 1},
        {"name": "timer", "array_len": 3, "type": "struct", "struct": {
            "vmsd_name": "hpet_timer", "version": 1, "fields": [
                {"name": "tn", "type": "uint8", "size": 1},
                {"name": "config", "type": "uint64", "size": 8},
                {"name": "cmp", "type": "uint64", "size": 8},
                {"name": "fsb", "type": "uint64", "size": 8},
                {"name": "period", "type": "uint64", "size": 8},
                {"name": "wrap_flag", "type": "uint8", "size": 1},
                {"name": "qemu_timer", "type": "timer", "size": 8}]}, "size": 42}]}"#;
    let read = assert_as_recorded(&mut Hpet::default(), &body, entry);
    assert_eq!(read["timer"][2]["tn"], 2);
    assert_eq!(read["timer"][2]["qemu_timer"], u64::MAX);
}

/// The outer and the inner description have one name; the subsection belongs to the inner one.
#[derive(Default, VmState)]
#[vmstate(name = "pckbd", version = 3)]
struct KeyboardController {
    kbd: Keyboard,
}

#[derive(Default, VmState)]
#[vmstate(name = "pckbd", version = 3)]
struct Keyboard {
    write_cmd: u8,
    status: u8,
    mode: u8,
    pending_tmp: u8,
    #[vmstate(subsection)]
    extended: Option<KeyboardExtendedState>,
}

#[derive(Default, VmState)]
#[vmstate(name = "pckbd/extended_state", version = 0)]
struct KeyboardExtendedState {
    migration_flags: u32,
    obsrc: u32,
    obdata: u8,
    cbdata: u8,
}

#[test]
fn a_subsection_of_a_nested_struct_is_as_recorded() {
    let body = "00180300 05 14 70636b62642f657874656e6465645f7374617465 00000000 00000000 00000000 00 00";
    let entry = r#"{"name": "pckbd", "instance_id": 0, "vmsd_name": "pckbd", "version": 3, "fields": [
        {"name": "kbd", "type": "struct", "struct": {"vmsd_name": "pckbd", "version": 3, "fields": [
            {"name": "write_cmd", "type": "uint8", "size": 1},
            {"name": "status", "type": "uint8", "size": 1},
            {"name": "mode", "type": "uint8", "size": 1},
            {"name": "pending_tmp", "type": "uint8", "size": 1}],
         "subsections": [{"vmsd_name": "pckbd/extended_state", "version": 0, "fields": [
            {"name": "migration_flags", "type": "uint32", "size": 4},
            {"name": "obsrc", "type": "uint32", "size": 4},
            {"name": "obdata", "type": "uint8", "size": 1},
            {"name": "cbdata", "type": "uint8", "size": 1}]}]}, "size": 40}]}"#;
    let mut device = KeyboardController::default();
    assert_as_recorded(&mut device, body, entry);
    assert!(device.kbd.extended.is_some());
}

#[derive(VmState)]
#[vmstate(name = "mc146818rtc", version = 3, minimum_version = 1)]
struct Clock {
    #[vmstate(buffer)]
    cmos_data: [u8; 128],
    cmos_index: u8,
    before: Unused<28>,
    #[vmstate(timer)]
    periodic_timer: u64,
    next_periodic_time: i64,
    after: Unused<24>,
    #[vmstate(since = 2)]
    irq_coalesced: u32,
    #[vmstate(since = 2)]
    period: u32,
    #[vmstate(since = 3)]
    base_rtc: u64,
    #[vmstate(since = 3)]
    last_update: u64,
    #[vmstate(since = 3)]
    offset: i64,
    #[vmstate(timer, since = 3)]
    update_timer: u64,
    #[vmstate(since = 3)]
    next_alarm_time: u64,
}

#[test]
fn repeated_names_are_numbered_as_recorded() {
    let body = format!(
        "{} 0f {} ffffffffffffffff 0000000000000000 {} 00000000 00000000 \
         000000006b03a7a3 18ea8c466e863708 0000000000000000 18ea8c46aa210108 18ead217ad149908",
        "5a".repeat(128),
        "00".repeat(28),
        "00".repeat(24),
    );
    let entry = r#"{"name": "mc146818rtc", "instance_id": 0, "vmsd_name": "mc146818rtc", "version": 3, "fields": [
        {"name": "cmos_data", "type": "buffer", "size": 128},
        {"name": "cmos_index", "type": "uint8", "size": 1},
        {"name": "unused[0]", "type": "unused_buffer", "size": 28},
        {"name": "periodic_timer", "type": "timer", "size": 8},
        {"name": "next_periodic_time", "type": "int64", "size": 8},
        {"name": "unused[1]", "type": "unused_buffer", "size": 24},
        {"name": "irq_coalesced", "type": "uint32", "size": 4},
        {"name": "period", "type": "uint32", "size": 4},
        {"name": "base_rtc", "type": "uint64", "size": 8},
        {"name": "last_update", "type": "uint64", "size": 8},
        {"name": "offset", "type": "int64", "size": 8},
        {"name": "update_timer", "type": "timer", "size": 8},
        {"name": "next_alarm_time", "type": "uint64", "size": 8}]}"#;
    let mut device = Clock {
        cmos_data: [0; 128],
        cmos_index: 0,
        before: Unused,
        periodic_timer: 0,
        next_periodic_time: 0,
        after: Unused,
        irq_coalesced: 0,
        period: 0,
        base_rtc: 0,
        last_update: 0,
        offset: 0,
        update_timer: 0,
        next_alarm_time: 0,
    };
    assert_as_recorded(&mut device, &body, entry);
    assert_eq!(device.update_timer, 0x18ea_8c46_aa21_0108);
}

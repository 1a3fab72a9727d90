//! Nothing of a vCPU is lost between two machines.

mod ring;

use limosa_vmm::{GuestKind, Machine};
use limosa_vmstate::{SavedDevice, SliceInput};
use ring::{busy, incoming, kvm, let_work, machine};
use std::ops::Range;

/// The time stamp counter goes on while the vCPU is parked, and so does its deadline's base.
const TIME_STAMP_COUNTER: u32 = 0x10;
/// Bytes of one model-specific register on the wire: its number and its value.
const MSR_BYTES: usize = 4 + 8;
/// Where the legacy area of XSAVE has xmm0, and where its header has the bits of the components in use.
const XMM0: Range<usize> = 160..176;
const COMPONENTS_IN_USE: usize = 512;
const SSE_IN_USE: u8 = 1 << 1;

#[test]
fn a_loaded_vcpu_saves_the_same_bytes_again() {
    if !kvm("vCPU state") {
        return;
    }
    let here = machine(GuestKind::Kvm, 2, busy());
    here.resume().expect("it runs");
    let_work(&here, 10);
    here.pause();
    let there = incoming(GuestKind::Kvm, 2);
    for vcpu in 0..2 {
        let saved = save(&here, vcpu);
        let mut body = saved.body.clone();
        // The dirtier uses neither vector nor debug registers.
        let xsave = field(&saved, "xsave");
        body[xsave.start..][XMM0].copy_from_slice(b"0123456789abcdef");
        body[xsave.start + COMPONENTS_IN_USE] |= SSE_IN_USE;
        body[field(&saved, "db")].fill(0x11);
        load(&there, vcpu, &body);
        let again = save(&there, vcpu);
        assert_eq!(again.description, saved.description);
        assert_eq!(without_time(&again, again.body.clone()), without_time(&saved, body));
    }
}

#[test]
fn a_vcpu_of_another_processor_is_refused_by_the_name_of_what_differs() {
    if !kvm("vCPU identity") {
        return;
    }
    let here = machine(GuestKind::Kvm, 1, busy());
    let there = incoming(GuestKind::Kvm, 1);
    let saved = save(&here, 0);
    let mut body = saved.body.clone();
    // The first letter of the vendor's name.
    body[field(&saved, "identity").start] ^= 1;
    let mut devices = there.devices();
    let vcpu = devices.iter_mut().find(|entry| entry.idstr == "cpu").expect("there is a vCPU");
    let error = vcpu.device.load(1, &mut SliceInput::new(&body)).expect_err("the vendors differ");
    assert!(error.to_string().contains("vendor"), "{error}");
}

fn save(machine: &Machine, vcpu: u32) -> SavedDevice {
    let mut devices = machine.devices();
    let entry = devices.iter_mut().find(|entry| entry.idstr == "cpu" && entry.instance == vcpu);
    entry.expect("there is such a vCPU").device.save().expect("it saves")
}

fn load(machine: &Machine, vcpu: u32, body: &[u8]) {
    let mut devices = machine.devices();
    let entry = devices.iter_mut().find(|entry| entry.idstr == "cpu" && entry.instance == vcpu);
    let device = &mut entry.expect("there is such a vCPU").device;
    device.load(1, &mut SliceInput::new(body)).expect("it loads");
}

/// Where a field is in the body, by the description.
fn field(saved: &SavedDevice, name: &str) -> Range<usize> {
    let mut start = 0;
    for field in saved.description["fields"].as_array().expect("fields are a list") {
        let number = |key: &str| field[key].as_u64().map(|number| number as usize);
        let length = number("size").expect("a field has a size") * number("array_len").unwrap_or(1);
        if field["name"] == name {
            return start..start + length;
        }
        start += length;
    }
    panic!("no field {name}");
}

/// The body with the time stamp counter set to zero.
fn without_time(saved: &SavedDevice, mut body: Vec<u8>) -> Vec<u8> {
    for msr in body[field(saved, "msrs")].chunks_exact_mut(MSR_BYTES) {
        if msr[..4] == TIME_STAMP_COUNTER.to_be_bytes() {
            msr[4..].fill(0);
        }
    }
    body
}

//! The harness itself, and QEMU with QEMU: what is true here without a byte of ours on the wire.

use limosa_pages::PAGE_BYTES;
use limosa_stress::qemu::{
    Accelerator, Backing, Binary, Boot, Machine, Payload, QemuError, Release, Setup, TICK_ADDRESS, Transport,
    WORKING_SET_START, assert_goes_on, compare_pages,
};

fn migrate_between(source: &Binary, destination: &Binary, setup: &Setup) {
    let mut from = setup.start(source).expect("source");
    let mut to = setup.destination().start(destination).expect("destination");
    let uri = to.listen(Transport::Unix).expect("listen").to_string();
    from.wait_tick_past(20).expect("a running guest");
    from.migrate(&uri).expect("migrate");
    from.wait_migrated().expect("source");
    assert_goes_on(&from, &mut to).expect("a guest that goes on");
}

#[test]
fn the_payload_runs_on_every_machine_and_its_memory_is_seen() {
    let Some(binary) = Release::Current.require() else { return };
    for machine in [Machine::Microvm, Machine::Pc, Machine::Q35] {
        let setup = Setup::new(machine, Accelerator::of_this_machine());
        let mut qemu = setup.start(&binary).expect("start");
        let tick = qemu.wait_tick_past(20).expect("a running guest");
        qemu.stop().expect("stop");

        let in_memory = qemu.pmemsave(TICK_ADDRESS, 4).expect("pmemsave");
        let in_memory = u32::from_le_bytes(in_memory.try_into().unwrap());
        assert!(in_memory >= tick, "{machine}: {in_memory} in memory, {tick} printed");
        let page = qemu.pmemsave(WORKING_SET_START, 4).expect("pmemsave");
        assert_ne!(page, [0; 4], "{machine}: the first page of the working set was written");
        let total: u64 = qemu.windows().expect("windows").iter().map(|window| window.length).sum();
        assert!(total >= 16 << 20, "{machine}: {total} bytes are seen");
    }
}

#[test]
fn a_boot_sector_runs_under_real_firmware() {
    let Some(binary) = Release::Current.require() else { return };
    let payload = Payload::default();
    // Firmware takes 9 seconds where KVM emulates it, 0.2 under TCG.
    let setup = Setup { boot: Boot::Sector(payload), ..Setup::new(Machine::Pc, Accelerator::Tcg) };
    let qemu = setup.start(&binary).expect("start");
    qemu.wait_tick_past(20).expect("a running guest");
}

#[test]
fn pmemsave_and_a_shared_ram_file_agree_where_both_see() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup {
        backing: Backing::SharedFile,
        ..Setup::new(Machine::Microvm, Accelerator::of_this_machine())
    };
    let mut qemu = setup.start(&binary).expect("start");
    qemu.wait_tick_past(20).expect("a running guest");
    qemu.stop().expect("stop");
    let file = std::fs::read(qemu.ram_file()).expect("the file");
    let mut compared = 0;
    for saved in qemu.save_memory().expect("save") {
        if saved.window.block == setup.machine.ram_block() {
            assert_eq!(saved.compare(&file), None);
            compared += saved.bytes.len();
        }
    }
    assert!(compared > 15 << 20, "{compared} bytes of RAM were compared");
    let mut damaged = file.clone();
    damaged[WORKING_SET_START as usize] ^= 1;
    let difference = compare_pages("ram", 0, &file, &damaged).expect("a difference");
    assert_eq!(difference.page, WORKING_SET_START / PAGE_BYTES as u64 * PAGE_BYTES as u64);
}

#[test]
fn a_setup_that_qemu_refuses_is_an_error_with_its_words() {
    let Some(binary) = Release::Current.require() else { return };
    let setup = Setup {
        machine_options: vec!["no-such-option=on"],
        ..Setup::new(Machine::Microvm, Accelerator::of_this_machine())
    };
    match setup.start(&binary).map(drop) {
        Err(QemuError::Ended { stderr, .. }) => assert!(stderr.contains("no-such-option"), "{stderr}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_moves_between_two_current_releases_without_a_missing_tick() {
    let Some(binary) = Release::Current.require() else { return };
    let accelerator = Accelerator::of_this_machine();
    for machine in [Machine::Microvm, Machine::Pc] {
        migrate_between(&binary, &binary, &Setup::new(machine, accelerator));
    }
}

#[test]
fn a_guest_moves_from_7_2_to_the_current_release_without_a_missing_tick() {
    let Some(old) = Release::V7_2.require() else { return };
    let Some(current) = Release::Current.require() else { return };
    migrate_between(&old, &current, &Setup::new(Machine::Pc7_2, Accelerator::of_this_machine()));
}

//! `pmemsave`, and memory on both sides of the hole below 4 GiB.

use crate::ring::{self, MEMORY, for_each_kind, let_work, pause_and_verify};
use crate::stage::{Vmm, any_kind, memory, move_guest};
use limosa_pages::{BlockId, ByteCount, PageCount};
use limosa_vmm::{Content, Dirtier, GuestConfig, Program, Rate};
use serde_json::{Value, json};

/// Where RAM ends below the hole, and where it goes on.
const LOW_RAM_END: u64 = 3 << 30;
const HIGH_RAM: u64 = 4 << 30;

fn saved(vmm: &mut Vmm, start: u64, size: u64) -> Vec<u8> {
    let path = vmm.path("memory");
    vmm.execute("pmemsave", json!({ "val": start, "size": size, "filename": path }));
    std::fs::read(path).unwrap()
}

#[test]
fn saved_memory_is_the_guests_memory() {
    let Some(kind) = any_kind("pmemsave") else { return };
    let mut vmm = Vmm::running(kind);
    let_work(vmm.host.machine(), 1000);
    vmm.execute("stop", Value::Null);
    let whole = memory(&vmm, MEMORY);
    assert!(whole[1 << 20..].iter().any(|byte| *byte != 0), "the guest has written");
    assert!(saved(&mut vmm, 0, MEMORY.0) == whole);
    assert!(saved(&mut vmm, 0x12_3456, 100_000) == whole[0x12_3456..][..100_000]);
    assert_eq!(saved(&mut vmm, 0, 0), b"");

    let path = vmm.path("too-much");
    let beyond = json!({ "val": 4096, "size": MEMORY.0, "filename": path });
    let refusal = vmm.refusal("pmemsave", beyond);
    assert!(refusal.contains("0x0000000000001000") && !path.exists(), "{refusal}");
    let nowhere = json!({ "val": 0, "size": 1, "filename": vmm.path("no").join("file") });
    let refusal = vmm.refusal("pmemsave", nowhere);
    assert!(refusal.starts_with("Could not write"), "{refusal}");
}

#[test]
fn a_guest_on_both_sides_of_the_hole_arrives_whole() {
    for_each_kind("memory above 3 GiB", |kind| {
        let size = ByteCount(LOW_RAM_END + (1 << 30));
        // Its steps are spread over all of RAM, so that a few thousand touch both sides and little else.
        let dirtier = Dirtier {
            seed: 7,
            content: Content::Random,
            rate: Rate::PagesPerSecond(4000),
            ..Dirtier::default()
        };
        let config = GuestConfig { kind, memory: size, vcpus: 2, ..GuestConfig::default() };
        let outgoing = GuestConfig { program: Program::Dirtier(dirtier), ..config.clone() };
        let incoming = GuestConfig { program: Program::Incoming, ..config };
        let (mut source, mut destination) = (Vmm::new(&outgoing, false), Vmm::new(&incoming, true));
        source.execute("cont", Value::Null);
        let_work(source.host.machine(), 500);
        move_guest(&mut source, &mut destination, "unix");
        let_work(destination.host.machine(), 200);
        destination.execute("stop", Value::Null);

        let block = destination.host.machine().ram().block(BlockId(0));
        let high = PageCount(LOW_RAM_END / 4096);
        let populated = block.populated();
        let above = populated.runs().iter().filter(|run| run.end().0 > high.0).count();
        assert!(above > 100, "{above} runs of pages above the hole");
        let total: u64 = populated.pages().0;
        assert!(total < 100_000, "{total} pages: the guest was to be sparse");
        pause_and_verify(destination.host.machine());

        // What is saved from above 4 GiB is what the block has above 3 GiB.
        let page = populated.runs().iter().find(|run| run.start.0 > high.0).expect("there is one").start;
        let mut expected = vec![0; 4096];
        block.copy_out(page.0 * 4096, &mut expected);
        assert_eq!(&expected[..8], b"LIMOSApg");
        let address = page.0 * 4096 - LOW_RAM_END + HIGH_RAM;
        assert!(saved(&mut destination, address, 4096) == expected);
        assert!(saved(&mut destination, LOW_RAM_END, 4096) == [0; 4096], "the hole is empty");
        let end = HIGH_RAM + (1 << 30);
        let path = destination.path("beyond");
        destination.refusal("pmemsave", json!({ "val": end - 1, "size": 2, "filename": path }));
        ring::pause_and_verify(destination.host.machine());
    });
}

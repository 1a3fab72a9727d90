//! A vCPU in 64-bit mode at privilege level 3, from its first instruction on.
//!
//! Level 3 because a KVM that has no hardware support (pvm) emulates level 0 at a microsecond per instruction, but
//! runs level 3 natively. There are no interrupts, no descriptor tables and no stack: the segments are loaded from here, and
//! the dirtier leaves the guest by touching the doorbell.

use crate::guest_map::{self, DOORBELL, DOORBELL_DIRECTORY, PDPT, PML4, RAM_DIRECTORIES};
use crate::system_image::put_word;
use kvm_bindings::{kvm_segment, kvm_sregs};
use limosa_pages::PageCount;

/// Present, writable, for level 3, accessed, dirty: set from the start, so that the processor writes no entry.
const TABLE: u64 = 0x67;
/// The same, and the page has 2 MiB.
const HUGE_PAGE: u64 = 0xe7;
const HUGE_PAGE_BYTES: u64 = 2 << 20;
const ENTRIES: u64 = 512;

const CR0_PROTECTION: u64 = 1 << 0;
const CR0_MONITOR_COPROCESSOR: u64 = 1 << 1;
const CR0_EMULATION: u64 = 1 << 2;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const CR4_FXSAVE_AND_SSE_EXCEPTIONS: u64 = 3 << 9;
const EFER_LONG_MODE_ENABLED_AND_ACTIVE: u64 = 1 << 8 | 1 << 10;

/// Maps RAM, byte `offset` of the block at the virtual address `offset`, and the doorbell.
pub(crate) fn write_page_tables(image: &mut [u8], memory: PageCount) {
    put_word(image, PML4, PDPT | TABLE);
    let huge_pages = memory.bytes().0.div_ceil(HUGE_PAGE_BYTES);
    for directory in 0..huge_pages.div_ceil(ENTRIES) {
        put_word(image, PDPT + directory * 8, (RAM_DIRECTORIES + directory * 4096) | TABLE);
    }
    for page in 0..huge_pages {
        let physical = guest_map::physical(page * HUGE_PAGE_BYTES);
        put_word(image, RAM_DIRECTORIES + page * 8, physical | HUGE_PAGE);
    }
    let entry = guest_map::DOORBELL_VIRTUAL >> 30;
    put_word(image, PDPT + entry * 8, DOORBELL_DIRECTORY | TABLE);
    put_word(image, DOORBELL_DIRECTORY, DOORBELL | HUGE_PAGE);
}

/// Turns the registers of a vCPU after reset into those of a 64-bit program.
pub(crate) fn enter(registers: &mut kvm_sregs) {
    registers.cr0 |= CR0_PROTECTION | CR0_MONITOR_COPROCESSOR | CR0_PAGING;
    registers.cr0 &= !CR0_EMULATION;
    registers.cr3 = PML4;
    registers.cr4 |= CR4_PHYSICAL_ADDRESS_EXTENSION | CR4_FXSAVE_AND_SSE_EXCEPTIONS;
    registers.efer |= EFER_LONG_MODE_ENABLED_AND_ACTIVE;
    let data = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: 0x2b,
        // Data, read and write, accessed.
        type_: 3,
        present: 1,
        dpl: 3,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    };
    // Code, execute and read, accessed; 64-bit.
    registers.cs = kvm_segment { selector: 0x33, type_: 11, db: 0, l: 1, ..data };
    for segment in
        [&mut registers.ds, &mut registers.es, &mut registers.fs, &mut registers.gs, &mut registers.ss]
    {
        *segment = data;
    }
}

const _: () = assert!(
    RAM_DIRECTORIES + guest_map::RAM_PAGES_MAX.0 / (ENTRIES * ENTRIES) * 4096 <= guest_map::CODE,
    "the level 2 tables end before the code"
);

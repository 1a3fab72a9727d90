//! Where things are in guest-physical memory.
//!
//! The first MiB belongs to the built-in guest's own machinery; every page above it is content. Nothing in the
//! first MiB changes while the guest runs except two words in the control page of each worker, so a verifier
//! knows every byte of RAM.

use limosa_pages::{PAGE_BYTES, PageCount, PageIndex};

/// Name of the only RAM block, as a PC of QEMU calls it.
pub(crate) const RAM_BLOCK: &str = "pc.ram";

/// 1 MiB for page tables, code and control pages.
pub(crate) const SYSTEM_PAGES: PageCount = PageCount(256);
/// The first page of content.
pub(crate) const FIRST_CONTENT_PAGE: PageIndex = PageIndex(SYSTEM_PAGES.0);

/// Where a PC's firmware puts a boot sector, and where it jumps.
pub(crate) const BOOT_SECTOR: u64 = 0x7c00;

/// Page tables of the long-mode guest: level 4, level 3, and the level 2 table of the doorbell.
pub(crate) const PML4: u64 = 0x1_0000;
pub(crate) const PDPT: u64 = 0x1_1000;
pub(crate) const DOORBELL_DIRECTORY: u64 = 0x1_2000;
/// One level 2 table per GiB of RAM: 32 pages, up to 0x4_0000.
pub(crate) const RAM_DIRECTORIES: u64 = 0x2_0000;
/// The dirtier's code.
pub(crate) const CODE: u64 = 0x6_0000;
/// The phrases of the text class.
pub(crate) const PHRASES: u64 = 0x6_2000;
/// One control page per worker: 64 pages, up to 0xc_0000.
pub(crate) const CONTROL: u64 = 0x8_0000;

/// Workers (and vCPUs) a guest can have: the room for control pages.
pub const WORKERS_MAX: u32 = 64;
/// RAM a guest can have, in pages: 32 GiB, one level 2 table per GiB.
pub const RAM_PAGES_MAX: PageCount = PageCount((32 << 30) / PAGE_BYTES as u64);

/// RAM below 4 GiB ends here, as in a PC: above are the interrupt controllers, and three pages for KVM.
pub(crate) const LOW_RAM_END: u64 = 3 << 30;
/// What does not fit below [`LOW_RAM_END`] goes on here.
pub(crate) const HIGH_RAM: u64 = 4 << 30;
/// Three pages that KVM wants for itself on processors that cannot execute real mode.
pub(crate) const TASK_STATE_SEGMENT: usize = 0xfffb_d000;
/// One more such page.
pub(crate) const IDENTITY_MAP: u64 = 0xfffb_c000;

/// A guest-physical address behind which there is nothing, so that touching it exits to the VMM. RAM ends at 33 GiB at
/// most; 36 address bits, all that a vCPU may have, end at 64 GiB.
pub(crate) const DOORBELL: u64 = 48 << 30;
/// Where the guest sees the doorbell: entry 256 of its level 3 table.
pub(crate) const DOORBELL_VIRTUAL: u64 = 256 << 30;

/// Words of a control page. The first two change, and lie in one 16-byte unit so that they are read together.
pub(crate) mod control {
    /// Steps done.
    pub(crate) const STEPS: usize = 0;
    /// The page being written; 0 between two pages (page 0 is never content).
    pub(crate) const IN_FLIGHT: usize = 1;
    pub(crate) const BASE: usize = 2;
    pub(crate) const LEN: usize = 3;
    pub(crate) const STRIDE: usize = 4;
    pub(crate) const SEED: usize = 5;
    pub(crate) const CONTENT: usize = 6;
    pub(crate) const WRITING: usize = 7;
    /// Words in use.
    pub(crate) const WORDS: usize = 8;
    /// Bytes that change: the first two words.
    pub(crate) const LIVE_BYTES: usize = 16;
}

/// A stretch of the RAM block that is in one piece in guest-physical memory too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RamRange {
    /// Where it begins in the block.
    pub(crate) offset: u64,
    /// Where it begins in guest-physical memory.
    pub(crate) physical: u64,
    /// Bytes; positive.
    pub(crate) length: u64,
}

impl RamRange {
    /// The first guest-physical address behind it.
    pub(crate) const fn physical_end(&self) -> u64 {
        self.physical + self.length
    }
}

/// Where a RAM block of `length` bytes is in guest-physical memory, in ascending order: up to 3 GiB from 0, the rest
/// from 4 GiB.
pub(crate) fn ram_ranges(length: u64) -> Vec<RamRange> {
    let low = length.min(LOW_RAM_END);
    let mut ranges = vec![RamRange { offset: 0, physical: 0, length: low }];
    if low < length {
        ranges.push(RamRange { offset: low, physical: HIGH_RAM, length: length - low });
    }
    ranges
}

/// The guest-physical address of byte `offset` of the RAM block.
pub(crate) const fn physical(offset: u64) -> u64 {
    if offset < LOW_RAM_END { offset } else { offset - LOW_RAM_END + HIGH_RAM }
}

/// Address of the control page of worker `worker`.
pub(crate) fn control_page(worker: u32) -> u64 {
    assert!(worker < WORKERS_MAX);
    CONTROL + u64::from(worker) * PAGE_BYTES as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_that_reaches_the_hole_goes_on_behind_it() {
        let range = |offset, physical, length| RamRange { offset, physical, length };
        assert_eq!(ram_ranges(LOW_RAM_END), [range(0, 0, LOW_RAM_END)]);
        assert_eq!(
            ram_ranges(LOW_RAM_END + 4096),
            [range(0, 0, LOW_RAM_END), range(LOW_RAM_END, HIGH_RAM, 4096)]
        );
        for range in ram_ranges(RAM_PAGES_MAX.bytes().0) {
            assert_eq!(physical(range.offset), range.physical);
            assert_eq!(physical(range.offset + range.length - 1), range.physical_end() - 1);
        }
    }
}

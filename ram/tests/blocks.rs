//! Kernel ring: blocks over real mappings.
#![allow(unsafe_code, reason = "lends a mapping of the test to a block")]

use limosa_pages::{BlockName, ByteCount, LayoutError, PAGE_BYTES, PageCount, PageIndex, PageRun, PageSize};
use limosa_ram::{Backing, Evidence, GuestRam, RamBlock, RamError};
use std::io::Write;
use std::ptr::NonNull;

const PAGE: u64 = PAGE_BYTES as u64;
const LENGTH: ByteCount = ByteCount(64 * PAGE);

fn name(text: &str) -> BlockName {
    BlockName::new(text).unwrap()
}

fn run(start: u64, count: u64) -> PageRun {
    PageRun::new(PageIndex(start), PageCount(count))
}

fn pages(start: u64, count: u64) -> Vec<PageRun> {
    vec![run(start, count)]
}

/// One byte of `block`, seen by the guest.
fn guest_byte(block: &RamBlock, offset: usize) -> u8 {
    assert!(offset < block.length().0 as usize);
    // SAFETY: inside the block, which is mapped while it is borrowed; nobody writes now.
    unsafe { block.guest_address().add(offset).read_volatile() }
}

#[test]
fn the_guest_sees_what_the_engine_writes_through_the_alias() {
    let block = RamBlock::memfd(name("pc.ram"), LENGTH).unwrap();
    assert!(block.has_alias() && block.guest_address() != block.engine_address());
    block.copy_in(PAGE + 1, &[42]);
    assert_eq!(guest_byte(&block, PAGE_BYTES + 1), 42);
}

#[test]
fn every_backing_begins_zero_and_unpopulated_and_knows_it() {
    let file = tempfile::tempdir().unwrap();
    let blocks = [
        RamBlock::memfd(name("memfd"), LENGTH).unwrap(),
        RamBlock::anonymous(name("anonymous"), LENGTH).unwrap(),
        RamBlock::file(name("file"), &file.path().join("ram"), LENGTH).unwrap(),
    ];
    for block in &blocks {
        assert_eq!(block.populated().runs(), [], "{}", block.name());
        block.copy_in(3 * PAGE, &[1]);
        block.copy_in(5 * PAGE - 1, &[1, 1]);
        let populated = block.populated();
        assert_eq!(populated.runs(), [run(3, 3)], "{}", block.name());
        assert_eq!(
            populated.untouched(block.whole()).collect::<Vec<_>>(),
            [run(0, 3), run(6, 58)],
            "{}",
            block.name()
        );
        assert!(!populated.contains(PageIndex(2)) && populated.contains(PageIndex(5)));
    }
    assert_eq!(blocks.map(|block| block.begins_zero()), [true, true, false]);
}

#[test]
fn the_shared_zero_page_of_private_memory_counts_as_untouched() {
    let block = RamBlock::anonymous(name("ram"), LENGTH).unwrap();
    assert!(block.is_zero(PageIndex(7)), "reading maps the zero page");
    assert_eq!((block.populated().runs(), block.populated().evidence()), (&[][..], Evidence::PageTables));
}

#[test]
fn a_file_that_another_wrote_is_populated_where_it_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ram");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&[9; 2 * PAGE_BYTES]).unwrap();

    let block = RamBlock::file(name("ram"), &path, LENGTH).unwrap();
    assert_eq!(
        (block.populated().runs(), block.populated().evidence()),
        (&pages(0, 2)[..], Evidence::FileHoles)
    );
    let mut bytes = [0; 4];
    block.copy_out(2 * PAGE - 2, &mut bytes);
    assert_eq!(bytes, [9, 9, 0, 0]);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), LENGTH.0, "a short file grows");
}

#[test]
fn a_file_with_next_to_no_holes_is_populated_throughout() {
    let block = RamBlock::memfd(name("ram"), ByteCount(1024 * PAGE)).unwrap();
    (0..1020).for_each(|page| block.copy_in(page * PAGE, &[1]));
    let populated = block.populated();
    assert_eq!((populated.runs(), populated.evidence()), (&pages(0, 1020)[..], Evidence::FileHoles));

    block.copy_in(1020 * PAGE, &[1]);
    let populated = block.populated();
    assert_eq!((populated.runs(), populated.evidence()), (&pages(0, 1024)[..], Evidence::FileBlocks));
}

#[test]
fn filling_with_zero_touches_only_pages_that_are_not() {
    let block = RamBlock::memfd(name("ram"), LENGTH).unwrap();
    block.copy_in(2 * PAGE + 100, b"data");
    block.fill_zero(block.whole());
    assert_eq!(block.zero_mask(run(2, 1)), 1);
    assert_eq!(block.populated().runs(), [run(2, 1)], "the empty pages stayed empty");
}

#[test]
fn punched_pages_are_zero_and_given_back() {
    for block in [RamBlock::memfd(name("file"), LENGTH), RamBlock::anonymous(name("private"), LENGTH)] {
        let block = block.unwrap();
        block.copy_in(0, &vec![1; 4 * PAGE_BYTES]);
        block.punch(run(1, 2)).unwrap();
        assert_eq!(block.populated().runs(), [run(0, 1), run(3, 1)], "{}", block.name());
        assert_eq!(block.zero_mask(run(0, 4)), 0b0110);
    }
}

#[test]
fn preallocated_pages_are_populated_and_hold_what_they_held() {
    // 4 MiB and a bit, from a page inside the first huge page: huge and ordinary pages.
    let length = ByteCount((4 << 20) + 3 * PAGE);
    for block in [RamBlock::memfd(name("file"), length), RamBlock::anonymous(name("private"), length)] {
        let block = block.unwrap();
        block.copy_in(700 * PAGE, b"kept");
        let part = run(3, block.pages().0 - 4);
        block.preallocate(part).unwrap();
        let populated = block.populated();
        assert!(part.pages().all(|page| populated.contains(page)), "{}: {populated:?}", block.name());
        let mut bytes = [0; 4];
        block.copy_out(700 * PAGE, &mut bytes);
        assert_eq!(&bytes, b"kept");
    }
}

#[test]
fn the_zero_mask_has_a_bit_for_each_page_of_a_full_run() {
    let block = RamBlock::anonymous(name("ram"), LENGTH).unwrap();
    block.copy_in(5 * PAGE + 4095, &[1]);
    block.copy_in(63 * PAGE, &[1]);
    assert_eq!(block.zero_mask(run(0, 64)), !(1 << 5 | 1 << 63));
    assert_eq!(block.zero_mask(run(4, 3)), 0b101);
}

#[test]
fn offsets_of_a_peer_are_pages_only_inside_and_aligned() {
    let block = RamBlock::memfd(name("ram"), LENGTH).unwrap();
    assert_eq!(block.page_at(LENGTH.0 - PAGE), Some(PageIndex(63)));
    assert_eq!([1, LENGTH.0, !(PAGE - 1)].map(|offset| block.page_at(offset)), [None; 3]);
}

#[test]
#[should_panic(expected = "leave a mapping")]
fn a_copy_past_the_end_panics() {
    RamBlock::memfd(name("ram"), LENGTH).unwrap().copy_in(LENGTH.0 - 1, &[0; 2]);
}

#[test]
#[should_panic(expected = "leave a mapping")]
fn an_offset_that_would_wrap_panics() {
    RamBlock::memfd(name("ram"), LENGTH).unwrap().copy_out(u64::MAX, &mut [0; 2]);
}

#[test]
fn lengths_and_names_that_cannot_be_are_refused() {
    let odd = RamBlock::memfd(name("ram"), ByteCount(PAGE + 1)).err();
    assert!(matches!(odd, Some(RamError::Layout(LayoutError::Length { .. }))), "{odd:?}");
    let empty = RamBlock::anonymous(name("ram"), ByteCount(0)).err();
    assert!(matches!(empty, Some(RamError::Layout(LayoutError::Length { .. }))), "{empty:?}");
    let too_much = RamBlock::anonymous(name("ram"), ByteCount(u64::MAX - PAGE + 1)).err();
    assert!(matches!(too_much, Some(RamError::Map { call: "mmap", .. })), "{too_much:?}");
    let twins = (0..2).map(|_| RamBlock::memfd(name("ram"), LENGTH).unwrap()).collect();
    assert!(matches!(GuestRam::new(twins).err(), Some(RamError::Layout(LayoutError::DuplicateName { .. }))));
}

#[test]
fn an_embedders_file_mapping_gets_an_alias_and_stays_mapped_afterwards() {
    let memory = RamBlock::memfd(name("embedder"), LENGTH).unwrap();
    let Backing::SharedFile { file, .. } = memory.backing() else { panic!("a memfd is a file") };
    let backing = Backing::SharedFile { file: file.try_clone().unwrap(), offset: 16 * PAGE };
    let part = memory.guest_address().as_ptr().wrapping_add(16 * PAGE_BYTES);
    // SAFETY: the last 48 pages of `memory`, which outlives the block.
    let lent = unsafe {
        let (base, length) = (NonNull::new(part).unwrap(), ByteCount(48 * PAGE));
        RamBlock::from_mapping(name("lent"), base, length, PageSize::FOUR_KIB, backing)
    }
    .unwrap();

    lent.copy_in(0, &[77]);
    assert_eq!(lent.populated().runs(), [run(0, 1)]);
    lent.punch(run(47, 1)).unwrap();
    drop(lent);
    assert_eq!(guest_byte(&memory, 16 * PAGE_BYTES), 77);
}

#[test]
fn an_embedders_mapping_of_unknown_kind_is_populated_throughout() {
    let memory = RamBlock::anonymous(name("embedder"), LENGTH).unwrap();
    // SAFETY: all of `memory`, which outlives the block.
    let lent = unsafe {
        let base = memory.guest_address();
        RamBlock::from_mapping(name("lent"), base, LENGTH, PageSize::FOUR_KIB, Backing::Unknown)
    }
    .unwrap();
    assert_eq!(
        (lent.populated().runs(), lent.populated().evidence()),
        (&pages(0, 64)[..], Evidence::Unknown)
    );
    lent.copy_in(0, &[1]);
    lent.punch(lent.whole()).unwrap();
    assert!(lent.is_zero(PageIndex(0)));
}

#[test]
fn an_embedders_mapping_must_begin_at_one_of_its_pages() {
    let memory = RamBlock::anonymous(name("embedder"), LENGTH).unwrap();
    let middle = NonNull::new(memory.guest_address().as_ptr().wrapping_add(PAGE_BYTES)).unwrap();
    // SAFETY: inside `memory`, which outlives the attempt.
    let refused = unsafe {
        let huge = PageSize::new(8 * PAGE).unwrap();
        RamBlock::from_mapping(name("lent"), middle, ByteCount(8 * PAGE), huge, Backing::Unknown)
    };
    assert!(matches!(refused.err(), Some(RamError::Misaligned { .. })));
}

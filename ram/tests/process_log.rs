//! Kernel ring: the dirty log of process memory, against threads that write all the time.
#![allow(unsafe_code, reason = "writers write guest memory through its address, as a process guest does")]

mod ring;

use limosa_pages::{BlockId, BlockName, ByteCount, DirtyMap, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_ram::dirty_log::{DirtyLog, HostWrites, PagemapDirtyLog};
use limosa_ram::{Evidence, GuestRam, RamBlock};
use ring::{Follower, StopOnDrop, left_out, rounds_during};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const PAGES: u64 = 4096; // 16 MiB a block: many page tables, and a round is still short.

fn name(text: &str) -> BlockName {
    BlockName::new(text).unwrap()
}

fn guest() -> GuestRam {
    let length = PageCount(PAGES).bytes();
    let blocks = [RamBlock::memfd(name("file"), length), RamBlock::anonymous(name("private"), length)];
    GuestRam::new(blocks.map(Result::unwrap).into()).unwrap()
}

fn log_of(ram: &GuestRam) -> Option<PagemapDirtyLog> {
    match PagemapDirtyLog::detect() {
        Ok(()) => Some(PagemapDirtyLog::new(ram.clone(), Arc::new(HostWrites::new(ram.layout()))).unwrap()),
        Err(error) => {
            left_out("the pagemap log", &error);
            None
        }
    }
}

/// A word of guest memory, seen where the guest sees it.
fn word(block: &RamBlock, page: u64, index: u64) -> &AtomicU64 {
    assert!(page < block.pages().0 && index < 512);
    let offset = (page * PAGE_BYTES as u64 + index * 8) as usize;
    // SAFETY: inside the block, aligned, and mapped while the block is borrowed; every other access to these bytes is
    // atomic, volatile or the kernel's.
    unsafe { AtomicU64::from_ptr(block.guest_address().add(offset).as_ptr().cast()) }
}

/// Increments random words of the pages below `pages` of all blocks until told to stop; counts them in `writes`.
fn write_at_random(ram: &GuestRam, mut seed: u64, pages: u64, writes: &AtomicU64, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for (_, block) in ram.iter() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word(block, (seed >> 40) % pages, (seed >> 20) % 512).fetch_add(1, Ordering::Relaxed);
        }
        writes.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn no_write_is_lost_between_rounds_while_writers_race() {
    let ram = guest();
    let Some(mut log) = log_of(&ram) else { return };
    let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        // One writer keeps to the first half, so that much is empty when the log looks; another spreads.
        scope.spawn(|| write_at_random(&ram, 1, PAGES / 2, &writes, &stop));
        scope.spawn(|| write_at_random(&ram, 2, PAGES, &writes, &stop));
        let _stop = StopOnDrop(&stop);
        let mut follower = Follower::start(&ram, &mut log);
        let seen = rounds_during(&writes, 100_000, || follower.round(&mut log));
        assert!(seen > PageCount(0), "the writers wrote, the log saw nothing");
        // The scope ends the writers before the last look.
        follower
    })
    .finish(&mut log);
}

#[test]
fn starting_over_and_over_while_pages_appear_loses_none() {
    for seed in 0..20 {
        let ram = guest();
        let Some(mut log) = log_of(&ram) else { return };
        let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| write_at_random(&ram, seed, PAGES, &writes, &stop));
            let _stop = StopOnDrop(&stop);
            while writes.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            Follower::start(&ram, &mut log)
        })
        .finish(&mut log);
    }
}

#[test]
fn a_page_that_appears_where_even_the_page_table_is_missing_is_not_lost() {
    // The kernel reports a stretch without page tables as a whole and protects it then, for milliseconds. The last
    // page of such a gigabyte is written somewhere in that time: each attempt writes a little later.
    const GIGABYTE: usize = 1 << 30;
    for attempt in 0..40_u32 {
        let block = RamBlock::anonymous(name("vast"), ByteCount(2 * GIGABYTE as u64)).unwrap();
        let into_aligned_gigabyte = block.guest_address().as_ptr().align_offset(GIGABYTE);
        let last = ((into_aligned_gigabyte + GIGABYTE) / PAGE_BYTES) as u64 - 1;
        let ram = GuestRam::new(vec![block]).unwrap();
        let Some(mut log) = log_of(&ram) else { return };
        let starting = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !starting.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                (0..attempt * 20_000).for_each(|_| std::hint::spin_loop());
                word(ram.block(BlockId(0)), last, 0).store(1, Ordering::Relaxed);
            });
            starting.store(true, Ordering::Relaxed);
            log.start().unwrap();
        });
        let populated = log.populated(BlockId(0)).unwrap();
        let owed = DirtyMap::clean(ram.layout());
        log.sync_into(&owed).unwrap();
        let page = PageIndex(last);
        assert!(populated.contains(page) || owed.block(BlockId(0)).is_owed(page), "attempt {attempt}");
    }
}

#[test]
fn only_written_pages_are_reported_and_only_once() {
    let ram = guest();
    let Some(mut log) = log_of(&ram) else { return };
    for (_, block) in ram.iter() {
        word(block, 10, 0).store(1, Ordering::Relaxed);
    }
    log.start().unwrap();
    let owed = DirtyMap::clean(ram.layout());
    assert_eq!(log.sync_into(&owed).unwrap(), PageCount(0), "nothing was written since the start");

    for (_, block) in ram.iter() {
        word(block, 10, 1).store(2, Ordering::Relaxed); // populated before
        word(block, 4000, 0).store(3, Ordering::Relaxed); // new
        word(block, 20, 0).load(Ordering::Relaxed); // read only
    }
    assert_eq!(log.sync_into(&owed).unwrap(), PageCount(4));
    for (id, _) in ram.iter() {
        assert!(owed.block(id).claim(PageIndex(10)) && owed.block(id).claim(PageIndex(4000)));
    }
    assert_eq!(log.sync_into(&owed).unwrap(), PageCount(0));
    assert_eq!(owed.count(), PageCount(0));
    log.stop().unwrap();
}

#[test]
fn empty_pages_are_known_after_the_start_also_where_markers_look_like_swap() {
    let ram = guest();
    let Some(mut log) = log_of(&ram) else { return };
    for (_, block) in ram.iter() {
        word(block, 0, 0).store(1, Ordering::Relaxed);
        word(block, 3000, 0).store(1, Ordering::Relaxed);
        word(block, 50, 0).load(Ordering::Relaxed);
    }
    log.start().unwrap();

    let private = log.populated(BlockId(1)).unwrap();
    let expected = [0, 3000].map(|page| PageRun::new(PageIndex(page), PageCount(1)));
    assert_eq!((private.evidence(), private.runs()), (Evidence::PageTables, &expected[..]));

    // In a file, a page that was read is a page; the rest is holes.
    let file = log.populated(BlockId(0)).unwrap();
    assert_eq!(file.evidence(), Evidence::FileHoles);
    let expected = [0, 50, 3000].map(|page| PageRun::new(PageIndex(page), PageCount(1)));
    assert_eq!(file.runs(), expected);
}

#[test]
fn writes_of_the_kernel_into_guest_memory_are_reported() {
    let ram = guest();
    let Some(mut log) = log_of(&ram) else { return };
    log.start().unwrap();
    let block = ram.block(BlockId(1));
    let mut source: &[u8] = &[7; PAGE_BYTES];
    let (read_end, mut write_end) = std::io::pipe().unwrap();
    std::io::copy(&mut source, &mut write_end).unwrap();
    let vector = libc::iovec {
        iov_base: block.guest_address().as_ptr().wrapping_add(5 * PAGE_BYTES).cast(),
        iov_len: PAGE_BYTES,
    };
    // SAFETY: page 5 of the block, mapped and borrowed.
    let read = unsafe { libc::readv(std::os::fd::AsRawFd::as_raw_fd(&read_end), &vector, 1) };
    assert_eq!(read, PAGE_BYTES as isize);

    let owed = DirtyMap::clean(ram.layout());
    log.sync_into(&owed).unwrap();
    assert!(owed.block(BlockId(1)).is_owed(PageIndex(5)));
}

#[test]
fn writes_through_the_alias_are_reported_by_the_host() {
    let ram = guest();
    let Some(mut log) = log_of(&ram) else { return };
    log.start().unwrap();
    ram.block(BlockId(0)).copy_in(3 * PAGE_BYTES as u64 - 1, b"ab");
    log.host_writes().mark(BlockId(0), 3 * PAGE_BYTES as u64 - 1, 2);

    let owed = DirtyMap::clean(ram.layout());
    log.sync_into(&owed).unwrap();
    assert_eq!(owed.block(BlockId(0)).next_owed(PageIndex(0), PageCount(9)).unwrap().pages().count(), 2);
    assert!(owed.block(BlockId(0)).is_owed(PageIndex(2)));
}

#[test]
fn a_stopped_log_can_start_again() {
    let ram = guest();
    let Some(mut log) = log_of(&ram) else { return };
    let owed = DirtyMap::clean(ram.layout());
    for _ in 0..2 {
        log.start().unwrap();
        word(ram.block(BlockId(0)), 1, 0).fetch_add(1, Ordering::Relaxed);
        log.sync_into(&owed).unwrap();
        assert!(owed.block(BlockId(0)).claim(PageIndex(1)));
        log.stop().unwrap();
    }
}

#[test]
fn a_log_longer_than_one_answer_of_the_kernel_is_read_to_its_end() {
    // 65,536 regions come in one answer; every second page of 150,000 makes 75,000.
    let pages = 150_000;
    let block = RamBlock::anonymous(name("long"), ByteCount(pages * PAGE_BYTES as u64)).unwrap();
    let ram = GuestRam::new(vec![block]).unwrap();
    let Some(mut log) = log_of(&ram) else { return };
    log.start().unwrap();
    for page in (0..pages).step_by(2) {
        word(ram.block(BlockId(0)), page, 0).store(1, Ordering::Relaxed);
    }
    let owed = DirtyMap::clean(ram.layout());
    assert_eq!(log.sync_into(&owed).unwrap(), PageCount(pages / 2));
    assert_eq!(log.sync_into(&owed).unwrap(), PageCount(0));
}

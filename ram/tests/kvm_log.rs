//! Kernel ring: KVM's dirty log, against a guest that writes all the time.
//!
//! The guest runs in user mode (CPL 3): some paravirtual hosts emulate kernel-mode code instruction by instruction.
//! It adds a number to one word per page of a range, stores to an address without memory to leave, and starts over.
#![allow(unsafe_code, reason = "sets up a virtual machine over guest memory")]

mod ring;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use limosa_pages::{BlockId, BlockName, ByteCount, DirtyMap, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_ram::dirty_log::{ClearMode, DirtyLog, HostWrites, KvmDirtyLog, KvmSlot};
use limosa_ram::{GuestRam, RamBlock};
use ring::{Follower, StopOnDrop, left_out, rounds_during};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const RAM: BlockId = BlockId(0);
/// 160 MiB: more than two chunks of 64 MiB, the last of them not whole.
const LENGTH: u64 = 160 << 20;
/// Where the second slot begins: no multiple of 64 pages, so its log begins inside a word of the block's bitmap.
const SPLIT: u64 = (80 << 20) + 5 * PAGE_BYTES as u64;
/// Below lie the code and the page tables; the guest's writes go above.
const LOW: u64 = 2 << 20;
/// The host's devices write from here on, the guest below.
const DEVICE: u64 = LENGTH - (1 << 20);

const CODE: u64 = 0x1000;
const MMIO_DIRECTORY: u64 = 0x8000;
const LEVEL_4: u64 = 0x9000;
const LEVEL_3: u64 = 0xa000;
const DIRECTORY: u64 = 0x1_0000;

/// `start: mov rdi, r8; next: add [rdi], rbx; add rdi, r10; cmp rdi, rsi; jb next; mov [r14], al; jmp start`
const PROGRAM: [u8; 19] = [
    0x4c, 0x89, 0xc7, 0x48, 0x01, 0x1f, 0x4c, 0x01, 0xd7, 0x48, 0x39, 0xf7, 0x72, 0xf5, 0x41, 0x88, 0x06,
    0xeb, 0xed,
];

struct Guest {
    ram: GuestRam,
    slots: [KvmSlot; 2],
    vm: VmFd,
    vcpu: VcpuFd,
}

/// A guest, or none where there is no KVM.
fn guest() -> Option<Guest> {
    let vm = match Kvm::new().and_then(|kvm| kvm.create_vm()) {
        Ok(vm) => vm,
        Err(error) => {
            left_out("/dev/kvm", &error);
            return None;
        }
    };
    let block = RamBlock::memfd(BlockName::new("pc.ram").unwrap(), ByteCount(LENGTH)).unwrap();
    let ram = GuestRam::new(vec![block]).unwrap();
    let slot = |slot, start, end| KvmSlot {
        slot,
        block: RAM,
        block_offset: start,
        guest_phys_addr: start,
        length: ByteCount(end - start),
        flags: 0,
    };
    let slots = [slot(0, 0, SPLIT), slot(1, SPLIT, LENGTH)];
    for slot in &slots {
        install(&vm, &ram, slot, 0);
    }
    write_tables(ram.block(RAM));
    let vcpu = vm.create_vcpu(0).unwrap();
    enter_user_mode(&vcpu);
    Some(Guest { ram, slots, vm, vcpu })
}

fn install(vm: &VmFd, ram: &GuestRam, slot: &KvmSlot, flags: u32) {
    let region = kvm_userspace_memory_region {
        slot: slot.slot,
        flags,
        guest_phys_addr: slot.guest_phys_addr,
        memory_size: slot.length.0,
        userspace_addr: ram.block(slot.block).guest_address().addr().get() as u64 + slot.block_offset,
    };
    // SAFETY: memory of a block, which the tests keep for as long as the virtual machine.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
}

/// All memory one to one in pages of 2 MiB, for user mode; at 256 GiB a window on 32 GiB, where no memory is.
fn write_tables(block: &RamBlock) {
    let entry = |at: u64, value: u64| block.copy_in(at, &value.to_le_bytes());
    entry(LEVEL_4, LEVEL_3 | 7);
    entry(LEVEL_3, DIRECTORY | 7);
    entry(LEVEL_3 + 256 * 8, MMIO_DIRECTORY | 7);
    for index in 0..512 {
        entry(MMIO_DIRECTORY + index * 8, ((32 << 30) + (index << 21)) | 0x87);
        if index << 21 < LENGTH {
            entry(DIRECTORY + index * 8, (index << 21) | 0x87);
        }
    }
    block.copy_in(CODE, &PROGRAM);
}

fn enter_user_mode(vcpu: &VcpuFd) {
    let mut sregs = vcpu.get_sregs().unwrap();
    sregs.cr3 = LEVEL_4;
    sregs.cr4 |= 0x620; // PAE, and SSE enabled
    sregs.cr0 = (sregs.cr0 | 0x8000_0003) & !0x4; // paging, protection; no x87 emulation
    sregs.efer = 0x500; // long mode, active
    let code = kvm_segment {
        limit: u32::MAX,
        selector: 0x33,
        present: 1,
        type_: 11,
        dpl: 3,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment { type_: 3, selector: 0x2b, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    vcpu.set_sregs(&sregs).unwrap();
}

impl Guest {
    fn log(&self, mode: ClearMode) -> KvmDirtyLog {
        // SAFETY: the slots are installed as described, by `guest`.
        unsafe {
            let writes = Arc::new(HostWrites::new(self.ram.layout()));
            KvmDirtyLog::with_mode(vm_fd(&self.vm), self.ram.clone(), &self.slots, writes, mode).unwrap()
        }
    }

    /// Adds `value` to one word of every page from `start` to `end` in steps of `stride`.
    fn pass(&mut self, start: u64, end: u64, stride: u64, value: u64) {
        pass(&mut self.vcpu, start, end, stride, value);
    }
}

fn vm_fd(vm: &VmFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open while `vm` is borrowed.
    unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) }
}

fn pass(vcpu: &mut VcpuFd, start: u64, end: u64, stride: u64, value: u64) {
    let mut registers = vcpu.get_regs().unwrap();
    registers.rip = CODE;
    registers.rflags = 2;
    (registers.r8, registers.rsi, registers.r10, registers.rbx) = (start, end, stride, value);
    registers.r14 = 256 << 30;
    vcpu.set_regs(&registers).unwrap();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::MmioWrite(..)) => return,
            Ok(exit) => panic!("the guest left by {exit:?}"),
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {}
            Err(error) => panic!("KVM_RUN: {error}"),
        }
    }
}

/// Passes over random ranges with random strides until told to stop; counts them in `passes`.
fn write_at_random(vcpu: &mut VcpuFd, passes: &AtomicU64, stop: &AtomicBool) {
    let mut seed = 1_u64;
    while !stop.load(Ordering::Relaxed) {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let page = |bits: u64| (bits & 0xffff) % ((DEVICE - LOW) / PAGE_BYTES as u64);
        let start = LOW + page(seed >> 32) * PAGE_BYTES as u64 + (seed >> 20) % 512 * 8;
        let stride = (1 + (seed >> 16) % 30) * PAGE_BYTES as u64;
        let end = (start + 200 * stride).min(DEVICE);
        pass(vcpu, start, end, stride, seed | 1);
        passes.fetch_add(1, Ordering::Relaxed);
    }
}

/// Writes into the last MiB through the alias, and reports it, as an emulated device does.
fn emulate_device(ram: &GuestRam, writes: &HostWrites, stop: &AtomicBool) {
    let mut seed = 7_u64;
    while !stop.load(Ordering::Relaxed) {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = DEVICE + (seed >> 30) % ((1 << 20) - 8);
        ram.block(RAM).copy_in(offset, &seed.to_le_bytes());
        writes.mark(RAM, offset, 8);
    }
}

fn follow_a_running_guest(mode: ClearMode) {
    let Some(mut guest) = guest() else { return };
    let mut log = guest.log(mode);
    let writes = Arc::clone(log.host_writes());
    let (stop, passes) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (ram, vcpu, stop, passes) = (&guest.ram, &mut guest.vcpu, &stop, &passes);
        scope.spawn(move || write_at_random(vcpu, passes, stop));
        scope.spawn(move || emulate_device(ram, &writes, stop));
        let _stop = StopOnDrop(stop);
        let mut follower = Follower::start(ram, &mut log);
        let seen = rounds_during(passes, 40, || follower.round(&mut log));
        assert!(seen > PageCount(0), "the guest wrote, the log saw nothing");
        follower
    })
    .finish(&mut log);
}

#[test]
fn a_copy_follows_a_running_guest_when_get_clears() {
    follow_a_running_guest(ClearMode::AtGet);
}

#[test]
fn a_copy_follows_a_running_guest_when_chunks_are_cleared_before_they_are_read() {
    follow_a_running_guest(ClearMode::Manual);
}

#[test]
fn a_copy_follows_a_running_guest_when_the_log_begins_all_dirty() {
    follow_a_running_guest(ClearMode::ManualInitiallySet);
}

#[test]
fn pages_that_appear_while_the_log_starts_are_not_lost() {
    for _ in 0..5 {
        let Some(mut guest) = guest() else { return };
        let mut log = guest.log(ClearMode::ManualInitiallySet);
        let (stop, passes) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let (ram, vcpu, stop, passes) = (&guest.ram, &mut guest.vcpu, &stop, &passes);
            scope.spawn(move || write_at_random(vcpu, passes, stop));
            let _stop = StopOnDrop(stop);
            while passes.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            Follower::start(ram, &mut log)
        })
        .finish(&mut log);
    }
}

#[test]
fn a_page_is_reported_until_its_chunk_is_cleared_and_then_only_if_written_again() {
    let Some(mut guest) = guest() else { return };
    let mut log = guest.log(ClearMode::ManualInitiallySet);
    log.start().unwrap();
    let owed = DirtyMap::clean(guest.ram.layout());
    let whole = guest.ram.block(RAM).whole();
    let pages = |range: std::ops::Range<u64>| {
        range.filter(|&page| owed.block(RAM).claim(PageIndex(page))).collect::<Vec<_>>()
    };

    assert_eq!(log.sync_into(&owed).unwrap(), whole.count, "everything is dirty at first");
    owed.block(RAM).clear();
    log.clear_before_read(RAM, whole).unwrap();
    log.sync_into(&owed).unwrap();
    assert_eq!(owed.count(), PageCount(0));

    // One page in each slot, chunks 0 and 2 of the block's guest addresses.
    let (first, second) = (1000, 30_000);
    guest.pass(first * 4096, first * 4096 + 1, 4096, 1);
    guest.pass(second * 4096, second * 4096 + 1, 4096, 1);
    for _ in 0..2 {
        log.sync_into(&owed).unwrap();
        assert_eq!(pages(512..whole.count.0), [first, second], "not cleared, so reported again");
    }
    log.clear_before_read(RAM, PageRun::new(PageIndex(1), PageCount(1))).unwrap();
    log.sync_into(&owed).unwrap();
    assert_eq!(pages(512..whole.count.0), [second], "only the first chunk was cleared");

    guest.pass(first * 4096, first * 4096 + 1, 4096, 1);
    log.sync_into(&owed).unwrap();
    assert_eq!(pages(512..whole.count.0), [first, second]);
}

#[test]
fn empty_pages_are_known_and_reported_once_the_guest_writes_them() {
    let Some(mut guest) = guest() else { return };
    let mut log = guest.log(ClearMode::ManualInitiallySet);
    let page = 20_000;
    guest.pass(page * 4096, page * 4096 + 1, 4096, 1);
    log.start().unwrap();
    let populated = log.populated(RAM).unwrap();
    assert!(populated.contains(PageIndex(page)) && !populated.contains(PageIndex(page + 1)));
    assert!(populated.pages() < PageCount(512), "{} pages of a small guest", populated.pages());

    let owed = DirtyMap::clean(guest.ram.layout());
    guest.pass((page + 1) * 4096, (page + 1) * 4096 + 1, 4096, 1);
    log.sync_into(&owed).unwrap();
    assert!(owed.block(RAM).is_owed(PageIndex(page + 1)));
    assert!(!owed.block(RAM).is_owed(PageIndex(page + 2)), "an empty page that stayed empty");
}

#[test]
fn a_stopped_log_leaves_the_slots_without_logging_and_can_start_again() {
    let Some(guest) = guest() else { return };
    let mut log = guest.log(ClearMode::ManualInitiallySet);
    let owed = DirtyMap::clean(guest.ram.layout());
    for _ in 0..2 {
        log.start().unwrap();
        assert_eq!(log.sync_into(&owed).unwrap(), guest.ram.block(RAM).pages());
        owed.block(RAM).clear();
        log.stop().unwrap();
        let error = guest.vm.get_dirty_log(0, SPLIT as usize).unwrap_err();
        assert_eq!(error.errno(), libc::ENOENT, "the slot has no log");
    }
}

#[test]
fn a_descriptor_that_is_no_virtual_machine_is_refused_by_name() {
    let file = std::fs::File::open("/dev/null").unwrap();
    let error = KvmDirtyLog::detect(std::os::fd::AsFd::as_fd(&file)).unwrap_err();
    assert!(error.to_string().contains("KVM's dirty log is not available"), "{error}");
}

#[test]
fn a_slot_that_is_missing_in_the_machine_fails_at_the_first_look() {
    let Some(guest) = guest() else { return };
    let mut log = guest.log(ClearMode::Manual);
    log.start().unwrap();
    // Somebody else removes the log behind our back.
    install(&guest.vm, &guest.ram, &guest.slots[1], 0);
    let error = log.sync_into(&DirtyMap::clean(guest.ram.layout())).unwrap_err();
    assert_eq!(error.to_string(), "RAM block pc.ram: KVM_GET_DIRTY_LOG failed");
    install(&guest.vm, &guest.ram, &guest.slots[1], KVM_MEM_LOG_DIRTY_PAGES);
}

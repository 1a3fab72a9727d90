//! KVM's dirty bitmap, with the clearing put off until a chunk is about to be read.
//!
//! `KVM_GET_DIRTY_LOG` alone protects all pages against writing at once, which stalls the guest in proportion to
//! its memory. With `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` it only copies the bitmap, and `KVM_CLEAR_DIRTY_LOG` clears and
//! protects a stretch when we say so: 64 MiB at a time, just before the first page of it is read.
//!
//! Source: kernel documentation, virt/kvm/api, sections 4.35, 4.43, 4.117 and 7.18.
//!
//! Safety argument of the module: the arguments of the ioctls have the kernel's layout (asserted through the request
//! numbers, which contain the sizes), bitmaps are as long as the slots they stand for, and the slots are as the
//! caller of [`KvmDirtyLog::new`] vouched.
#![allow(unsafe_code, reason = "KVM ioctls")]

use super::{DirtyLog, DirtyLogError, HostWrites};
use crate::guest_ram::GuestRam;
use crate::populated::Populated;
use limosa_pages::{BlockId, ByteCount, DirtyBitmap, DirtyMap, PAGE_BYTES, PageCount, PageIndex, PageRun};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Pages cleared at a time: 16,384 of 4 KiB = 64 MiB, about 0.4 ms when all are dirty. A multiple of 64, as KVM wants.
const CHUNK_PAGES: u64 = 16_384;
const CHUNK_WORDS: usize = CHUNK_PAGES as usize / 64;

/// A KVM memory slot, as the VMM installed it with `KVM_SET_USER_MEMORY_REGION`.
///
/// Its userspace address is that of the block's guest mapping plus `block_offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvmSlot {
    /// Slot number.
    pub slot: u32,
    /// Block whose memory it shows.
    pub block: BlockId,
    /// Where in the block it begins, in bytes; a multiple of 4 KiB.
    pub block_offset: u64,
    /// Where the guest sees it, in bytes.
    pub guest_phys_addr: u64,
    /// Bytes; a multiple of 4 KiB.
    pub length: ByteCount,
    /// Flags besides `KVM_MEM_LOG_DIRTY_PAGES`.
    pub flags: u32,
}

/// When KVM clears its bitmap and protects the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClearMode {
    /// All at once, when the bitmap is read: kernels before 5.2.
    AtGet,
    /// When told to; starting the log protects everything.
    Manual,
    /// When told to; starting the log marks everything dirty and protects nothing (Linux 5.7).
    ManualInitiallySet,
}

/// Dirty log of a KVM guest.
///
/// It sees what vCPUs write, nothing else: devices report to [`HostWrites`]. A virtual machine that has its dirty ring
/// enabled cannot be asked this way.
pub struct KvmDirtyLog {
    vm: OwnedFd,
    ram: GuestRam,
    slots: Vec<SlotLog>,
    host_writes: Arc<HostWrites>,
    mode: ClearMode,
    running: bool,
}

/// One slot and what KVM last said about it.
struct SlotLog {
    slot: KvmSlot,
    /// Dirty by the last look and not yet cleared in KVM; used in the manual modes beyond a call.
    words: Box<[u64]>,
    /// Per chunk, whether `words` may have a bit there.
    uncleared: Box<[bool]>,
}

impl KvmDirtyLog {
    /// A log of the guest `vm` whose memory is `ram`, by the best mode that its kernel has.
    ///
    /// # Errors
    /// [`DirtyLogError::Unavailable`] if `vm` is no virtual machine of KVM.
    ///
    /// # Panics
    /// If a slot leaves its block or is not made of whole pages.
    ///
    /// # Safety
    /// Each of `slots` must be installed in `vm` as it is described here. Starting the log installs it again, with
    /// another flag; a slot that was not there would give the guest memory that nobody keeps mapped.
    pub unsafe fn new(
        vm: BorrowedFd<'_>,
        ram: GuestRam,
        slots: &[KvmSlot],
        host_writes: Arc<HostWrites>,
    ) -> Result<Self, DirtyLogError> {
        let mode = Self::detect(vm)?;
        // SAFETY: the caller's promise is the same.
        unsafe { Self::with_mode(vm, ram, slots, host_writes, mode) }
    }

    /// A log of the guest `vm` by `mode`.
    ///
    /// # Errors
    /// [`DirtyLogError::Unavailable`] if the kernel does not have the mode.
    ///
    /// # Panics
    /// If a slot leaves its block or is not made of whole pages.
    ///
    /// # Safety
    /// As for [`Self::new`].
    pub unsafe fn with_mode(
        vm: BorrowedFd<'_>,
        ram: GuestRam,
        slots: &[KvmSlot],
        host_writes: Arc<HostWrites>,
        mode: ClearMode,
    ) -> Result<Self, DirtyLogError> {
        let slots = slots.iter().map(|&slot| SlotLog::new(slot, &ram)).collect();
        let vm = vm.try_clone_to_owned().map_err(unavailable)?;
        enable_clear_mode(&vm, mode).map_err(unavailable)?;
        Ok(Self { vm, ram, slots, host_writes, mode, running: false })
    }

    /// The best mode that the kernel offers for `vm`.
    ///
    /// # Errors
    /// [`DirtyLogError::Unavailable`] if `vm` is no virtual machine of KVM.
    pub fn detect(vm: BorrowedFd<'_>) -> Result<ClearMode, DirtyLogError> {
        // SAFETY: takes a number, touches no memory.
        let modes = unsafe { check_extension(vm.as_raw_fd(), KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 as i32) }
            .map_err(|errno| unavailable(errno.into()))? as u64;
        Ok(if modes & KVM_DIRTY_LOG_INITIALLY_SET != 0 {
            ClearMode::ManualInitiallySet
        } else if modes & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE != 0 {
            ClearMode::Manual
        } else {
            ClearMode::AtGet
        })
    }

    /// The mode in use.
    pub fn mode(&self) -> ClearMode {
        self.mode
    }

    /// Where devices report their writes.
    pub fn host_writes(&self) -> &Arc<HostWrites> {
        &self.host_writes
    }

    /// Switches logging of all slots on or off; stops at the first slot that fails.
    fn switch(&self, flag: u32) -> Result<(), DirtyLogError> {
        self.slots.iter().try_for_each(|log| {
            log.install(&self.vm, &self.ram, flag)
                .map_err(|source| self.error(log.slot.block, "KVM_SET_USER_MEMORY_REGION", source))
        })
    }

    /// Clears, in KVM, the chunks of `block` that `run` touches.
    fn clear(&mut self, block: BlockId, run: PageRun) -> Result<(), DirtyLogError> {
        for log in self.slots.iter_mut().filter(|log| log.slot.block == block) {
            for chunk in log.chunks_touched_by(run) {
                if let Err(source) = log.clear_chunk(&self.vm, chunk) {
                    return Err(self.error(block, "KVM_CLEAR_DIRTY_LOG", source));
                }
            }
        }
        Ok(())
    }

    /// Clears, in KVM, only those pages of `block` that are not in `populated`.
    fn clear_untouched(&mut self, block: BlockId, populated: &Populated) -> Result<(), DirtyLogError> {
        let whole = self.ram.block(block).whole();
        for log in self.slots.iter_mut().filter(|log| log.slot.block == block) {
            if let Err(source) = log.clear_pages(&self.vm, populated.untouched(whole)) {
                return Err(self.error(block, "KVM_CLEAR_DIRTY_LOG", source));
            }
        }
        Ok(())
    }

    fn error(&self, block: BlockId, call: &'static str, source: io::Error) -> DirtyLogError {
        DirtyLogError::Kernel { block: self.ram.block(block).name().clone(), call, source }
    }
}

impl DirtyLog for KvmDirtyLog {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        assert!(!self.running, "the log runs already");
        self.host_writes.forget();
        if let Err(error) = self.switch(KVM_MEM_LOG_DIRTY_PAGES) {
            // Best effort: the first error is the one to report.
            let _ = self.switch(0);
            return Err(error);
        }
        let all = if self.mode == ClearMode::ManualInitiallySet { u64::MAX } else { 0 };
        for log in &mut self.slots {
            log.words.fill(all);
            log.uncleared.fill(all != 0);
        }
        self.running = true;
        Ok(())
    }

    fn populated(&mut self, block: BlockId) -> Result<Populated, DirtyLogError> {
        assert!(self.running, "the log does not run");
        let before = self.ram.block(block).populated();
        if self.mode == ClearMode::AtGet {
            return Ok(before);
        }
        // Bits of empty pages are set already (initially set), so a first write would change nothing, and a later
        // clear would forget it. Clear those bits now and look again: a write between the two looks is seen by the
        // second, and a write after that sets the bit anew. Empty pages have no mapping to protect, so this is cheap.
        self.clear_untouched(block, &before)?;
        Ok(self.ram.block(block).populated().or(&before))
    }

    fn sync_into(&mut self, dirty: &DirtyMap) -> Result<PageCount, DirtyLogError> {
        assert!(self.running, "the log does not run");
        let mut fresh = self.host_writes.take_into(dirty);
        for log in &mut self.slots {
            if let Err(source) = log.fetch(&self.vm) {
                let block = log.slot.block;
                return Err(self.error(block, "KVM_GET_DIRTY_LOG", source));
            }
            log.uncleared.fill(self.mode != ClearMode::AtGet);
            fresh += log.merge_into(dirty.block(log.slot.block));
        }
        Ok(fresh)
    }

    fn clear_before_read(&mut self, block: BlockId, run: PageRun) -> Result<(), DirtyLogError> {
        assert!(self.running, "the log does not run");
        if self.mode == ClearMode::AtGet {
            return Ok(());
        }
        self.clear(block, run)
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        if self.running {
            self.running = false;
            self.switch(0)?;
        }
        Ok(())
    }
}

impl Drop for KvmDirtyLog {
    fn drop(&mut self) {
        // Nobody is left to tell, and a guest that stays logged is only slower.
        let _ = self.stop();
    }
}

impl SlotLog {
    fn new(slot: KvmSlot, ram: &GuestRam) -> Self {
        let page = PAGE_BYTES as u64;
        assert!(
            slot.length.0 > 0 && slot.length.0.is_multiple_of(page) && slot.block_offset.is_multiple_of(page),
            "{slot:?} is not made of whole pages"
        );
        let log = Self { slot, words: Box::default(), uncleared: Box::default() };
        assert!(ram.layout().block(slot.block).contains(log.run()), "{slot:?} leaves its block");
        let pages = log.run().count.0;
        Self {
            words: vec![0; pages.div_ceil(64) as usize].into(),
            uncleared: vec![false; pages.div_ceil(CHUNK_PAGES) as usize].into(),
            ..log
        }
    }

    /// The pages of the block that the slot shows.
    fn run(&self) -> PageRun {
        PageRun::new(PageIndex::containing(self.slot.block_offset), self.slot.length.pages_rounded_up())
    }

    fn install(&self, vm: &OwnedFd, ram: &GuestRam, flag: u32) -> io::Result<()> {
        let base = ram.block(self.slot.block).guest_address().addr().get() as u64;
        let region = UserMemoryRegion {
            slot: self.slot.slot,
            flags: self.slot.flags | flag,
            guest_phys_addr: self.slot.guest_phys_addr,
            memory_size: self.slot.length.0,
            userspace_addr: base + self.slot.block_offset,
        };
        // SAFETY: the same region is installed already, by the promise of `KvmDirtyLog::new`; only a flag changes.
        unsafe { set_user_memory_region(vm.as_raw_fd(), &region) }?;
        Ok(())
    }

    /// Reads KVM's bitmap into `words`.
    fn fetch(&mut self, vm: &OwnedFd) -> io::Result<()> {
        let log =
            GetDirtyLog { slot: self.slot.slot, padding: 0, dirty_bitmap: self.words.as_mut_ptr() as u64 };
        // SAFETY: KVM writes one bit per page of the slot, in whole words: the length of `words`, which is borrowed
        // exclusively.
        unsafe { get_dirty_log(vm.as_raw_fd(), &log) }?;
        Ok(())
    }

    fn merge_into(&self, dirty: &DirtyBitmap) -> PageCount {
        let first = self.run().start;
        if first.0.is_multiple_of(64) {
            return dirty.merge(first, &self.words);
        }
        // A slot that begins inside a word of the block's bitmap, as the legacy areas below 1 MiB may.
        let set = |index: u64| self.words[(index / 64) as usize] & (1 << (index % 64)) != 0;
        (0..self.run().count.0)
            .filter(|&index| set(index))
            .map(|index| dirty.mark(PageRun::new(PageIndex(first.0 + index), PageCount(1))))
            .sum()
    }

    /// The part of `run`, of the slot's block, that the slot shows; counted from the slot's first page.
    fn clip(&self, run: PageRun) -> Range<u64> {
        let own = self.run();
        let start = run.start.max(own.start).0 - own.start.0;
        let end = run.end().min(own.end()).0.saturating_sub(own.start.0);
        start..end.max(start)
    }

    /// The chunks of the slot that `run`, of its block, touches.
    fn chunks_touched_by(&self, run: PageRun) -> Range<usize> {
        let Range { start, end } = self.clip(run);
        (start / CHUNK_PAGES) as usize..if start < end { end.div_ceil(CHUNK_PAGES) as usize } else { 0 }
    }

    /// Clears a chunk in KVM and here.
    fn clear_chunk(&mut self, vm: &OwnedFd, chunk: usize) -> io::Result<()> {
        if self.uncleared[chunk] {
            let words = chunk_words(chunk, self.words.len());
            self.clear_in_kvm(vm, chunk, &self.words[words.clone()])?;
            self.words[words].fill(0);
            self.uncleared[chunk] = false;
        }
        Ok(())
    }

    /// Clears `runs`, of the slot's block, in KVM and here.
    fn clear_pages(&mut self, vm: &OwnedFd, runs: impl Iterator<Item = PageRun>) -> io::Result<()> {
        let mut pages = vec![0; self.words.len()];
        for run in runs {
            set_bits(&mut pages, self.clip(run));
        }
        for chunk in 0..self.uncleared.len() {
            let words = chunk_words(chunk, self.words.len());
            let picked = &mut pages[words.clone()];
            picked.iter_mut().zip(&self.words[words.clone()]).for_each(|(page, dirty)| *page &= dirty);
            self.clear_in_kvm(vm, chunk, picked)?;
            self.words[words].iter_mut().zip(picked).for_each(|(dirty, gone)| *dirty &= !*gone);
        }
        Ok(())
    }

    /// Clears and protects, in KVM, the pages of `chunk` whose bits are set in `words`.
    fn clear_in_kvm(&self, vm: &OwnedFd, chunk: usize, words: &[u64]) -> io::Result<()> {
        if words.iter().all(|&word| word == 0) {
            return Ok(());
        }
        let first_page = chunk as u64 * CHUNK_PAGES;
        let num_pages = CHUNK_PAGES.min(self.run().count.0 - first_page);
        assert_eq!(words.len() as u64, num_pages.div_ceil(64), "one bit per page of the chunk");
        let log = ClearDirtyLog {
            slot: self.slot.slot,
            num_pages: num_pages as u32, // At most CHUNK_PAGES.
            first_page,
            dirty_bitmap: words.as_ptr() as u64,
        };
        // SAFETY: KVM reads one bit for each of `num_pages`, in whole words: the length of `words`, asserted above. The
        // request is numbered as one that writes its argument, but the kernel writes nothing back.
        unsafe { clear_dirty_log(vm.as_raw_fd(), &log) }?;
        Ok(())
    }
}

/// The words of `chunk` in a bitmap of `length` words.
fn chunk_words(chunk: usize, length: usize) -> Range<usize> {
    chunk * CHUNK_WORDS..length.min((chunk + 1) * CHUNK_WORDS)
}

/// Sets the bits of `range`.
fn set_bits(words: &mut [u64], range: Range<u64>) {
    let mut at = range.start;
    while at < range.end {
        let shift = at % 64;
        let count = (64 - shift).min(range.end - at);
        words[(at / 64) as usize] |= (u64::MAX >> (64 - count)) << shift;
        at += count;
    }
}

fn enable_clear_mode(vm: &OwnedFd, mode: ClearMode) -> io::Result<()> {
    let bits = match mode {
        ClearMode::AtGet => 0,
        ClearMode::Manual => KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
        ClearMode::ManualInitiallySet => KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET,
    };
    let capability = EnableCap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, args: [bits, 0, 0, 0], ..NO_CAP };
    // SAFETY: KVM reads the argument and changes a mode of the virtual machine.
    match unsafe { enable_cap(vm.as_raw_fd(), &capability) } {
        // A kernel without the capability refuses to have it switched off, too.
        Err(nix::errno::Errno::EINVAL) if mode == ClearMode::AtGet => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

fn unavailable(source: io::Error) -> DirtyLogError {
    DirtyLogError::Unavailable {
        what: "KVM's dirty log",
        remedy: "give the log a virtual machine of KVM; guests in this process use the pagemap log",
        source,
    }
}

const KVMIO: u8 = 0xae;
const KVM_MEM_LOG_DIRTY_PAGES: u32 = 1 << 0;
const KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: u32 = 168;
const KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE: u64 = 1 << 0;
const KVM_DIRTY_LOG_INITIALLY_SET: u64 = 1 << 1;

/// `struct kvm_userspace_memory_region`.
#[repr(C)]
struct UserMemoryRegion {
    slot: u32,
    flags: u32,
    guest_phys_addr: u64,
    memory_size: u64,
    userspace_addr: u64,
}

/// `struct kvm_dirty_log`.
#[repr(C)]
struct GetDirtyLog {
    slot: u32,
    padding: u32,
    dirty_bitmap: u64,
}

/// `struct kvm_clear_dirty_log`.
#[repr(C)]
struct ClearDirtyLog {
    slot: u32,
    num_pages: u32,
    first_page: u64,
    dirty_bitmap: u64,
}

/// `struct kvm_enable_cap`.
#[repr(C)]
struct EnableCap {
    cap: u32,
    flags: u32,
    args: [u64; 4],
    pad: [u8; 64],
}

const NO_CAP: EnableCap = EnableCap { cap: 0, flags: 0, args: [0; 4], pad: [0; 64] };

// The request numbers of Linux, so that a wrong layout does not compile.
const _: () = assert!(nix::request_code_none!(KVMIO, 0x03) == 0xae03);
const _: () = assert!(nix::request_code_write!(KVMIO, 0x46, size_of::<UserMemoryRegion>()) == 0x4020_ae46);
const _: () = assert!(nix::request_code_write!(KVMIO, 0x42, size_of::<GetDirtyLog>()) == 0x4010_ae42);
const _: () = assert!(nix::request_code_readwrite!(KVMIO, 0xc0, size_of::<ClearDirtyLog>()) == 0xc018_aec0);
const _: () = assert!(nix::request_code_write!(KVMIO, 0xa3, size_of::<EnableCap>()) == 0x4068_aea3);

nix::ioctl_write_int_bad!(check_extension, nix::request_code_none!(KVMIO, 0x03));
nix::ioctl_write_ptr!(set_user_memory_region, KVMIO, 0x46, UserMemoryRegion);
nix::ioctl_write_ptr!(get_dirty_log, KVMIO, 0x42, GetDirtyLog);
nix::ioctl_write_ptr_bad!(
    clear_dirty_log,
    nix::request_code_readwrite!(KVMIO, 0xc0, size_of::<ClearDirtyLog>()),
    ClearDirtyLog
);
nix::ioctl_write_ptr!(enable_cap, KVMIO, 0xa3, EnableCap);

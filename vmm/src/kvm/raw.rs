//! What `kvm-ioctls` leaves unsafe: memory slots, the dirty log over them, XSAVE areas and interrupt chips.
//!
//! Safety argument of the module: slots show the guest mapping of the RAM block, which the caller keeps (a `GuestRam` beside the
//! `VmFd`) for as long as the virtual machine; XSAVE areas are those of 4096 bytes that a vCPU has to which no dynamic feature
//! was enabled; all bytes of an interrupt chip's union are initialised, because the kernel or a zeroed default wrote them.
#![allow(unsafe_code, reason = "memory slots, XSAVE areas, the union of interrupt chips")]

use crate::error::VmmError;
use crate::guest_map::{RamRange, ram_ranges};
use kvm_bindings::{kvm_irqchip, kvm_userspace_memory_region, kvm_xsave};
use kvm_ioctls::{VcpuFd, VmFd};
use limosa_pages::{BlockId, ByteCount};
use limosa_ram::GuestRam;
use limosa_ram::dirty_log::{DirtyLogError, HostWrites, KvmDirtyLog, KvmSlot};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

/// 32-bit words of an XSAVE area.
pub(crate) const XSAVE_WORDS: usize = 1024;
/// Bytes of an interrupt chip's state, whichever chip it is.
pub(crate) const CHIP_BYTES: usize = 512;

/// A virtual machine with its memory installed. The RAM lives as long as the machine.
pub(crate) struct VmWithRam {
    vm: VmFd,
    ram: GuestRam,
    slots: Vec<KvmSlot>,
}

impl VmWithRam {
    /// Shows the only block of `ram` to the guests of `vm`, one slot for each [range](ram_ranges).
    ///
    /// # Errors
    /// What KVM says.
    pub(crate) fn new(vm: VmFd, ram: GuestRam) -> Result<Self, VmmError> {
        let ranges = ram_ranges(ram.block(BlockId(0)).length().0);
        let slot = |(slot, range): (u32, RamRange)| KvmSlot {
            slot,
            block: BlockId(0),
            block_offset: range.offset,
            guest_phys_addr: range.physical,
            length: ByteCount(range.length),
            flags: 0,
        };
        let slots: Vec<KvmSlot> = (0..).zip(ranges).map(slot).collect();
        let base = ram.block(BlockId(0)).guest_address().addr().get() as u64;
        for slot in &slots {
            let region = kvm_userspace_memory_region {
                slot: slot.slot,
                flags: 0,
                guest_phys_addr: slot.guest_phys_addr,
                memory_size: slot.length.0,
                userspace_addr: base + slot.block_offset,
            };
            // SAFETY: the region lies inside the block's guest mapping, which `ram`, kept beside `vm`, keeps mapped; it is
            // raw memory to which nobody in Rust holds references.
            unsafe { vm.set_user_memory_region(region) }
                .map_err(|errno| super::refused("KVM_SET_USER_MEMORY_REGION", errno))?;
        }
        Ok(Self { vm, ram, slots })
    }

    pub(crate) fn vm(&self) -> &VmFd {
        &self.vm
    }

    /// A log of what the vCPUs write.
    pub(crate) fn dirty_log(&self, host_writes: Arc<HostWrites>) -> Result<KvmDirtyLog, DirtyLogError> {
        // SAFETY: the descriptor is open while `self` is borrowed.
        let vm = unsafe { BorrowedFd::borrow_raw(self.vm.as_raw_fd()) };
        // SAFETY: the slots were installed in `new` exactly as they are described, and are never changed but by logs.
        unsafe { KvmDirtyLog::new(vm, self.ram.clone(), &self.slots, host_writes) }
    }
}

/// Gives a vCPU its floating point and vector registers.
///
/// # Errors
/// What KVM says: a header that its CPUID does not allow.
pub(crate) fn set_xsave(vcpu: &VcpuFd, region: &[u32; XSAVE_WORDS]) -> Result<(), kvm_ioctls::Error> {
    let area = kvm_xsave { region: *region, ..Default::default() };
    // SAFETY: KVM reads more than the 4096 bytes of the area only if a dynamic XSAVE feature was enabled for this
    // process with arch_prctl, which nothing here does.
    unsafe { vcpu.set_xsave(&area) }
}

/// The state of the interrupt chip `chip_id`, as the kernel lays it out.
pub(crate) fn chip_bytes(chip: &kvm_irqchip) -> [u8; CHIP_BYTES] {
    // SAFETY: `dummy` covers the whole union; any bytes are valid for it.
    unsafe { chip.chip.dummy }.map(|byte| byte as u8)
}

/// The interrupt chip `chip_id` with this state.
pub(crate) fn chip_from_bytes(chip_id: u32, bytes: &[u8; CHIP_BYTES]) -> kvm_irqchip {
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    chip.chip.dummy = bytes.map(|byte| byte as std::ffi::c_char);
    chip
}

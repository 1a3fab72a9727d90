//! The state of a vCPU, as data.
//!
//! Every field is a number of the kernel's interface under its kernel name. Two areas are bytes: the XSAVE area, whose layout
//! is the processor's (Intel SDM volume 1, chapter 13), and the page of the local APIC (SDM volume 3, chapter 12).
//! What the processors of both sides must agree about is compared, not copied.

use crate::error::VmmError;
use crate::kvm::raw::{XSAVE_WORDS, set_xsave};
use crate::kvm::refused;
use crate::kvm::vcpu::Vcpu;
use crate::kvm::vcpu_registers::{Events, Segment, Table, general_from_kernel, general_to_kernel};
use kvm_bindings::{
    CpuId, Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_sregs, kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use limosa_vmstate::VmState;
use std::sync::Arc;
use thiserror::Error;

/// Model-specific registers of one vCPU; KVM takes at most 256 in one call, and names about 90.
const MSRS_MAX: usize = 256;
/// Bytes of the XSAVE area.
const XSAVE_BYTES: usize = XSAVE_WORDS * 4;
/// Bytes of the local APIC's page that hold registers.
const LAPIC_BYTES: usize = 1024;

/// A vCPU that cannot be saved or loaded.
#[derive(Debug, Error)]
pub(crate) enum VcpuStateError {
    #[error("the vCPU is running")]
    Running,
    #[error("{call}: {source}")]
    Refused { call: &'static str, source: kvm_ioctls::Error },
    #[error("KVM refuses the model-specific register {index:#x} = {value:#x}")]
    Msr { index: u32, value: u64 },
    #[error("{got} extended control registers; at most {maximum} exist")]
    ExtendedControls { got: u32, maximum: usize },
}

/// Everything that a vCPU is, besides memory.
#[derive(VmState)]
#[vmstate(name = "limosa-vcpu", pre_save = Self::pre_save, post_load = Self::post_load)]
pub(crate) struct VcpuState {
    identity: Identity,
    tsc_khz: u32,
    mp_state: u32,
    /// rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8 to r15, rip, rflags: the order of `kvm_regs`.
    regs: [u64; 18],
    /// cs, ds, es, fs, gs, ss, tr, ldt: the order of `kvm_sregs`.
    segments: [Segment; 8],
    gdt: Table,
    idt: Table,
    /// cr0, cr2, cr3, cr4, cr8.
    cr: [u64; 5],
    efer: u64,
    apic_base: u64,
    nr_xcrs: u32,
    xcrs: [ExtendedControl; 16],
    #[vmstate(buffer)]
    xsave: [u8; XSAVE_BYTES],
    db: [u64; 4],
    dr6: u64,
    dr7: u64,
    #[vmstate(buffer)]
    lapic: [u8; LAPIC_BYTES],
    events: Events,
    msr_count: u16,
    #[vmstate(count = msr_count, max = MSRS_MAX)]
    msrs: Vec<Msr>,
    #[vmstate(skip)]
    vcpu: Arc<Vcpu>,
    /// The registers that this KVM can read.
    #[vmstate(skip)]
    readable_msrs: Vec<u32>,
}

/// What a guest may have noticed of its processor and must find again: CPUID, without what differs per vCPU.
#[derive(Clone, Copy, Debug, Default, VmState)]
#[vmstate(name = "limosa-vcpu/identity")]
pub(crate) struct Identity {
    /// Leaf 0: ebx, edx, ecx.
    #[vmstate(equal)]
    vendor: [u32; 3],
    /// Leaf 1: ecx, edx.
    #[vmstate(equal)]
    features: [u32; 2],
    /// Leaf 7: ebx, ecx, edx.
    #[vmstate(equal)]
    structured_features: [u32; 3],
    /// Leaf 13: eax, edx: which parts an XSAVE area has.
    #[vmstate(equal)]
    xsave_components: [u32; 2],
    /// Leaf 0x8000_0001: ecx, edx.
    #[vmstate(equal)]
    extended_features: [u32; 2],
    /// Leaf 0x8000_0008: eax, the widths of addresses.
    #[vmstate(equal)]
    address_bits: u32,
}

#[derive(Clone, Copy, Debug, Default, VmState)]
#[vmstate(name = "limosa-vcpu/xcr")]
struct ExtendedControl {
    xcr: u32,
    value: u64,
}

#[derive(Clone, Copy, Debug, Default, VmState)]
#[vmstate(name = "limosa-vcpu/msr")]
struct Msr {
    index: u32,
    data: u64,
}

impl VcpuState {
    /// The state of `vcpu`, a parked vCPU with this `cpuid`, of whose registers `msrs` are the candidates.
    pub(crate) fn new(vcpu: &Arc<Vcpu>, cpuid: &CpuId, msrs: &[u32]) -> Result<Self, VmmError> {
        let fd = vcpu.parked().expect("its thread has not started");
        Ok(Self {
            identity: Identity::of(cpuid),
            tsc_khz: 0,
            mp_state: 0,
            regs: [0; 18],
            segments: Default::default(),
            gdt: Table::default(),
            idt: Table::default(),
            cr: [0; 5],
            efer: 0,
            apic_base: 0,
            nr_xcrs: 0,
            xcrs: Default::default(),
            xsave: [0; XSAVE_BYTES],
            db: [0; 4],
            dr6: 0,
            dr7: 0,
            lapic: [0; LAPIC_BYTES],
            events: Events::default(),
            msr_count: 0,
            msrs: Vec::new(),
            vcpu: Arc::clone(vcpu),
            readable_msrs: readable_msrs(&fd, msrs)?,
        })
    }

    fn pre_save(&mut self) -> Result<(), VcpuStateError> {
        let vcpu = Arc::clone(&self.vcpu);
        let fd = vcpu.parked().ok_or(VcpuStateError::Running)?;
        // First: asking for it makes KVM settle what is pending in the others.
        self.mp_state = fd.get_mp_state().map_err(kvm("KVM_GET_MP_STATE"))?.mp_state;
        self.tsc_khz = fd.get_tsc_khz().map_err(kvm("KVM_GET_TSC_KHZ"))?;
        self.regs = general_from_kernel(&fd.get_regs().map_err(kvm("KVM_GET_REGS"))?);
        self.take_special(&fd.get_sregs().map_err(kvm("KVM_GET_SREGS"))?);
        let xcrs = fd.get_xcrs().map_err(kvm("KVM_GET_XCRS"))?;
        self.nr_xcrs = xcrs.nr_xcrs;
        self.xcrs = xcrs.xcrs.map(|xcr| ExtendedControl { xcr: xcr.xcr, value: xcr.value });
        let xsave = fd.get_xsave().map_err(kvm("KVM_GET_XSAVE"))?;
        for (bytes, word) in self.xsave.as_chunks_mut::<4>().0.iter_mut().zip(xsave.region) {
            *bytes = word.to_le_bytes();
        }
        let debug = fd.get_debug_regs().map_err(kvm("KVM_GET_DEBUGREGS"))?;
        (self.db, self.dr6, self.dr7) = (debug.db, debug.dr6, debug.dr7);
        self.lapic = fd.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?.regs.map(|byte| byte as u8);
        self.save_msrs(&fd)?;
        self.events = Events::from_kernel(&fd.get_vcpu_events().map_err(kvm("KVM_GET_VCPU_EVENTS"))?);
        Ok(())
    }

    fn post_load(&mut self, _version: u32) -> Result<(), VcpuStateError> {
        let vcpu = Arc::clone(&self.vcpu);
        let fd = vcpu.parked().ok_or(VcpuStateError::Running)?;
        if fd.get_tsc_khz().map_err(kvm("KVM_GET_TSC_KHZ"))? != self.tsc_khz {
            fd.set_tsc_khz(self.tsc_khz).map_err(kvm("KVM_SET_TSC_KHZ"))?;
        }
        fd.set_mp_state(kvm_mp_state { mp_state: self.mp_state }).map_err(kvm("KVM_SET_MP_STATE"))?;
        fd.set_regs(&general_to_kernel(&self.regs)).map_err(kvm("KVM_SET_REGS"))?;
        fd.set_sregs(&self.special()).map_err(kvm("KVM_SET_SREGS"))?;
        fd.set_xcrs(&self.extended_controls()?).map_err(kvm("KVM_SET_XCRS"))?;
        // After the XCRs: they say which parts of the area are in use.
        let mut region = [0_u32; XSAVE_WORDS];
        for (word, bytes) in region.iter_mut().zip(self.xsave.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        set_xsave(&fd, &region).map_err(kvm("KVM_SET_XSAVE"))?;
        let debug = kvm_debugregs { db: self.db, dr6: self.dr6, dr7: self.dr7, ..Default::default() };
        fd.set_debug_regs(&debug).map_err(kvm("KVM_SET_DEBUGREGS"))?;
        // After the special registers, which say where the APIC is and in which mode.
        let lapic = kvm_lapic_state { regs: self.lapic.map(|byte| byte as std::ffi::c_char) };
        fd.set_lapic(&lapic).map_err(kvm("KVM_SET_LAPIC"))?;
        // After the APIC, whose timer's deadline is one of them.
        self.load_msrs(&fd)?;
        // Last: what is about to happen to the vCPU.
        fd.set_vcpu_events(&self.events.to_kernel()).map_err(kvm("KVM_SET_VCPU_EVENTS"))
    }

    fn take_special(&mut self, special: &kvm_sregs) {
        let kvm_sregs { cs, ds, es, fs, gs, ss, tr, ldt, .. } = special;
        self.segments = [cs, ds, es, fs, gs, ss, tr, ldt].map(Segment::from_kernel);
        self.gdt = Table::from_kernel(&special.gdt);
        self.idt = Table::from_kernel(&special.idt);
        self.cr = [special.cr0, special.cr2, special.cr3, special.cr4, special.cr8];
        self.efer = special.efer;
        self.apic_base = special.apic_base;
    }

    fn special(&self) -> kvm_sregs {
        let [cs, ds, es, fs, gs, ss, tr, ldt] = self.segments.map(Segment::to_kernel);
        let [cr0, cr2, cr3, cr4, cr8] = self.cr;
        let (gdt, idt) = (self.gdt.to_kernel(), self.idt.to_kernel());
        let (efer, apic_base) = (self.efer, self.apic_base);
        // Pending interrupts travel in the events; the bitmap here would be a second account of them.
        let interrupt_bitmap = [0; 4];
        kvm_sregs {
            cs,
            ds,
            es,
            fs,
            gs,
            ss,
            tr,
            ldt,
            gdt,
            idt,
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            efer,
            apic_base,
            interrupt_bitmap,
        }
    }

    fn extended_controls(&self) -> Result<kvm_xcrs, VcpuStateError> {
        let maximum = self.xcrs.len();
        if self.nr_xcrs as usize > maximum {
            return Err(VcpuStateError::ExtendedControls { got: self.nr_xcrs, maximum });
        }
        let xcrs = self.xcrs.map(|xcr| kvm_xcr { xcr: xcr.xcr, value: xcr.value, ..Default::default() });
        Ok(kvm_xcrs { nr_xcrs: self.nr_xcrs, xcrs, ..Default::default() })
    }

    fn save_msrs(&mut self, fd: &VcpuFd) -> Result<(), VcpuStateError> {
        let mut msrs = msr_list(&self.readable_msrs.iter().map(|index| (*index, 0)).collect::<Vec<_>>());
        let read = fd.get_msrs(&mut msrs).map_err(kvm("KVM_GET_MSRS"))?;
        self.msrs =
            msrs.as_slice()[..read].iter().map(|msr| Msr { index: msr.index, data: msr.data }).collect();
        Ok(())
    }

    fn load_msrs(&self, fd: &VcpuFd) -> Result<(), VcpuStateError> {
        let msrs = msr_list(&self.msrs.iter().map(|msr| (msr.index, msr.data)).collect::<Vec<_>>());
        let written = fd.set_msrs(&msrs).map_err(kvm("KVM_SET_MSRS"))?;
        match self.msrs.get(written) {
            Some(msr) => Err(VcpuStateError::Msr { index: msr.index, value: msr.data }),
            None => Ok(()),
        }
    }
}

impl Identity {
    fn of(cpuid: &CpuId) -> Self {
        let leaf = |function| {
            let found = cpuid.as_slice().iter().find(|entry| entry.function == function && entry.index == 0);
            found.copied().unwrap_or_default()
        };
        let (vendor, features, structured) = (leaf(0), leaf(1), leaf(7));
        let (xsave, extended) = (leaf(0xd), leaf(0x8000_0001));
        Self {
            vendor: [vendor.ebx, vendor.edx, vendor.ecx],
            features: [features.ecx, features.edx],
            structured_features: [structured.ebx, structured.ecx, structured.edx],
            xsave_components: [xsave.eax, xsave.edx],
            extended_features: [extended.ecx, extended.edx],
            address_bits: leaf(0x8000_0008).eax,
        }
    }
}

fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuStateError {
    move |source| VcpuStateError::Refused { call, source }
}

/// Those of `candidates` that can be read: KVM names some that this processor does not have.
fn readable_msrs(fd: &VcpuFd, candidates: &[u32]) -> Result<Vec<u32>, VmmError> {
    let mut readable = Vec::new();
    for index in candidates.iter().take(MSRS_MAX) {
        let mut one = msr_list(&[(*index, 0)]);
        if fd.get_msrs(&mut one).map_err(|errno| refused("KVM_GET_MSRS", errno))? == 1 {
            readable.push(*index);
        }
    }
    Ok(readable)
}

fn msr_list(msrs: &[(u32, u64)]) -> Msrs {
    let entries: Vec<_> = msrs
        .iter()
        .map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..Default::default() })
        .collect();
    Msrs::from_entries(&entries).expect("at most MSRS_MAX registers fit into a list")
}

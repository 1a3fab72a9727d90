//! Registers of a vCPU between the kernel's structs and ours.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_vcpu_events};
use limosa_vmstate::VmState;

/// A segment register.
#[derive(Clone, Copy, Debug, Default, VmState)]
#[vmstate(name = "limosa-vcpu/segment")]
pub(crate) struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    #[vmstate(name = "type")]
    kind: u8,
    present: u8,
    dpl: u8,
    db: u8,
    s: u8,
    l: u8,
    g: u8,
    avl: u8,
    unusable: u8,
}

/// A descriptor table register.
#[derive(Clone, Copy, Debug, Default, VmState)]
#[vmstate(name = "limosa-vcpu/table")]
pub(crate) struct Table {
    base: u64,
    limit: u16,
}

/// What is pending or being delivered: `kvm_vcpu_events`.
#[derive(Clone, Copy, Debug, Default, VmState)]
#[vmstate(name = "limosa-vcpu/events")]
pub(crate) struct Events {
    flags: u32,
    exception_injected: u8,
    exception_nr: u8,
    exception_has_error_code: u8,
    exception_pending: u8,
    exception_error_code: u32,
    exception_has_payload: u8,
    exception_payload: u64,
    interrupt_injected: u8,
    interrupt_nr: u8,
    interrupt_soft: u8,
    interrupt_shadow: u8,
    nmi_injected: u8,
    nmi_pending: u8,
    nmi_masked: u8,
    sipi_vector: u32,
    smi_smm: u8,
    smi_pending: u8,
    smi_smm_inside_nmi: u8,
    smi_latched_init: u8,
    triple_fault_pending: u8,
}

impl Segment {
    pub(crate) fn from_kernel(segment: &kvm_segment) -> Self {
        let kvm_segment { base, limit, selector, present, dpl, db, s, l, g, avl, unusable, .. } = *segment;
        Self { base, limit, selector, kind: segment.type_, present, dpl, db, s, l, g, avl, unusable }
    }

    pub(crate) fn to_kernel(self) -> kvm_segment {
        let Self { base, limit, selector, kind, present, dpl, db, s, l, g, avl, unusable } = self;
        kvm_segment {
            base,
            limit,
            selector,
            type_: kind,
            present,
            dpl,
            db,
            s,
            l,
            g,
            avl,
            unusable,
            ..Default::default()
        }
    }
}

impl Table {
    pub(crate) fn from_kernel(table: &kvm_dtable) -> Self {
        Self { base: table.base, limit: table.limit }
    }

    pub(crate) fn to_kernel(self) -> kvm_dtable {
        kvm_dtable { base: self.base, limit: self.limit, ..Default::default() }
    }
}

impl Events {
    pub(crate) fn from_kernel(events: &kvm_vcpu_events) -> Self {
        Self {
            flags: events.flags,
            exception_injected: events.exception.injected,
            exception_nr: events.exception.nr,
            exception_has_error_code: events.exception.has_error_code,
            exception_pending: events.exception.pending,
            exception_error_code: events.exception.error_code,
            exception_has_payload: events.exception_has_payload,
            exception_payload: events.exception_payload,
            interrupt_injected: events.interrupt.injected,
            interrupt_nr: events.interrupt.nr,
            interrupt_soft: events.interrupt.soft,
            interrupt_shadow: events.interrupt.shadow,
            nmi_injected: events.nmi.injected,
            nmi_pending: events.nmi.pending,
            nmi_masked: events.nmi.masked,
            sipi_vector: events.sipi_vector,
            smi_smm: events.smi.smm,
            smi_pending: events.smi.pending,
            smi_smm_inside_nmi: events.smi.smm_inside_nmi,
            smi_latched_init: events.smi.latched_init,
            triple_fault_pending: events.triple_fault.pending,
        }
    }

    pub(crate) fn to_kernel(self) -> kvm_vcpu_events {
        let mut events = kvm_vcpu_events {
            flags: self.flags,
            sipi_vector: self.sipi_vector,
            exception_has_payload: self.exception_has_payload,
            exception_payload: self.exception_payload,
            ..Default::default()
        };
        events.exception.injected = self.exception_injected;
        events.exception.nr = self.exception_nr;
        events.exception.has_error_code = self.exception_has_error_code;
        events.exception.pending = self.exception_pending;
        events.exception.error_code = self.exception_error_code;
        events.interrupt.injected = self.interrupt_injected;
        events.interrupt.nr = self.interrupt_nr;
        events.interrupt.soft = self.interrupt_soft;
        events.interrupt.shadow = self.interrupt_shadow;
        events.nmi.injected = self.nmi_injected;
        events.nmi.pending = self.nmi_pending;
        events.nmi.masked = self.nmi_masked;
        events.smi.smm = self.smi_smm;
        events.smi.pending = self.smi_pending;
        events.smi.smm_inside_nmi = self.smi_smm_inside_nmi;
        events.smi.latched_init = self.smi_latched_init;
        events.triple_fault.pending = self.triple_fault_pending;
        events
    }
}

/// The order of the wire: that of `kvm_regs`.
pub(crate) fn general_from_kernel(regs: &kvm_regs) -> [u64; 18] {
    let kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, .. } = *regs;
    let kvm_regs { r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags, .. } = *regs;
    [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags]
}

pub(crate) fn general_to_kernel(regs: &[u64; 18]) -> kvm_regs {
    let [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags] = *regs;
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

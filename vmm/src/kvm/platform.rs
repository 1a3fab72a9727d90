//! The parts of the machine that live in the kernel: interrupt controllers, timer, clock.

use crate::kvm::raw::{CHIP_BYTES, VmWithRam, chip_bytes, chip_from_bytes};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_channel_state, kvm_pit_state2,
};
use limosa_vmstate::VmState;
use std::sync::Arc;
use thiserror::Error;

/// A part of the platform that KVM would not give or take.
#[derive(Debug, Error)]
#[error("{call}: {source}")]
pub(crate) struct PlatformError {
    call: &'static str,
    source: kvm_ioctls::Error,
}

/// An interrupt controller: both halves of the i8259, and the I/O APIC.
///
/// Its state is the kernel's `kvm_pic_state` or `kvm_ioapic_state` as bytes, padded with zeros.
#[derive(VmState)]
#[vmstate(name = "limosa-irqchip", pre_save = Self::pre_save, post_load = Self::post_load)]
pub(crate) struct InterruptChip {
    #[vmstate(equal)]
    chip_id: u32,
    #[vmstate(buffer)]
    state: [u8; CHIP_BYTES],
    #[vmstate(skip)]
    machine: Arc<VmWithRam>,
}

/// The i8254 timer.
#[derive(VmState)]
#[vmstate(name = "limosa-pit", pre_save = Self::pre_save, post_load = Self::post_load)]
pub(crate) struct IntervalTimer {
    channels: [TimerChannel; 3],
    flags: u32,
    #[vmstate(skip)]
    machine: Arc<VmWithRam>,
}

/// One counter of the timer, in the kernel's terms.
#[derive(Clone, Copy, Debug, Default, VmState)]
#[vmstate(name = "limosa-pit/channel")]
struct TimerChannel {
    count: u32,
    latched_count: u16,
    count_latched: u8,
    status_latched: u8,
    status: u8,
    read_state: u8,
    write_state: u8,
    write_latch: u8,
    rw_mode: u8,
    mode: u8,
    bcd: u8,
    gate: u8,
    count_load_time: i64,
}

/// The paravirtual clock: nanoseconds since the guest was made. It stands still while the guest migrates.
#[derive(VmState)]
#[vmstate(name = "limosa-kvmclock", pre_save = Self::pre_save, post_load = Self::post_load)]
pub(crate) struct Clock {
    clock: u64,
    #[vmstate(skip)]
    machine: Arc<VmWithRam>,
}

impl InterruptChip {
    /// All of them, with the names and instances that their sections bear.
    pub(crate) fn all(machine: &Arc<VmWithRam>) -> [(&'static str, u32, Self); 3] {
        let chip = |chip_id| Self { chip_id, state: [0; CHIP_BYTES], machine: Arc::clone(machine) };
        [
            ("i8259", 0, chip(KVM_IRQCHIP_PIC_MASTER)),
            ("i8259", 1, chip(KVM_IRQCHIP_PIC_SLAVE)),
            ("ioapic", 0, chip(KVM_IRQCHIP_IOAPIC)),
        ]
    }

    fn pre_save(&mut self) -> Result<(), PlatformError> {
        let mut chip = kvm_irqchip { chip_id: self.chip_id, ..Default::default() };
        self.machine.vm().get_irqchip(&mut chip).map_err(kvm("KVM_GET_IRQCHIP"))?;
        self.state = chip_bytes(&chip);
        Ok(())
    }

    fn post_load(&mut self, _version: u32) -> Result<(), PlatformError> {
        let chip = chip_from_bytes(self.chip_id, &self.state);
        self.machine.vm().set_irqchip(&chip).map_err(kvm("KVM_SET_IRQCHIP"))
    }
}

impl IntervalTimer {
    pub(crate) fn new(machine: &Arc<VmWithRam>) -> Self {
        Self { channels: Default::default(), flags: 0, machine: Arc::clone(machine) }
    }

    fn pre_save(&mut self) -> Result<(), PlatformError> {
        let state = self.machine.vm().get_pit2().map_err(kvm("KVM_GET_PIT2"))?;
        self.channels = state.channels.map(TimerChannel::from_kernel);
        self.flags = state.flags;
        Ok(())
    }

    fn post_load(&mut self, _version: u32) -> Result<(), PlatformError> {
        let channels = self.channels.map(TimerChannel::to_kernel);
        let state = kvm_pit_state2 { channels, flags: self.flags, ..Default::default() };
        self.machine.vm().set_pit2(&state).map_err(kvm("KVM_SET_PIT2"))
    }
}

impl TimerChannel {
    fn from_kernel(channel: kvm_pit_channel_state) -> Self {
        Self {
            count: channel.count,
            latched_count: channel.latched_count,
            count_latched: channel.count_latched,
            status_latched: channel.status_latched,
            status: channel.status,
            read_state: channel.read_state,
            write_state: channel.write_state,
            write_latch: channel.write_latch,
            rw_mode: channel.rw_mode,
            mode: channel.mode,
            bcd: channel.bcd,
            gate: channel.gate,
            count_load_time: channel.count_load_time,
        }
    }

    fn to_kernel(self) -> kvm_pit_channel_state {
        kvm_pit_channel_state {
            count: self.count,
            latched_count: self.latched_count,
            count_latched: self.count_latched,
            status_latched: self.status_latched,
            status: self.status,
            read_state: self.read_state,
            write_state: self.write_state,
            write_latch: self.write_latch,
            rw_mode: self.rw_mode,
            mode: self.mode,
            bcd: self.bcd,
            gate: self.gate,
            count_load_time: self.count_load_time,
        }
    }
}

impl Clock {
    pub(crate) fn new(machine: &Arc<VmWithRam>) -> Self {
        Self { clock: 0, machine: Arc::clone(machine) }
    }

    fn pre_save(&mut self) -> Result<(), PlatformError> {
        self.clock = self.machine.vm().get_clock().map_err(kvm("KVM_GET_CLOCK"))?.clock;
        Ok(())
    }

    fn post_load(&mut self, _version: u32) -> Result<(), PlatformError> {
        let clock = kvm_clock_data { clock: self.clock, ..Default::default() };
        self.machine.vm().set_clock(&clock).map_err(kvm("KVM_SET_CLOCK"))
    }
}

fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> PlatformError {
    move |source| PlatformError { call, source }
}

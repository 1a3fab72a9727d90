//! The guest under KVM.

pub(crate) mod dirtier;
mod kick;
pub(crate) mod long_mode;
mod platform;
mod raw;
mod vcpu;
mod vcpu_registers;
mod vcpu_state;

use crate::config::Program;
use crate::error::VmmError;
use crate::guest_map::{self, IDENTITY_MAP, TASK_STATE_SEGMENT};
use crate::machine::{DeviceEntry, Guest};
use crate::run_control::RunControl;
use crate::serial::Serial;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_pit_config, kvm_regs};
use kvm_ioctls::{Cap, Kvm};
use limosa_ram::GuestRam;
use limosa_ram::dirty_log::{DirtyLog, HostWrites};
use parking_lot::Mutex;
use platform::{Clock, InterruptChip, IntervalTimer};
use raw::VmWithRam;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use thiserror::Error;
use vcpu::{Vcpu, VcpuThread};
use vcpu_state::VcpuState;

/// Why there is no guest under KVM here.
#[derive(Debug, Error)]
pub enum KvmUnusable {
    /// `/dev/kvm` is missing, or not for this user.
    #[error("/dev/kvm cannot be opened: {0}")]
    Device(#[source] io::Error),
    /// It is there and speaks another version of the interface.
    #[error("/dev/kvm has version {got} of its interface; expected {expected}")]
    Version {
        /// What it says.
        got: i32,
        /// The only one in use since 2007.
        expected: i32,
    },
    /// It lacks something.
    #[error("/dev/kvm lacks {capability}")]
    Capability {
        /// What it lacks.
        capability: &'static str,
    },
    /// It refuses to make a virtual machine.
    #[error("/dev/kvm does not make a virtual machine: {0}")]
    Create(#[source] io::Error),
}

/// The interface version that every KVM has.
const API_VERSION: i32 = 12;

/// Whether a guest can run under KVM here.
///
/// # Errors
/// [`KvmUnusable`]: why not.
///
/// Cost: a virtual machine is made and dropped, some hundred microseconds.
pub fn kvm_usable() -> Result<(), KvmUnusable> {
    let device_error = |errno: kvm_ioctls::Error| io::Error::from_raw_os_error(errno.errno());
    let kvm = Kvm::new().map_err(|errno| KvmUnusable::Device(device_error(errno)))?;
    match kvm.get_api_version() {
        API_VERSION => {}
        got => return Err(KvmUnusable::Version { got, expected: API_VERSION }),
    }
    for (present, capability) in [
        (kvm.check_extension(Cap::UserMemory), "KVM_CAP_USER_MEMORY"),
        (kvm.check_extension(Cap::ImmediateExit), "KVM_CAP_IMMEDIATE_EXIT"),
        (kvm.check_extension(Cap::Irqchip), "KVM_CAP_IRQCHIP"),
        (kvm.check_extension(Cap::Xsave), "KVM_CAP_XSAVE"),
        (kvm.check_extension(Cap::Xcrs), "KVM_CAP_XCRS"),
        (kvm.check_extension(Cap::VcpuEvents), "KVM_CAP_VCPU_EVENTS"),
    ] {
        if !present {
            return Err(KvmUnusable::Capability { capability });
        }
    }
    kvm.create_vm().map(drop).map_err(|errno| KvmUnusable::Create(device_error(errno)))
}

/// vCPUs, their threads and the platform in the kernel.
pub(crate) struct KvmGuest {
    machine: Arc<VmWithRam>,
    control: Arc<RunControl>,
    vcpus: Vec<Arc<Vcpu>>,
    states: Vec<Arc<Mutex<VcpuState>>>,
    threads: Vec<JoinHandle<()>>,
}

impl KvmGuest {
    /// Parked vCPUs, about to execute `program` from its beginning, or to be loaded.
    pub(crate) fn new(
        ram: GuestRam,
        vcpus: u32,
        program: &Program,
        serial: &Arc<Mutex<Serial>>,
        control: &Arc<RunControl>,
    ) -> Result<Self, VmmError> {
        let kvm = Kvm::new().map_err(|errno| refused("open of /dev/kvm", errno))?;
        let machine = Arc::new(VmWithRam::new(new_vm(&kvm)?, ram)?);
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|errno| refused("KVM_GET_SUPPORTED_CPUID", errno))?;
        let msrs = kvm.get_msr_index_list().map_err(|errno| refused("KVM_GET_MSR_INDEX_LIST", errno))?;
        let mut guest = Self {
            machine,
            control: Arc::clone(control),
            vcpus: Vec::new(),
            states: Vec::new(),
            threads: Vec::new(),
        };
        for index in 0..vcpus {
            let cpuid = cpuid_of(&cpuid, index);
            let vcpu = Arc::new(Vcpu::new(guest.machine.vm(), index, &cpuid)?);
            set_up(&vcpu, index, program)?;
            guest.states.push(Arc::new(Mutex::new(VcpuState::new(&vcpu, &cpuid, msrs.as_slice())?)));
            guest.vcpus.push(vcpu);
        }
        // No thread starts before every vCPU is there: any of them may kick all.
        for index in 0..vcpus {
            guest.start_thread(index, serial)?;
        }
        Ok(guest)
    }

    fn start_thread(&mut self, index: u32, serial: &Arc<Mutex<Serial>>) -> Result<(), VmmError> {
        let thread = VcpuThread {
            index,
            vcpus: self.vcpus.clone(),
            control: Arc::clone(&self.control),
            serial: Arc::clone(serial),
        };
        let handle = std::thread::Builder::new()
            .name(format!("vcpu {index}"))
            .spawn(move || thread.run())
            .map_err(|source| VmmError::Thread { worker: index, source })?;
        self.threads.push(handle);
        Ok(())
    }
}

impl Guest for KvmGuest {
    fn kick(&self, worker: u32) {
        self.vcpus[worker as usize].kick();
    }

    fn dirty_log(&self, host_writes: Arc<HostWrites>) -> Result<Box<dyn DirtyLog>, VmmError> {
        Ok(Box::new(self.machine.dirty_log(host_writes)?))
    }

    fn devices(&self) -> Vec<DeviceEntry> {
        let mut devices = vec![
            DeviceEntry::new("kvmclock", 0, Box::new(Clock::new(&self.machine))),
            DeviceEntry::new("i8254", 0, Box::new(IntervalTimer::new(&self.machine))),
        ];
        for (idstr, instance, chip) in InterruptChip::all(&self.machine) {
            devices.push(DeviceEntry::new(idstr, instance, Box::new(chip)));
        }
        for (instance, state) in (0..).zip(&self.states) {
            devices.push(DeviceEntry::new("cpu", instance, Box::new(Arc::clone(state))));
        }
        devices
    }

    fn register_steps(&self) -> Vec<u64> {
        let steps = |vcpu: &Arc<Vcpu>| vcpu.registers().map_or(u64::MAX, |registers| registers.rbx);
        self.vcpus.iter().map(steps).collect()
    }
}

impl Drop for KvmGuest {
    fn drop(&mut self) {
        self.control.dismiss(|index| self.kick(index));
        for thread in self.threads.drain(..) {
            // A thread that panicked has reported it through its guard.
            let _ = thread.join();
        }
    }
}

/// An error of KVM, with what was asked of it.
fn refused(call: &'static str, errno: kvm_ioctls::Error) -> VmmError {
    VmmError::Kvm { call, source: io::Error::from_raw_os_error(errno.errno()) }
}

/// A virtual machine with interrupt controllers and timer in the kernel, and no memory.
fn new_vm(kvm: &Kvm) -> Result<kvm_ioctls::VmFd, VmmError> {
    let vm = kvm.create_vm().map_err(|errno| refused("KVM_CREATE_VM", errno))?;
    vm.set_identity_map_address(IDENTITY_MAP).map_err(|errno| refused("KVM_SET_IDENTITY_MAP_ADDR", errno))?;
    vm.set_tss_address(TASK_STATE_SEGMENT).map_err(|errno| refused("KVM_SET_TSS_ADDR", errno))?;
    vm.create_irq_chip().map_err(|errno| refused("KVM_CREATE_IRQCHIP", errno))?;
    vm.create_pit2(kvm_pit_config::default()).map_err(|errno| refused("KVM_CREATE_PIT2", errno))?;
    Ok(vm)
}

/// What the host can do, as vCPU `index` sees it: only its own number differs.
fn cpuid_of(supported: &CpuId, index: u32) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0x00ff_ffff | index << 24,
            0xb | 0x1f => entry.edx = index,
            _ => {}
        }
    }
    cpuid
}

/// Brings a vCPU to the first instruction of `program`.
fn set_up(vcpu: &Vcpu, index: u32, program: &Program) -> Result<(), VmmError> {
    match program {
        Program::Incoming => Ok(()),
        Program::Dirtier(_) => vcpu.set_up(long_mode::enter, &dirtier::first_registers(index), true),
        Program::BootSector(_) => {
            let registers = kvm_regs {
                rip: guest_map::BOOT_SECTOR,
                rsp: guest_map::BOOT_SECTOR,
                // The first hard disk, as firmware tells a boot sector.
                rdx: 0x80,
                rflags: 2,
                ..Default::default()
            };
            // The other vCPUs wait for the first to start them, as processors do.
            let enter = |special: &mut kvm_bindings::kvm_sregs| {
                special.cs.base = 0;
                special.cs.selector = 0;
            };
            if index == 0 { vcpu.set_up(enter, &registers, true) } else { Ok(()) }
        }
    }
}

//! One vCPU and the thread that runs it.

use crate::error::VmmError;
use crate::guest_map::{DOORBELL, WORKERS_MAX};
use crate::kvm::kick::Kick;
use crate::kvm::refused;
use crate::pace::Pacer;
use crate::run_control::{GuestEnd, Order, RunControl, StuckReason, ThreadGuard};
use crate::serial::{self, Serial};
use kvm_bindings::{CpuId, KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::time::Instant;

/// Writing a byte here ends the guest, as QEMU's `isa-debug-exit` does at its usual port.
const DEBUG_EXIT: u16 = 0xf4;
/// What is read where there is nothing.
const FLOATING_BUS: u8 = 0xff;

/// A vCPU. Its thread holds `fd` while the guest runs; whoever saves or loads it takes it while the thread is parked.
pub(crate) struct Vcpu {
    fd: Mutex<VcpuFd>,
    kick: Kick,
}

impl Vcpu {
    pub(crate) fn new(vm: &VmFd, index: u32, cpuid: &CpuId) -> Result<Self, VmmError> {
        assert!(index < WORKERS_MAX);
        let fd = vm.create_vcpu(u64::from(index)).map_err(|errno| refused("KVM_CREATE_VCPU", errno))?;
        fd.set_cpuid2(cpuid).map_err(|errno| refused("KVM_SET_CPUID2", errno))?;
        let kick = Kick::new(&fd)?;
        Ok(Self { fd: Mutex::new(fd), kick })
    }

    /// Changes the segments and control registers by `enter`, loads the others, and lets the vCPU run if `runnable`.
    pub(crate) fn set_up(
        &self,
        enter: impl FnOnce(&mut kvm_sregs),
        registers: &kvm_regs,
        runnable: bool,
    ) -> Result<(), VmmError> {
        let fd = self.fd.lock();
        let mut special = fd.get_sregs().map_err(|errno| refused("KVM_GET_SREGS", errno))?;
        enter(&mut special);
        fd.set_sregs(&special).map_err(|errno| refused("KVM_SET_SREGS", errno))?;
        fd.set_regs(registers).map_err(|errno| refused("KVM_SET_REGS", errno))?;
        if runnable {
            // With interrupt controllers in the kernel, all vCPUs but the first wait to be started.
            fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
                .map_err(|errno| refused("KVM_SET_MP_STATE", errno))?;
        }
        Ok(())
    }

    /// The vCPU, unless its thread is running it.
    pub(crate) fn parked(&self) -> Option<MutexGuard<'_, VcpuFd>> {
        self.fd.try_lock()
    }

    /// The general registers; `None` while the guest runs.
    pub(crate) fn registers(&self) -> Option<kvm_regs> {
        self.parked()?.get_regs().ok()
    }

    pub(crate) fn kick(&self) {
        self.kick.kick();
    }
}

/// What the thread of vCPU `index` works with.
pub(crate) struct VcpuThread {
    pub(crate) index: u32,
    /// All of them, because any one may end the guest for all.
    pub(crate) vcpus: Vec<Arc<Vcpu>>,
    pub(crate) control: Arc<RunControl>,
    pub(crate) serial: Arc<Mutex<Serial>>,
}

impl VcpuThread {
    /// Runs the guest whenever it should, until the thread is dismissed.
    pub(crate) fn run(self) {
        let _guard = ThreadGuard::of(&self.control, self.index);
        let vcpu = &self.vcpus[self.index as usize];
        vcpu.kick.adopt_this_thread();
        while self.control.park(self.index, || vcpu.kick.forget()) == Order::Run {
            let mut fd = vcpu.fd.lock();
            let mut pacer = Pacer::new(self.control.rate(), self.vcpus.len() as u32, Instant::now());
            // Only EINTR leads out: an exit must be completed by entering KVM_RUN again, and a stop that is wanted
            // meanwhile makes exactly that return at once.
            while self.run_once(&mut fd, &mut pacer) == AfterExit::Continue {}
        }
    }

    fn run_once(&self, fd: &mut VcpuFd, pacer: &mut Pacer) -> AfterExit {
        match fd.run() {
            Ok(VcpuExit::MmioRead(DOORBELL, data)) => {
                // 0 if a stop is wanted: the guest will ask again.
                let steps = self.control.wait_for_steps(pacer).to_le_bytes();
                let bytes = data.len().min(steps.len());
                data[..bytes].copy_from_slice(&steps[..bytes]);
            }
            Ok(VcpuExit::MmioRead(_, data)) => data.fill(FLOATING_BUS),
            Ok(VcpuExit::MmioWrite(..)) => {}
            Ok(VcpuExit::IoOut(port, data)) => self.port_write(port, data),
            Ok(VcpuExit::IoIn(port, data)) => self.port_read(port, data),
            Ok(VcpuExit::Hlt) => self.control.wait_for_stop(),
            Ok(VcpuExit::Intr) => return self.after_interruption(),
            Ok(VcpuExit::Shutdown) => self.stuck(StuckReason::Shutdown),
            Ok(VcpuExit::InternalError | VcpuExit::FailEntry(..)) => self.stuck(StuckReason::InternalError),
            Ok(_) => self.stuck(StuckReason::UnexpectedExit),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                return self.after_interruption();
            }
            Err(error) => {
                self.stuck(StuckReason::RunFailed(error.errno()));
                return AfterExit::Park;
            }
        }
        AfterExit::Continue
    }

    fn after_interruption(&self) -> AfterExit {
        if self.control.stop_wanted() { AfterExit::Park } else { AfterExit::Continue }
    }

    /// Ends the guest; the kick is for this vCPU, too, and makes its next `KVM_RUN` return.
    fn end(&self, end: GuestEnd) {
        self.control.end(end, |index| self.vcpus[index as usize].kick());
    }

    fn stuck(&self, reason: StuckReason) {
        self.end(GuestEnd::VcpuStuck { vcpu: self.index, reason });
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        if let Some(offset) = com1_offset(port) {
            let mut serial = self.serial.lock();
            data.iter().for_each(|byte| serial.write(offset, *byte));
        } else if port == DEBUG_EXIT {
            self.end(GuestEnd::DebugExit(data[0]));
        }
    }

    fn port_read(&self, port: u16, data: &mut [u8]) {
        match com1_offset(port) {
            Some(offset) => {
                let mut serial = self.serial.lock();
                data.iter_mut().for_each(|byte| *byte = serial.read(offset));
            }
            None => data.fill(FLOATING_BUS),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterExit {
    Continue,
    Park,
}

fn com1_offset(port: u16) -> Option<u16> {
    port.checked_sub(serial::COM1).filter(|offset| *offset < serial::PORTS)
}

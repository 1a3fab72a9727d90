//! What the engine needs of the machine that it moves.

use limosa_protocol::KernelThread;
use std::error::Error;
use std::fmt;

/// The host's hold on its guest: the engine stops and resumes it, nothing else.
///
/// Called from the migration's threads; both calls block until done.
pub trait Vm: Send + Sync {
    /// Stops every vCPU and every device thread: no byte of guest RAM changes after it returns, until the migration has
    /// ended or [`Self::resume`] is called, whatever the guest's operator says. Also called for a guest that its operator has
    /// paused; that one is not resumed.
    ///
    /// # Errors
    /// If the guest cannot be stopped; it must then still run.
    fn stop(&self) -> Result<(), VmError>;

    /// Lets the guest run: on the source after a failed migration, on the destination after a complete one.
    ///
    /// # Errors
    /// If it cannot run; the guest is then still stopped.
    fn resume(&self) -> Result<(), VmError>;

    /// What the guest is doing now, as seen by its operator.
    fn run_state(&self) -> RunState;

    /// The kernel's numbers of the threads that are the guest's vCPUs, whose waits for missing pages are measured
    /// (`postcopy-blocktime`). Asked on the destination before the guest runs there; empty if not overridden, and then
    /// nothing is measured.
    fn vcpu_threads(&self) -> Vec<KernelThread> {
        Vec::new()
    }
}

/// Whether a guest runs, under QEMU's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// vCPUs run.
    Running,
    /// Stopped by its operator.
    Paused,
    /// Waits for its state to arrive.
    InMigrate,
    /// Its state has left: another process runs it.
    PostMigrate,
    /// Stopped while the last of its state leaves.
    FinishMigrate,
}

/// Why a guest could not be stopped or resumed.
#[derive(Debug)]
pub struct VmError(Box<dyn Error + Send + Sync>);

impl VmError {
    /// Wraps the host's own reason.
    pub fn new(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for VmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for VmError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

impl RunState {
    /// QEMU's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::InMigrate => "inmigrate",
            Self::PostMigrate => "postmigrate",
            Self::FinishMigrate => "finish-migrate",
        }
    }
}

//! The run state of the guest, which travels as its last device section (wire 1.6).

use crate::vm::RunState;
use limosa_vmstate::{HookError, Unused, VmState};

/// Longest name of a run state, NUL included.
const NAME_MAX: usize = 32;

/// All run states that a source can be in; what else comes is a damaged stream.
const NAMES: [&str; 16] = [
    "colo",
    "debug",
    "finish-migrate",
    "guest-panicked",
    "inmigrate",
    "internal-error",
    "io-error",
    "paused",
    "postmigrate",
    "prelaunch",
    "restore-vm",
    "running",
    "save-vm",
    "shutdown",
    "suspended",
    "watchdog",
];

/// `globalstate`, as QEMU lays it out.
#[derive(Clone, Debug, Default, VmState)]
#[vmstate(name = "globalstate", version = 1, post_load = Self::check)]
pub(crate) struct GlobalState {
    /// Bytes of the name, NUL included.
    size: u32,
    #[vmstate(buffer)]
    runstate: [u8; NAME_MAX],
    has_vm_was_suspended: bool,
    vm_was_suspended: bool,
    unused: Unused<66>,
}

impl GlobalState {
    /// The section's name.
    pub(crate) const IDSTR: &'static str = "globalstate";

    /// What the next save will say.
    pub(crate) fn set(&mut self, state: RunState) {
        let name = state.as_str();
        self.runstate = [0; NAME_MAX];
        self.runstate[..name.len()].copy_from_slice(name.as_bytes());
        self.size = name.len() as u32 + 1;
        self.has_vm_was_suspended = true;
        self.vm_was_suspended = false;
    }

    /// Whether the guest ran when it was saved.
    pub(crate) fn was_running(&self) -> bool {
        self.name() == RunState::Running.as_str().as_bytes()
    }

    fn name(&self) -> &[u8] {
        let end = self.runstate.iter().position(|byte| *byte == 0).unwrap_or(NAME_MAX);
        &self.runstate[..end]
    }

    fn check(&mut self, _version: u32) -> Result<(), HookError> {
        let name = self.name();
        if self.size != name.len() as u32 + 1 {
            return Err("the run state's name is not as long as it says".into());
        }
        if !NAMES.iter().any(|known| known.as_bytes() == name) {
            return Err(format!("there is no run state {:?}", String::from_utf8_lossy(name)).into());
        }
        Ok(())
    }
}

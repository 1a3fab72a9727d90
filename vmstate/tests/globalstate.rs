//! QEMU's own `globalstate` as an example device.

use limosa_vmstate::{Device, VmState};

#[derive(VmState)]
#[vmstate(name = "globalstate", version = 1)]
struct GlobalState {
    size: u32,
    #[vmstate(buffer)]
    runstate: [u8; 32],
    has_vm_was_suspended: u8,
    vm_was_suspended: u8,
    #[vmstate(buffer)]
    unused: [u8; 66],
}

#[test]
fn a_saved_global_state_has_104_bytes() {
    let mut state = GlobalState {
        size: 8,
        runstate: [0; 32],
        has_vm_was_suspended: 1,
        vm_was_suspended: 0,
        unused: [0; 66],
    };
    assert_eq!(state.save().unwrap().body.len(), 104);
}

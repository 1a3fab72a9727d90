//! A handler that panics while the guest is stopped.

mod guest;

use guest::{Guest, configuration};
use limosa_engine::{
    Incoming, IncomingConfig, NoObserver, Outgoing, OutgoingConfig, Priority, RunState, SaveVm,
};
use limosa_transport::Link;
use limosa_vmstate::VmState;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

#[derive(Default, VmState)]
#[vmstate(name = "bomb", version = 1, pre_save = Self::explode)]
struct Bomb {
    fuse: u8,
}

impl Bomb {
    fn explode(&mut self) {
        panic!("a device panics while it is saved");
    }
}

#[test]
fn a_guest_whose_device_panics_goes_on_here() {
    let (source, mut destination) = (Guest::running(10), Guest::incoming(10));
    let mut savevm = SaveVm::new(configuration());
    savevm.register_device("bomb", 0, Priority::Default, Box::new(Bomb::default()));
    let (near, far) = Link::pair().unwrap();
    let (list, vm) = (destination.take_savevm(), destination.vm());
    let incoming = Incoming::over(far, IncomingConfig::default(), list, vm, Arc::new(NoObserver)).unwrap();
    let outgoing =
        Outgoing::over(near, OutgoingConfig::default(), savevm, source.vm(), Arc::new(NoObserver)).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| outgoing.wait())).is_err(), "the panic is passed on");
    assert!(!incoming.wait().0.is_completed());
    assert_eq!((source.run_state(), destination.run_state()), (RunState::Running, RunState::InMigrate));
    source.let_write(100);
}

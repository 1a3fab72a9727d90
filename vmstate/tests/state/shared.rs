//! Devices that their threads share.

use limosa_vmstate::{Device, SliceInput, VmState};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};

#[derive(Default, VmState)]
#[vmstate(name = "serial")]
struct Serial {
    divider: u16,
}

#[test]
fn a_device_behind_a_lock_saves_and_loads_as_itself() {
    let std = Arc::new(Mutex::new(Serial { divider: 1 }));
    let parking_lot = Arc::new(parking_lot::Mutex::new(Serial { divider: 2 }));
    let mut devices: Vec<Box<dyn Device>> =
        vec![Box::new(Serial { divider: 0 }), Box::new(Arc::clone(&std)), Box::new(Arc::clone(&parking_lot))];
    for (expected, device) in devices.iter_mut().enumerate() {
        assert_eq!((device.vmsd_name(), device.version(), device.minimum_version()), ("serial", 1, 1));
        assert!(device.needed());
        assert_eq!(device.save().unwrap().body, [0, expected as u8]);
        device.load(1, &mut SliceInput::new(&[7, 7])).unwrap();
    }
    assert_eq!(std.lock().unwrap().divider, 0x0707);
    assert_eq!(parking_lot.lock().divider, 0x0707);
}

#[test]
fn a_device_whose_thread_panicked_is_neither_saved_nor_loaded() {
    let serial = Arc::new(Mutex::new(Serial::default()));
    let change = AssertUnwindSafe(|| {
        let _guard = serial.lock().unwrap();
        resume_unwind(Box::new("in the middle of a change"));
    });
    catch_unwind(change).unwrap_err();

    let mut device: Box<dyn Device> = Box::new(serial);
    let expected = "a thread panicked while it was changing this device";
    assert_eq!(device.save().unwrap_err().to_string(), format!("serial: {expected}"));
    let error = device.load(1, &mut SliceInput::at(9, &[0; 2])).unwrap_err();
    assert_eq!(error.to_string(), format!("serial, at offset 9: {expected}"));
}

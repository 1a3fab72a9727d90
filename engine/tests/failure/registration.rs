//! A list that makes no sense is the host's own mistake, and is told to it at once.

use super::guest::{Counter, Guest, configuration};
use limosa_engine::{Priority, RamHandler, SaveVm};

fn device() -> Box<Counter> {
    Box::new(Counter::default())
}

#[test]
#[should_panic(expected = "counter/0 is registered twice")]
fn one_device_cannot_be_registered_twice() {
    let mut savevm = SaveVm::new(configuration());
    savevm.register_device("counter", 0, Priority::Default, device());
    savevm.register_device("counter", 1, Priority::Default, device());
    savevm.register_device("counter", 0, Priority::Default, device());
}

#[test]
#[should_panic(expected = "ram/0 is registered twice")]
fn a_guest_has_its_ram_once() {
    let mut guest = Guest::tiny();
    let ram = RamHandler::new(guest.ram.clone(), None);
    guest.take_savevm().register_ram(ram);
}

#[test]
#[should_panic(expected = "globalstate/0 is registered twice")]
fn the_run_state_is_the_lists_own() {
    SaveVm::new(configuration()).register_device("globalstate", 0, Priority::Default, device());
}

#[test]
#[should_panic(expected = "1 to 255 bytes, not 0")]
fn an_entry_has_a_name() {
    SaveVm::new(configuration()).register_device("", 0, Priority::Default, device());
}

#[test]
#[should_panic(expected = "1 to 255 bytes, not 256")]
fn a_name_fits_into_its_length_byte() {
    SaveVm::new(configuration()).register_device(&"x".repeat(256), 0, Priority::Default, device());
}

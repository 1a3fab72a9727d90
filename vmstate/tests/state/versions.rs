//! Versions and hooks.

use crate::{complaint, hex, load};
use limosa_vmstate::{Device, LoadProblem, SliceInput, VmState};

#[derive(Default, Debug, PartialEq, VmState)]
#[vmstate(name = "timer", version = 3, minimum_version = 2)]
#[vmstate(pre_save = Self::settle, pre_load = "Self::reset", post_load = Self::check)]
struct Timer {
    reload: u16,
    #[vmstate(since = 3)]
    prescaler: u8,
    end: u8,
    #[vmstate(skip)]
    loaded_version: Option<u32>,
    #[vmstate(skip)]
    is_settled: bool,
}

impl Timer {
    fn settle(&mut self) -> Result<(), String> {
        if self.end == 0xff {
            return Err(String::from("cannot settle"));
        }
        self.is_settled = true;
        Ok(())
    }

    fn reset(&mut self) {
        self.prescaler = 1;
    }

    fn check(&mut self, version: u32) -> Result<(), &'static str> {
        self.loaded_version = Some(version);
        if self.reload == 0 { Err("reload is 0") } else { Ok(()) }
    }
}

fn load_version(version: u32, body: &str) -> Result<Timer, String> {
    let mut device = Timer::default();
    let body = hex(body);
    let mut input = SliceInput::at(1000, &body);
    device.load(version, &mut input).map_err(|error| error.to_string())?;
    assert_eq!(input.rest(), [0; 0], "bytes left over");
    Ok(device)
}

#[test]
fn the_newest_version_carries_all_fields() {
    let device = load_version(3, "0005 06 07").unwrap();
    assert_eq!((device.reload, device.prescaler, device.end, device.loaded_version), (5, 6, 7, Some(3)));
}

#[test]
fn an_older_version_lacks_newer_fields_which_keep_their_pre_load_value() {
    let device = load_version(2, "0005 07").unwrap();
    assert_eq!((device.reload, device.prescaler, device.end, device.loaded_version), (5, 1, 7, Some(2)));
}

#[test]
fn a_version_outside_the_range_is_refused_before_a_byte_is_read() {
    for version in [0, 1, 4, u32::MAX] {
        let expected = format!("timer, at offset 1000: version {version} is not one of 2 to 3");
        assert_eq!(load_version(version, "0005 06 07").unwrap_err(), expected);
    }
}

#[test]
fn saving_writes_the_newest_version_after_pre_save() {
    let mut device = Timer { reload: 5, prescaler: 6, end: 7, ..Timer::default() };
    let saved = device.save().unwrap();
    assert!(device.is_settled);
    assert_eq!(saved.body, hex("0005 06 07"));
    assert_eq!(saved.description["version"], 3);
    assert_eq!((device.vmsd_name(), device.version(), device.minimum_version()), ("timer", 3, 2));
}

#[test]
fn a_pre_save_that_fails_fails_the_save() {
    let got = Timer { end: 0xff, ..Timer::default() }.save().unwrap_err();
    assert_eq!(got.to_string(), "timer: refused by the device: cannot settle");
}

#[test]
fn a_post_load_that_fails_fails_the_load() {
    let got = load_version(3, "0000 06 07").unwrap_err();
    assert_eq!(got, "timer, at offset 1004: refused by the device: reload is 0");
}

#[derive(Default, VmState)]
#[vmstate(name = "board")]
struct Board {
    timers: [Timer; 2],
}

#[test]
fn a_nested_struct_is_of_its_own_newest_version_and_its_hooks_run() {
    let mut board = Board::default();
    load(&mut board, &hex("0001 02 03 0004 05 06")).unwrap();
    assert_eq!(board.timers[1].prescaler, 5);
    assert_eq!(board.timers[1].loaded_version, Some(3));
    let got = complaint(&mut board, &hex("0001 02 03 0000 05 06"));
    assert_eq!(got, "board.timers[1], at offset 8: refused by the device: reload is 0");
}

#[test]
fn a_hooks_own_error_can_be_found_again() {
    let error = Timer::default().load(3, &mut SliceInput::new(&[0; 4])).unwrap_err();
    assert_eq!(error.path.as_str(), "timer");
    let LoadProblem::Refused(hook) = error.problem else { panic!("{error}") };
    assert_eq!(hook.to_string(), "reload is 0");
}

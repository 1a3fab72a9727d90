//! Devices as their authors write them: what is on the wire, what is described, what is refused.

mod arrays;
mod description_reader;
mod fields;
mod recorded;
mod round_trip;
mod shared;
mod subsections;
mod versions;

use limosa_vmstate::{Device, LoadError, SliceInput};
use serde_json::Value;

/// The bytes that `text` spells, blanks ignored.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

/// Loads all of `body` at the device's own version.
fn load(device: &mut impl Device, body: &[u8]) -> Result<(), LoadError> {
    let mut input = SliceInput::new(body);
    let version = device.version();
    device.load(version, &mut input)?;
    assert_eq!(input.rest(), [0; 0], "bytes left over");
    Ok(())
}

/// The fields of what `device` says about itself.
fn described_fields(device: &mut impl Device) -> Value {
    device.save().unwrap().description["fields"].clone()
}

/// What a loader says about `body`.
fn complaint(device: &mut impl Device, body: &[u8]) -> String {
    load(device, body).unwrap_err().to_string()
}

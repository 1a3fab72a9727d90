//! How a subsection announces itself inside a body.

use crate::input::{Input, InputError};
use crate::state::VmState;

/// The byte before a subsection's name (wire 1.2).
const SUBSECTION: u8 = 0x05;

/// Whether `name` is a subsection's name in a struct called `owner`: the owner's name and something more.
#[doc(hidden)]
pub const fn is_subsection_name(owner: &str, name: &str) -> bool {
    let (owner, name) = (owner.as_bytes(), name.as_bytes());
    if name.len() <= owner.len() {
        return false;
    }
    // Slices cannot be compared in a constant.
    let mut at = 0;
    while at < owner.len() {
        if owner[at] != name[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// What the `Option` of an optional subsection holds.
#[doc(hidden)]
pub trait OptionalSubsection {
    /// The subsection.
    type State: VmState;
}

impl<T: VmState> OptionalSubsection for Option<T> {
    type State = T;
}

/// Appends the announcement of subsection `name`.
///
/// # Panics
/// If the name does not have 1 to 255 bytes; the derive refuses such names.
pub(crate) fn announce(name: &str, version: u32, out: &mut Vec<u8>) {
    let length = u8::try_from(name.len()).expect("a description's name has at most 255 bytes");
    assert_ne!(length, 0, "a description's name is not empty");
    out.extend_from_slice(&[SUBSECTION, length]);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&version.to_be_bytes());
}

/// The name of the subsection that comes next, if one does that belongs to the struct called `owner`.
///
/// It belongs to it if its name is the owner's and something more. Anything else is left for an outer struct
/// to recognise, or is the section's footer; so a name is looked at and not consumed (wire 1.6).
pub(crate) fn peek(input: &mut dyn Input, owner: &str) -> Result<Option<String>, InputError> {
    // One byte at first: behind the last section of a stream, two may never come.
    if input.peek(1)? != [SUBSECTION] {
        return Ok(None);
    }
    let &[_, length] = input.peek(2)? else { return Ok(None) };
    let length = usize::from(length);
    if length <= owner.len() {
        return Ok(None);
    }
    let Some(name) = input.peek(2 + length)?.get(2..2 + length) else { return Ok(None) };
    if !name.starts_with(owner.as_bytes()) {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(name).into_owned()))
}

/// Consumes the announcement that [`peek`] found, of a name of `length` bytes, and gives its version.
pub(crate) fn accept(input: &mut dyn Input, length: usize) -> Result<u32, InputError> {
    // Tag, length, name of at most 255 bytes, version.
    let mut bytes = [0; 1 + 1 + 255 + 4];
    let announcement = &mut bytes[..1 + 1 + length + 4];
    input.read(announcement)?;
    let version = *announcement.last_chunk().expect("an announcement has more than 4 bytes");
    Ok(u32::from_be_bytes(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subsections_name_is_its_owners_and_something_more() {
        assert!(is_subsection_name("uart", "uart/fifo"));
        assert!(is_subsection_name("uart", "uart2"));
        assert!(!is_subsection_name("uart", "uart"));
        assert!(!is_subsection_name("uart", "uar"));
        assert!(!is_subsection_name("uart", "taru/fifo"));
    }
}

//! Whether a guest that moved is still the same guest.

use super::process::{Qemu, QemuError};
use super::serial::{Line, lines_across};

/// Passes of the working set that a moved guest must complete: in the first it checks every page that came, in the second
/// every page that it wrote since.
const PASSES: u32 = 2;

/// Lets the guest in `destination` go on from where it stopped in `source` until it has checked all of its working set,
/// and stops it.
///
/// # Errors
/// It does not get that far.
///
/// # Panics
/// If the ticks of both, one after the other, have a gap, a step back or a repetition.
pub fn assert_goes_on(source: &Qemu, destination: &mut Qemu) -> Result<(), QemuError> {
    let last = match source.serial().last() {
        Some(Line::Tick(tick)) => tick,
        other => panic!("the source's guest ended with {other:?}"),
    };
    let payload = source.payload();
    let ticks_of_a_pass = (payload.working_set.0 as u32).div_ceil(payload.pages_per_tick);
    destination.wait_tick_past(last + PASSES * ticks_of_a_pass)?;
    destination.stop()?;
    for (expected, line) in (1..).zip(lines_across(&[source.serial(), destination.serial()])) {
        assert_eq!(line, Line::Tick(expected));
    }
    Ok(())
}

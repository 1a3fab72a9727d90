//! What to do when this machine lacks what a ring of tests needs.

use std::env;
use std::fmt::Display;
use std::io::{self, Write};

/// Says on stderr that tests were left out for want of `missing`.
///
/// # Panics
/// If the environment says `LIMOSA_REQUIRE_ALL_RINGS=1`: there no test may be skipped.
pub fn leave_out(missing: impl Display) {
    let text = missing.to_string();
    assert!(env::var("LIMOSA_REQUIRE_ALL_RINGS").as_deref() != Ok("1"), "required, but {text}");
    // Not eprintln: the test harness keeps that to itself when the test passes.
    writeln!(io::stderr(), "LEFT OUT: {text}").expect("stderr takes a line");
}

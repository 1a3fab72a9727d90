//! Simulator, peers, hot guests: what the other crates must survive.
//!
//! [`sim`] drives the pure machines of `limosa-protocol` through seeded accidents. [`qemu`] drives an unmodified QEMU, the
//! peer that nobody here wrote. The tests of this crate use both, and run whole guests until something gives.
//!
//! **Deliberately absent:** anything that a user of the library needs.
#![forbid(unsafe_code)]

pub mod qemu;
pub mod sim;

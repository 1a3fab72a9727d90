//! Under construction.
pub mod qemu;
pub mod sim;

//! Under construction.
pub mod qemu;

//! The real binary: `limosa vmm` and `limosa demo` as processes, with their exit codes and what they leave behind.

mod demo;
mod kills;
mod process;
mod relay;
mod vmm;

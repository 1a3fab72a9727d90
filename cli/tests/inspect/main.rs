//! `limosa inspect` as a user runs it: the binary, its two outputs, its exit code and its errors.

mod command;
mod damage;
mod recordings;
mod refusals;
mod stream;
mod whole;

//! The `limosa` command: one binary, one module for each subcommand.
//!
//! A subcommand is a module with `Options`, which clap fills in, and `run(Options)`, which answers with the exit
//! code or with an error of its own; a row in [`Subcommand`] and one in [`enum@Error`] make it known here. Exit code 0 is
//! success, 1 a failure told on stderr, 2 (clap's) a command line that cannot be understood.
//!
//! **Deliberately absent:** migration itself, which is `limosa-engine`'s.
#![forbid(unsafe_code)]

mod channels;
mod demo;
mod guest;
mod inspect;
mod postcopy;
mod signals;
mod size;
mod vmm;

use clap::Parser;
use std::error::Error as _;
use std::process::ExitCode;
use thiserror::Error;

/// Live migration of virtual machines.
#[derive(Debug, Parser)]
#[command(name = "limosa", version, about)]
struct CommandLine {
    #[command(subcommand)]
    subcommand: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    Demo(demo::Options),
    Vmm(vmm::Options),
    /// Show what a recorded migration stream holds.
    Inspect(inspect::Options),
}

/// Why a subcommand failed.
#[derive(Debug, Error)]
enum Error {
    #[error(transparent)]
    Demo(#[from] demo::DemoError),
    #[error(transparent)]
    Vmm(#[from] vmm::VmmCommandError),
    #[error(transparent)]
    Inspect(#[from] inspect::InspectError),
}

fn main() -> ExitCode {
    let CommandLine { subcommand } = CommandLine::parse();
    run(subcommand).unwrap_or_else(|error| {
        tell(&error);
        ExitCode::FAILURE
    })
}

fn run(subcommand: Subcommand) -> Result<ExitCode, Error> {
    match subcommand {
        Subcommand::Demo(options) => Ok(demo::run(options)?),
        Subcommand::Vmm(options) => Ok(vmm::run(options)?),
        Subcommand::Inspect(options) => Ok(inspect::run(options)?),
    }
}

/// The error and what is behind it, in one line on stderr.
fn tell(error: &Error) {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    eprintln!("limosa: {line}");
}

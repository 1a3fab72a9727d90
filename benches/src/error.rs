//! What can keep a migration from being measured.

use limosa_qmp::QmpError;
use limosa_ram::RamError;
use limosa_vmm::VmmError;
use serde_json::Value;
use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use thiserror::Error;

/// A migration that was not measured.
#[derive(Debug, Error)]
pub enum BenchError {
    /// A temporary folder or file.
    #[error("temporary files in {folder}")]
    Files {
        /// Where.
        folder: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The memory file could not be filled.
    #[error("filling the memory file")]
    Fill(#[from] VmmError),
    /// The memory that the destination will need is not there.
    #[error("touching the destination's memory in advance")]
    Memory(#[from] RamError),
    /// A program did not start.
    #[error("starting {program}")]
    Spawn {
        /// Which.
        program: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A monitor refused, or is gone.
    #[error("the {who}, {during}")]
    Monitor {
        /// Source or destination.
        who: &'static str,
        /// The command or event.
        during: &'static str,
        /// Why.
        #[source]
        source: QmpError,
    },
    /// The destination does not say where it listens.
    #[error("the destination names no TCP address: {answer}")]
    NoAddress {
        /// What it said instead.
        answer: Value,
    },
    /// The migration did not complete.
    #[error("the migration ended as {status}: {answer}")]
    NotCompleted {
        /// Its last status.
        status: String,
        /// What `query-migrate` said.
        answer: Value,
    },
}

/// How `program` ends, with its error and that error's causes in one line on standard error.
pub fn conclude(program: &str, outcome: Result<(), Box<dyn StdError>>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(&format!(": {error}"));
        cause = error.source();
    }
    eprintln!("{program}: {line}");
    ExitCode::FAILURE
}

//! The independent reader of recorded streams, `scripts/read_stream.py`.

use super::ring;
use serde_json::Value;
use std::io;
use std::path::Path;
use std::process::Command;
use thiserror::Error;

/// Reads a precopy stream from a file with no code of ours but a script that was written from the format.
#[derive(Clone, Copy, Debug)]
pub struct IndependentReader {
    _python_is_here: (),
}

/// A stream that the reader does not accept.
#[derive(Debug, Error)]
pub enum ReaderError {
    /// The script did not start.
    #[error("starting python3: {0}")]
    Start(#[from] io::Error),
    /// The stream is not what it should be.
    #[error("{words}")]
    Refused {
        /// Where and why.
        words: String,
    },
    /// The script's summary is no JSON.
    #[error("the reader's summary: {0}")]
    Summary(#[from] serde_json::Error),
}

const PYTHON: &str = "python3";

impl IndependentReader {
    /// The reader, or `None` after saying on stderr that there is no Python.
    ///
    /// # Panics
    /// If there is none and the environment says `LIMOSA_REQUIRE_ALL_RINGS=1`.
    pub fn require() -> Option<Self> {
        match Command::new(PYTHON).arg("--version").output() {
            Ok(answer) if answer.status.success() => Some(Self { _python_is_here: () }),
            _ => {
                ring::leave_out("python3 is not installed");
                None
            }
        }
    }

    /// Reads `stream` to its last byte; the summary with the fields of every device. The final content of every
    /// RAM block is written to `ram`, one file each, `/` in its name becoming `_`.
    ///
    /// # Errors
    /// [`ReaderError::Refused`] if anything is not as the format says, the vmdescription included.
    pub fn read(&self, stream: &Path, ram: &Path) -> Result<Value, ReaderError> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/read_stream.py");
        let answer =
            Command::new(PYTHON).arg(script).args(["--values", "--ram"]).arg(ram).arg(stream).output()?;
        if !answer.status.success() {
            let words = String::from_utf8_lossy(&answer.stderr).trim().to_owned();
            return Err(ReaderError::Refused { words });
        }
        Ok(serde_json::from_slice(&answer.stdout)?)
    }
}

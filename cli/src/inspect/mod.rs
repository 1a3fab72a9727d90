//! `limosa inspect`: what a recorded migration stream holds.
//!
//! [`walk`](walk::walk) reads the stream once, from front to back, and fills in a [`Report`]; text and
//! JSON are two ways of writing that down. What goes wrong on the way ends the walk, not the report: a stream
//! that breaks off is shown as far as it goes.
//!
//! Memory does not grow with guest RAM but for one bit per page ([`ram`]), and the device part is held up to a
//! limit ([`devices::MAX_DEVICE_PART_BYTES`]), because the description that tells its lengths comes last.
//!
//! **Deliberately absent:** guest RAM's content, and streams other than plain precopy: those are refused by name
//! ([`refusal::Refusal`]).

mod devices;
mod error;
mod fields;
mod large_pages;
mod ram;
mod refusal;
mod report;
mod source;
mod text;
mod values;
mod walk;

pub(crate) use error::InspectError;

use report::Report;
use serde::Serialize;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What to inspect, and how to show it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Reads plain precopy streams, from front to back, so a pipe will do. The device part, from \
    the first device section to the vmdescription, may have up to 320 MiB; RAM may have any size."
)]
pub(crate) struct Options {
    /// A migration stream recorded to a file, for example by QEMU's `migrate file:PATH`; `-` is stdin.
    file: PathBuf,
    /// Also show every field of this device, by section name or by format name.
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// Inspects one stream and writes the report to stdout.
///
/// # Errors
/// A stream that cannot be read to its end; the report on what came before has been written then.
pub(crate) fn run(options: Options) -> Result<ExitCode, InspectError> {
    let (input, name) = open(&options.file)?;
    let (report, outcome) = walk::walk(input, options.device);
    match write(&report, outcome.as_ref().err(), &name, options.json) {
        // Whoever reads our output has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.map_err(InspectError::Output)?,
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

fn open(path: &Path) -> Result<(Box<dyn Read>, String), InspectError> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(io::stdin().lock()), "stdin".to_owned()));
    }
    let file = File::open(path).map_err(|source| InspectError::Open { path: path.to_owned(), source })?;
    Ok((Box::new(file), path.display().to_string()))
}

fn write(report: &Report, error: Option<&InspectError>, name: &str, json: bool) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    if json {
        let document = Document { stream: name, report, error: error.map(ErrorReport::new) };
        serde_json::to_writer_pretty(&mut out, &document)?;
        writeln!(out)?;
    } else {
        text::write(report, name, &mut out)?;
    }
    out.flush()
}

/// The whole of the JSON output.
#[derive(Serialize)]
struct Document<'a> {
    stream: &'a str,
    #[serde(flatten)]
    report: &'a Report,
    /// `null` when the stream was read to its end.
    error: Option<ErrorReport>,
}

/// An error, for programs.
#[derive(Serialize)]
struct ErrorReport {
    kind: &'static str,
    offset: Option<u64>,
    message: String,
}

impl ErrorReport {
    fn new(error: &InspectError) -> Self {
        Self { kind: error.kind(), offset: error.offset(), message: error.to_string() }
    }
}

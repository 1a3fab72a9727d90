//! Moves guests of several kinds with Limosa and with QEMU, in turns, and prints both and their ratio.
#![forbid(unsafe_code)]

use clap::Parser;
use limosa_benches::{
    BenchError, Limosa, Measurement, MemoryFile, Program, Qemu, Route, SCENARIOS, Scenario, Summary,
    conclude, measure,
};
use limosa_pages::ByteCount;
use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// End-to-end migrations, compared with QEMU's in the same run.
#[derive(Debug, Parser)]
struct Options {
    /// Scenarios to run; the first of the list if none is named.
    #[arg(value_name = "SCENARIO", value_parser = scenario)]
    scenarios: Vec<Scenario>,
    /// Run every scenario.
    #[arg(long, conflicts_with = "scenarios")]
    all: bool,
    /// List the scenarios and end.
    #[arg(long)]
    list: bool,
    /// Multifd channels, several numbers in turns; 0 is the main channel alone.
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "0")]
    channels: Vec<u8>,
    /// How the channels compress, several methods in turns.
    #[arg(long, value_name = "METHOD,..", value_delimiter = ',', default_value = "none")]
    compression: Vec<String>,
    /// Move each guest before its memory, urgent pages on a channel of their own. QEMU 10.0 has no multifd then.
    #[arg(long)]
    postcopy: bool,
    /// Guest RAM in MiB, instead of what the scenarios have.
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// Migrations of each program that are counted.
    #[arg(long, value_name = "N", default_value_t = 5)]
    repetitions: u32,
    /// Migrations of each program that are made first and not counted.
    #[arg(long, value_name = "N", default_value_t = 1)]
    warm_up: u32,
    /// Where the memory file goes: a tmpfs with room for the guest.
    #[arg(long, value_name = "FOLDER", default_value = "/dev/shm")]
    folder: PathBuf,
    /// The `limosa` to measure; by default the one beside this program.
    #[arg(long, value_name = "PATH")]
    limosa: Option<PathBuf>,
    /// Do not run QEMU.
    #[arg(long)]
    no_qemu: bool,
    /// Append every measurement to this file, one JSON object in a line.
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    conclude("scenarios", run(&Options::parse()))
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    if options.list {
        SCENARIOS.iter().for_each(|scenario| println!("{}", scenario.name));
        return Ok(());
    }
    let limosa = match &options.limosa {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("limosa"),
    };
    let mut programs: Vec<Box<dyn Program>> = vec![Box::new(Limosa::at(limosa))];
    if !options.no_qemu {
        programs.extend(Qemu::find().map(|qemu| Box::new(qemu) as Box<dyn Program>));
    }
    let mut json = options.json.as_deref().map(append_to).transpose()?;
    for scenario in chosen(options) {
        println!("{}", scenario.name);
        let measurements = repeat(&scenario, &mut programs, options)?;
        for route in routes(options) {
            println!("{} channels, {}", route.channels, route.compression);
            let alike =
                |one: &&Measurement| (one.channels, &one.compression) == (route.channels, &route.compression);
            let alike: Vec<Measurement> = measurements.iter().filter(alike).cloned().collect();
            println!("{}", Summary::of(&alike));
        }
        for method in &options.compression {
            let alike: Vec<Measurement> =
                measurements.iter().filter(|one| &one.compression == method).cloned().collect();
            if let Some(best) = Summary::of(&alike).best() {
                println!("{method}: {best}\n");
            }
        }
        if let Some(file) = &mut json {
            for measurement in &measurements {
                writeln!(file, "{}", serde_json::to_string(measurement)?)?;
            }
        }
    }
    Ok(())
}

/// Measures the programs in turns; every other time in the other order, so that none is always the first.
fn repeat(
    scenario: &Scenario,
    programs: &mut [Box<dyn Program>],
    options: &Options,
) -> Result<Vec<Measurement>, BenchError> {
    let memory = MemoryFile::fill(&options.folder, scenario.memory, scenario.content)?;
    let mut measurements = Vec::new();
    for turn in 0..options.warm_up + options.repetitions {
        for route in routes(options) {
            for program in programs.iter() {
                let measurement = measure(scenario, &route, program.as_ref(), &memory)?;
                if turn >= options.warm_up {
                    let repetition = turn - options.warm_up + 1;
                    measurements.push(Measurement { repetition, ..measurement });
                }
            }
        }
        programs.reverse();
    }
    Ok(measurements)
}

fn chosen(options: &Options) -> Vec<Scenario> {
    let mut chosen = match (options.all, options.scenarios.as_slice()) {
        (true, _) => SCENARIOS.to_vec(),
        (false, []) => vec![SCENARIOS[0]],
        (false, named) => named.to_vec(),
    };
    if let Some(mebibytes) = options.memory {
        chosen.iter_mut().for_each(|scenario| scenario.memory = ByteCount(mebibytes << 20));
    }
    chosen
}

/// Every number of channels with every method.
fn routes(options: &Options) -> impl Iterator<Item = Route> + '_ {
    options.channels.iter().flat_map(move |&channels| {
        options.compression.iter().map(move |method| Route {
            channels,
            compression: method.clone(),
            postcopy: options.postcopy,
        })
    })
}

fn scenario(name: &str) -> Result<Scenario, String> {
    Scenario::named(name).ok_or_else(|| format!("no scenario is called {name}; --list shows them"))
}

fn append_to(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

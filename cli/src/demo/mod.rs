//! `limosa demo`: two VMMs, one busy guest, a migration between them, and the proof that nothing was lost.

mod faults;
mod process;
mod report;

use crate::channels::ChannelOptions;
use crate::guest::{DirtierOptions, Kind, MachineOptions};
use crate::postcopy::PostcopySwitch;
use crate::signals;
use crate::size::Size;
use faults::Faults;
use indicatif::{ProgressBar, ProgressStyle};
use limosa_qmp::{
    MigrationCapability, MigrationCapabilityStatus, MigrationInfo, MigrationParameters, MigrationStatus,
    QmpError, SocketAddress,
};
use limosa_vmm::{KvmUnusable, Rate, kvm_usable};
use nix::sys::signal::Signal;
use process::Vmm;
use report::{Arrival, Figures, Verification};
use serde_json::{Value, json};
use std::io;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Migrate a busy guest between two VMMs on this host, and check every page of it.
///
/// Starts two processes of `limosa vmm`, moves the guest from one to the other while it writes its memory, pauses it, and
/// compares every page with what it must hold. Ends with code 0 only if all of it arrived and the guest went on.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Migration")]
pub(crate) struct Options {
    /// Bytes per second that precopy may send, for example 100M [default: unlimited]
    #[arg(long, value_name = "SIZE")]
    max_bandwidth: Option<Size>,
    /// The longest pause that the guest may be asked to take, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 300)]
    downtime_limit: u64,
    /// Send pages after the first round as deltas (XBZRLE).
    #[arg(long, conflicts_with = "channels")]
    xbzrle: bool,
    #[command(flatten)]
    channels: ChannelOptions,
    #[command(flatten)]
    postcopy: PostcopySwitch,
    /// Migrate over a unix socket instead of TCP on the loopback interface.
    #[arg(long)]
    unix: bool,
    /// Give up after this many seconds.
    #[arg(long, value_name = "S", default_value_t = 120)]
    timeout: u64,
    /// Write the report as JSON, and nothing else on stdout.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: MachineOptions,
    #[command(flatten)]
    dirtier: DirtierOptions,
}

/// Why the demonstration ended early.
#[derive(Debug, Error)]
pub(crate) enum DemoError {
    #[error("a VMM could not be started")]
    Spawn(#[source] io::Error),
    #[error("the {who} VMM ended at once ({status})")]
    NotStarted { who: &'static str, status: ExitStatus },
    #[error("the {who} VMM does not do what it should")]
    Monitor {
        who: &'static str,
        #[source]
        source: QmpError,
    },
    #[error("the destination does not say where it listens")]
    NoAddress,
    #[error("the migration ended as {status}{}", reason.as_ref().map(|text| format!(": {text}")).unwrap_or_default())]
    NotCompleted { status: MigrationStatus, reason: Option<String> },
    #[error("nothing was completed within {0:?}; try a lower --dirty-rate or a higher --downtime-limit")]
    TimedOut(Duration),
}

/// How often the bar moves.
const FRAME: Duration = Duration::from_millis(50);

/// How long the guest works before it is moved, in pages written.
const WARM_UP_PAGES: u64 = 1000;

/// Runs the demonstration; success is a guest that arrived with every page.
///
/// # Errors
/// Anything that ends the migration before the guest has arrived.
pub(crate) fn run(mut options: Options) -> Result<ExitCode, DemoError> {
    let folder = tempfile::tempdir().map_err(DemoError::Spawn)?;
    clean_up_when_interrupted(folder.path())?;
    options.dirtier.fill_in_for_demo(options.machine.memory);
    let without_kvm = choose_guest(&mut options.machine);
    let heading = report::heading(&options.machine, &options.dirtier, without_kvm.as_ref());
    // With --json, stdout is for the report alone.
    if options.json {
        eprintln!("{heading}");
    } else {
        println!("{heading}");
    }
    let (mut source, mut destination, uri) = start_both(&options, folder.path())?;

    configure(&mut source, &options)?;
    warm_up(&mut source, &options)?;
    let steps_before = source.steps()?;
    source.execute("migrate", json!({"uri": uri}))?;
    let deadline = Instant::now() + Duration::from_secs(options.timeout);
    if options.postcopy.is_now() {
        start_postcopy(&mut source)?;
    }
    follow(&mut source, deadline, &options)?;
    let arrival = Arrival::of(&mut destination, deadline, steps_before)?;
    let figures = Figures::of(&mut source)?;
    let faults = Faults::of(&mut destination)?;
    let verification = Verification::of(&mut destination)?;
    source.quit();
    destination.quit();

    if options.json {
        println!("{}", report::json(&options.machine, &figures, faults.as_ref(), &arrival, &verification));
    } else {
        print!("{}", report::text(&figures, faults.as_ref(), &arrival, &verification));
    }
    let proven = verification.is_clean() && arrival.never_stepped_back();
    Ok(if proven { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Decides for both VMMs what executes the guest; says why it is not KVM, if that was left open and KVM is not usable.
fn choose_guest(machine: &mut MachineOptions) -> Option<KvmUnusable> {
    if machine.guest != Kind::Auto {
        return None;
    }
    let unusable = kvm_usable().err();
    machine.guest = if unusable.is_none() { Kind::Kvm } else { Kind::Process };
    unusable
}

/// The VMMs end by themselves when we are gone; the folder does not.
fn clean_up_when_interrupted(folder: &Path) -> Result<(), DemoError> {
    /// What a shell reports for a program that a signal ended is the signal's number and this.
    const ENDED_BY_SIGNAL: i32 = 128;
    let folder = folder.to_owned();
    signals::hold_back().map_err(DemoError::Spawn)?.then(move |signal: Signal| {
        // What cannot be removed stays: there is nobody left to tell.
        let _ = std::fs::remove_dir_all(folder);
        std::process::exit(ENDED_BY_SIGNAL + signal as i32)
    });
    Ok(())
}

/// The source with a working guest, the destination, and where that listens.
fn start_both(options: &Options, folder: &Path) -> Result<(Vmm, Vmm, String), DemoError> {
    let mut words = options.machine.arguments();
    words.extend(options.dirtier.arguments());
    let source = Vmm::start("source", folder, &words)?;
    let uri = match options.unix {
        true => format!("unix:{}", folder.join("stream.sock").display()),
        false => "tcp:127.0.0.1:0".to_owned(),
    };
    words = options.machine.arguments();
    words.extend(options.channels.arguments());
    words.extend(options.postcopy.arguments());
    words.push(format!("--incoming={uri}"));
    let mut destination = Vmm::start("destination", folder, &words)?;
    let events = [MigrationCapabilityStatus { capability: MigrationCapability::Events, state: true }];
    destination.execute("migrate-set-capabilities", json!({"capabilities": events}))?;
    let uri = if options.unix { uri } else { listening_at(&mut destination)? };
    Ok((source, destination, uri))
}

/// Where a destination listens whose port the kernel has chosen.
fn listening_at(destination: &mut Vmm) -> Result<String, DemoError> {
    let info: MigrationInfo = destination.query("query-migrate")?;
    match info.socket_address.unwrap_or_default().first() {
        Some(SocketAddress::Inet { host, port }) => Ok(format!("tcp:{host}:{port}")),
        _ => Err(DemoError::NoAddress),
    }
}

fn configure(source: &mut Vmm, options: &Options) -> Result<(), DemoError> {
    let switched = |capability, state| MigrationCapabilityStatus { capability, state };
    let mut capabilities = vec![
        switched(MigrationCapability::Events, true),
        switched(MigrationCapability::Xbzrle, options.xbzrle),
    ];
    capabilities.extend(options.channels.capabilities());
    capabilities.extend(options.postcopy.capabilities());
    source.execute("migrate-set-capabilities", json!({"capabilities": capabilities}))?;
    let mut parameters = MigrationParameters {
        max_bandwidth: Some(options.max_bandwidth.map_or(0, |size| size.0)),
        downtime_limit: Some(options.downtime_limit),
        ..options.channels.parameters()
    };
    parameters.apply(options.postcopy.parameters());
    source.execute("migrate-set-parameters", json!(parameters))?;
    Ok(())
}

/// A guest that has not begun to work proves nothing.
fn warm_up(source: &mut Vmm, options: &Options) -> Result<(), DemoError> {
    if options.dirtier.dirty_rate.0 == Rate::PagesPerSecond(0) {
        return Ok(());
    }
    let deadline = Instant::now() + Duration::from_secs(options.timeout);
    while source.steps()?.iter().sum::<u64>() < WARM_UP_PAGES {
        if Instant::now() > deadline {
            return Err(DemoError::TimedOut(Duration::from_secs(options.timeout)));
        }
        std::thread::sleep(FRAME / 10);
    }
    Ok(())
}

/// Tells the source to let its guest move, unless it has already.
fn start_postcopy(source: &mut Vmm) -> Result<(), DemoError> {
    match source.execute("migrate-start-postcopy", Value::Null) {
        Err(DemoError::Monitor { source: QmpError::Refused { .. }, .. }) => Ok(()),
        told => told.map(drop),
    }
}

/// Shows a bar until the migration has ended; an error unless it is completed.
fn follow(source: &mut Vmm, deadline: Instant, options: &Options) -> Result<(), DemoError> {
    let bar = if options.json { ProgressBar::hidden() } else { ProgressBar::new(0) };
    let style = "  {bar:28} {bytes}/{total_bytes}  {msg}";
    bar.set_style(ProgressStyle::with_template(style).expect("a constant template"));
    loop {
        let info: MigrationInfo = source.query("query-migrate")?;
        let status = info.status.unwrap_or(MigrationStatus::None);
        if let Some(ram) = &info.ram {
            bar.set_length(ram.total);
            bar.set_position(ram.total.saturating_sub(ram.remaining));
            let rate = Size((ram.mbps * 1e6 / 8.0) as u64);
            let phase = match status {
                MigrationStatus::PostcopyActive => "postcopy".to_owned(),
                _ => format!("round {}", ram.dirty_sync_count),
            };
            bar.set_message(format!("{phase}, {rate}/s"));
        }
        match status {
            MigrationStatus::Completed => {
                bar.finish_and_clear();
                return Ok(());
            }
            MigrationStatus::Failed | MigrationStatus::Cancelled => {
                bar.abandon();
                return Err(DemoError::NotCompleted { status, reason: info.error_desc });
            }
            _ if Instant::now() > deadline => {
                bar.abandon();
                return Err(DemoError::TimedOut(Duration::from_secs(options.timeout)));
            }
            _ => source.wait_for_end(Instant::now() + FRAME)?,
        }
    }
}

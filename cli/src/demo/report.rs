//! What the demonstration tells: how the migration went, and whether everything arrived.

use super::DemoError;
use super::faults::Faults;
use super::process::Vmm;
use crate::guest::{DirtierOptions, Kind, MachineOptions};
use crate::size::Size;
use limosa_pages::PageCount;
use limosa_qmp::{MultifdChannelStats, StatusInfo};
use limosa_vmm::KvmUnusable;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// The source's account, in the shape of `x-limosa-report`. Times in microseconds.
#[derive(Debug, Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Figures {
    total_us: u64,
    setup_us: u64,
    transferred: u64,
    rounds: Vec<Round>,
    downtime_us: Option<Downtime>,
    ram: Ram,
    channels: Vec<MultifdChannelStats>,
    /// How packets were compressed, and why.
    choices: Vec<String>,
    postcopy: Option<Value>,
}

#[derive(Debug, Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
struct Round {
    number: u64,
    owed_pages: u64,
    sent_pages: u64,
    bytes: u64,
    us: u64,
}

#[derive(Debug, Deserialize, serde::Serialize)]
struct Downtime {
    total: u64,
    stop: u64,
    sync: u64,
    ram: u64,
    devices: u64,
    load: u64,
    resume: u64,
}

#[derive(Debug, Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
struct Ram {
    normal_pages: u64,
    zero_pages: u64,
    untouched_pages: u64,
    xbzrle_pages: u64,
    xbzrle_bytes: u64,
    multifd_bytes: u64,
}

/// The guest's own count of its work, before and after.
#[derive(Debug)]
pub(super) struct Arrival {
    before: Vec<u64>,
    after: Vec<u64>,
}

/// The destination's check of every page.
#[derive(Debug, Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Verification {
    clean: bool,
    pages_checked: u64,
    pages_in_flight: u64,
    pages_bad: u64,
    faults: Vec<String>,
}

impl Figures {
    pub(super) fn of(source: &mut Vmm) -> Result<Self, DemoError> {
        source.query("x-limosa-report")
    }
}

impl Arrival {
    /// Waits until the guest runs on the destination, with all of its memory, and has gone on working.
    pub(super) fn of(destination: &mut Vmm, deadline: Instant, before: Vec<u64>) -> Result<Self, DemoError> {
        destination.wait_for_end(deadline)?;
        loop {
            let status: StatusInfo = destination.query("query-status")?;
            let after = destination.steps()?;
            let idle = before.iter().all(|steps| *steps == 0);
            if status.running && (idle || after.iter().sum::<u64>() > before.iter().sum()) {
                return Ok(Self { before, after });
            }
            if Instant::now() > deadline {
                return Err(DemoError::TimedOut(deadline.elapsed()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn never_stepped_back(&self) -> bool {
        self.before.len() == self.after.len() && self.before.iter().zip(&self.after).all(|(a, b)| a <= b)
    }
}

impl Verification {
    /// Pauses the guest and checks every page of it.
    pub(super) fn of(destination: &mut Vmm) -> Result<Self, DemoError> {
        destination.execute("stop", Value::Null)?;
        destination.query("x-limosa-verify")
    }

    pub(super) fn is_clean(&self) -> bool {
        self.clean
    }
}

/// What is about to be moved. `without_kvm` is why the guest is not one under KVM, if it was to be one where possible.
pub(super) fn heading(
    machine: &MachineOptions,
    dirtier: &DirtierOptions,
    without_kvm: Option<&KvmUnusable>,
) -> String {
    let reason = match without_kvm {
        Some(reason) => format!("No KVM here ({reason}): the guest is a process guest.\n"),
        None => String::new(),
    };
    let kind = if machine.guest == Kind::Process { "process" } else { "KVM" };
    format!(
        "{reason}Moving a {kind} guest with {} of RAM and {} that writes {} over {}.",
        machine.memory,
        machine.vcpus_in_words(),
        dirtier.dirty_rate.in_words(),
        dirtier.working_set.unwrap_or(machine.memory),
    )
}

/// Everything, for machines.
pub(super) fn json(
    machine: &MachineOptions,
    figures: &Figures,
    faults: Option<&Faults>,
    arrival: &Arrival,
    verification: &Verification,
) -> Value {
    json!({
        "guest": if machine.guest == Kind::Process { "process" } else { "kvm" },
        "migration": figures,
        "faults": faults,
        "guest-steps": {"before": arrival.before, "after": arrival.after},
        "verification": verification,
    })
}

/// Everything, for people.
pub(super) fn text(
    figures: &Figures,
    faults: Option<&Faults>,
    arrival: &Arrival,
    verification: &Verification,
) -> String {
    let mut out = String::new();
    write_text(&mut out, figures, faults, arrival, verification).expect("a String takes every text");
    out
}

fn write_text(
    out: &mut String,
    figures: &Figures,
    faults: Option<&Faults>,
    arrival: &Arrival,
    verification: &Verification,
) -> std::fmt::Result {
    writeln!(out, "\nround     owed pages     sent pages          bytes           time")?;
    for round in &figures.rounds {
        let bytes = Size(round.bytes).to_string();
        let time = time(round.us);
        writeln!(
            out,
            "{:>5} {:>14} {:>14} {bytes:>14} {time:>14}",
            round.number, round.owed_pages, round.sent_pages
        )?;
    }
    write_channels(out, &figures.channels)?;
    write_choices(out, &figures.choices)?;
    let ram = &figures.ram;
    let seconds = figures.total_us as f64 / 1e6;
    let rate = Size((figures.transferred as f64 / seconds.max(1e-6)) as u64);
    writeln!(out, "\ntotal time     {} ({} of it setup)", time(figures.total_us), time(figures.setup_us))?;
    writeln!(out, "transferred    {} at {rate}/s", Size(figures.transferred))?;
    writeln!(
        out,
        "pages          {} with content, {} zero ({} of them never touched)",
        ram.normal_pages, ram.zero_pages, ram.untouched_pages
    )?;
    if ram.xbzrle_pages > 0 {
        let raw = Size(PageCount(ram.xbzrle_pages).bytes().0);
        writeln!(out, "deltas         {} for {raw} of pages", Size(ram.xbzrle_bytes))?;
    }
    if let Some(downtime) = &figures.downtime_us {
        let Downtime { total, stop, sync, ram, devices, load, resume } = downtime;
        writeln!(out, "downtime       {}", time(*total))?;
        writeln!(
            out,
            "               stop {}, last sync {}, last RAM {}, device state {}, loading {}, resume {}",
            time(*stop),
            time(*sync),
            time(*ram),
            time(*devices),
            time(*load),
            time(*resume)
        )?;
    }
    if let Some(faults) = faults {
        out.push_str(&faults.text());
    }
    let steps = |steps: &[u64]| steps.iter().sum::<u64>();
    writeln!(
        out,
        "guest          {} pages written before, {} when it was checked: it goes on{}",
        steps(&arrival.before),
        steps(&arrival.after),
        if arrival.never_stepped_back() { "" } else { ", BUT STEPPED BACK" }
    )?;
    write_verdict(out, verification)
}

fn write_channels(out: &mut String, channels: &[MultifdChannelStats]) -> std::fmt::Result {
    if channels.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\nchannel        packets          pages          bytes        sending   without work  for the codec"
    )?;
    for (number, channel) in channels.iter().enumerate() {
        let pages = channel.normal + channel.duplicate;
        let bytes = Size(channel.bytes).to_string();
        let times = [channel.transferring_us, channel.waiting_us, channel.waiting_for_codec_us].map(time);
        let [sending, idle, codec] = times;
        let packets = channel.packets;
        writeln!(
            out,
            "{number:>7} {packets:>14} {pages:>14} {bytes:>14} {sending:>14} {idle:>14} {codec:>14}"
        )?;
    }
    Ok(())
}

fn write_choices(out: &mut String, choices: &[String]) -> std::fmt::Result {
    let Some((first, rest)) = choices.split_first() else { return Ok(()) };
    writeln!(out, "\ncompression    {first}")?;
    rest.iter().try_for_each(|choice| writeln!(out, "               {choice}"))
}

fn write_verdict(out: &mut String, verification: &Verification) -> std::fmt::Result {
    let Verification { pages_checked, pages_in_flight, pages_bad, .. } = verification;
    if verification.is_clean() {
        let in_flight = match pages_in_flight {
            0 => String::new(),
            count => format!("; the guest was in the middle of {count} more when it was paused"),
        };
        return writeln!(
            out,
            "memory         {pages_checked} pages checked, and every one is right{in_flight}"
        );
    }
    writeln!(out, "memory         {pages_bad} of {pages_checked} pages are WRONG:")?;
    verification.faults.iter().try_for_each(|fault| writeln!(out, "               {fault}"))
}

pub(super) fn time(microseconds: u64) -> String {
    match microseconds {
        0..1_000 => format!("{microseconds} us"),
        1_000..1_000_000 => format!("{:.2} ms", microseconds as f64 / 1e3),
        _ => format!("{:.3} s", microseconds as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Ordered {
        #[command(flatten)]
        machine: MachineOptions,
        #[command(flatten)]
        dirtier: DirtierOptions,
    }

    fn ordered(words: &[&str]) -> Ordered {
        Ordered::parse_from(["demo"].iter().chain(words))
    }

    #[test]
    fn a_guest_without_kvm_is_announced_with_the_reason() {
        let Ordered { machine, dirtier } = ordered(&["--guest=process", "--memory=2G", "--dirty-rate=max"]);
        let reason = KvmUnusable::Device(std::io::Error::from(std::io::ErrorKind::NotFound));
        let heading = heading(&machine, &dirtier, Some(&reason));
        let (first, second) = heading.split_once('\n').expect("two lines");
        assert_eq!(first, format!("No KVM here ({reason}): the guest is a process guest."));
        assert_eq!(
            second,
            "Moving a process guest with 2.0 GiB of RAM and 1 vCPU that writes as fast as it can over 2.0 GiB."
        );
    }

    #[test]
    fn a_demonstration_fills_in_what_was_not_said() {
        let Ordered { machine, mut dirtier } = ordered(&["--guest=kvm", "--memory=100M", "--vcpus=2"]);
        dirtier.fill_in_for_demo(machine.memory);
        assert_eq!(
            heading(&machine, &dirtier, None),
            "Moving a KVM guest with 100.0 MiB of RAM and 2 vCPUs that writes 20000 pages/s over 50.0 MiB."
        );
        assert!(dirtier.arguments().contains(&"--prefill=mixed".to_owned()));

        let Ordered { machine, mut dirtier } = ordered(&["--prefill=none", "--working-set=1M"]);
        dirtier.fill_in_for_demo(machine.memory);
        assert!(dirtier.arguments().contains(&"--prefill=none".to_owned()));
        assert!(dirtier.arguments().contains(&"--working-set=1048576".to_owned()));
    }

    fn verification(pages_bad: u64, pages_in_flight: u64) -> Verification {
        let faults = (0..pages_bad).map(|page| format!("page {page}: Missing")).collect();
        Verification { clean: pages_bad == 0, pages_checked: 100, pages_in_flight, pages_bad, faults }
    }

    #[test]
    fn the_verdict_says_how_many_pages_are_right_or_which_are_wrong() {
        let verdict = |verification| {
            let mut out = String::new();
            write_verdict(&mut out, &verification).expect("a String takes every text");
            out
        };
        assert_eq!(verdict(verification(0, 0)), "memory         100 pages checked, and every one is right\n");
        assert!(verdict(verification(0, 2)).ends_with("in the middle of 2 more when it was paused\n"));
        let wrong = verdict(verification(2, 0));
        assert!(wrong.contains("2 of 100 pages are WRONG") && wrong.contains("page 1: Missing"), "{wrong}");
    }
}

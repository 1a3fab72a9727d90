//! `limosa demo`, from its command line to its exit code.

use crate::process::{Limosa, children, command_line, leave_out, wait_until};
use limosa_qmp::Client;
use limosa_ram::dirty_log::PagemapDirtyLog;
use limosa_vmm::kvm_usable;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A guest that is moved in a moment.
const SMALL: [&str; 4] = ["--memory=64M", "--working-set=8M", "--dirty-rate=5000", "--vcpus=2"];

/// The kinds of guest that can be moved here.
fn kinds(test: &str) -> Vec<&'static str> {
    let mut kinds = Vec::new();
    match PagemapDirtyLog::detect() {
        Ok(_) => kinds.push("process"),
        Err(reason) => leave_out(&format!("{test}, process guest"), &reason),
    }
    match kvm_usable() {
        Ok(()) => kinds.push("kvm"),
        Err(reason) => leave_out(&format!("{test}, KVM guest"), &reason),
    }
    kinds
}

/// A demonstration with a small guest, where `options` do not say otherwise.
fn demo(options: &[&str]) -> Limosa {
    let name = |option: &str| option.split('=').next().unwrap_or_default().to_owned();
    let said = |small: &&&str| options.iter().any(|option| name(option) == name(small));
    Limosa::start(["demo"].iter().chain(SMALL.iter().filter(|small| !said(small))).chain(options))
}

/// Runs a demonstration that succeeds; its report.
#[track_caller]
fn report(options: &[&str]) -> Value {
    let ended = demo(&[options, &["--json"]].concat()).wait();
    assert!(ended.status.success(), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Everything that a good report has to say of a migration of 64 MiB.
#[track_caller]
fn assert_good(report: &Value) {
    let verification = &report["verification"];
    assert_eq!(verification["clean"], true, "{report}");
    assert_eq!(verification["pages-bad"], 0);
    assert_eq!(number(&verification["pages-checked"]) + number(&verification["pages-in-flight"]), 16_384);

    let migration = &report["migration"];
    let rounds = migration["rounds"].as_array().unwrap();
    assert_eq!(rounds[0]["owed-pages"], 16_384, "the first round is all of RAM");
    assert!(rounds.len() >= 2, "{report}");
    let bytes: u64 = rounds.iter().map(|round| number(&round["bytes"])).sum();
    assert!(bytes > 0 && bytes <= number(&migration["transferred"]), "{report}");
    let downtime = &migration["downtime-us"];
    let parts = ["stop", "sync", "ram", "devices", "load", "resume"];
    let sum: u64 = parts.iter().map(|part| number(&downtime[part])).sum();
    assert!(0 < sum && sum <= number(&downtime["total"]), "{report}");
    assert!(number(&downtime["total"]) < number(&migration["total-us"]), "{report}");

    let steps = |when: &str| -> Vec<u64> {
        report["guest-steps"][when].as_array().unwrap().iter().map(number).collect()
    };
    let (before, after) = (steps("before"), steps("after"));
    assert_eq!((before.len(), after.len()), (2, 2));
    assert!(before.iter().zip(&after).all(|(before, after)| before <= after), "{report}");
    assert!(before.iter().sum::<u64>() < after.iter().sum(), "it goes on: {report}");
}

#[test]
fn a_guest_of_each_kind_arrives_and_the_report_says_how() {
    for kind in kinds("demo") {
        let report = report(&[&format!("--guest={kind}")]);
        assert_eq!(report["guest"], kind);
        assert_good(&report);
        // The default is memory full of mixed content: a quarter of it zero, and little of it never touched.
        let ram = &report["migration"]["ram"];
        assert!(number(&ram["normal-pages"]) > 10_000 && number(&ram["zero-pages"]) > 2_000, "{ram}");
    }
}

#[test]
fn options_of_the_migration_are_obeyed() {
    for kind in kinds("demo with options") {
        let guest = format!("--guest={kind}");
        assert_good(&report(&[&guest, "--unix"]));

        let deltas = report(&[&guest, "--xbzrle", "--light", "--max-bandwidth=50M"]);
        assert_good(&deltas);
        assert!(number(&deltas["migration"]["ram"]["xbzrle-pages"]) > 0, "{deltas}");

        let idle = report(&[&guest, "--dirty-rate=0", "--prefill=none"]);
        assert_eq!(idle["verification"]["clean"], true);
        assert!(number(&idle["migration"]["ram"]["untouched-pages"]) > 15_000, "{idle}");
    }
}

#[test]
fn a_guest_moves_before_its_memory_where_that_was_asked_for() {
    for kind in kinds("demo in postcopy") {
        let guest = format!("--guest={kind}");
        // Precopy is slow, and its rest does not fit: neither can be over before the switch.
        let slow = ["--max-bandwidth=50M", "--downtime-limit=1"];
        let hot = [guest.as_str(), "--dirty-rate=max", "--working-set=32M"];
        for options in
            [&["--postcopy"] as &[&str], &["--postcopy=now"], &["--postcopy", "--no-preempt", "--unix"]]
        {
            let report = report(&[&hot[..], &slow, options].concat());
            assert_eq!(report["verification"]["clean"], true, "{report}");
            let faults = &report["faults"];
            let pages = number(&faults["pages-by-fault"]) + number(&faults["pages-by-push"]);
            assert!(pages > 0, "{report}");
            assert_eq!(faults["vcpu-blocktime-us"].as_array().map(Vec::len), Some(2), "{report}");
            assert!(report["migration"]["postcopy"]["bytes"].as_u64() > Some(0), "{report}");
        }
    }
    let ended = demo(&["--no-preempt"]).wait();
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
}

#[test]
fn pages_take_several_connections_where_that_was_asked_for() {
    let Some(kind) = kinds("demo over several connections").pop() else { return };
    let guest = format!("--guest={kind}");
    for options in [&["--channels=4"] as &[&str], &["--channels=2", "--compression=zstd", "--unix"]] {
        let report = report(&[&[guest.as_str()], options].concat());
        assert_good(&report);
        let on_channels = number(&report["migration"]["ram"]["multifd-bytes"]);
        assert!(on_channels > number(&report["migration"]["transferred"]) / 2, "{report}");
    }
    for options in [&["--compression=zstd"] as &[&str], &["--channels=0"], &["--channels=2", "--xbzrle"]] {
        let ended = demo(&[&[guest.as_str()], options].concat()).wait();
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    }
}

#[test]
fn people_are_told_of_rounds_downtime_and_every_page() {
    let Some(kind) = kinds("demo in words").pop() else { return };
    let ended = demo(&[&format!("--guest={kind}")]).wait();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.stderr, "");
    for words in
        ["64.0 MiB", "2 vCPUs", "5000 pages/s over 8.0 MiB", "round", "downtime", "last RAM", "it goes on"]
    {
        assert!(ended.stdout.contains(words), "{words:?}: {}", ended.stdout);
    }
    let last = ended.stdout.lines().last().unwrap();
    assert!(last.starts_with("memory") && last.contains("every one is right"), "{last}");
}

#[test]
fn a_guest_left_open_is_one_under_kvm_or_the_report_says_why_not() {
    let Some(_) = kinds("demo of any guest").pop() else { return };
    let ended = demo(&["--guest=auto", "--json"]).wait();
    assert!(ended.status.success(), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    match kvm_usable() {
        Ok(()) => {
            assert_eq!(report["guest"], "kvm");
            assert!(!ended.stderr.contains("No KVM"), "{ended:?}");
        }
        Err(reason) => {
            assert_eq!(report["guest"], "process");
            assert!(ended.stderr.contains(&format!("No KVM here ({reason})")), "{ended:?}");
        }
    }
}

#[test]
fn what_cannot_be_is_refused_with_a_reason_and_leaves_nothing_behind() {
    for (options, reason) in [
        (&["--working-set=1G"][..], "working set"),
        (&["--memory=64K", "--working-set=4K"], "65536 bytes"),
        (&["--vcpus=65"], "65 vCPUs"),
    ] {
        let ended = demo(options).wait();
        ended.assert_failed(reason);
        assert!(ended.stderr.contains("the source VMM"), "{ended:?}");
    }
    for (options, reason) in [
        ("--memory=5X", "5X"),
        ("--dirty-rate=fast", "or max"),
        ("--content=nice", "nice"),
        ("--fast", "--fast"),
    ] {
        let ended = Limosa::start(["demo", options]).wait();
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains(reason), "{ended:?}");
    }
}

#[test]
fn a_migration_that_takes_too_long_is_given_up() {
    let Some(kind) = kinds("demo, timeout").pop() else { return };
    let ended = demo(&[&format!("--guest={kind}"), "--max-bandwidth=100K", "--timeout=1"]).wait();
    ended.assert_failed("within 1s; try a lower --dirty-rate");
}

/// A demonstration in the middle of a migration that takes minutes.
struct Stage {
    demo: Limosa,
    source: i32,
    destination: i32,
    folder: PathBuf,
}

impl Stage {
    fn set(kind: &str) -> Self {
        let demo = demo(&[&format!("--guest={kind}"), "--max-bandwidth=100K"]);
        let mut vmms = Vec::new();
        wait_until("both VMMs run", || {
            vmms = children(demo.id());
            vmms.iter().any(|(_, line)| line.contains("--incoming="))
        });
        let incoming = |(_, line): &&(i32, String)| line.contains("--incoming=");
        let (destination, _) = vmms.iter().find(incoming).expect("it was seen").clone();
        let (source, line) = vmms.iter().find(|vmm| !incoming(vmm)).expect("it came first").clone();
        let monitor = line.split(' ').find_map(|word| word.strip_prefix("--qmp=unix:")).expect("its monitor");
        let folder = Path::new(monitor).parent().expect("a folder").to_owned();
        let mut client = Client::connect(Path::new(monitor)).expect("another client");
        wait_until("the migration runs", || {
            client.execute("query-migrate", Value::Null).expect("an answer")["status"] == json!("active")
        });
        Self { demo, source, destination, folder }
    }

    /// Fails unless nothing of the demonstration is left.
    fn assert_nothing_left(source: i32, destination: i32, folder: &Path) {
        let gone = |id| !command_line(id).contains(&*folder.to_string_lossy());
        wait_until("the VMMs are gone", || gone(source) && gone(destination));
        assert!(!folder.exists(), "{}", folder.display());
    }
}

#[test]
fn a_destination_that_dies_ends_the_demonstration_with_a_reason() {
    let Some(kind) = kinds("demo, destination killed").pop() else { return };
    let Stage { demo, source, destination, folder } = Stage::set(kind);
    kill(Pid::from_raw(destination), Signal::SIGKILL).unwrap();
    let ended = demo.wait();
    ended.assert_failed("the migration ended as failed: ");
    Stage::assert_nothing_left(source, destination, &folder);
}

#[test]
fn a_source_that_dies_ends_the_demonstration_with_a_reason() {
    let Some(kind) = kinds("demo, source killed").pop() else { return };
    let Stage { demo, source, destination, folder } = Stage::set(kind);
    kill(Pid::from_raw(source), Signal::SIGKILL).unwrap();
    let ended = demo.wait();
    ended.assert_failed("the source VMM");
    Stage::assert_nothing_left(source, destination, &folder);
}

#[test]
fn an_interrupted_demonstration_leaves_nothing_behind() {
    let Some(kind) = kinds("demo, interrupted").pop() else { return };
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let Stage { demo, source, destination, folder } = Stage::set(kind);
        demo.signal(signal);
        let ended = demo.wait();
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        Stage::assert_nothing_left(source, destination, &folder);
    }
}

#[test]
fn a_killed_demonstration_takes_its_vmms_with_it() {
    let Some(kind) = kinds("demo, killed").pop() else { return };
    let Stage { demo, source, destination, folder } = Stage::set(kind);
    demo.signal(Signal::SIGKILL);
    assert!(!demo.wait().status.success());
    let gone = |id| !command_line(id).contains(&*folder.to_string_lossy());
    wait_until("the VMMs are gone", || gone(source) && gone(destination));
    // Nobody is left who could: the folder itself stays, but no socket in it.
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    std::fs::remove_dir(&folder).unwrap();
}

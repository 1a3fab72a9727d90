//! What a guest that came in postcopy had to wait for.

use super::DemoError;
use super::process::Vmm;
use super::report::time;
use limosa_qmp::MigrationInfo;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// The destination's account, in the shape of `x-limosa-postcopy`. Times in microseconds.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Faults {
    pages_by_fault: u64,
    pages_by_push: u64,
    fault_us: Latency,
    request_us: Latency,
    serve_us: Latency,
    place_us: Latency,
    local_us: Latency,
    blocktime_us: u64,
    vcpu_blocktime_us: Vec<u64>,
}

/// How long something took that happened `count` times.
#[derive(Debug, Deserialize, Serialize)]
struct Latency {
    count: u64,
    p50: u64,
    p99: u64,
    #[serde(rename = "p99.9")]
    p999: u64,
    max: u64,
}

impl Faults {
    /// `None` unless the guest came in postcopy.
    pub(super) fn of(destination: &mut Vmm) -> Result<Option<Self>, DemoError> {
        let info: MigrationInfo = destination.query("query-migrate")?;
        Ok(info.x_limosa_postcopy.and_then(|faults| serde_json::from_value(faults).ok()))
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("a String takes every text");
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Self { pages_by_fault, pages_by_push, .. } = self;
        writeln!(
            out,
            "postcopy       {pages_by_fault} pages came because the guest waited, {pages_by_push} before it did"
        )?;
        writeln!(out, "faults             count          p50          p99        p99.9          max")?;
        for (name, latency) in [
            ("whole", &self.fault_us),
            ("request", &self.request_us),
            ("serve", &self.serve_us),
            ("place", &self.place_us),
            ("local", &self.local_us),
        ] {
            let Latency { count, p50, p99, p999, max } = latency;
            let [p50, p99, p999, max] = [p50, p99, p999, max].map(|microseconds| time(*microseconds));
            writeln!(out, "  {name:<12} {count:>9} {p50:>12} {p99:>12} {p999:>12} {max:>12}")?;
        }
        let vcpus: Vec<String> = self.vcpu_blocktime_us.iter().map(|vcpu| time(*vcpu)).collect();
        let overall = time(self.blocktime_us);
        writeln!(out, "blocktime      all vCPUs at once {overall}; each: {}", vcpus.join(", "))
    }
}

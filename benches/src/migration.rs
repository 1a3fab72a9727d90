//! One migration, measured.

use crate::error::BenchError;
use crate::memory_file::MemoryFile;
use crate::program::Program;
use crate::scenario::{Route, Scenario};
use crate::vmm::Vmm;
use crate::warm_memory::WarmMemory;
use serde::Serialize;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Longer than the slowest scenario on the slowest machine: 4 GiB at 20 MB/s.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(240);

/// How long a busy guest works before it is moved: about one pass over its working set.
const WARM_UP: Duration = Duration::from_secs(1);

/// What one migration took. Times are the source's own figures unless said otherwise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    /// The scenario's name.
    pub scenario: &'static str,
    /// The program's name.
    pub program: &'static str,
    /// The multifd channels; 0 if all goes over the main one.
    pub channels: u8,
    /// `multifd-compression`; without meaning if there are no channels.
    pub compression: String,
    /// Counted from 1.
    pub repetition: u32,
    /// `total-time` of `query-migrate`.
    pub total_ms: u64,
    /// From sending `migrate` to hearing `completed`, both at the same client for both programs.
    pub wall_ms: f64,
    /// Guest stopped, seen from the source. QEMU says whole milliseconds.
    pub downtime_ms: f64,
    /// Bytes of the stream.
    pub transferred: u64,
    /// Guest RAM per second of wall-clock time, in GB/s: zero pages and resent pages do not count for it.
    pub guest_gb_per_s: f64,
    /// Processor time of the source, from `migrate` to `completed`; to 10 ms.
    pub source_cpu_ms: f64,
    /// Processor time of the destination, likewise.
    pub destination_cpu_ms: f64,
    /// Times that the dirty log was read.
    pub syncs: u64,
    /// In postcopy: what vCPUs waited for pages (`postcopy-vcpu-blocktime`, whole milliseconds) by the number of requests,
    /// in microseconds; 0 otherwise. A QEMU that asks for a page again counts as if it had waited less.
    pub fault_wait_us: f64,
    /// The parts of the downtime, where the program tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_us: Option<DowntimeParts>,
    /// The rounds as the program tells them.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub rounds: Value,
}

/// The parts of our downtime, in microseconds; what each means stands at `limosa::Downtime`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[allow(missing_docs, reason = "the meaning of each part is documented where it is measured")]
pub struct DowntimeParts {
    pub total: u64,
    pub stop: u64,
    pub sync: u64,
    pub ram: u64,
    pub devices: u64,
    pub load: u64,
    pub resume: u64,
}

/// Moves the guest of `scenario` once, from one `program` to another, on `route`.
///
/// # Errors
/// Anything that keeps the migration from completing.
pub fn measure(
    scenario: &Scenario,
    route: &Route,
    program: &dyn Program,
    memory: &MemoryFile,
) -> Result<Measurement, BenchError> {
    let temporary = std::env::temp_dir();
    let files = |source| BenchError::Files { folder: temporary.clone(), source };
    let folder = tempfile::tempdir().map_err(files)?;
    let socket = |who: &str| folder.path().join(format!("{who}.qmp"));

    let command = program.destination(scenario, &socket("destination"), folder.path()).map_err(files)?;
    let mut destination = Vmm::start("destination", command, &socket("destination"))?;
    let command = program.source(scenario, memory.path(), &socket("source"), folder.path()).map_err(files)?;
    let mut source = Vmm::start("source", command, &socket("source"))?;
    configure(&mut source, route)?;
    configure(&mut destination, route)?;
    if route.postcopy {
        set_capabilities(&mut destination, json!([{ "capability": "postcopy-blocktime", "state": true }]))?;
    }
    let uri = listen(&mut destination)?;
    if scenario.busy.is_some() {
        std::thread::sleep(WARM_UP);
    }

    let warm = WarmMemory::take(scenario.memory)?;
    let (migrating, end) = std::sync::mpsc::channel();
    let process = destination.process();
    let warm = std::thread::spawn(move || warm.hand_over(process, &end));
    let cpu_before = [source.cpu_time(), destination.cpu_time()];
    let began = Instant::now();
    source.execute("migrate", json!({ "uri": uri }))?;
    if route.postcopy {
        source.execute("migrate-start-postcopy", Value::Null)?;
    }
    let status = source.wait_migrated(began + MIGRATION_TIMEOUT)?;
    let wall = began.elapsed();
    let cpu_after = [source.cpu_time(), destination.cpu_time()];
    drop(migrating);
    warm.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let answer = source.execute("query-migrate", Value::Null)?;
    if status != "completed" {
        return Err(BenchError::NotCompleted { status, answer });
    }
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let mut measurement = Measurement {
        scenario: scenario.name,
        program: program.name(),
        channels: route.channels,
        compression: route.compression.clone(),
        repetition: 0,
        total_ms: number(&answer["total-time"]),
        wall_ms: milliseconds(wall),
        downtime_ms: number(&answer["downtime"]) as f64,
        transferred: number(&answer["ram"]["transferred"]),
        guest_gb_per_s: scenario.memory.0 as f64 / wall.as_secs_f64() / 1e9,
        source_cpu_ms: milliseconds(cpu_after[0] - cpu_before[0]),
        destination_cpu_ms: milliseconds(cpu_after[1] - cpu_before[1]),
        syncs: number(&answer["ram"]["dirty-sync-count"]),
        fault_wait_us: match route.postcopy {
            true => fault_wait_us(&mut destination, &answer)?,
            false => 0.0,
        },
        downtime_us: None,
        rounds: Value::Null,
    };
    // Only our own VMM has this command; it says more than QEMU's shapes have room for.
    if let Ok(mut report) = source.execute("x-limosa-report", Value::Null) {
        measurement.downtime_us = serde_json::from_value(report["downtime-us"].take()).ok();
        measurement.rounds = report["rounds"].take();
        if let Some(parts) = measurement.downtime_us {
            measurement.downtime_ms = parts.total as f64 / 1e3;
        }
    }
    Ok(measurement)
}

/// The channels of the route, no limit of bandwidth, the default limit of downtime, a return path.
fn configure(vmm: &mut Vmm, route: &Route) -> Result<(), BenchError> {
    let capabilities = json!([
        { "capability": "events", "state": true },
        { "capability": "return-path", "state": true },
        { "capability": "multifd", "state": route.channels > 0 },
        { "capability": "postcopy-ram", "state": route.postcopy },
        { "capability": "postcopy-preempt", "state": route.postcopy },
    ]);
    set_capabilities(vmm, capabilities)?;
    let mut parameters = json!({ "max-bandwidth": 0, "downtime-limit": 300 });
    if route.channels > 0 {
        parameters["multifd-channels"] = route.channels.into();
        parameters["multifd-compression"] = route.compression.as_str().into();
        parameters["multifd-zstd-level"] = 1.into();
    }
    vmm.execute("migrate-set-parameters", parameters).map(drop)
}

fn set_capabilities(vmm: &mut Vmm, capabilities: Value) -> Result<(), BenchError> {
    vmm.execute("migrate-set-capabilities", json!({ "capabilities": capabilities })).map(drop)
}

/// The mean wait for a page, in microseconds, by what both sides say: `source` is its `query-migrate`.
fn fault_wait_us(destination: &mut Vmm, source: &Value) -> Result<f64, BenchError> {
    let answer = destination.execute("query-migrate", Value::Null)?;
    let waits = answer["postcopy-vcpu-blocktime"].as_array().map_or(&[][..], Vec::as_slice);
    let waited: u64 = waits.iter().filter_map(Value::as_u64).sum();
    let requests = source["ram"]["postcopy-requests"].as_u64().unwrap_or_default();
    Ok(waited as f64 * 1e3 / requests.max(1) as f64)
}

/// Lets `destination` listen at a port of the kernel's choice; returns the address for the source.
fn listen(destination: &mut Vmm) -> Result<String, BenchError> {
    destination.execute("migrate-incoming", json!({ "uri": "tcp:127.0.0.1:0" }))?;
    let answer = destination.execute("query-migrate", Value::Null)?;
    let address = &answer["socket-address"][0];
    match (address["host"].as_str(), address["port"].as_str()) {
        (Some(host), Some(port)) => Ok(format!("tcp:{host}:{port}")),
        _ => Err(BenchError::NoAddress { answer }),
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

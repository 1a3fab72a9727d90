//! What the monitor answers: the engine's figures in QEMU's shapes, and more under names of our own.

use super::moving::{Figures, Last};
use super::settings::Settings;
use crate::report::{VerifyReport, WorkerProgress};
use limosa::pages::{ByteCount, PAGE_BYTES};
use limosa::{ChannelStatistics, IncomingStatistics, LatencySummary, OutgoingStatistics, RamStatistics};
use limosa_qmp::{
    MigrationInfo, MigrationStats, MigrationStatus, MultifdChannelStats, SocketAddress, XbzrleCacheStats,
};
use serde_json::{Value, json};
use std::time::Duration;

/// The monitor's word for a status of the engine.
pub(super) fn status(status: limosa::MigrationStatus) -> MigrationStatus {
    MigrationStatus::from_word(status.as_str()).expect("the engine's statuses are among QEMU's")
}

/// Where the present migration stands, or the last one.
pub(super) fn status_of(figures: &Figures) -> MigrationStatus {
    match figures {
        Figures::None => MigrationStatus::None,
        Figures::Outgoing(statistics) => status(statistics.status),
        Figures::Incoming(statistics, _) => status(statistics.status),
    }
}

/// `query-migrate`.
pub(super) fn migration_info(figures: &Figures, total: ByteCount, settings: &Settings) -> MigrationInfo {
    match figures {
        Figures::None => MigrationInfo::default(),
        Figures::Outgoing(statistics) => outgoing_info(statistics, total, settings),
        Figures::Incoming(statistics, address) => incoming_info(statistics, address.as_ref(), settings),
    }
}

fn outgoing_info(statistics: &OutgoingStatistics, total: ByteCount, settings: &Settings) -> MigrationInfo {
    let parameters = settings.parameters();
    let xbzrle = settings.capabilities().xbzrle.then_some(parameters.xbzrle_cache_size);
    // Until there is an estimate, the limit is the only thing known about the downtime.
    let expected_downtime = statistics.expected_downtime.unwrap_or(parameters.downtime_limit);
    let now = status(statistics.status);
    // QEMU shows times and RAM while it moves and when it has moved, and not when it failed.
    let shown = !matches!(
        now,
        MigrationStatus::Setup | MigrationStatus::Failed | MigrationStatus::Cancelled | MigrationStatus::None
    );
    // Its downtime is over once the guest is known to run there; from then on there is none to expect.
    let over = now == MigrationStatus::Completed || statistics.status.is_postcopy();
    let downtime = statistics.downtime.filter(|_| over);
    MigrationInfo {
        status: Some(now),
        total_time: shown.then(|| milliseconds(statistics.total_time)),
        setup_time: shown.then(|| milliseconds(statistics.setup_time)),
        expected_downtime: (shown && downtime.is_none()).then(|| milliseconds(expected_downtime)),
        downtime: downtime.map(|downtime| milliseconds(downtime.total())),
        ram: shown.then(|| ram_stats(statistics, total)),
        x_multifd_channels: channels(&statistics.channels),
        x_multifd_choices: choices(statistics),
        xbzrle_cache: xbzrle.filter(|_| shown).map(|size| xbzrle_stats(&statistics.ram, size)),
        x_limosa_postcopy: outgoing_postcopy(statistics).filter(|_| shown),
        error_desc: statistics.error.clone(),
        ..MigrationInfo::default()
    }
}

fn incoming_info(
    statistics: &IncomingStatistics,
    address: Option<&limosa::Address>,
    settings: &Settings,
) -> MigrationInfo {
    let measured = settings.capabilities().postcopy_blocktime;
    let blocktime = statistics.postcopy.as_ref().filter(|_| measured).map(|postcopy| &postcopy.blocktime);
    MigrationInfo {
        status: Some(status(statistics.status)),
        postcopy_blocktime: blocktime.map(|time| milliseconds(time.overall)),
        postcopy_vcpu_blocktime: blocktime
            .map(|time| time.threads.iter().map(|time| milliseconds(*time)).collect()),
        x_limosa_postcopy: incoming_postcopy(statistics),
        error_desc: statistics.error.clone(),
        x_multifd_channels: channels(&statistics.channels),
        socket_address: address.and_then(SocketAddress::of).map(|address| vec![address]),
        ..MigrationInfo::default()
    }
}

/// What each channel has done; `None` if there are none.
fn channels(channels: &[ChannelStatistics]) -> Option<Vec<MultifdChannelStats>> {
    let told = |channel: &ChannelStatistics| MultifdChannelStats {
        bytes: channel.bytes.0,
        packets: channel.packets,
        normal: channel.normal.0,
        duplicate: channel.zero.0,
        transferring_us: microseconds(channel.transferring),
        waiting_us: microseconds(channel.waiting),
        waiting_for_codec_us: microseconds(channel.waiting_for_codec),
    };
    (!channels.is_empty()).then(|| channels.iter().map(told).collect())
}

/// How packets were compressed, a line for each kind of choice; `None` where nothing was chosen.
fn choices(statistics: &OutgoingStatistics) -> Option<Vec<String>> {
    let choices = statistics.choices.as_ref()?.to_string();
    Some(choices.lines().map(str::to_owned).collect())
}

fn ram_stats(statistics: &OutgoingStatistics, total: ByteCount) -> MigrationStats {
    let ram = &statistics.ram;
    let seconds = statistics.total_time.as_secs_f64();
    let per_second = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
    let completed = statistics.status == limosa::MigrationStatus::Completed;
    let last_round = statistics.rounds.last().map_or(0.0, |round| round.time.as_secs_f64());
    let dirty_rate = if completed || last_round == 0.0 { 0.0 } else { ram.dirtied.0 as f64 / last_round };
    let sent = ram.normal.0 + ram.zero.0 + ram.xbzrle_pages.0;
    MigrationStats {
        transferred: statistics.transferred.0,
        remaining: if completed { 0 } else { ram.owed.bytes().0 },
        total: total.0,
        duplicate: ram.zero.0,
        normal: ram.normal.0,
        normal_bytes: ram.normal.bytes().0,
        dirty_pages_rate: dirty_rate as u64,
        mbps: per_second(statistics.transferred.0 as f64 * 8.0 / 1e6),
        dirty_sync_count: statistics.passes,
        page_size: PAGE_BYTES as u64,
        postcopy_requests: statistics.urgent.map_or(0, |urgent| urgent.requests),
        multifd_bytes: ram.channel_bytes.0,
        pages_per_second: per_second(sent as f64) as u64,
        precopy_bytes: statistics
            .transferred
            .0
            .saturating_sub(statistics.downtime_bytes.0 + statistics.postcopy_bytes.0),
        downtime_bytes: statistics.downtime_bytes.0,
        postcopy_bytes: statistics.postcopy_bytes.0,
        dirty_sync_missed_zero_copy: statistics.channels.iter().map(|channel| channel.missed_zero_copy).sum(),
    }
}

fn xbzrle_stats(ram: &RamStatistics, cache_size: ByteCount) -> XbzrleCacheStats {
    let tried = ram.xbzrle_pages.0 + ram.xbzrle_same.0 + ram.xbzrle_overflow.0 + ram.xbzrle_miss.0;
    let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    XbzrleCacheStats {
        cache_size: cache_size.0,
        bytes: ram.xbzrle_bytes.0,
        pages: ram.xbzrle_pages.0,
        cache_miss: ram.xbzrle_miss.0,
        cache_miss_rate: share(ram.xbzrle_miss.0 as f64, tried as f64),
        encoding_rate: share(ram.xbzrle_pages.bytes().0 as f64, ram.xbzrle_bytes.0 as f64),
        overflow: ram.xbzrle_overflow.0,
    }
}

/// `x-limosa-report`: how the last migration went, in more detail than QEMU's shapes have. Times in microseconds.
pub(super) fn report(last: &Last) -> Value {
    match last {
        Last::Left(report) => {
            let statistics = &report.statistics;
            json!({
                "direction": "outgoing",
                "status": statistics.status.as_str(),
                "guest": report.guest().to_string(),
                "error": statistics.error,
                "total-us": microseconds(statistics.total_time),
                "setup-us": microseconds(statistics.setup_time),
                "transferred": statistics.transferred.0,
                "bandwidth": statistics.bandwidth.map(|bytes| bytes.0),
                "rounds": statistics.rounds.iter().map(|round| json!({
                    "number": round.number,
                    "owed-pages": round.owed.0,
                    "sent-pages": round.pages.0,
                    "bytes": round.bytes.0,
                    "us": microseconds(round.time),
                })).collect::<Vec<_>>(),
                "downtime-us": statistics.downtime.map(|downtime| json!({
                    "total": microseconds(downtime.total()),
                    "stop": microseconds(downtime.stop),
                    "sync": microseconds(downtime.sync),
                    "ram": microseconds(downtime.ram),
                    "devices": microseconds(downtime.devices),
                    "load": microseconds(downtime.load),
                    "resume": microseconds(downtime.resume),
                })),
                "choices": choices(statistics).unwrap_or_default(),
                "ram": ram(&statistics.ram),
                "channels": channels(&statistics.channels).unwrap_or_default(),
                "postcopy": outgoing_postcopy(statistics),
            })
        }
        Last::Arrived(report) => {
            let statistics = &report.statistics;
            json!({
                "direction": "incoming",
                "status": statistics.status.as_str(),
                "guest": report.outcome.fate.to_string(),
                "error": statistics.error,
                "total-us": microseconds(statistics.total_time),
                "received": statistics.received.0,
                "ram": ram(&statistics.ram),
                "channels": channels(&statistics.channels).unwrap_or_default(),
                "postcopy": incoming_postcopy(statistics),
            })
        }
    }
}

/// What the source knows of a guest that has moved before its memory; `None` of any other.
fn outgoing_postcopy(statistics: &OutgoingStatistics) -> Option<Value> {
    statistics.urgent.as_ref().map(|urgent| {
        json!({
            "bytes": statistics.postcopy_bytes.0,
            "pauses": statistics.pauses,
            "replacements": statistics.replacements,
            "requests": urgent.requests,
            "repeated-requests": urgent.repeated,
            "requested-pages": urgent.pages.0 + statistics.ram.requested.0,
            "serve-us": latency(&urgent.serve),
        })
    })
}

/// What the destination knows of it.
fn incoming_postcopy(statistics: &IncomingStatistics) -> Option<Value> {
    statistics.postcopy.as_ref().map(|postcopy| {
        let vcpus = &postcopy.blocktime.threads;
        json!({
            "pages-by-fault": postcopy.pages_by_fault.0,
            "pages-by-push": postcopy.pages_by_push.0,
            "pages-twice": postcopy.pages_twice.0,
            "fault-us": latency(&postcopy.latency),
            "request-us": latency(&postcopy.request),
            "serve-us": latency(&postcopy.serve),
            "place-us": latency(&postcopy.place),
            "local-us": latency(&postcopy.local),
            "blocktime-us": microseconds(postcopy.blocktime.overall),
            "vcpu-blocktime-us": vcpus.iter().map(|time| microseconds(*time)).collect::<Vec<_>>(),
        })
    })
}

fn latency(latency: &LatencySummary) -> Value {
    json!({
        "count": latency.count,
        "p50": microseconds(latency.p50),
        "p99": microseconds(latency.p99),
        "p99.9": microseconds(latency.p999),
        "max": microseconds(latency.max),
    })
}

fn ram(ram: &RamStatistics) -> Value {
    json!({
        "normal-pages": ram.normal.0,
        "zero-pages": ram.zero.0,
        "untouched-pages": ram.untouched.0,
        "bytes": ram.bytes.0,
        "xbzrle-pages": ram.xbzrle_pages.0,
        "xbzrle-bytes": ram.xbzrle_bytes.0,
        "xbzrle-same-pages": ram.xbzrle_same.0,
        "multifd-bytes": ram.channel_bytes.0,
    })
}

/// `x-limosa-verify`.
pub(super) fn verified(report: &VerifyReport) -> Value {
    json!({
        "clean": report.is_clean(),
        "pages-checked": report.pages_checked.0,
        "pages-in-flight": report.pages_in_flight.0,
        "pages-bad": report.pages_bad.0,
        "faults": report.examples.iter().map(|bad| format!("page {}: {:?}", bad.page, bad.fault))
            .chain(report.contradictions.iter().map(|contradiction| format!("{contradiction:?}")))
            .collect::<Vec<_>>(),
        "steps": steps(&report.workers),
    })
}

/// `x-limosa-progress`: pages written by each worker since the guest was first started, anywhere.
pub(super) fn progress(workers: &[WorkerProgress]) -> Value {
    json!({ "steps": steps(workers) })
}

fn steps(workers: &[WorkerProgress]) -> Vec<u64> {
    workers.iter().map(|worker| worker.steps).collect()
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

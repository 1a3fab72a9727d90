//! What a postcopy has measured at the destination.

use crate::histogram::{LatencyHistogram, LatencySummary};
use limosa_pages::PageCount;
use limosa_protocol::{AnsweredFault, BlocktimeReport};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What has been measured so far, at the destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostcopyStatistics {
    /// From the moment a fault was read from the kernel to the moment its page was placed. What the kernel needs before the
    /// one and after the other is not in it.
    pub latency: LatencySummary,
    /// The first part: faults that were read together with it are handled before, its request is written.
    pub request: LatencySummary,
    /// The second: the request is handed to the kernel, and the page's last byte has been received.
    pub serve: LatencySummary,
    /// The third: the page is made visible.
    pub place: LatencySummary,
    /// Faults on pages that were here already and only had to be mapped: from reading the fault to the end of it.
    pub local: LatencySummary,
    /// Pages that somebody waited for when they came.
    pub pages_by_fault: PageCount,
    /// Pages that came before anybody missed them.
    pub pages_by_push: PageCount,
    /// Pages that came although they were here, and were dropped.
    pub pages_twice: PageCount,
    /// How long the watched threads waited.
    pub blocktime: BlocktimeReport,
}

/// Counts what [`PostcopyStatistics`] shows.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    latency: LatencyHistogram,
    request: LatencyHistogram,
    serve: LatencyHistogram,
    place: LatencyHistogram,
    local: LatencyHistogram,
    by_fault: AtomicU64,
    by_push: AtomicU64,
    twice: AtomicU64,
}

impl Counters {
    /// `pages` have come, of which `answered` were waited for; they arrived and were placed at these times.
    pub(crate) fn placed(
        &self,
        pages: PageCount,
        answered: &[AnsweredFault],
        host_page: PageCount,
        arrived: Instant,
        placed: Instant,
    ) {
        for fault in answered {
            self.latency.record(placed.saturating_duration_since(fault.noticed));
            self.place.record(placed.saturating_duration_since(arrived));
            if let Some(asked) = fault.asked {
                self.request.record(asked.saturating_duration_since(fault.noticed));
                self.serve.record(arrived.saturating_duration_since(asked));
            }
        }
        let waited = answered.len() as u64 * host_page.0;
        self.by_fault.fetch_add(waited, Ordering::Relaxed);
        self.by_push.fetch_add(pages.0 - waited, Ordering::Relaxed);
    }

    /// A fault on a page that was here.
    pub(crate) fn local(&self, noticed: Instant, now: Instant) {
        self.local.record(now.saturating_duration_since(noticed));
    }

    /// A page came again.
    pub(crate) fn twice(&self) {
        self.twice.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self, blocktime: BlocktimeReport) -> PostcopyStatistics {
        let pages = |counter: &AtomicU64| PageCount(counter.load(Ordering::Relaxed));
        PostcopyStatistics {
            latency: self.latency.summary(),
            request: self.request.summary(),
            serve: self.serve.summary(),
            place: self.place.summary(),
            local: self.local.summary(),
            pages_by_fault: pages(&self.by_fault),
            pages_by_push: pages(&self.by_push),
            pages_twice: pages(&self.twice),
            blocktime,
        }
    }
}

//! What each method costs, in bytes and in time.

use super::PacketSample;
use crate::per_packet::Method;
use limosa_pages::PAGE_BYTES;

/// The methods to choose from, each smaller and slower than the one before.
pub(super) const LADDER: [Method; 5] = [
    Method::None,
    Method::Lz4,
    Method::Zstd { level: 1 },
    Method::Zstd { level: 3 },
    Method::Zstd { level: 9 },
];

/// Before anything is measured: microseconds and bytes for a page of text, on the machine of docs/performance.md.
const GUESSES: [(f64, f64); LADDER.len()] =
    [(0.0, 4096.0), (5.2, 1520.0), (6.5, 940.0), (13.6, 940.0), (53.0, 910.0)];

/// Before anything is measured: microseconds to copy a page and to look at it, and to look for an older version of
/// it and to keep this one.
const HANDLING_GUESS: f64 = 0.4;
const DELTA_GUESS: f64 = 1.5;

/// Weight of a new measurement. The first counts for all, so that a guess is gone with it.
const WEIGHT: f64 = 0.125;

/// A plan takes at least so many pages for compressible: if none is, it then still says what to do with the first
/// that comes.
const COMPRESSIBLE_MIN: f64 = 0.05;

/// A packet with fewer pages of a kind says nothing of their price.
const PAGES_MIN: u32 = 8;

/// What a page takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Price {
    /// Bytes on the link.
    pub(super) bytes: f64,
    /// Seconds of a worker.
    pub(super) seconds: f64,
}

/// A mean in which old measurements fade.
#[derive(Clone, Copy, Debug)]
struct Mean {
    value: f64,
    measured: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Prices {
    /// Of a compressible page, by place on the ladder: seconds beyond handling, and bytes.
    seconds: [Mean; LADDER.len()],
    bytes: [Mean; LADDER.len()],
    /// Packets ago that each was measured.
    age: [u32; LADDER.len()],
    /// Seconds of every page that goes through the pool.
    handling: Mean,
    /// Seconds of every page for which an older version is looked for.
    delta_seconds: Mean,
    delta_bytes: Mean,
    /// Pages of all that make a delta, where deltas are tried.
    deltas: Mean,
    /// Pages that are compressible, of those that make no delta.
    compressible: Mean,
}

impl Mean {
    const fn guess(value: f64) -> Self {
        Self { value, measured: 0 }
    }

    fn add(&mut self, value: f64) {
        self.measured = self.measured.saturating_add(1);
        self.value += (value - self.value) * (1.0 / f64::from(self.measured)).max(WEIGHT);
    }
}

impl Prices {
    pub(super) fn new() -> Self {
        const MICROSECOND: f64 = 1e-6;
        Self {
            seconds: GUESSES.map(|(microseconds, _)| Mean::guess(microseconds * MICROSECOND)),
            bytes: GUESSES.map(|(_, bytes)| Mean::guess(bytes)),
            age: [u32::MAX; LADDER.len()],
            handling: Mean::guess(HANDLING_GUESS * MICROSECOND),
            delta_seconds: Mean::guess(DELTA_GUESS * MICROSECOND),
            delta_bytes: Mean::guess(0.0),
            deltas: Mean::guess(0.0),
            compressible: Mean::guess(1.0),
        }
    }

    /// What a page takes on the average with this rung of the ladder, with or without deltas.
    pub(super) fn price(&self, rung: usize, delta: bool) -> Price {
        let page = PAGE_BYTES as f64;
        if rung == 0 && !delta {
            // Straight from guest RAM.
            return Price { bytes: page, seconds: 0.0 };
        }
        let compressible = if rung == 0 { 0.0 } else { self.compressible.value.max(COMPRESSIBLE_MIN) };
        let bytes = compressible * self.bytes[rung].value + (1.0 - compressible) * page;
        let seconds = compressible * self.seconds[rung].value;
        let handling = self.handling.value;
        if !delta {
            return Price { bytes, seconds: handling + seconds };
        }
        let deltas = self.deltas.value;
        Price {
            bytes: deltas * self.delta_bytes.value + (1.0 - deltas) * bytes,
            seconds: handling + self.delta_seconds.value + (1.0 - deltas) * seconds,
        }
    }

    /// Another packet is on its way.
    pub(super) fn grow_older(&mut self) {
        self.age.iter_mut().for_each(|age| *age = age.saturating_add(1));
    }

    /// Packets since the rung was measured.
    pub(super) fn age(&self, rung: usize) -> u32 {
        self.age[rung]
    }

    /// Learns from a packet that was encoded on this rung.
    pub(super) fn learn(&mut self, rung: usize, delta: bool, sample: &PacketSample) {
        let pages = f64::from(sample.pages);
        if delta {
            self.deltas.add(f64::from(sample.deltas) / pages);
            if sample.deltas > 0 {
                self.delta_bytes.add(f64::from(sample.delta_bytes) / f64::from(sample.deltas));
            }
        }
        let others = sample.pages - sample.deltas;
        if others >= PAGES_MIN {
            self.compressible.add(f64::from(others - sample.incompressible) / f64::from(others));
        }
        let compressed = if rung == 0 { 0 } else { sample.compressed };
        if compressed >= PAGES_MIN {
            self.bytes[rung].add(f64::from(sample.compressed_bytes) / f64::from(compressed));
        }
        if rung > 0 {
            // Also a packet without a compressible page is news.
            self.age[rung] = 0;
        }
        self.learn_seconds(rung, delta, pages, f64::from(compressed), sample.busy.as_secs_f64());
    }

    /// One time was measured, and up to three prices made it: the one that should have made most of it learns.
    fn learn_seconds(&mut self, rung: usize, delta: bool, pages: f64, compressed: f64, busy: f64) {
        let handling = pages * self.handling.value;
        let deltas = if delta { pages * self.delta_seconds.value } else { 0.0 };
        let compressing = compressed * self.seconds[rung].value;
        let left = |others: f64, pages: f64| ((busy - others) / pages).max(0.0);
        if compressed >= f64::from(PAGES_MIN) && compressing >= deltas.max(handling) {
            self.seconds[rung].add(left(handling + deltas, compressed));
        } else if delta && deltas >= handling {
            self.delta_seconds.add(left(handling + compressing, pages));
        } else {
            self.handling.add(left(deltas + compressing, pages));
        }
    }
}

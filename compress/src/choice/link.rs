//! What the link takes, as far as it shows.

use std::time::Duration;

#[cfg(test)]
mod tests;

/// The first window ends when the buffer of a socket is full.
const FIRST_WINDOW_BYTES: f64 = 4_194_304.0;

/// Any other is at least so long: at 2 GB/s, 40 packets.
const WINDOW_MIN: Duration = Duration::from_millis(10);

/// It then ends with so many writes,
const WINDOW_WRITES: u32 = 8;

/// or, also the first, when it is so long: at 100 Mbit/s, a packet and a half.
const WINDOW_MAX: Duration = Duration::from_millis(100);

/// and in any case not before it has so many bytes: a packet. Headers alone say nothing of the link.
const WINDOW_BYTES: f64 = 524_288.0;

/// Channels tell the time before they wait for their turn to tell it, so that none may seem to have passed.
const LENGTH_LEAST: f64 = 1e-6;

/// Share of their time that channels write while the link is busy. Below it a write mostly fills the buffer of a
/// socket, and says little of the link.
const BUSY_LINK: f64 = 0.5;

/// Share of their time that workers are busy where they are the bottleneck.
const BUSY_POOL: f64 = 0.7;

/// A write that took so many times as long as the rate lets expect ends the window by itself.
const SLOW_WRITE: f64 = 2.0;

/// By how much a link that is not busy is trusted with more after a window, and by how much at most after several:
/// twice as much more each time.
const TRUST_FIRST: f64 = 0.15;
const TRUST_MAX: f64 = 1.2;

/// The rate of the link, over all channels.
#[derive(Clone, Debug)]
pub(super) struct LinkRate {
    channels: f64,
    workers: f64,
    /// Bytes a second; `None` before the first window has ended.
    rate: Option<f64>,
    /// By how much more the link is trusted with after the next window in which it is not busy.
    trust: f64,
    window: Window,
}

#[derive(Clone, Debug, Default)]
struct Window {
    /// `None` before the first event.
    start: Option<Duration>,
    bytes: f64,
    writes: u32,
    /// Time in writing, over all channels.
    writing: f64,
    /// Time of workers, over all of them.
    encoding: f64,
}

impl LinkRate {
    pub(super) fn new(channels: u32, workers: u32) -> Self {
        let (channels, workers) = (f64::from(channels), f64::from(workers));
        Self { channels, workers, rate: None, trust: TRUST_MAX, window: Window::default() }
    }

    /// Bytes a second, if anything is known.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate
    }

    pub(super) fn encoded(&mut self, busy: Duration) {
        self.window.encoding += busy.as_secs_f64();
    }

    pub(super) fn written(&mut self, now: Duration, bytes: u64, writing: Duration) {
        let start = *self.window.start.get_or_insert(now.saturating_sub(writing));
        self.window.bytes += bytes as f64;
        self.window.writes += 1;
        self.window.writing += writing.as_secs_f64();
        let length = now.saturating_sub(start);
        if let Some(known) = self.rate
            && writing >= WINDOW_MIN
        {
            let seen = bytes as f64 * self.channels / writing.as_secs_f64();
            if seen < known / SLOW_WRITE {
                // Halfway, counted in doublings: it may have been no more than a thread that had to wait.
                self.rate = Some((known * seen).sqrt());
                self.trust = TRUST_FIRST;
                self.window = Window { start: Some(now), ..Window::default() };
                return;
            }
        }
        let enough = match self.rate {
            None => self.window.bytes >= FIRST_WINDOW_BYTES,
            Some(_) => length >= WINDOW_MIN && self.window.writes >= WINDOW_WRITES,
        };
        if (enough || length >= WINDOW_MAX) && self.window.bytes >= WINDOW_BYTES {
            self.end_window(length.as_secs_f64().max(LENGTH_LEAST));
            self.window = Window { start: Some(now), ..Window::default() };
        }
    }

    fn end_window(&mut self, length: f64) {
        let Window { bytes, writing, encoding, .. } = self.window;
        // What channels would get through if they did nothing but write. Buffers make it more than the truth,
        // never less.
        let seen = bytes * self.channels / writing.max(LENGTH_LEAST);
        let link_busy = writing / (length * self.channels);
        let pool_busy = encoding / (length * self.workers);
        // So much it took for certain.
        let known = self.rate.unwrap_or(bytes / length);
        self.rate = Some(if link_busy >= BUSY_LINK || seen < known {
            self.trust = TRUST_FIRST;
            (known + seen) / 2.0
        } else if pool_busy >= BUSY_POOL {
            let trusted = known * (1.0 + self.trust);
            self.trust = (self.trust * 2.0).min(TRUST_MAX);
            seen.min(trusted)
        } else {
            // Neither is busy: there is little to send, and nothing to learn.
            known
        });
    }
}

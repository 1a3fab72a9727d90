//! A model of a sending side: packets go through a pool of workers, in order to their channels, and over one link.
//!
//! Deterministic, and without a clock: the next event makes the time.

use limosa_compress::{Choice, ChoiceReport, Chooser, Method, PacketSample, Reason};
use limosa_pages::{ByteCount, PAGE_BYTES};
use std::collections::VecDeque;
use std::time::Duration;

pub(crate) const PACKET_PAGES: u32 = 128;
const PACKET_BYTES: f64 = PACKET_PAGES as f64 * PAGE_BYTES as f64;

/// What a socket takes before the link does: the most that Linux gives without being asked.
const SOCKET_BUFFER: f64 = 4e6;

/// Bytes a second of a write that only fills that buffer.
const COPY_RATE: f64 = 8e9;

/// Header of a packet.
const HEADER_BYTES: f64 = 1344.0;

/// The methods that a user can fix, and `auto` may choose.
pub(crate) const METHODS: [Method; 5] = [
    Method::None,
    Method::Lz4,
    Method::Zstd { level: 1 },
    Method::Zstd { level: 3 },
    Method::Zstd { level: 9 },
];

/// Microseconds and bytes of a page of text, by method, as measured (docs/performance.md).
const TEXT: [(f64, f64); METHODS.len()] =
    [(0.0, 4096.0), (5.2, 1520.0), (6.5, 940.0), (13.6, 940.0), (53.0, 910.0)];

/// Microseconds: a private copy; to look at a page; a delta with looking for the version and keeping it. The zero test
/// is the same for every method, and left out.
const COPY: f64 = 0.3;
const LOOK: f64 = 0.2;
const DELTA: f64 = 1.5;

/// Bytes of a delta of eight words.
const DELTA_BYTES: f64 = 79.0;

/// What the number of pages does not depend on.
const RAW: Choice = Choice { method: Method::None, delta: false, reason: Reason::Unmeasured };

/// What the pages of a packet are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Random,
    Zero,
    Text,
    /// One page in four zero, one random, two text.
    Mixed,
    /// Random pages that were sent before, and of which nine in ten have changed in a few words.
    Rewritten,
}

/// A stretch of a migration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leg {
    pub(crate) content: Content,
    /// Bytes a second of the link.
    pub(crate) rate: f64,
    pub(crate) packets: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Fixed { method: Method, delta: bool },
    Auto,
}

/// What a run took.
pub(crate) struct Run {
    pub(crate) seconds: f64,
    /// Empty if the method was fixed.
    pub(crate) report: ChoiceReport,
}

/// A packet on its way.
struct Packet {
    leg: Leg,
    choice: Choice,
    /// On the link.
    bytes: f64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Waiting,
    Encoding { until: f64, busy: f64 },
    Ready,
    Writing { since: f64, until: f64 },
}

struct Pipeline {
    now: f64,
    workers: usize,
    chooser: Option<Chooser>,
    fixed: Choice,
    /// Packets of each channel, in order.
    channels: Vec<VecDeque<Packet>>,
    /// Bytes in the buffers of the sockets, at `drained_at`.
    buffered: f64,
    drained_at: f64,
    rate: f64,
}

/// Sends all packets of all legs, and waits until the link is empty.
pub(crate) fn run(workers: u32, channels: usize, legs: &[Leg], policy: Policy) -> Run {
    let (method, delta) = match policy {
        Policy::Fixed { method, delta } => (method, delta),
        Policy::Auto => (Method::None, false),
    };
    let depth = 2 + 2 * workers as usize / channels;
    let mut pipeline = Pipeline {
        now: 0.0,
        workers: workers as usize,
        chooser: (policy == Policy::Auto).then(|| Chooser::new(workers, channels as u32, depth as u32)),
        fixed: Choice { method, delta, reason: Reason::Unmeasured },
        channels: (0..channels).map(|_| VecDeque::new()).collect(),
        buffered: 0.0,
        drained_at: 0.0,
        rate: legs[0].rate,
    };
    let mut packets = legs.iter().flat_map(|leg| (0..leg.packets).map(|_| *leg)).peekable();
    loop {
        pipeline.take(&mut packets, depth);
        pipeline.encode();
        pipeline.write();
        if !pipeline.advance() {
            break;
        }
    }
    let report = pipeline.chooser.as_ref().map(|chooser| chooser.report().clone()).unwrap_or_default();
    Run { seconds: pipeline.now + pipeline.buffered_now() / pipeline.rate, report }
}

impl Pipeline {
    /// Channels take packets while they have room.
    fn take(&mut self, packets: &mut std::iter::Peekable<impl Iterator<Item = Leg>>, depth: usize) {
        while let Some(channel) = (0..self.channels.len())
            .filter(|&channel| self.channels[channel].len() < depth && packets.peek().is_some())
            .min_by_key(|&channel| self.channels[channel].len())
        {
            let leg = packets.next().expect("there is one");
            if leg.rate != self.rate {
                self.buffered = self.buffered_now();
                (self.drained_at, self.rate) = (self.now, leg.rate);
            }
            let choice = self.chooser.as_mut().map_or(self.fixed, Chooser::choose);
            let straight = choice.method == Method::None && !choice.delta;
            let bytes = HEADER_BYTES + if leg.content == Content::Zero { 0.0 } else { PACKET_BYTES };
            let bytes = if leg.content == Content::Mixed { bytes * 0.75 } else { bytes };
            let state = if straight { State::Ready } else { State::Waiting };
            self.channels[channel].push_back(Packet { leg, choice, bytes, state });
        }
    }

    /// Free workers begin with the packets that wait longest.
    fn encode(&mut self) {
        let now = self.now;
        let encoding = |packet: &Packet| matches!(packet.state, State::Encoding { .. });
        let all = self.channels.iter().map(VecDeque::len).max().unwrap_or(0);
        let mut free =
            self.workers - self.channels.iter().flatten().filter(|packet| encoding(packet)).count();
        for place in 0..all {
            for channel in &mut self.channels {
                let Some(packet) = channel.get_mut(place) else { continue };
                if packet.state == State::Waiting && free > 0 {
                    let (sample, busy) = price(packet.leg.content, packet.choice);
                    packet.bytes = HEADER_BYTES + sent_bytes(&sample);
                    packet.state = State::Encoding { until: now + busy, busy };
                    free -= 1;
                }
            }
        }
    }

    /// Idle channels begin to write the packet at their front.
    fn write(&mut self) {
        for channel in 0..self.channels.len() {
            let Some(front) = self.channels[channel].front() else { continue };
            if front.state != State::Ready {
                continue;
            }
            let bytes = front.bytes;
            self.buffered = self.buffered_now() + bytes;
            self.drained_at = self.now;
            let room_in = (self.buffered - SOCKET_BUFFER).max(0.0) / self.rate;
            let until = self.now + room_in.max(bytes / COPY_RATE.min(self.rate.max(1e9)));
            let front = self.channels[channel].front_mut().expect("it was there");
            front.state = State::Writing { since: self.now, until };
        }
    }

    /// Goes on to the next event; `false` if there is none.
    fn advance(&mut self) -> bool {
        let ends = self.channels.iter().flatten().filter_map(|packet| match packet.state {
            State::Encoding { until, .. } | State::Writing { until, .. } => Some(until),
            State::Waiting | State::Ready => None,
        });
        let Some(next) = ends.min_by(f64::total_cmp) else { return false };
        self.now = next;
        for channel in &mut self.channels {
            for packet in channel.iter_mut() {
                if let State::Encoding { until, busy } = packet.state
                    && until <= next
                {
                    packet.state = State::Ready;
                    let (mut sample, _) = price(packet.leg.content, packet.choice);
                    sample.busy = Duration::from_secs_f64(busy);
                    if let Some(chooser) = self.chooser.as_mut().filter(|_| sample.pages > 0) {
                        chooser.encoded(packet.choice, &sample);
                    }
                }
            }
            let front = channel.front().map(|packet| (packet.state, packet.bytes, packet.leg.content));
            if let Some((State::Writing { since, until }, bytes, content)) = front
                && until <= next
            {
                channel.pop_front();
                let written = ByteCount(bytes as u64);
                if let Some(chooser) = &mut self.chooser {
                    let now = Duration::from_secs_f64(next);
                    let pages = price(content, RAW).0.pages;
                    chooser.written(now, pages, written, Duration::from_secs_f64(until - since));
                }
            }
        }
        true
    }

    fn buffered_now(&self) -> f64 {
        (self.buffered - (self.now - self.drained_at) * self.rate).max(0.0)
    }
}

fn sent_bytes(sample: &PacketSample) -> f64 {
    let raw = sample.pages - sample.deltas - sample.compressed;
    f64::from(raw) * PAGE_BYTES as f64 + f64::from(sample.compressed_bytes) + f64::from(sample.delta_bytes)
}

/// What becomes of a packet in the pool, and the seconds that it takes.
fn price(content: Content, choice: Choice) -> (PacketSample, f64) {
    const MICROSECOND: f64 = 1e-6;
    let (random, text) = match content {
        Content::Zero => (0, 0),
        Content::Random | Content::Rewritten => (PACKET_PAGES, 0),
        Content::Text => (0, PACKET_PAGES),
        Content::Mixed => (PACKET_PAGES / 4, PACKET_PAGES / 2),
    };
    let pages = random + text;
    let deltas = if choice.delta && content == Content::Rewritten { random * 9 / 10 } else { 0 };
    let method = METHODS.iter().position(|method| *method == choice.method).expect("one of the model's");
    let (microseconds, bytes) = TEXT[method];
    let compressed = if method > 0 { text } else { 0 };
    let sample = PacketSample {
        pages,
        incompressible: random - deltas,
        compressed,
        compressed_bytes: (f64::from(compressed) * bytes) as u32,
        deltas,
        delta_bytes: (f64::from(deltas) * DELTA_BYTES) as u32,
        busy: Duration::ZERO,
    };
    let delta = if choice.delta { f64::from(pages) * DELTA } else { 0.0 };
    let busy = f64::from(pages) * (COPY + LOOK) + delta + f64::from(compressed) * microseconds;
    (sample, busy * MICROSECOND)
}

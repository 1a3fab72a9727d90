//! Who says how the next packet is made.

use super::Codec;
use crate::pool::{CodecPool, packets_in_flight};
use limosa_compress::Method;
use limosa_compress::choice::{self, Choice, ChoiceReport, PacketSample};
use limosa_pages::ByteCount;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Says how the packets of all channels are made that stand for themselves.
#[derive(Debug)]
pub(super) enum Chooser {
    /// All by one method, and with deltas.
    Fixed(Method),
    /// By what is measured of link and pool. The lock is taken three times per packet, each for less than a
    /// microsecond.
    Auto { choice: Box<Mutex<choice::Chooser>>, start: Instant },
}

/// How a packet is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selected {
    pub(super) method: Method,
    /// Its pages may leave as deltas.
    pub(super) delta: bool,
    /// What the chooser wants to hear again.
    choice: Option<Choice>,
}

impl Chooser {
    /// For a codec whose packets stand for themselves; `None` for other codecs.
    pub(super) fn new(codec: Codec, channels: usize, pool: &CodecPool) -> Option<Self> {
        match codec {
            Codec::None | Codec::Zlib { .. } | Codec::Zstd { .. } => None,
            Codec::Lz4 => Some(Self::Fixed(Method::Lz4)),
            Codec::ZstdPacket { level } => Some(Self::Fixed(Method::Zstd { level })),
            Codec::Auto => {
                let workers = pool.workers();
                let in_flight = packets_in_flight(workers, channels);
                // Each is 255 at most, or a little more.
                let choice = choice::Chooser::new(workers as u32, channels as u32, in_flight as u32);
                Some(Self::Auto { choice: Box::new(Mutex::new(choice)), start: Instant::now() })
            }
        }
    }

    pub(super) fn select(&self) -> Selected {
        match self {
            Self::Fixed(method) => Selected { method: *method, delta: true, choice: None },
            Self::Auto { choice, .. } => {
                let choice = choice.lock().choose();
                Selected { method: choice.method, delta: choice.delta, choice: Some(choice) }
            }
        }
    }

    /// A worker has made a packet.
    pub(super) fn encoded(&self, selected: Selected, sample: &PacketSample) {
        if let (Self::Auto { choice, .. }, Some(selected)) = (self, selected.choice)
            && sample.pages > 0
        {
            choice.lock().encoded(selected, sample);
        }
    }

    /// A channel has written `bytes` of a packet with so many pages, which took it `writing`.
    pub(super) fn written(&self, pages: usize, bytes: ByteCount, writing: Duration) {
        if let Self::Auto { choice, start } = self {
            // At most 128.
            choice.lock().written(start.elapsed(), pages as u32, bytes, writing);
        }
    }

    /// A channel had nothing to send.
    pub(super) fn rested(&self) {
        if let Self::Auto { choice, .. } = self {
            choice.lock().rested();
        }
    }

    /// What was chosen so far; `None` where there is no choice.
    pub(super) fn report(&self) -> Option<ChoiceReport> {
        match self {
            Self::Fixed(_) => None,
            Self::Auto { choice, .. } => Some(choice.lock().report().clone()),
        }
    }
}

impl Selected {
    /// Pages leave as they are, and nobody keeps what was sent: there is nothing to make.
    pub(super) fn is_raw(self) -> bool {
        self.method == Method::None && !self.delta
    }
}

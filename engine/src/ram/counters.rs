//! What the RAM handler has done, readable by any thread at any time.

use limosa_compress::ChoiceReport;
use limosa_multifd::ChannelStatistics;
use limosa_pages::{ByteCount, PageCount};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Declares the counters once: live, and as a copy of their values.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $unit:ident,)*) => {
        /// Live counters of one RAM handler; zeroed when a migration begins.
        #[derive(Debug, Default)]
        pub struct RamCounters {
            $(pub(super) $name: AtomicU64,)*
            channels: Mutex<Vec<ChannelStatistics>>,
            choices: Mutex<Option<ChoiceReport>>,
        }

        /// A copy of [`RamCounters`].
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct RamStatistics {
            $($(#[$doc])* pub $name: $unit,)*
        }

        impl RamCounters {
            /// The values now. They are read one after the other: sums may be off by what happens meanwhile.
            pub fn snapshot(&self) -> RamStatistics {
                RamStatistics { $($name: $unit(self.$name.load(Ordering::Relaxed)),)* }
            }

            pub(crate) fn reset(&self) {
                $(self.$name.store(0, Ordering::Relaxed);)*
                self.channels.lock().clear();
                *self.choices.lock() = None;
            }
        }
    };
}

counters! {
    /// Pages sent or received with their bytes.
    normal: PageCount,
    /// Pages sent or received as zero.
    zero: PageCount,
    /// Of `zero`: pages that the guest never touched, told by the backing without a look at them.
    untouched: PageCount,
    /// Bytes of RAM records on the main channel, headers included.
    bytes: ByteCount,
    /// Bytes on multifd channels.
    channel_bytes: ByteCount,
    /// Pages sent because the destination asked for them; those of a preempt channel are counted there.
    requested: PageCount,
    /// Pages still owed to the destination.
    owed: PageCount,
    /// Pages found dirty by the latest look at the dirty log.
    dirtied: PageCount,
    /// Pages sent as deltas.
    xbzrle_pages: PageCount,
    /// Bytes of those deltas.
    xbzrle_bytes: ByteCount,
    /// Pages that had not changed at all: nothing was sent.
    xbzrle_same: PageCount,
    /// Pages without a previous version in the cache.
    xbzrle_miss: PageCount,
    /// Pages that changed too much for a delta.
    xbzrle_overflow: PageCount,
}

impl RamCounters {
    /// What each multifd channel has done, as of the latest batch or synchronisation point; empty without channels.
    pub fn channels(&self) -> Vec<ChannelStatistics> {
        self.channels.lock().clone()
    }

    /// Which method the packets were compressed with, and why, as of the latest synchronisation point; `None` unless that was
    /// chosen from what was measured.
    pub fn choices(&self) -> Option<ChoiceReport> {
        self.choices.lock().clone()
    }

    /// Shows how the packets were compressed.
    pub(super) fn show_choices(&self, choices: Option<ChoiceReport>) {
        *self.choices.lock() = choices;
    }

    /// Shows what the channels have counted.
    pub(super) fn show_channels(&self, channels: Vec<ChannelStatistics>) {
        let bytes: ByteCount = channels.iter().map(|channel| channel.bytes).sum();
        self.channel_bytes.store(bytes.0, Ordering::Relaxed);
        *self.channels.lock() = channels;
    }
}

/// Adds without ordering: counters are read for display and estimates only.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

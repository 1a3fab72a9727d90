//! What a source is told before it begins, and what may change under way.

use crate::convergence::ConvergenceConfig;
use crate::ping::ROUNDS_MAX;
use crate::units::BytesPerSecond;
use limosa_wire::{Features, MultifdSettings, PostcopyAdvice};
use std::time::Duration;

/// Settings of one outgoing migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceConfig {
    /// The link carries answers. Without them nobody ever says that the guest arrived, and the source
    /// believes the kernel that accepted its last byte.
    pub return_path: bool,
    /// Stop the guest, then wait for [`SourceEvent::Continue`](super::SourceEvent::Continue).
    pub pause_before_switchover: bool,
    /// Don't switch over before the destination's SWITCHOVER_ACK. Needs `return_path`.
    pub switchover_ack: bool,
    /// Extensions to QEMU's protocol to be used.
    pub features: FeatureWishes,
    /// Our multifd channels; a destination that knows extensions compares them with its own.
    pub multifd: MultifdSettings,
    /// When to switch over.
    pub convergence: ConvergenceConfig,
    /// Limit on what leaves while the guest runs; `None` is unlimited. The switchover is never limited.
    pub max_bandwidth: Option<BytesPerSecond>,
    /// Postcopy may follow; `None` without the capability. Needs `return_path`.
    pub postcopy: Option<SourcePostcopy>,
    /// How long to wait for the peer.
    pub timeouts: SourceTimeouts,
    /// Rounds after which a guest counts as not converging; at most [`ROUNDS_MAX`].
    pub rounds_max: u32,
}

/// Settings of a source that may go on in postcopy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourcePostcopy {
    /// Facts about our pages, for the destination to compare with its own.
    pub advice: PostcopyAdvice,
    /// Pages that were asked for leave on a link of their own.
    pub preempt: bool,
    /// Limit on what leaves in the background once the guest runs there; `None` is unlimited.
    pub max_bandwidth: Option<BytesPerSecond>,
}

/// Extensions that a source asks its destination for (wire 14.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureWishes {
    /// Used if the destination offers them.
    pub wanted: Features,
    /// Without these nothing moves. Needs [`SourceConfig::return_path`], unless empty.
    pub required: Features,
}

/// How long the source waits for an answer of the destination before it calls it lost; [`Duration::MAX`] is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceTimeouts {
    /// The greeting answered; and later, block list and versions accepted there.
    pub setup: Duration,
    /// Everything of a round processed there, the queue of the link included.
    pub round: Duration,
    /// Every device loaded there. The guest is stopped meanwhile.
    pub devices: Duration,
    /// The last word after the commit point. When it passes, the guest is in doubt.
    pub shut: Duration,
    /// The proof that the guest runs there, after the package has left. When it passes, the migration pauses.
    pub running: Duration,
    /// Everything that was pushed processed there, before the end is said.
    pub drain: Duration,
    /// What is received there, and the word that it goes on, in a recovery.
    pub recovery: Duration,
}

/// New values of settings that may change at run time; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParameterChange {
    /// The longest the guest may be stopped.
    pub downtime_limit: Option<Duration>,
    /// The limit while the guest runs; `Some(None)` lifts it.
    pub max_bandwidth: Option<Option<BytesPerSecond>>,
    /// The rate assumed for the switchover; `Some(None)` goes back to the measured one.
    pub switchover_bandwidth: Option<Option<BytesPerSecond>>,
    /// The limit in postcopy; `Some(None)` lifts it.
    pub max_postcopy_bandwidth: Option<Option<BytesPerSecond>>,
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            return_path: true,
            pause_before_switchover: false,
            switchover_ack: false,
            features: FeatureWishes::default(),
            multifd: MultifdSettings::default(),
            convergence: ConvergenceConfig::default(),
            max_bandwidth: None,
            postcopy: None,
            timeouts: SourceTimeouts::default(),
            rounds_max: ROUNDS_MAX,
        }
    }
}

impl Default for SourceTimeouts {
    /// Thirty seconds: longer than any healthy peer needs, shorter than a person's patience. A round
    /// and the end of postcopy may have a full socket buffer to drain first: 6 MiB, the kernel's usual maximum, at 100 KB/s
    /// is a minute.
    fn default() -> Self {
        Self {
            setup: Duration::from_secs(30),
            round: Duration::from_secs(90),
            devices: Duration::from_secs(30),
            shut: Duration::from_secs(30),
            running: Duration::from_secs(30),
            drain: Duration::from_secs(90),
            recovery: Duration::from_secs(30),
        }
    }
}

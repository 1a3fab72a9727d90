//! What is moved.

use limosa_pages::{ByteCount, PageCount};
use limosa_vmm::Content;

/// One measured situation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Its name on the command line and in the results.
    pub name: &'static str,
    /// Guest RAM.
    pub memory: ByteCount,
    /// What RAM holds.
    pub content: Content,
    /// What the guest does meanwhile; `None` if it is idle.
    pub busy: Option<Busy>,
    /// What executes Limosa's guest. QEMU's is always executed by KVM, or by TCG where there is none.
    pub guest: GuestKind,
}

/// What pages are sent over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Multifd channels; 0 is the main channel alone.
    pub channels: u8,
    /// `multifd-compression`, of both programs.
    pub compression: String,
    /// The guest moves first, and its pages follow, urgent ones on a channel of their own. Without multifd channels.
    pub postcopy: bool,
}

/// A guest that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// Pages written per second. QEMU's guest has no clock and comes near it.
    pub pages_per_second: u64,
    /// The part of RAM that is written again and again.
    pub working_set: PageCount,
}

/// What executes the guest of our own VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestKind {
    /// KVM, or threads where it is not usable.
    Auto,
    /// Threads of the VMM.
    Process,
}

const MIB: u64 = 1 << 20;

const IDLE_RANDOM_2G: Scenario = Scenario {
    name: "idle-random-2g",
    memory: ByteCount(2048 * MIB),
    content: Content::Random,
    busy: None,
    guest: GuestKind::Auto,
};

/// 64 MiB, rewritten about once a second.
const BUSY: Busy = Busy { pages_per_second: 20_000, working_set: PageCount(64 * MIB / 4096) };

/// 300 MB/s, as the goal for the downtime has it; 512 MiB are rewritten in about two seconds.
const VERY_BUSY: Busy = Busy { pages_per_second: 73_250, working_set: PageCount(512 * MIB / 4096) };

/// All that is measured, in the order in which it runs. The first is the one that everything is judged by.
pub const SCENARIOS: [Scenario; 10] = [
    IDLE_RANDOM_2G,
    Scenario { name: "idle-random-512m", memory: ByteCount(512 * MIB), ..IDLE_RANDOM_2G },
    Scenario { name: "idle-random-4g", memory: ByteCount(4096 * MIB), ..IDLE_RANDOM_2G },
    Scenario { name: "idle-zero-2g", content: Content::Zero, ..IDLE_RANDOM_2G },
    Scenario { name: "idle-text-2g", content: Content::Text, ..IDLE_RANDOM_2G },
    Scenario { name: "idle-mixed-2g", content: Content::Mixed, ..IDLE_RANDOM_2G },
    Scenario { name: "busy-random-2g", busy: Some(BUSY), ..IDLE_RANDOM_2G },
    Scenario {
        name: "process-busy-random-2g",
        busy: Some(BUSY),
        guest: GuestKind::Process,
        ..IDLE_RANDOM_2G
    },
    Scenario { name: "very-busy-random-2g", busy: Some(VERY_BUSY), ..IDLE_RANDOM_2G },
    Scenario {
        name: "process-very-busy-random-2g",
        busy: Some(VERY_BUSY),
        guest: GuestKind::Process,
        ..IDLE_RANDOM_2G
    },
];

impl Scenario {
    /// The scenario called `name`.
    pub fn named(name: &str) -> Option<Self> {
        SCENARIOS.into_iter().find(|scenario| scenario.name == name)
    }

    /// The content class as the command line of `limosa vmm` calls it.
    pub(crate) fn content_word(&self) -> &'static str {
        match self.content {
            Content::Zero => "zero",
            Content::Random => "random",
            Content::Text => "text",
            Content::Mixed => "mixed",
        }
    }
}

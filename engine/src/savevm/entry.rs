//! One entry of the savevm list, and what a live entry must be able to do.

use crate::error::{LoadFault, SaveFault};
use crate::parameters::{Capabilities, Parameters};
use crate::ram::RamHandler;
use crate::stream::{StreamReader, StreamWriter};
use limosa_multifd::{ReceiveConfig, ReceiveLink};
use limosa_pages::ByteCount;
use limosa_transport::LinkWriter;
use limosa_vmstate::Device;
use limosa_wire::{Features, SectionHeader, SectionId, StartKind};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// State that leaves while the guest runs: RAM, block devices, dirty bitmaps.
///
/// RAM alone goes on after the guest has moved (postcopy); every other entry is complete when it does.
/// Nothing here has a default: an entry that forgot to be asked would lose state in silence. All calls come
/// from the migration's coordinator (saving) or its reader (loading), one at a time. A body is written
/// without header and footer; those are the list's.
pub trait LiveState: Send {
    /// Begins an outgoing migration and writes the body of the START section.
    fn save_setup(&mut self, setup: &SaveSetup<'_>, out: &mut StreamWriter) -> Result<(), SaveFault>;

    /// Learns what the guest has changed since the last call, so that [`Self::state_pending`] becomes exact.
    fn sync(&mut self) -> Result<(), SaveFault>;

    /// What is still to be sent, as far as is known. A pure read.
    fn state_pending(&self) -> ByteCount;

    /// Writes the body of a PART section: what is pending, as far as `budget` reaches.
    fn save_live_iterate(&mut self, out: &mut StreamWriter, budget: &mut Budget) -> Result<(), SaveFault>;

    /// Writes the body of the END section: everything that is pending. The guest is stopped.
    fn save_live_complete_precopy(&mut self, out: &mut StreamWriter) -> Result<(), SaveFault>;

    /// Ends an outgoing migration, whatever became of it. The guest may be running.
    fn save_cleanup(&mut self) -> Result<(), SaveFault>;

    /// Begins an incoming migration.
    fn load_setup(&mut self, setup: &LoadSetup) -> Result<(), LoadFault>;

    /// Reads the body of one START, PART or END section to its end.
    fn load_state(&mut self, input: &mut StreamReader) -> Result<(), LoadFault>;

    /// The stream has ended: whether all that the entry needs has come. After this the guest may run.
    fn load_complete(&mut self) -> Result<(), LoadFault>;

    /// Ends an incoming migration, whatever became of it. The guest does not run yet.
    fn load_cleanup(&mut self) -> Result<(), LoadFault>;

    /// The guest has been stopped for the switchover, or the switchover was undone.
    fn switchover(&mut self, change: Switchover);
}

/// What a live entry is told about the switchover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switchover {
    /// The guest is stopped; what is pending now is all there will be.
    Started,
    /// The guest runs here again.
    Undone,
}

/// What an outgoing migration was asked to do.
#[derive(Debug)]
pub struct SaveSetup<'a> {
    /// Features that are on.
    pub capabilities: &'a Capabilities,
    /// Tunables at the start.
    pub parameters: &'a Parameters,
    /// Extensions that both sides use.
    pub features: Features,
    /// Connections for pages beside the main one; RAM takes them.
    pub(crate) channels: Mutex<Option<SendLinks>>,
}

/// What an incoming migration was asked to do.
#[derive(Debug, Default)]
pub struct LoadSetup {
    /// Extensions that the source uses.
    pub features: Features,
    /// Connections for pages beside the main one; RAM takes them.
    pub(crate) channels: Mutex<Option<ReceiveLinks>>,
}

/// Multifd channels that are connected, in the order of their numbers.
#[derive(Debug)]
pub(crate) struct SendLinks {
    pub(crate) links: Vec<LinkWriter>,
    /// For the init packets; `None` if they have left already.
    pub(crate) uuid: Option<[u8; 16]>,
    pub(crate) sync: ChannelSync,
}

/// Multifd channels that were accepted.
#[derive(Debug)]
pub(crate) struct ReceiveLinks {
    pub(crate) links: Vec<ReceiveLink>,
    pub(crate) config: ReceiveConfig,
    pub(crate) sync: ChannelSync,
}

/// At which records of the main channel the multifd channels are brought into line (wire 4.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChannelSync {
    /// At FLUSH records, one a round: QEMU's machines from 8.1 on.
    #[default]
    PerRound,
    /// At the end of every RAM section: machines up to 8.0.
    PerSection,
}

/// How much one walk over the list may send.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    bytes_left: u64,
    deadline: Instant,
}

/// Order of the entries; the higher ones leave first (wire 1.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// What describes the guest as a whole, after every device.
    Last,
    /// Most devices.
    #[default]
    Default,
    /// Devices that translate addresses for others.
    Iommu,
    /// Buses whose state others look up while they load.
    PciBus,
    /// Memory that changes what other entries may touch.
    VirtioMem,
    /// Interrupt translation services.
    GicV3Its,
    /// Interrupt controllers that others refer to.
    GicV3,
}

/// A device section kept as it came, to be replayed to a peer of the same machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opaque {
    /// Version of the body's layout.
    pub version: u32,
    /// The body, without header and footer.
    pub body: Vec<u8>,
}

/// How an entry is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryIdentity {
    /// Name on the wire, for example `ram` or `serial`.
    pub idstr: String,
    /// Which of several with one name.
    pub instance_id: u32,
    /// The sender's number for the entry's sections.
    pub section_id: SectionId,
    /// Version of the layout that is written.
    pub version_id: u32,
}

/// One entry of the list.
pub struct SaveStateEntry {
    /// How it is known.
    pub identity: EntryIdentity,
    /// When it leaves.
    pub priority: Priority,
    pub(super) state: EntryState,
}

/// What stands behind an entry.
pub(super) enum EntryState {
    Live(Box<dyn LiveState>),
    /// A live entry too, and the only one with a postcopy half.
    Ram(Box<RamHandler>),
    Device(Box<dyn Device>),
    Opaque(Opaque),
}

impl Budget {
    /// At most `bytes`, and not after `now + time`.
    pub fn new(bytes: ByteCount, time: Duration, now: Instant) -> Self {
        Self { bytes_left: bytes.0, deadline: now + time }
    }

    /// Takes `bytes` off. Overdrawing is allowed, once: a page is not cut in two.
    pub fn spend(&mut self, bytes: ByteCount) {
        self.bytes_left = self.bytes_left.saturating_sub(bytes.0);
    }

    /// Bytes that may still be sent.
    pub fn bytes_left(&self) -> ByteCount {
        ByteCount(self.bytes_left)
    }

    /// Whether the walk must end here.
    pub fn is_exhausted(&self) -> bool {
        self.bytes_left == 0 || Instant::now() >= self.deadline
    }
}

impl SaveStateEntry {
    /// Whether the entry's state leaves while the guest runs.
    pub fn is_live(&self) -> bool {
        self.state.live().is_some()
    }
}

impl EntryState {
    /// The entry as live state, if it is that.
    pub(super) fn live(&self) -> Option<&dyn LiveState> {
        match self {
            Self::Live(live) => Some(live.as_ref()),
            Self::Ram(ram) => Some(ram.as_ref()),
            Self::Device(_) | Self::Opaque(_) => None,
        }
    }

    /// As [`Self::live`], to be called.
    pub(super) fn live_mut(&mut self) -> Option<&mut dyn LiveState> {
        match self {
            Self::Live(live) => Some(live.as_mut()),
            Self::Ram(ram) => Some(ram.as_mut()),
            Self::Device(_) | Self::Opaque(_) => None,
        }
    }
}

impl EntryIdentity {
    pub(super) fn is(&self, idstr: &str, instance_id: u32) -> bool {
        self.idstr == idstr && self.instance_id == instance_id
    }

    pub(super) fn header(&self, kind: StartKind) -> SectionHeader {
        SectionHeader {
            kind,
            id: self.section_id,
            idstr: self.idstr.clone(),
            instance_id: self.instance_id,
            version_id: self.version_id,
        }
    }
}

impl Opaque {
    /// An entry of the vmdescription with the right size and nothing more.
    pub(super) fn described(&self, identity: &EntryIdentity) -> Value {
        let size = self.body.len();
        json!({
            "name": identity.idstr,
            "instance_id": identity.instance_id,
            "size": size,
            "fields": [{"name": "data", "size": size, "type": "buffer"}],
        })
    }
}

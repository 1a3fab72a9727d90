//! A machine of QEMU's as [`limosa::Incoming`] needs it: a savevm list with the same RAM blocks and, for devices that
//! nobody here can read, the lengths of their sections.
//!
//! [`CapturedGuest`] needs none of this, but it is a loader of its own. This list puts QEMU's stream through
//! the one that real guests use, with all its checks.

use limosa::ram::dirty_log::{FakeDirtyLog, HostWrites};
use limosa::ram::{GuestRam, RamBlock, RamError};
use limosa::vmstate::{Device, FieldPath, Input, LoadError, LoadProblem, SaveError, SavedDevice};
use limosa::{
    CapturedDevice, CapturedGuest, Configuration, Priority, RamHandler, RunState, SaveVm, Vm, VmError,
};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// RAM and savevm list of a machine that can be received and sent on, but not run.
pub struct ForeignGuest {
    /// Its RAM, with the blocks that the source has.
    pub ram: GuestRam,
    /// That RAM, and every device.
    pub savevm: SaveVm,
    /// Where a change of the RAM is reported.
    pub writes: Arc<HostWrites>,
}

/// The host's hold on a guest that cannot run.
#[derive(Clone, Copy, Debug)]
pub struct Still;

/// A device of which only the length is known.
struct OpaqueDevice {
    version: u32,
    body: Vec<u8>,
}

impl ForeignGuest {
    /// An empty guest of the kind that `model` is: same machine, same blocks, device sections of the same lengths. The
    /// contents of `model` are not used.
    ///
    /// # Errors
    /// No memory.
    pub fn like(model: &CapturedGuest) -> Result<Self, RamError> {
        let blocks = model.ram.iter().map(|(_, block)| RamBlock::memfd(block.name().clone(), block.length()));
        let ram = GuestRam::new(blocks.collect::<Result<_, _>>()?)?;
        let empty = model.devices.iter().cloned().map(|mut device| {
            device.section.body.fill(0);
            device
        });
        Ok(Self::assemble(model.configuration.clone(), ram, empty))
    }

    /// `captured` itself, whose RAM may be changed while it is sent.
    pub fn holding(captured: CapturedGuest) -> Self {
        Self::assemble(captured.configuration, captured.ram, captured.devices.into_iter())
    }

    fn assemble(
        configuration: Configuration,
        ram: GuestRam,
        devices: impl Iterator<Item = CapturedDevice>,
    ) -> Self {
        let log = FakeDirtyLog::new(ram.layout());
        let writes = log.writes();
        // Replaying: the run state is one of the opaque devices.
        let mut savevm = SaveVm::replaying(configuration);
        savevm.register_ram(RamHandler::new(ram.clone(), Some(Box::new(log))));
        for CapturedDevice { idstr, instance_id, section } in devices {
            let device = OpaqueDevice { version: section.version, body: section.body };
            savevm.register_device(&idstr, instance_id, Priority::Default, Box::new(device));
        }
        Self { ram, savevm, writes }
    }
}

impl Device for OpaqueDevice {
    fn vmsd_name(&self) -> &str {
        "opaque"
    }

    fn version(&self) -> u32 {
        self.version
    }

    fn minimum_version(&self) -> u32 {
        self.version
    }

    fn save(&mut self) -> Result<SavedDevice, SaveError> {
        let field = json!({ "name": "data", "type": "buffer", "size": self.body.len() });
        let description = [
            ("vmsd_name", Value::from(self.vmsd_name())),
            ("version", Value::from(self.version)),
            ("fields", Value::from(vec![field])),
        ];
        let description: Map<String, Value> =
            description.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Ok(SavedDevice { body: self.body.clone(), description })
    }

    fn load(&mut self, _version: u32, input: &mut dyn Input) -> Result<(), LoadError> {
        let offset = input.offset();
        input.read(&mut self.body).map_err(|problem| LoadError {
            path: FieldPath::device("opaque"),
            offset,
            problem: LoadProblem::Input(problem),
        })
    }
}

impl Vm for Still {
    fn stop(&self) -> Result<(), VmError> {
        Ok(())
    }

    fn resume(&self) -> Result<(), VmError> {
        Ok(())
    }

    fn run_state(&self) -> RunState {
        RunState::Paused
    }
}

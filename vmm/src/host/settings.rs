//! Parameters and capabilities: QMP's words on one side, the engine's on the other.

use super::moving::{Moving, Refused};
use limosa::pages::ByteCount;
use limosa::{Capabilities, Parameters};
use limosa_qmp::{
    CommandError, MigMode, MigrationCapability, MigrationCapabilityStatus, MigrationParameters,
};
use std::time::Duration;

/// What the operator has set so far.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    parameters: Parameters,
    capabilities: Capabilities,
}

impl Default for Settings {
    /// The engine's defaults. Unlike QEMU's, the return path is on: a source should hear whether its guest arrived.
    fn default() -> Self {
        Self {
            parameters: Parameters::default(),
            capabilities: Capabilities { return_path: true, ..Capabilities::default() },
        }
    }
}

impl Settings {
    pub(super) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Takes the values that are there; all or none.
    pub(super) fn set_parameters(&mut self, wanted: &MigrationParameters) -> Result<(), CommandError> {
        refuse_unsupported(wanted)?;
        let mut parameters = self.parameters.clone();
        if let Some(bytes) = wanted.max_bandwidth {
            parameters.max_bandwidth = none_if_zero(bytes);
        }
        if let Some(bytes) = wanted.avail_switchover_bandwidth {
            parameters.switchover_bandwidth = none_if_zero(bytes);
        }
        if let Some(milliseconds) = wanted.downtime_limit {
            parameters.downtime_limit = Duration::from_millis(milliseconds);
        }
        if let Some(bytes) = wanted.xbzrle_cache_size {
            parameters.xbzrle_cache_size = ByteCount(bytes);
        }
        parameters.validate().map_err(|error| CommandError::generic(error.to_string()))?;
        self.parameters = parameters;
        Ok(())
    }

    /// The parameters that this VMM has.
    pub(super) fn query_parameters(&self) -> MigrationParameters {
        let Parameters { max_bandwidth, switchover_bandwidth, downtime_limit, xbzrle_cache_size } =
            &self.parameters;
        MigrationParameters {
            max_bandwidth: Some(max_bandwidth.map_or(0, |bytes| bytes.0)),
            avail_switchover_bandwidth: Some(switchover_bandwidth.map_or(0, |bytes| bytes.0)),
            downtime_limit: Some(downtime_limit.as_millis() as u64),
            xbzrle_cache_size: Some(xbzrle_cache_size.0),
            mode: Some(MigMode::Normal),
            ..MigrationParameters::default()
        }
    }

    /// Switches capabilities; all or none. Those of a migration that has begun stay as they are; only `events` may change
    /// while the host waits for a guest.
    pub(super) fn set_capabilities(
        &mut self,
        wanted: &[MigrationCapabilityStatus],
        moving: &Moving,
    ) -> Result<(), CommandError> {
        let mut capabilities = self.capabilities;
        for MigrationCapabilityStatus { capability, state } in wanted {
            match flag(&mut capabilities, *capability) {
                Some(flag) => *flag = *state,
                None if !state => {}
                None => {
                    let text = format!("Capability '{capability}' is not supported by this VMM");
                    return Err(CommandError::generic(text));
                }
            }
        }
        capabilities.validate().map_err(|error| CommandError::generic(error.to_string()))?;
        let only_events =
            Capabilities { events: self.capabilities.events, ..capabilities } == self.capabilities;
        if moving.is_busy() && !(moving.is_arriving() && only_events) {
            return Err(CommandError::generic(Refused::Busy.to_string()));
        }
        self.capabilities = capabilities;
        Ok(())
    }

    /// Every capability of QEMU, and whether it is on.
    pub(super) fn query_capabilities(&self) -> Vec<MigrationCapabilityStatus> {
        let mut capabilities = self.capabilities;
        let state = |capability: &MigrationCapability| MigrationCapabilityStatus {
            capability: *capability,
            state: flag(&mut capabilities, *capability).is_some_and(|flag| *flag),
        };
        MigrationCapability::ALL.iter().map(state).collect()
    }
}

/// Where the engine keeps a capability; `None` for those that it does not have.
fn flag(capabilities: &mut Capabilities, capability: MigrationCapability) -> Option<&mut bool> {
    match capability {
        MigrationCapability::Xbzrle => Some(&mut capabilities.xbzrle),
        MigrationCapability::Events => Some(&mut capabilities.events),
        MigrationCapability::ReturnPath => Some(&mut capabilities.return_path),
        MigrationCapability::PauseBeforeSwitchover => Some(&mut capabilities.pause_before_switchover),
        MigrationCapability::SwitchoverAck => Some(&mut capabilities.switchover_ack),
        _ => None,
    }
}

/// Parameters that would silently do nothing are refused by name.
fn refuse_unsupported(wanted: &MigrationParameters) -> Result<(), CommandError> {
    let mut rest = wanted.clone();
    rest.max_bandwidth = None;
    rest.avail_switchover_bandwidth = None;
    rest.downtime_limit = None;
    rest.xbzrle_cache_size = None;
    rest.mode = rest.mode.filter(|mode| *mode != MigMode::Normal);
    let rest = serde_json::to_value(&rest).expect("parameters are JSON");
    match rest.as_object().and_then(|members| members.keys().next()) {
        None => Ok(()),
        Some(name) => Err(CommandError::generic(format!("Parameter '{name}' is not supported by this VMM"))),
    }
}

fn none_if_zero(bytes: u64) -> Option<ByteCount> {
    (bytes > 0).then_some(ByteCount(bytes))
}

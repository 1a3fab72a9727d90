//! The migration that the machine is in, or was in last, and the list that is lent to it.

use super::guest_handle::{GuestHandle, Teller};
use super::settings::Settings;
use limosa::{
    Address, GuestFate, Incoming, IncomingConfig, IncomingReport, IncomingStatistics, NotStarted, Outgoing,
    OutgoingConfig, OutgoingReport, OutgoingStatistics, RunState, SaveVm, StartError,
};
use std::sync::Arc;

/// Where the list is, and with it the guest.
pub(super) struct Moving {
    current: Current,
    last: Option<Last>,
}

enum Current {
    /// No migration; the list is here.
    Resting(SaveVm),
    Leaving(Outgoing),
    Arriving(Incoming),
    /// Only inside of a method.
    Between,
}

/// A migration that has ended.
#[derive(Clone)]
pub(super) enum Last {
    Left(Box<OutgoingReport>),
    Arrived(Box<IncomingReport>),
}

/// The figures of the present migration, or of the last.
pub(super) enum Figures {
    None,
    Outgoing(Box<OutgoingStatistics>),
    Incoming(Box<IncomingStatistics>, Option<Address>),
}

impl Moving {
    pub(super) fn resting(savevm: SaveVm) -> Self {
        Self { current: Current::Resting(savevm), last: None }
    }

    /// Starts to send the guest.
    pub(super) fn start(
        &mut self,
        address: Address,
        settings: &Settings,
        guest: &Arc<GuestHandle>,
    ) -> Result<(), Refused> {
        let savevm = self.take_list()?;
        // A guest in doubt is as good as away until its operator lets it run here.
        if matches!(guest.state(), RunState::InMigrate | RunState::PostMigrate | RunState::FinishMigrate) {
            self.current = Current::Resting(savevm);
            return Err(Refused::NotHere);
        }
        guest.tell_changes(settings.capabilities().events);
        let config = OutgoingConfig {
            parameters: settings.parameters().clone(),
            capabilities: settings.capabilities(),
            ..OutgoingConfig::default()
        };
        let teller = Arc::new(Teller { guest: Arc::clone(guest), afterwards: RunState::PostMigrate });
        match Outgoing::start(address, config, savevm, Arc::clone(guest) as Arc<_>, teller) {
            Ok(outgoing) => {
                self.current = Current::Leaving(outgoing);
                Ok(())
            }
            Err(NotStarted { reason, savevm }) => {
                self.current = Current::Resting(*savevm);
                Err(Refused::Start(reason))
            }
        }
    }

    /// Starts to listen for a guest.
    pub(super) fn listen(
        &mut self,
        address: &Address,
        settings: &Settings,
        guest: &Arc<GuestHandle>,
    ) -> Result<(), Refused> {
        let savevm = self.take_list()?;
        // A guest that has left makes room for another, or for its own return.
        match guest.state() {
            RunState::InMigrate => {}
            RunState::PostMigrate => guest.note(RunState::InMigrate),
            _ => {
                self.current = Current::Resting(savevm);
                return Err(Refused::Occupied);
            }
        }
        guest.tell_changes(settings.capabilities().events);
        let config = IncomingConfig {
            switchover_ack: settings.capabilities().switchover_ack,
            autostart: settings.autostart(),
            ..IncomingConfig::default()
        };
        let teller = Arc::new(Teller { guest: Arc::clone(guest), afterwards: RunState::Paused });
        match Incoming::listen(address, config, savevm, Arc::clone(guest) as Arc<_>, teller) {
            Ok(incoming) => {
                self.current = Current::Arriving(incoming);
                Ok(())
            }
            Err(NotStarted { reason, savevm }) => {
                self.current = Current::Resting(*savevm);
                Err(Refused::Start(reason))
            }
        }
    }

    /// Takes the list back from a migration that has ended.
    pub(super) fn settle(&mut self) {
        self.current = match std::mem::replace(&mut self.current, Current::Between) {
            Current::Leaving(outgoing) if outgoing.has_ended() => {
                let (report, savevm) = outgoing.wait();
                self.last = Some(Last::Left(Box::new(report)));
                Current::Resting(savevm)
            }
            Current::Arriving(incoming) if incoming.has_ended() => {
                let (report, savevm) = incoming.wait();
                self.last = Some(Last::Arrived(Box::new(report)));
                Current::Resting(savevm)
            }
            current => current,
        };
    }

    /// The migration that sends the guest, if there is one.
    pub(super) fn outgoing(&self) -> Option<&Outgoing> {
        match &self.current {
            Current::Leaving(outgoing) => Some(outgoing),
            _ => None,
        }
    }

    /// Whether the list is lent to a migration.
    pub(super) fn is_busy(&self) -> bool {
        !matches!(self.current, Current::Resting(_))
    }

    /// How the last migration ended.
    pub(super) fn last(&self) -> Option<&Last> {
        self.last.as_ref()
    }

    /// Whether the last migration out may have left a guest running elsewhere.
    pub(super) fn is_in_doubt(&self) -> bool {
        matches!(&self.last, Some(Last::Left(report)) if report.guest() == GuestFate::InDoubt)
    }

    /// The figures of the present migration, or of the last.
    pub(super) fn figures(&self) -> Figures {
        match (&self.current, &self.last) {
            (Current::Leaving(outgoing), _) => Figures::Outgoing(Box::new(outgoing.statistics())),
            (Current::Arriving(incoming), _) => {
                Figures::Incoming(Box::new(incoming.statistics()), incoming.address().cloned())
            }
            (_, Some(Last::Left(report))) => Figures::Outgoing(Box::new(report.statistics.clone())),
            (_, Some(Last::Arrived(report))) => Figures::Incoming(Box::new(report.statistics.clone()), None),
            (_, None) => Figures::None,
        }
    }

    fn take_list(&mut self) -> Result<SaveVm, Refused> {
        self.settle();
        match std::mem::replace(&mut self.current, Current::Between) {
            Current::Resting(savevm) => Ok(savevm),
            current => {
                self.current = current;
                Err(Refused::Busy)
            }
        }
    }
}

/// A migration that the host does not begin.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is one already.
    #[error("There's a migration process in progress")]
    Busy,
    /// The guest is elsewhere, or has not come yet.
    #[error("The guest is not here: it waits for an incoming migration, or has migrated away")]
    NotHere,
    /// There is a guest here already.
    #[error("There is a guest here; only a VMM that waits for one, or whose guest has left, can take one in")]
    Occupied,
    /// The engine could not start.
    #[error("{0}")]
    Start(#[source] StartError),
}

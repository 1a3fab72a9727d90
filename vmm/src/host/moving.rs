//! The migration that the machine is in, or was in last, and the list that is lent to it.

use super::Occurrence;
use super::bell::Bell;
use super::guest_handle::{GuestHandle, Journey, Teller};
use super::settings::Settings;
use limosa::{
    Address, GuestFate, Incoming, IncomingConfig, IncomingReport, IncomingStatistics, LastWordListener,
    NotNow, NotStarted, OperatorWord, Outgoing, OutgoingConfig, OutgoingReport, OutgoingStatistics,
    RecoverError, RunState, SaveVm, StartError,
};
use limosa_transport::TransportError;
use std::sync::Arc;

/// Where the list is, and with it the guest.
pub(super) struct Moving {
    current: Current,
    last: Option<Last>,
    /// An incoming migration that failed, until the owner of the process was told.
    failed_arrival: Option<Occurrence>,
    bell: Arc<Bell>,
    /// Tells a source that comes back how it ended.
    telling: Option<LastWordListener>,
}

/// Whether the VMM ends if no guest comes of an incoming migration.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExitOnError(pub(super) bool);

enum Current {
    /// No migration; the list is here.
    Resting(SaveVm),
    Leaving(Outgoing),
    Arriving(Arriving),
    /// Only inside of a method.
    Between,
}

/// A guest on its way in.
struct Arriving {
    incoming: Incoming,
    exit_on_error: ExitOnError,
    /// Where it listens, or listened last.
    address: Option<Address>,
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
    /// `bell` rings when an incoming migration has failed.
    pub(super) fn resting(savevm: SaveVm, bell: Arc<Bell>) -> Self {
        Self { current: Current::Resting(savevm), last: None, failed_arrival: None, bell, telling: None }
    }

    /// Starts to send the guest.
    pub(super) fn start(
        &mut self,
        address: Address,
        settings: &Settings,
        guest: &Arc<GuestHandle>,
    ) -> Result<(), Refused> {
        self.settle(guest);
        if self.is_lost() {
            return Err(Refused::Lost);
        }
        match guest.state() {
            RunState::InMigrate => return Err(Refused::Waiting),
            RunState::PostMigrate => return Err(Refused::Left),
            // A guest in doubt is as good as away until its operator lets it run here.
            RunState::FinishMigrate if !self.is_busy() => return Err(Refused::InDoubt),
            RunState::FinishMigrate | RunState::Running | RunState::Paused => {}
        }
        let savevm = self.take_list()?;
        guest.tell_changes(settings.capabilities().events);
        let config = OutgoingConfig {
            parameters: settings.parameters().clone(),
            capabilities: settings.capabilities(),
            channel_sync: settings.channel_sync(),
            ..OutgoingConfig::default()
        };
        let teller = Arc::new(Teller { guest: Arc::clone(guest), journey: Journey::Out });
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

    /// Starts to listen for a guest; says where.
    pub(super) fn listen(
        &mut self,
        address: &Address,
        settings: &Settings,
        guest: &Arc<GuestHandle>,
        exit_on_error: ExitOnError,
    ) -> Result<Option<Address>, Refused> {
        self.settle(guest);
        let before = guest.state();
        // A guest that has left makes room for another, or for its own return.
        if !matches!(before, RunState::InMigrate | RunState::PostMigrate) {
            return Err(Refused::Occupied);
        }
        let savevm = self.take_list()?;
        guest.note(RunState::InMigrate);
        guest.tell_changes(settings.capabilities().events);
        let config = IncomingConfig {
            switchover_ack: settings.capabilities().switchover_ack,
            // The guest's handle decides when it comes, so that the operator may change his mind until then.
            autostart: true,
            channels: settings.incoming_channels(savevm.configuration().uuid),
            codec_workers: settings.parameters().codec_workers,
            postcopy: settings.incoming_postcopy(),
            ..IncomingConfig::default()
        };
        let journey = Journey::In(Arc::clone(&self.bell));
        let teller = Arc::new(Teller { guest: Arc::clone(guest), journey });
        match Incoming::listen(address, config, savevm, Arc::clone(guest) as Arc<_>, teller) {
            Ok(incoming) => {
                let address = incoming.address().cloned();
                self.current =
                    Current::Arriving(Arriving { incoming, exit_on_error, address: address.clone() });
                Ok(address)
            }
            Err(NotStarted { reason, savevm }) => {
                self.current = Current::Resting(*savevm);
                guest.note(before);
                Err(Refused::Start(reason))
            }
        }
    }

    /// Takes the list back from a migration that has ended.
    pub(super) fn settle(&mut self, guest: &GuestHandle) {
        self.current = match std::mem::replace(&mut self.current, Current::Between) {
            Current::Leaving(outgoing) if outgoing.has_ended() => {
                let (report, savevm) = outgoing.wait();
                if report.guest() == GuestFate::OnSource {
                    guest.note_stayed();
                }
                self.last = Some(Last::Left(Box::new(report)));
                Current::Resting(savevm)
            }
            Current::Arriving(arriving) if arriving.incoming.has_ended() => self.arrived(arriving, guest),
            current => current,
        };
    }

    /// What [`super::Host::wait`] has to say about an incoming migration that failed; once.
    pub(super) fn take_failed_arrival(&mut self) -> Option<Occurrence> {
        self.failed_arrival.take()
    }

    /// Calls off what is on its way, and waits until nothing listens any more.
    ///
    /// A guest that runs here while its memory follows cannot be called off. It ends with the process; its source
    /// pauses, and finds nobody.
    pub(super) fn close(&mut self, guest: &GuestHandle) {
        self.settle(guest);
        self.telling = None;
        self.current = match std::mem::replace(&mut self.current, Current::Between) {
            Current::Leaving(outgoing) => {
                outgoing.cancel();
                Current::Leaving(outgoing)
            }
            Current::Arriving(arriving) if guest.state() == RunState::InMigrate => {
                arriving.incoming.cancel();
                self.arrived(arriving, guest)
            }
            current => current,
        };
    }

    fn arrived(&mut self, arriving: Arriving, guest: &GuestHandle) -> Current {
        let ExitOnError(fatal) = arriving.exit_on_error;
        let (report, savevm) = arriving.incoming.wait();
        if !report.is_completed() {
            let reason = report.statistics.error.clone().unwrap_or_else(|| "it was called off".to_owned());
            self.failed_arrival = Some(Occurrence::ArrivalFailed { reason, fatal });
        }
        self.last = Some(Last::Arrived(Box::new(report)));
        if self.is_lost() {
            guest.keep_machine();
        }
        Current::Resting(savevm)
    }

    /// The migration that sends the guest, if there is one.
    pub(super) fn outgoing(&self) -> Option<&Outgoing> {
        match &self.current {
            Current::Leaving(outgoing) => Some(outgoing),
            _ => None,
        }
    }

    /// Lets the guest that leaves move now, and its memory follow.
    pub(super) fn start_postcopy(&self) -> Result<(), PostcopyRefused> {
        let outgoing = self.outgoing().ok_or(PostcopyRefused::NotStarted)?;
        outgoing.start_postcopy().map_err(|refused| match refused {
            NotNow::NoPostcopy => PostcopyRefused::Off,
            _ => PostcopyRefused::NotStarted,
        })
    }

    /// Closes the connection of a postcopy, from either side.
    pub(super) fn pause_postcopy(&self) -> Result<(), PostcopyRefused> {
        let paused = match &self.current {
            Current::Leaving(outgoing) => outgoing.pause_postcopy(),
            Current::Arriving(arriving) => arriving.incoming.pause_postcopy(),
            Current::Resting(_) | Current::Between => Err(NotNow::NotActive),
        };
        paused.map_err(|_| PostcopyRefused::NotActive)
    }

    /// Goes on with a paused postcopy, as its source.
    pub(super) fn resume_postcopy(&self, address: Address) -> Result<(), PostcopyRefused> {
        let outgoing = self.outgoing().ok_or(PostcopyRefused::NothingToResume)?;
        outgoing.resume_postcopy(address).map_err(|_| PostcopyRefused::NothingToResume)
    }

    /// Listens for the source of a paused postcopy; also of one that has ended here, which the source has not heard.
    pub(super) fn recover_postcopy(&mut self, address: &Address) -> Result<(), PostcopyRefused> {
        let Current::Arriving(arriving) = &mut self.current else { return self.tell_at(address) };
        let address = arriving.incoming.recover_postcopy(address).map_err(|refused| match refused {
            RecoverError::NotNow(_) => PostcopyRefused::NotPaused,
            RecoverError::Transport(error) => PostcopyRefused::Transport(error),
        })?;
        arriving.address = Some(address);
        Ok(())
    }

    fn tell_at(&mut self, address: &Address) -> Result<(), PostcopyRefused> {
        let Some(Last::Arrived(report)) = &self.last else { return Err(PostcopyRefused::NotPaused) };
        let word = report.last_word.as_ref().ok_or(PostcopyRefused::NotPaused)?;
        // The place may be the same again.
        self.telling = None;
        self.telling = Some(word.tell_at(address).map_err(PostcopyRefused::Listen)?);
        Ok(())
    }

    /// Ends a paused postcopy by the word of its operator, on either side.
    pub(super) fn end_postcopy(&self, word: OperatorWord) -> Result<(), PostcopyRefused> {
        let ended = match &self.current {
            Current::Leaving(outgoing) => outgoing.end_postcopy(word),
            Current::Arriving(arriving) if word == OperatorWord::GiveUp => {
                arriving.incoming.give_up_postcopy()
            }
            _ => Err(NotNow::NotPaused),
        };
        ended.map_err(|_| PostcopyRefused::NotPaused)
    }

    /// Calls off the migration that sends the guest, if there is one and it can be.
    pub(super) fn cancel(&self) -> Result<(), PostcopyRefused> {
        let Some(outgoing) = self.outgoing() else { return Ok(()) };
        if outgoing.statistics().status.is_postcopy() {
            return Err(PostcopyRefused::CannotCancel);
        }
        outgoing.cancel();
        Ok(())
    }

    /// Whether all memory of a guest that is here has come: only the guest's own accesses wait for what has not.
    pub(super) fn check_memory(&self) -> Result<(), PostcopyRefused> {
        match &self.current {
            Current::Arriving(arriving) if arriving.incoming.statistics().status.is_postcopy() => {
                Err(PostcopyRefused::MemoryMissing)
            }
            _ if self.is_lost() => Err(PostcopyRefused::Lost),
            _ => Ok(()),
        }
    }

    /// Whether the list is lent to a migration.
    pub(super) fn is_busy(&self) -> bool {
        !matches!(self.current, Current::Resting(_))
    }

    /// Whether it waits for a guest, or receives one.
    pub(super) fn is_arriving(&self) -> bool {
        matches!(self.current, Current::Arriving(_))
    }

    /// How the last migration ended.
    pub(super) fn last(&self) -> Option<&Last> {
        self.last.as_ref()
    }

    /// Whether the guest lacks memory that nobody will bring.
    fn is_lost(&self) -> bool {
        matches!(&self.last, Some(Last::Arrived(report)) if report.outcome.fate == GuestFate::Lost)
    }

    /// Whether the last migration out may have left a guest running elsewhere.
    pub(super) fn is_in_doubt(&self) -> bool {
        matches!(&self.last, Some(Last::Left(report)) if report.guest() == GuestFate::InDoubt)
    }

    /// The figures of the present migration, or of the last.
    pub(super) fn figures(&self) -> Figures {
        match (&self.current, &self.last) {
            (Current::Leaving(outgoing), _) => Figures::Outgoing(Box::new(outgoing.statistics())),
            (Current::Arriving(arriving), _) => {
                Figures::Incoming(Box::new(arriving.incoming.statistics()), arriving.address.clone())
            }
            (_, Some(Last::Left(report))) => Figures::Outgoing(Box::new(report.statistics.clone())),
            (_, Some(Last::Arrived(report))) => {
                let address = self.telling.as_ref().map(|telling| telling.address().clone());
                Figures::Incoming(Box::new(report.statistics.clone()), address)
            }
            (_, None) => Figures::None,
        }
    }

    fn take_list(&mut self) -> Result<SaveVm, Refused> {
        match std::mem::replace(&mut self.current, Current::Between) {
            Current::Resting(savevm) => {
                self.telling = None;
                Ok(savevm)
            }
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
    /// The guest has not come yet.
    #[error("Guest is waiting for an incoming migration")]
    Waiting,
    /// The guest is elsewhere.
    #[error("Can't migrate the vm that was paused due to previous migration")]
    Left,
    /// Memory of it never came.
    #[error("The guest is lost: memory of it never came")]
    Lost,
    /// Nobody here knows where the guest is.
    #[error(
        "The last migration may have left the guest on the destination; look there, then let it run here with cont"
    )]
    InDoubt,
    /// There is a guest here already.
    #[error("There is a guest here; only a VMM that waits for one, or whose guest has left, can take one in")]
    Occupied,
    /// The engine could not start.
    #[error("{0}")]
    Start(#[source] StartError),
}

/// A command that does not fit where a postcopy stands.
#[derive(Debug, thiserror::Error)]
pub(super) enum PostcopyRefused {
    /// The capability is off.
    #[error("Enable postcopy with migrate_set_capability before the start of migration")]
    Off,
    /// No guest leaves.
    #[error("Postcopy must be started after migration has been started")]
    NotStarted,
    /// Nothing to pause.
    #[error("migrate-pause is currently only supported during postcopy-active or postcopy-recover state")]
    NotActive,
    /// Nothing to listen for, or to end.
    #[error("Migrate recover can only be run when postcopy is paused.")]
    NotPaused,
    /// Nothing to go on with.
    #[error("Cannot resume if there is no paused migration")]
    NothingToResume,
    /// The guest has moved.
    #[error("Postcopy migration in-flight, can not cancel")]
    CannotCancel,
    /// What is not here yet cannot be looked at.
    #[error("The guest's memory is still arriving")]
    MemoryMissing,
    /// The guest was given up.
    #[error("The guest is lost: memory of it never came")]
    Lost,
    /// It cannot listen there.
    #[error(transparent)]
    Transport(TransportError),
    /// It cannot listen there for a source that has not heard the end.
    #[error("{0}")]
    Listen(#[source] StartError),
}

//! The shell around the destination machine: it reads the stream in order and does what the machine says.

use super::connections::{Company, Connections, Origin};
use super::last_word::LastWord;
use super::main_reader::Feed;
use super::postcopy::{Inbox, Postcopy};
use super::{DRAIN_TIME, IncomingChannels, IncomingConfig, IncomingReport, Shared};
use crate::error::{LoadError, LoadFault, Place, chain, loss_reason};
use crate::extensions;
use crate::observer::Observer;
use crate::savevm::{LoadProgress, LoadSetup, SaveVm, Switchover};
use crate::stream::{StreamReader, StreamWriter};
use crate::vm::Vm;
use limosa_pages::ByteCount;
use limosa_protocol::{
    Destination, DestinationAction, DestinationConfig, DestinationEnding, DestinationEvent,
    DestinationFailure, LinkRole, Loss, LossReason, MigrationStatus, SectionKind,
};
use limosa_transport::{LinkReader, LinkWriter, Listener, ShutdownHandle};
use limosa_wire::{
    Command, Configuration, ContinueKind, Features, RefusalReason, ReturnMessage, SectionHeader, SectionId,
    StreamDecoder, StreamItem,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the loader thread owns before there is a link.
pub(super) struct Loader {
    pub(super) config: IncomingConfig,
    pub(super) savevm: SaveVm,
    pub(super) vm: Arc<dyn Vm>,
    observer: Arc<dyn Observer>,
    pub(super) shared: Arc<Shared>,
}

/// What it owns afterwards.
pub(super) struct Running {
    pub(super) loader: Loader,
    pub(super) machine: Destination,
    /// The main stream, until its reader takes it over.
    pub(super) main: Option<Feed>,
    /// The package of postcopy, until it is used up.
    pub(super) package: Option<Feed>,
    /// From LISTEN on.
    pub(super) postcopy: Option<Postcopy>,
    /// Where the threads of postcopy will be heard, and the operator is.
    pub(super) inbox: Option<Inbox>,
    /// Where more connections of this stream come from.
    pub(super) listener: Option<Listener>,
    pub(super) main_link: ShutdownHandle,
    /// The extensions that both sides use.
    pub(super) features: Features,
    /// Multifd channels, until the setup hands them to RAM.
    company: Option<Company>,
    /// The other direction of the link, if it has one.
    pub(super) answers: Option<StreamWriter>,
    pub(super) progress: LoadProgress,
    /// The section that is open, for errors.
    section: Option<SectionId>,
    pub(super) place: Place,
    /// Where the item began that is being judged; `None` inside of a body, which is judged as it is read.
    item: Option<u64>,
    cleaned_up: bool,
    status: MigrationStatus,
    /// The first error is the cause of the others.
    pub(super) error: Option<String>,
}

impl Loader {
    pub(super) fn new(
        config: IncomingConfig,
        savevm: SaveVm,
        vm: Arc<dyn Vm>,
        observer: Arc<dyn Observer>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { config, savevm, vm, observer, shared }
    }

    pub(super) fn into_savevm(self) -> SaveVm {
        self.savevm
    }

    /// The whole migration.
    pub(super) fn run(self, origin: Origin, inbox: Inbox) -> (IncomingReport, SaveVm) {
        self.observer.status(MigrationStatus::Setup);
        let patience = self.config.read_deadline;
        let connections = origin.connections(&self.config, &self.shared).and_then(|mut connections| {
            connections.main.set_deadline(patience)?;
            Ok(connections)
        });
        match connections {
            Ok(connections) => self.start(connections, inbox).run(),
            Err(fault) => {
                let mut machine = Destination::new(DestinationConfig::default());
                let event = match &fault {
                    _ if self.shared.is_cancelled() => DestinationEvent::Cancel,
                    LoadFault::Transport(error) => lost(loss_reason(error)),
                    _ => DestinationEvent::LoadFailed { section: None },
                };
                machine.handle(event);
                self.report(&machine, Some(chain(&fault)), ByteCount(0))
            }
        }
    }

    fn start(self, connections: Connections, inbox: Inbox) -> Running {
        self.shared.view.lock().began = Some(Instant::now());
        let Connections { main, company } = connections;
        let bidirectional = main.is_bidirectional();
        let main_link = main.shutdown_handle();
        let (reader, writer) = main.split();
        let channels = self.config.channels.as_ref();
        let machine = Destination::new(DestinationConfig {
            features: extensions::OFFERED,
            multifd: channels.map(IncomingChannels::settings).unwrap_or_default(),
            bidirectional,
            switchover_ack: self.config.switchover_ack,
            require_vmdescription: self.config.require_vmdescription,
            postcopy: self.savevm.postcopy_advice().filter(|_| self.config.postcopy.is_some()),
            ..DestinationConfig::default()
        });
        Running {
            loader: self,
            machine,
            main: Some(Feed { stream: StreamDecoder::new(), input: StreamReader::new(reader) }),
            package: None,
            postcopy: None,
            inbox: Some(inbox),
            listener: None,
            main_link,
            features: Features::NONE,
            company,
            answers: bidirectional.then(|| StreamWriter::new(writer)),
            progress: LoadProgress::default(),
            section: None,
            place: Place::Header,
            item: None,
            cleaned_up: false,
            status: MigrationStatus::Setup,
            error: None,
        }
    }

    /// Seals the figures, tells the observer the end, and makes the report.
    fn report(
        self,
        machine: &Destination,
        error: Option<String>,
        received: ByteCount,
    ) -> (IncomingReport, SaveVm) {
        let outcome = machine.outcome().expect("asked for at the end").clone();
        let error = match &outcome.ending {
            DestinationEnding::Failed(failure) => Some(reason(failure, error.as_deref())),
            _ => None,
        };
        {
            let mut view = self.shared.view.lock();
            view.ended = true;
            view.statistics.total_time = view.began.map_or(Duration::ZERO, |began| began.elapsed());
            view.statistics.status = outcome.status();
            view.statistics.received = received;
            view.statistics.error = error;
        }
        self.observer.status(outcome.status());
        let last_word = machine.last_word().map(LastWord);
        (IncomingReport { outcome, statistics: self.shared.statistics(), last_word }, self.savevm)
    }
}

impl Running {
    fn run(mut self) -> (IncomingReport, SaveVm) {
        while self.machine.outcome().is_none() {
            match self.next() {
                Ok(Some(event)) => self.tell(event),
                Ok(None) => {}
                Err(fault) => self.fail(fault),
            }
        }
        self.finish()
    }

    fn finish(mut self) -> (IncomingReport, SaveVm) {
        // What fails here is noted; the guest does not run, so that it cannot matter more than that.
        self.clean_up();
        let received = self.received();
        let answered = self.machine.return_path_open();
        let (reader, writer) = self.take_links();
        let Self { loader, machine, error, .. } = self;
        // Before the link is closed: that can take a while, and who sees it closed may ask how it ended.
        let report = loader.report(&machine, error, received);
        close(reader, writer, answered);
        report
    }

    /// Reads one item of the stream and says what it was; `None` where the machine has been told already.
    fn next(&mut self) -> Result<Option<DestinationEvent>, LoadFault> {
        if self.postcopy.is_some() && !self.may_read_on()? {
            return Ok(None);
        }
        let Some(Feed { stream, input }) = self.package.as_mut().or(self.main.as_mut()) else {
            unreachable!("a stream is read until postcopy listens")
        };
        self.item = Some(input.offset());
        Ok(Some(match input.decode(|bytes| stream.next(bytes))? {
            StreamItem::Header => {
                self.place = Place::Configuration;
                DestinationEvent::HeaderRead
            }
            StreamItem::Configuration(theirs) => {
                check_configuration(self.loader.savevm.configuration(), &theirs)?;
                self.place = Place::BetweenSections;
                self.enter(MigrationStatus::Active);
                DestinationEvent::ConfigurationChecked
            }
            StreamItem::SectionStart(header) => {
                self.load_start(&header)?;
                return Ok(None);
            }
            StreamItem::SectionContinue { kind, id } => {
                let kind = match kind {
                    ContinueKind::Part => SectionKind::Part,
                    ContinueKind::End => SectionKind::End,
                };
                self.load(id, kind, 0)?;
                return Ok(None);
            }
            StreamItem::Footer(id) => {
                self.section = None;
                self.place = Place::BetweenSections;
                DestinationEvent::SectionLoaded { id }
            }
            StreamItem::Command(command) => {
                if command == Command::SwitchoverStart {
                    self.loader.savevm.switchover(Switchover::Started);
                }
                if let Command::Packaged { length } = command {
                    self.take_package(length)?;
                    return Ok(None);
                }
                DestinationEvent::CommandRead(command)
            }
            StreamItem::EndOfStream => {
                self.place = Place::End;
                if let Err((place, fault)) = self.loader.savevm.check_complete(&self.progress) {
                    self.place = place;
                    return Err(fault);
                }
                DestinationEvent::EndOfStream
            }
            StreamItem::VmDescription(_) => DestinationEvent::VmDescriptionRead,
        }))
    }

    fn load_start(&mut self, header: &SectionHeader) -> Result<(), LoadFault> {
        self.place = Place::Section { idstr: header.idstr.clone(), instance_id: header.instance_id };
        let entry = self.loader.savevm.open(&mut self.progress, header)?;
        let kind = match header.kind {
            limosa_wire::StartKind::Start => SectionKind::Start(entry),
            limosa_wire::StartKind::Full => SectionKind::Full(entry),
        };
        self.load(header.id, kind, header.version_id)
    }

    /// Tells the machine of the section, and reads its body if the machine has nothing against it.
    fn load(&mut self, id: SectionId, kind: SectionKind, version: u32) -> Result<(), LoadFault> {
        self.section = Some(id);
        self.place = self.loader.savevm.place_of(&self.progress, id);
        self.tell(DestinationEvent::SectionOpened { id, kind });
        if self.machine.outcome().is_none() {
            self.item = None;
            let feed = self.package.as_mut().or(self.main.as_mut()).expect("a section came from one");
            self.loader.savevm.load(&self.progress, id, version, &mut feed.input)?;
            feed.stream.end_of_body();
        }
        Ok(())
    }

    /// Hands an event to the machine and does all that it says.
    pub(super) fn tell(&mut self, event: DestinationEvent) {
        self.machine.handle(event);
        while let Some(action) = self.next_action() {
            match action {
                DestinationAction::Send(message) => self.answer(message),
                DestinationAction::SendReason => {
                    let reason = self.reason();
                    self.answer(ReturnMessage::Refused(reason));
                }
                DestinationAction::LoadSetup { features } => {
                    if let Err(fault) = self.load_setup(features) {
                        self.fail(fault);
                    }
                }
                DestinationAction::StartGuest => {
                    let event = self.start_guest();
                    self.machine.handle(event);
                }
                DestinationAction::Finish => self.note_place(),
                action => self.act_in_postcopy(action),
            }
        }
        self.show_postcopy();
        self.loader.shared.view.lock().statistics.received = self.received();
    }

    fn answer(&mut self, message: ReturnMessage) {
        let sent = match (&self.postcopy, &mut self.answers) {
            (Some(postcopy), _) => postcopy.send(message).map_err(|fault| (LossReason::Closed, fault)),
            (None, Some(answers)) => {
                message.encode(answers.buffer());
                answers.flush().map_err(|error| (loss_reason(&error), error.into()))
            }
            (None, None) => unreachable!("the machine answers on links that have a way back"),
        };
        if let Err((reason, fault)) = sent {
            self.note(fault);
            self.machine.handle(DestinationEvent::Lost(Loss { role: LinkRole::ReturnPath, reason }));
        }
    }

    /// Why the guest will not run here, for the source.
    fn reason(&self) -> RefusalReason {
        match self.machine.outcome().map(|outcome| &outcome.ending) {
            Some(DestinationEnding::Failed(failure)) => {
                RefusalReason::new(&reason(failure, self.error.as_deref()))
            }
            _ => RefusalReason::new("cancelled"),
        }
    }

    /// Waits for the channels, if there are to be some, and lets every live entry prepare.
    fn load_setup(&mut self, features: Features) -> Result<(), LoadFault> {
        let Loader { config, shared, savevm, .. } = &mut self.loader;
        self.features = features;
        let gather = |company: Company| company.gather(config, shared);
        let channels = self.company.take().map(gather).transpose()?.and_then(|(channels, listener)| {
            // What else comes there is wanted only if it is the connection for urgent pages, or one in place of a lost one.
            let wanted = config.uses_preempt() || features.contains(Features::LINK_REPLACEMENT);
            self.listener = wanted.then_some(listener);
            channels
        });
        let setup = LoadSetup { features, channels: Mutex::new(channels) };
        savevm.load_setup(&setup).map_err(|(place, fault)| {
            self.place = place;
            fault
        })
    }

    /// The machine's next action. A cancel is heard first, and taking the start of the guest closes the door to it
    /// in the same step: from then on a cancel must not end the link, over which the source is still to be told.
    fn next_action(&mut self) -> Option<DestinationAction> {
        let shared = &self.loader.shared;
        let mut stop = shared.stop.lock();
        if stop.is_some() && shared.is_cancelled() {
            self.machine.handle(DestinationEvent::Cancel);
        }
        let action = self.machine.poll_action()?;
        if action == DestinationAction::StartGuest {
            *stop = None;
        }
        Some(action)
    }

    fn start_guest(&mut self) -> DestinationEvent {
        if !self.clean_up() {
            return DestinationEvent::StartFailed;
        }
        let started = if self.loader.savevm.was_running() && self.loader.config.autostart {
            self.loader.vm.resume()
        } else {
            Ok(())
        };
        match started {
            Ok(()) => DestinationEvent::GuestStarted,
            Err(error) => {
                self.error.get_or_insert_with(|| chain(&error));
                DestinationEvent::StartFailed
            }
        }
    }

    /// Lets every live entry end, once; whether all of them could.
    fn clean_up(&mut self) -> bool {
        if std::mem::replace(&mut self.cleaned_up, true) {
            return true;
        }
        match self.loader.savevm.load_cleanup() {
            Ok(()) => true,
            Err((place, fault)) => {
                self.place = place;
                self.note(fault);
                false
            }
        }
    }

    /// Notes why, and where in the stream; the first error is the cause of the others.
    pub(super) fn note(&mut self, fault: LoadFault) {
        // The decoder counts from the start of what it was given.
        let within = if let LoadFault::Wire(error) = &fault { error.at() as u64 } else { 0 };
        let (place, offset) = (self.place.clone(), self.offset() + within);
        let error = LoadError { place, offset, source: Box::new(fault) };
        self.error.get_or_insert_with(|| chain(&error));
    }

    /// Notes where the machine has refused to go on; the reason is its own.
    fn note_place(&mut self) {
        let (place, offset) = (&self.place, self.offset());
        self.error.get_or_insert_with(|| format!("{place} at byte {offset} of the stream"));
    }

    /// Where in the stream an error belongs.
    fn offset(&self) -> u64 {
        let feed = || self.package.as_ref().or(self.main.as_ref());
        self.item.or_else(|| feed().map(|feed| feed.input.offset())).unwrap_or(0)
    }

    pub(super) fn fail(&mut self, fault: LoadFault) {
        // A source that hangs up may have lost a channel that failed here: the handler knows, and is asked first.
        let hung_up = matches!(fault, LoadFault::Transport(_) | LoadFault::Ended { .. });
        let handler_failed = hung_up && !self.clean_up();
        let event = match &fault {
            _ if self.loader.shared.is_cancelled() => DestinationEvent::Cancel,
            _ if handler_failed => DestinationEvent::LoadFailed { section: self.section },
            LoadFault::Transport(error) => lost(loss_reason(error)),
            LoadFault::Ended { .. } => lost(LossReason::Closed),
            LoadFault::Wire(_) if self.section.is_none() => lost(LossReason::Unreadable),
            LoadFault::Machine { .. }
            | LoadFault::Capability { .. }
            | LoadFault::Uuid
            | LoadFault::PageBits { .. } => DestinationEvent::ConfigurationRefused,
            _ => DestinationEvent::LoadFailed { section: self.section },
        };
        self.note(fault);
        self.tell(event);
    }

    pub(super) fn enter(&mut self, status: MigrationStatus) {
        if status != self.status {
            self.status = status;
            self.loader.shared.view.lock().statistics.status = status;
            self.loader.observer.status(status);
        }
    }
}

/// The machine's word for a failure, and what lies behind it.
fn reason(failure: &DestinationFailure, error: Option<&str>) -> String {
    error.map_or_else(|| failure.to_string(), |error| format!("{failure}: {error}"))
}

fn lost(reason: LossReason) -> DestinationEvent {
    DestinationEvent::Lost(Loss { role: LinkRole::Main, reason })
}

/// What both sides must share before anything else is read (wire 1.3).
fn check_configuration(ours: &Configuration, theirs: &Configuration) -> Result<(), LoadFault> {
    /// x86 has one size of target pages, and its peers do not mention it.
    const PAGE_BITS: u32 = 12;
    if theirs.machine != ours.machine {
        return Err(LoadFault::Machine { expected: ours.machine.clone(), got: theirs.machine.clone() });
    }
    if let Some(got) = theirs.target_page_bits.filter(|bits| *bits != PAGE_BITS) {
        return Err(LoadFault::PageBits { expected: PAGE_BITS, got });
    }
    for name in ["x-ignore-shared", "mapped-ram"] {
        let peer = theirs.has_capability(name);
        if peer != ours.has_capability(name) {
            return Err(LoadFault::Capability { name, peer });
        }
    }
    match (theirs.uuid, ours.uuid) {
        (Some(theirs), Some(ours)) if theirs != ours => Err(LoadFault::Uuid),
        _ => Ok(()),
    }
}

/// Ends our direction, then reads what the source still sends until it ends its own.
pub(super) fn close(reader: Option<LinkReader>, writer: Option<LinkWriter>, answered: bool) {
    let Some(mut reader) = reader else { return };
    let finished = writer.map_or(Ok(()), |mut writer| writer.finish());
    if !answered || finished.is_err() || reader.set_deadline(Some(DRAIN_TIME)).is_err() {
        return;
    }
    let deadline = Instant::now() + DRAIN_TIME;
    let mut dropped = vec![0; 64 << 10];
    while Instant::now() < deadline && matches!(reader.read_some(&mut dropped), Ok(1..)) {}
}

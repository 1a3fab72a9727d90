//! Tables of transitions: an event, and the whole list of actions that follows.

mod postcopy;
mod replacement;

use super::DestinationAction::{Finish, Send, StartGuest};
use super::*;
use crate::error::{LinkRole, Loss, LossReason, ProtocolError, Unexpected};
use crate::ping::PingPurpose;
use crate::status::GuestFate;
use DestinationEvent as E;
use limosa_wire::multifd::Compression;
use limosa_wire::{Agreement, Command, Features, Hello, MultifdSettings, ReturnMessage, SectionId};

const RAM: SectionId = SectionId(1);
const SERIAL: SectionId = SectionId(7);
const RAM_ENTRY: EntryIndex = EntryIndex(0);
const SERIAL_ENTRY: EntryIndex = EntryIndex(1);

const LOSS: Loss = Loss { role: LinkRole::Main, reason: LossReason::Closed };

fn after(destination: &mut Destination, event: DestinationEvent) -> Vec<DestinationAction> {
    destination.handle(event);
    std::iter::from_fn(|| destination.poll_action()).collect()
}

fn all_after(
    destination: &mut Destination,
    events: impl IntoIterator<Item = DestinationEvent>,
) -> Vec<DestinationAction> {
    events.into_iter().flat_map(|event| after(destination, event)).collect()
}

fn open(id: SectionId, kind: SectionKind) -> DestinationEvent {
    E::SectionOpened { id, kind }
}

fn section(id: SectionId, kind: SectionKind) -> [DestinationEvent; 2] {
    [open(id, kind), E::SectionLoaded { id }]
}

fn head() -> Vec<DestinationEvent> {
    vec![E::HeaderRead, E::ConfigurationChecked]
}

fn with_return_path() -> Vec<DestinationEvent> {
    [head(), vec![E::CommandRead(Command::OpenReturnPath)]].concat()
}

/// The whole stream up to and without EOF.
fn loaded() -> Vec<DestinationEvent> {
    [
        with_return_path(),
        section(RAM, SectionKind::Start(RAM_ENTRY)).to_vec(),
        section(RAM, SectionKind::Part).to_vec(),
        section(RAM, SectionKind::End).to_vec(),
        section(SERIAL, SectionKind::Full(SERIAL_ENTRY)).to_vec(),
    ]
    .concat()
}

fn at(events: Vec<DestinationEvent>) -> Destination {
    let mut destination = Destination::new(DestinationConfig::default());
    all_after(&mut destination, events);
    assert_eq!(destination.outcome(), None);
    destination
}

fn failure(destination: &Destination) -> &DestinationFailure {
    let outcome = destination.outcome().expect("it has ended");
    assert_eq!(outcome.fate, GuestFate::OnSource);
    match &outcome.ending {
        DestinationEnding::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

fn load_setup(features: Features) -> DestinationAction {
    DestinationAction::LoadSetup { features }
}

fn pong(value: u32) -> DestinationAction {
    Send(ReturnMessage::Pong(value))
}

const REFUSAL: DestinationAction = Send(ReturnMessage::Shut(1));
const SUCCESS: DestinationAction = Send(ReturnMessage::Shut(0));

#[test]
fn the_guest_starts_when_everything_is_read_and_the_source_hears_of_it_then() {
    let mut destination = Destination::new(DestinationConfig::default());
    assert_eq!(destination.status(), MigrationStatus::Setup);
    let setup = E::CommandRead(Command::Ping(PingPurpose::Setup.value()));
    assert_eq!(all_after(&mut destination, with_return_path()), []);
    assert_eq!(destination.status(), MigrationStatus::Active);
    let begun = all_after(&mut destination, section(RAM, SectionKind::Start(RAM_ENTRY)));
    assert_eq!(begun, [load_setup(Features::NONE)]);
    assert_eq!(after(&mut destination, setup), [pong(PingPurpose::Setup.value())]);
    assert_eq!(all_after(&mut destination, section(RAM, SectionKind::Part)), []);
    assert_eq!(after(&mut destination, E::CommandRead(Command::SwitchoverStart)), []);
    assert_eq!(all_after(&mut destination, section(RAM, SectionKind::End)), []);
    assert_eq!(all_after(&mut destination, section(SERIAL, SectionKind::Full(SERIAL_ENTRY))), []);
    assert_eq!(after(&mut destination, E::EndOfStream), []);
    assert_eq!(after(&mut destination, E::VmDescriptionRead), [StartGuest]);
    assert_eq!(after(&mut destination, E::GuestStarted), [SUCCESS, Finish]);
    let ending = DestinationEnding::Completed { told_source: true, late_failure: None };
    let fate = GuestFate::OnDestination;
    assert_eq!(destination.outcome(), Some(&DestinationOutcome { ending, fate }));
}

#[test]
fn without_a_return_path_nothing_is_ever_said() {
    let sections = loaded().into_iter().filter(|event| *event != E::CommandRead(Command::OpenReturnPath));
    let mut destination = at(sections.collect());
    let last = [E::EndOfStream, E::VmDescriptionRead, E::GuestStarted];
    assert_eq!(all_after(&mut destination, last), [StartGuest, Finish]);

    let mut destination = at(head());
    assert_eq!(after(&mut destination, E::Lost(LOSS)), [Finish]);
}

#[test]
fn loss_before_the_start_means_that_the_guest_never_runs_here() {
    let stream = [loaded(), vec![E::EndOfStream]].concat();
    for length in 0..=stream.len() {
        let mut destination = at(stream[..length].to_vec());
        let actions = after(&mut destination, E::Lost(LOSS));
        let expected = if length >= with_return_path().len() { vec![REFUSAL, Finish] } else { vec![Finish] };
        assert_eq!(actions, expected, "after {length} events");
        assert_eq!(failure(&destination), &DestinationFailure::Lost(LOSS));
        assert_eq!(after(&mut destination, E::VmDescriptionRead), [], "too late");
    }
}

#[test]
fn a_lost_return_path_is_not_written_to() {
    let mut destination = at(with_return_path());
    let loss = Loss { role: LinkRole::ReturnPath, ..LOSS };
    assert_eq!(after(&mut destination, E::Lost(loss)), [Finish]);
}

#[test]
fn loss_while_the_guest_starts_cannot_take_it_back() {
    let mut destination = at([loaded(), vec![E::EndOfStream, E::VmDescriptionRead]].concat());
    assert_eq!(all_after(&mut destination, [E::Lost(LOSS), E::Cancel]), []);
    assert_eq!(after(&mut destination, E::GuestStarted), [Finish]);
    let late_failure = Some(DestinationFailure::Lost(LOSS));
    let ending = DestinationEnding::Completed { told_source: false, late_failure };
    assert_eq!(destination.outcome().map(|outcome| &outcome.ending), Some(&ending));
}

#[test]
fn a_start_that_the_shell_has_not_taken_can_still_be_called_off() {
    let mut destination = at([loaded(), vec![E::EndOfStream]].concat());
    destination.handle(E::VmDescriptionRead);
    assert_eq!(after(&mut destination, E::Cancel), [REFUSAL, Finish]);
    assert_eq!(destination.status(), MigrationStatus::Cancelled);
}

#[test]
fn a_guest_that_does_not_start_is_refused() {
    let mut destination = at([loaded(), vec![E::EndOfStream, E::VmDescriptionRead]].concat());
    assert_eq!(after(&mut destination, E::StartFailed), [REFUSAL, Finish]);
    assert_eq!(failure(&destination), &DestinationFailure::Start);
}

#[test]
fn another_kind_of_machine_is_refused() {
    let mut destination = at(vec![E::HeaderRead]);
    assert_eq!(after(&mut destination, E::ConfigurationRefused), [Finish]);
    assert_eq!(failure(&destination), &DestinationFailure::Configuration);
}

#[test]
fn a_section_that_does_not_load_is_refused_by_number() {
    let mut destination = at([with_return_path(), vec![open(RAM, SectionKind::Start(RAM_ENTRY))]].concat());
    assert_eq!(after(&mut destination, E::LoadFailed { section: Some(RAM) }), [REFUSAL, Finish]);
    assert_eq!(failure(&destination).to_string(), "loading section 0x1 failed");
}

#[test]
fn a_ping_before_the_return_path_is_fatal() {
    let mut destination = at(head());
    assert_eq!(after(&mut destination, E::CommandRead(Command::Ping(9))), [Finish]);
    let error = ProtocolError {
        state: "between sections",
        expected: "OPEN_RETURN_PATH before any PING",
        got: Unexpected { name: "PING", value: Some(9) },
    };
    assert_eq!(failure(&destination), &DestinationFailure::Protocol(error));
}

#[test]
fn a_second_return_path_changes_nothing() {
    let mut destination = Destination::new(DestinationConfig { switchover_ack: true, ..Default::default() });
    let ack = Send(ReturnMessage::SwitchoverAck);
    assert_eq!(all_after(&mut destination, with_return_path()), [ack]);
    assert_eq!(after(&mut destination, E::CommandRead(Command::OpenReturnPath)), []);
    assert_eq!(after(&mut destination, E::CommandRead(Command::Ping(1))), [pong(1)]);
}

#[test]
fn a_return_path_over_a_link_without_a_way_back_is_refused() {
    let mut destination = Destination::new(DestinationConfig { bidirectional: false, ..Default::default() });
    assert_eq!(all_after(&mut destination, with_return_path()), [Finish]);
    assert_eq!(failure(&destination), &DestinationFailure::NoReturnPath);
}

#[test]
fn commands_of_postcopy_and_colo_are_refused_by_name() {
    let commands = [
        (Command::PostcopyAdvise(None), "POSTCOPY_ADVISE"),
        (Command::PostcopyListen, "POSTCOPY_LISTEN"),
        (Command::PostcopyRun, "POSTCOPY_RUN"),
        (Command::Packaged { length: 10 }, "PACKAGED"),
        (Command::EnableColo, "ENABLE_COLO"),
        (Command::PostcopyResume, "POSTCOPY_RESUME"),
    ];
    for (command, name) in commands {
        let mut destination = at(with_return_path());
        assert_eq!(after(&mut destination, E::CommandRead(command)), [REFUSAL, Finish]);
        assert_eq!(failure(&destination), &DestinationFailure::Unsupported { command: name });
    }
}

#[test]
fn sections_keep_their_order() {
    let started = section(RAM, SectionKind::Start(RAM_ENTRY)).to_vec();
    let ended = [started.clone(), section(RAM, SectionKind::End).to_vec()].concat();
    let device = section(SERIAL, SectionKind::Full(SERIAL_ENTRY)).to_vec();
    let table = [
        (vec![], open(RAM, SectionKind::Part), DestinationFailure::NotLive { kind: "PART", id: RAM }),
        (ended.clone(), open(RAM, SectionKind::End), DestinationFailure::NotLive { kind: "END", id: RAM }),
        (device, open(SERIAL, SectionKind::Part), DestinationFailure::NotLive { kind: "PART", id: SERIAL }),
        (
            started.clone(),
            open(RAM, SectionKind::Full(SERIAL_ENTRY)),
            DestinationFailure::DuplicateId { id: RAM },
        ),
        (
            started.clone(),
            open(SERIAL, SectionKind::Full(RAM_ENTRY)),
            DestinationFailure::DuplicateEntry { id: SERIAL },
        ),
        (started, E::EndOfStream, DestinationFailure::Unended { id: RAM }),
    ];
    for (events, last, expected) in table {
        let mut destination = at([with_return_path(), events].concat());
        assert_eq!(after(&mut destination, last), [REFUSAL, Finish], "{expected}");
        assert_eq!(failure(&destination), &expected);
    }
}

#[test]
fn nothing_may_come_inside_of_a_section() {
    let wrong = [
        open(SERIAL, SectionKind::Full(SERIAL_ENTRY)),
        E::SectionLoaded { id: SERIAL },
        E::CommandRead(Command::SwitchoverStart),
        E::EndOfStream,
    ];
    for event in wrong {
        let opened = [with_return_path(), vec![open(RAM, SectionKind::Start(RAM_ENTRY))]].concat();
        let mut destination = at(opened);
        assert_eq!(after(&mut destination, event), [REFUSAL, Finish]);
        assert!(matches!(failure(&destination), DestinationFailure::Protocol(_)));
    }
}

#[test]
fn sections_are_limited_in_number() {
    let mut destination = at(with_return_path());
    for number in 0..SECTIONS_MAX as u32 {
        all_after(&mut destination, section(SectionId(number), SectionKind::Full(EntryIndex(number))));
    }
    assert_eq!(destination.outcome(), None);
    let number = SECTIONS_MAX as u32;
    after(&mut destination, open(SectionId(number), SectionKind::Full(EntryIndex(number))));
    assert_eq!(failure(&destination), &DestinationFailure::TooManySections { limit: SECTIONS_MAX });
}

#[test]
fn a_snapshot_without_the_end_of_ram_loads_where_that_is_asked_for() {
    let mut destination =
        Destination::new(DestinationConfig { require_end_sections: false, ..Default::default() });
    all_after(&mut destination, head());
    all_after(&mut destination, section(RAM, SectionKind::Start(RAM_ENTRY)));
    assert_eq!(all_after(&mut destination, [E::EndOfStream, E::VmDescriptionRead]), [StartGuest]);
}

#[test]
fn a_stream_without_vmdescription_ends_at_eof_where_that_is_asked_for() {
    let config = DestinationConfig { require_vmdescription: false, ..Default::default() };
    let mut destination = Destination::new(config);
    all_after(&mut destination, loaded());
    assert_eq!(after(&mut destination, E::EndOfStream), [StartGuest]);
}

const GREETED: Command = Command::Ping(limosa_wire::GREETING);

fn four_channels() -> DestinationConfig {
    let multifd = MultifdSettings { channels: 4, compression: Compression::Zstd };
    DestinationConfig { features: Features::POPULATED_REPORT, multifd, ..DestinationConfig::default() }
}

/// A destination with four channels that has been greeted.
fn greeted() -> Destination {
    let mut destination = Destination::new(four_channels());
    all_after(&mut destination, with_return_path());
    let hello = Hello { version: 1, features: Features::POPULATED_REPORT };
    let said = after(&mut destination, E::CommandRead(GREETED));
    assert_eq!(said, [Send(ReturnMessage::Hello(hello)), pong(limosa_wire::GREETING)]);
    destination
}

fn chosen(features: Features, channels: u8, compression: Compression) -> DestinationEvent {
    let multifd = MultifdSettings { channels, compression };
    E::CommandRead(Command::Features(Agreement { features, multifd }))
}

const REASONED: [DestinationAction; 3] = [DestinationAction::SendReason, REFUSAL, Finish];

#[test]
fn what_the_source_chose_is_told_to_the_handlers_before_the_first_section_once() {
    let mut destination = greeted();
    let features = Features::POPULATED_REPORT;
    assert_eq!(after(&mut destination, chosen(features, 4, Compression::Zstd)), []);
    let started = all_after(&mut destination, section(RAM, SectionKind::Start(RAM_ENTRY)));
    assert_eq!(started, [load_setup(features)]);
    assert_eq!(all_after(&mut destination, section(RAM, SectionKind::Part)), []);
}

#[test]
fn settings_that_differ_are_refused_with_both_values() {
    let table = [
        (0, Compression::None, "multifd: off at the source, on at the destination"),
        (2, Compression::Zstd, "multifd-channels: 2 at the source, 4 at the destination"),
        (4, Compression::Zlib, "multifd-compression: zlib at the source, zstd at the destination"),
        (
            1,
            Compression::None,
            "multifd-channels: 1 at the source, 4 at the destination; \
             multifd-compression: none at the source, zstd at the destination",
        ),
    ];
    for (channels, compression, text) in table {
        let mut destination = greeted();
        assert_eq!(after(&mut destination, chosen(Features::NONE, channels, compression)), REASONED);
        assert_eq!(failure(&destination).to_string(), text);
    }
}

#[test]
fn a_feature_that_was_not_offered_is_refused() {
    let mut destination = greeted();
    let event = chosen(Features::KNOWN, 4, Compression::Zstd);
    assert_eq!(after(&mut destination, event), REASONED);
    let features = Features::KNOWN.without(Features::POPULATED_REPORT);
    assert_eq!(failure(&destination), &DestinationFailure::NotOffered { features });
}

#[test]
fn features_belong_between_the_greeting_and_the_first_section() {
    let choice = || chosen(Features::NONE, 4, Compression::Zstd);
    let mut unasked = Destination::new(four_channels());
    all_after(&mut unasked, with_return_path());
    assert_eq!(after(&mut unasked, choice()), [REFUSAL, Finish], "a QEMU would not understand a reason");

    let mut twice = greeted();
    assert_eq!(all_after(&mut twice, [choice(), choice()]), REASONED);

    let mut late = greeted();
    all_after(&mut late, section(RAM, SectionKind::Start(RAM_ENTRY)));
    assert_eq!(after(&mut late, choice()), REASONED);
}

#[test]
fn a_source_that_has_greeted_hears_why() {
    let mut destination = greeted();
    assert_eq!(after(&mut destination, E::LoadFailed { section: None }), REASONED);
    let mut lost = greeted();
    let loss = Loss { role: LinkRole::ReturnPath, ..LOSS };
    assert_eq!(after(&mut lost, E::Lost(loss)), [Finish], "but not over a return path that is gone");
}

//! The package, the guest that runs before its memory is here, pause and recovery.

use super::*;
use crate::destination::PostcopyStream;
use limosa_pages::{BlockName, PAGE_BYTES, PageCount};
use limosa_wire::{DiscardRange, PostcopyAdvice};

const ADVICE: PostcopyAdvice =
    PostcopyAdvice { page_size_summary: PAGE_BYTES as u64, target_page_size: PAGE_BYTES as u64 };

const BLOCK_DEVICE: SectionId = SectionId(2);
const BLOCK_ENTRY: EntryIndex = EntryIndex(2);

pub(super) fn command(command: Command) -> DestinationEvent {
    E::CommandRead(command)
}

fn advise(advice: PostcopyAdvice) -> DestinationEvent {
    command(Command::PostcopyAdvise(Some(advice)))
}

pub(super) fn ram() -> BlockName {
    BlockName::new("ram").unwrap()
}

fn discard() -> Command {
    let ranges = vec![DiscardRange { start: 0, length: PAGE_BYTES as u64 }];
    Command::PostcopyRamDiscard { block: ram(), ranges }
}

fn config() -> DestinationConfig {
    let postcopy = Some(ADVICE);
    let features = Features::RUNNING_ANSWERS | Features::LINK_REPLACEMENT;
    DestinationConfig { features, postcopy, ..DestinationConfig::default() }
}

/// The stream up to and with PACKAGED; RAM is live, another live section has ended.
fn up_to_the_package(answers: bool) -> Vec<DestinationEvent> {
    up_to_the_package_with(answers.then_some(Features::RUNNING_ANSWERS))
}

/// The same from a source that greets and uses these features, or does not greet.
fn up_to_the_package_with(features: Option<Features>) -> Vec<DestinationEvent> {
    let greeted = |features| vec![command(GREETED), chosen(features, 0, Compression::None)];
    let greeting = features.map(greeted).unwrap_or_default();
    [
        with_return_path(),
        greeting,
        vec![advise(ADVICE)],
        section(RAM, SectionKind::Start(RAM_ENTRY)).to_vec(),
        section(BLOCK_DEVICE, SectionKind::Start(BLOCK_ENTRY)).to_vec(),
        section(RAM, SectionKind::Part).to_vec(),
        section(BLOCK_DEVICE, SectionKind::End).to_vec(),
        vec![command(discard()), command(Command::Packaged { length: 100 })],
    ]
    .concat()
}

fn package() -> Vec<DestinationEvent> {
    [
        vec![command(Command::PostcopyListen)],
        section(SERIAL, SectionKind::Full(SERIAL_ENTRY)).to_vec(),
        vec![command(Command::Ping(3)), command(Command::PostcopyRun), E::PackageEnded],
    ]
    .concat()
}

fn destination(events: Vec<DestinationEvent>) -> Destination {
    let mut destination = Destination::new(config());
    all_after(&mut destination, events);
    assert_eq!(destination.outcome(), None);
    destination
}

fn running(answers: bool) -> Destination {
    destination([up_to_the_package(answers), package(), vec![E::GuestStarted]].concat())
}

/// A guest that runs, from a source that uses these features.
pub(super) fn running_with(features: Features) -> Destination {
    destination([up_to_the_package_with(Some(features)), package(), vec![E::GuestStarted]].concat())
}

fn paused() -> Destination {
    let mut destination = running(true);
    assert_eq!(all_after(&mut destination, [E::Lost(LOSS), E::Paused]), [DestinationAction::Pause]);
    assert_eq!(destination.status(), MigrationStatus::PostcopyPaused);
    destination
}

#[test]
fn the_guest_starts_with_the_package_and_the_end_waits_for_the_last_page() {
    let mut destination = Destination::new(config());
    let said = all_after(&mut destination, up_to_the_package(true));
    let DestinationAction::Discard { .. } = &said[said.len() - 1] else { panic!("{said:?}") };
    assert!(said.contains(&DestinationAction::PreparePostcopy));
    let loaded = all_after(&mut destination, package());
    assert_eq!(loaded, [DestinationAction::Listen, pong(3), StartGuest]);
    assert_eq!(destination.status(), MigrationStatus::Active);
    assert_eq!(after(&mut destination, E::GuestStarted), [Send(ReturnMessage::Running)]);
    assert_eq!(destination.status(), MigrationStatus::PostcopyActive);
    assert_eq!(after(&mut destination, command(Command::Ping(4))), [pong(4)]);
    assert_eq!(after(&mut destination, E::EndOfStream), [DestinationAction::AwaitPages]);
    assert_eq!(after(&mut destination, E::AllReceived), [SUCCESS, Finish]);
    assert_eq!(destination.outcome().unwrap().fate, GuestFate::OnDestination);
    assert_eq!(destination.last_word(), Some(ReturnMessage::Shut(0)));
}

#[test]
fn a_source_that_has_not_asked_hears_nothing_of_the_guest() {
    let mut destination = destination([up_to_the_package(false), package()].concat());
    assert_eq!(after(&mut destination, E::GuestStarted), []);
}

#[test]
fn an_advice_that_does_not_fit_is_refused() {
    let huge = PostcopyAdvice { page_size_summary: 0x20_1000, ..ADVICE };
    let mut other = destination(with_return_path());
    after(&mut other, advise(huge));
    assert_eq!(failure(&other), &DestinationFailure::Advice { source_pages: huge, here: ADVICE });

    let mut disabled = at(with_return_path());
    after(&mut disabled, advise(ADVICE));
    assert_eq!(failure(&disabled), &DestinationFailure::Unsupported { command: "POSTCOPY_ADVISE" });

    let mut late =
        destination([with_return_path(), section(RAM, SectionKind::Start(RAM_ENTRY)).to_vec()].concat());
    after(&mut late, advise(ADVICE));
    assert!(matches!(failure(&late), DestinationFailure::Protocol(_)));
}

#[test]
fn nothing_of_postcopy_is_obeyed_without_an_advice() {
    for command in [discard(), Command::Packaged { length: 1 }, Command::PostcopyListen, Command::PostcopyRun]
    {
        let mut destination = destination(with_return_path());
        after(&mut destination, E::CommandRead(command));
        assert!(matches!(failure(&destination), DestinationFailure::Unsupported { .. }));
    }
}

#[test]
fn an_advised_migration_may_still_end_in_precopy() {
    let events: Vec<_> = up_to_the_package(true);
    let precopy = events[..events.len() - 2].to_vec();
    let mut destination = destination(precopy);
    all_after(&mut destination, section(RAM, SectionKind::End));
    let last = [E::EndOfStream, E::VmDescriptionRead, E::GuestStarted];
    assert_eq!(all_after(&mut destination, last), [StartGuest, SUCCESS, Finish]);
}

#[test]
fn loss_anywhere_before_run_means_that_the_guest_never_runs_and_the_source_can_ask() {
    let stream = [up_to_the_package(true), package()].concat();
    let chosen_at = with_return_path().len() + 2;
    for length in chosen_at..stream.len() {
        let mut destination = destination(stream[..length].to_vec());
        after(&mut destination, E::Lost(LOSS));
        assert_eq!(failure(&destination), &DestinationFailure::Lost(LOSS), "after {length} events");
        assert_eq!(destination.last_word(), Some(ReturnMessage::NeverRan));
        assert_eq!(after(&mut destination, E::PackageEnded), [], "and nothing starts it later");
    }
    let mut unasked = destination(up_to_the_package(false));
    after(&mut unasked, E::Lost(LOSS));
    assert_eq!(unasked.last_word(), None);
}

#[test]
fn a_package_out_of_order_is_refused() {
    let listen = command(Command::PostcopyListen);
    let run = command(Command::PostcopyRun);
    let device = section(SERIAL, SectionKind::Full(SERIAL_ENTRY));
    let packages = [
        vec![run.clone()],
        vec![listen.clone(), listen.clone()],
        vec![listen.clone(), E::PackageEnded],
        vec![listen.clone(), run.clone(), device[0].clone()],
        vec![listen.clone(), device[0].clone(), run.clone()],
        vec![listen.clone(), run.clone(), run],
        vec![listen, open(RAM, SectionKind::Part)],
    ];
    for package in packages {
        let mut destination = Destination::new(config());
        all_after(&mut destination, up_to_the_package(true));
        all_after(&mut destination, package.clone());
        assert!(matches!(failure(&destination), DestinationFailure::Protocol(_)), "{package:?}");
    }
}

#[test]
fn a_guest_that_cannot_start_never_ran() {
    let mut destination = destination([up_to_the_package(true), package()].concat());
    assert_eq!(after(&mut destination, E::StartFailed), REASONED);
    assert_eq!(failure(&destination), &DestinationFailure::Start);
    assert_eq!(destination.last_word(), Some(ReturnMessage::NeverRan));
}

#[test]
fn an_end_that_is_read_before_the_guest_runs_is_remembered() {
    let mut destination = destination([up_to_the_package(true), package()].concat());
    assert_eq!(after(&mut destination, E::EndOfStream), []);
    let said = [Send(ReturnMessage::Running), DestinationAction::AwaitPages];
    assert_eq!(after(&mut destination, E::GuestStarted), said);
}

#[test]
fn a_loss_while_the_guest_is_started_pauses_once_it_runs() {
    let mut destination = destination([up_to_the_package(true), package()].concat());
    assert_eq!(all_after(&mut destination, [E::Lost(LOSS), E::Cancel]), []);
    assert_eq!(after(&mut destination, E::GuestStarted), [DestinationAction::Pause]);
}

#[test]
fn whatever_goes_wrong_while_the_guest_runs_only_pauses() {
    let events = [
        E::Lost(LOSS),
        E::LoadFailed { section: Some(RAM) },
        E::StreamRefused(DestinationFailure::Unended { id: RAM }),
        E::PausePostcopy,
        E::HeaderRead,
        command(Command::PostcopyRun),
    ];
    for event in events {
        let mut destination = running(true);
        assert_eq!(after(&mut destination, event.clone()), [DestinationAction::Pause], "{event:?}");
        assert_eq!(destination.outcome(), None);
    }
    assert_eq!(after(&mut running(true), E::Cancel), []);
}

#[test]
fn pages_that_are_missing_at_the_end_pause_and_are_never_read_as_zero() {
    let mut destination = running(true);
    after(&mut destination, E::EndOfStream);
    let missing = DestinationFailure::PagesMissing { pages: PageCount(2) };
    assert_eq!(after(&mut destination, E::PagesMissing { pages: PageCount(2) }), [DestinationAction::Pause]);
    after(&mut destination, E::Paused);
    assert_eq!(destination.paused(), Some(&missing));
}

#[test]
fn a_recovery_tells_what_is_here_and_asks_again_behind_its_answer() {
    let mut destination = paused();
    assert_eq!(after(&mut destination, E::Reconnected), []);
    assert_eq!(destination.status(), MigrationStatus::PostcopyRecover);
    let asked = command(Command::RecvBitmap { block: ram() });
    assert_eq!(after(&mut destination, asked), [DestinationAction::SendBitmap { block: ram() }]);
    let resumed =
        [DestinationAction::TakeLinks, Send(ReturnMessage::ResumeAck), DestinationAction::ResumeFaults];
    assert_eq!(after(&mut destination, command(Command::PostcopyResume)), resumed);
    assert_eq!(destination.status(), MigrationStatus::PostcopyActive);
    let last = [E::EndOfStream, E::AllReceived];
    assert_eq!(all_after(&mut destination, last), [DestinationAction::AwaitPages, SUCCESS, Finish]);
}

#[test]
fn a_recovery_that_fails_is_paused_again() {
    let mut destination = paused();
    for _ in 0..3 {
        assert_eq!(all_after(&mut destination, [E::Reconnected, E::Lost(LOSS)]), [DestinationAction::Pause]);
        assert_eq!(after(&mut destination, E::Paused), []);
    }
    assert_eq!(destination.status(), MigrationStatus::PostcopyPaused);
}

#[test]
fn what_a_dead_connection_still_says_means_nothing() {
    let mut destination = running(true);
    after(&mut destination, E::Lost(LOSS));
    let late = [E::Lost(LOSS), E::EndOfStream, E::AllReceived, command(Command::PostcopyResume)];
    assert_eq!(all_after(&mut destination, late), []);
    assert_eq!(destination.status(), MigrationStatus::PostcopyActive);
}

#[test]
fn a_guest_that_is_given_up_is_lost() {
    let mut destination = running(true);
    assert_eq!(after(&mut destination, E::GiveUp), [], "only while it is paused");
    let mut destination = paused();
    assert_eq!(after(&mut destination, E::GiveUp), [Finish]);
    assert_eq!(destination.outcome().unwrap().fate, GuestFate::Lost);
    assert_eq!(destination.last_word(), None);
}

fn stream() -> PostcopyStream {
    destination([up_to_the_package(true), package()[..1].to_vec()].concat()).postcopy_stream()
}

#[test]
fn the_main_link_carries_live_sections_pings_and_the_end() {
    let mut stream = stream();
    for event in section(RAM, SectionKind::Part) {
        assert_eq!(stream.on(event), Ok(None));
    }
    let ping = command(Command::Ping(4));
    assert_eq!(stream.on(ping.clone()), Ok(Some(ping)));
    for event in section(RAM, SectionKind::End) {
        assert_eq!(stream.on(event), Ok(None));
    }
    assert_eq!(stream.on(E::EndOfStream), Ok(Some(E::EndOfStream)));
}

#[test]
fn the_main_link_is_refused_what_does_not_belong_there() {
    let refused = [
        open(SERIAL, SectionKind::Full(SERIAL_ENTRY)),
        open(BLOCK_DEVICE, SectionKind::Part),
        open(SectionId(99), SectionKind::Part),
        E::SectionLoaded { id: RAM },
        command(Command::PostcopyRun),
        command(discard()),
        E::EndOfStream,
    ];
    for event in refused {
        assert!(stream().on(event.clone()).is_err(), "{event:?}");
    }
}

#[test]
fn after_a_recovery_an_ended_section_may_end_again() {
    let mut first = stream();
    for event in section(RAM, SectionKind::End) {
        first.on(event).unwrap();
    }
    let mut second = paused().postcopy_stream();
    assert_eq!(second.on(open(RAM, SectionKind::Part)), Ok(None));
}

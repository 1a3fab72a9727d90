//! Who is there, what is agreed on, and why a destination refuses.

use super::*;
use crate::source::FeatureWishes;
use limosa_wire::multifd::Compression;
use limosa_wire::{Agreement, EXTENSIONS_VERSION, Hello, MultifdSettings, RefusalReason};

fn hello(features: Features) -> SourceEvent {
    SourceEvent::Return(ReturnMessage::Hello(Hello { version: EXTENSIONS_VERSION, features }))
}

fn because(reason: &str) -> SourceEvent {
    SourceEvent::Return(ReturnMessage::Refused(RefusalReason::new(reason)))
}

fn wishes(wanted: Features, required: Features) -> SourceConfig {
    SourceConfig { features: FeatureWishes { wanted, required }, ..SourceConfig::default() }
}

fn greeted(config: SourceConfig, offered: Features) -> Run {
    let mut run = Run::in_phase(config, Phase::Greeting);
    run.all_after([hello(offered), pong(PingPurpose::Greeting)]);
    run
}

#[test]
fn what_is_wanted_and_offered_is_chosen_and_told_before_the_setup() {
    let multifd = MultifdSettings { channels: 4, compression: Compression::Zstd };
    let wanted = Features::POPULATED_REPORT | Features::RUNNING_ANSWERS;
    let config = SourceConfig { multifd, ..wishes(wanted, Features::PER_PACKET_CODECS) };
    let mut run = Run::in_phase(config, Phase::Greeting);
    let offered = Features::PER_PACKET_CODECS | Features::RUNNING_ANSWERS | Features::POSTCOPY_CHANNELS;
    assert_eq!(run.all_after([pong(PingPurpose::Open), hello(offered)]), []);
    let features = Features::PER_PACKET_CODECS | Features::RUNNING_ANSWERS;
    let told = SendCommand(Command::Features(Agreement { features, multifd }));
    assert_eq!(run.after(pong(PingPurpose::Greeting)), [told, SaveSetup { features }]);
}

#[test]
fn a_destination_without_extensions_is_sent_none() {
    let mut run = Run::in_phase(wishes(Features::KNOWN, Features::NONE), Phase::Greeting);
    assert_eq!(run.after(pong(PingPurpose::Greeting)), [SAVE_SETUP]);
}

#[test]
fn a_required_feature_that_is_not_there_ends_the_migration_before_anything_moves() {
    let config = || wishes(Features::KNOWN, Features::PER_PACKET_CODECS | Features::RUNNING_ANSWERS);
    let mut of_qemu = Run::in_phase(config(), Phase::Greeting);
    assert_eq!(of_qemu.after(pong(PingPurpose::Greeting)), [CloseLink, Finish]);
    let missing = Features::PER_PACKET_CODECS | Features::RUNNING_ANSWERS;
    let failure = SourceFailure::MissingFeatures { missing, extended: false };
    let text =
        "the destination knows no extensions and offers no codecs per packet, answers whether the guest runs";
    assert_eq!(failure.to_string(), text);
    assert_eq!(of_qemu.outcome(), &failed(failure, GuestFate::OnSource));

    let of_an_older_one = greeted(config(), Features::PER_PACKET_CODECS);
    let failure = SourceFailure::MissingFeatures { missing: Features::RUNNING_ANSWERS, extended: true };
    assert_eq!(of_an_older_one.outcome(), &failed(failure, GuestFate::OnSource));
}

#[test]
#[should_panic(expected = "no return path to agree about codecs per packet on")]
fn features_cannot_be_required_without_a_return_path() {
    let config = SourceConfig { return_path: false, ..wishes(Features::NONE, Features::PER_PACKET_CODECS) };
    Run::new(config);
}

#[test]
fn a_second_hello_and_a_late_one_are_broken_rules() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Greeting);
    run.after(hello(Features::NONE));
    assert_eq!(run.after(hello(Features::NONE)), [CloseLink, Finish]);
    for phase in [Phase::Setup, Phase::Round] {
        let mut run = Run::in_phase(SourceConfig::default(), phase);
        assert_eq!(run.after(hello(Features::NONE)), [CloseLink, Finish]);
        let ending = &run.outcome().ending;
        assert!(matches!(ending, SourceEnding::Failed(SourceFailure::Protocol(_))), "{ending:?}");
    }
}

#[test]
fn a_reason_before_the_commit_point_ends_the_migration_at_once() {
    let mut run = greeted(SourceConfig::default(), Features::NONE);
    assert_eq!(run.after(because("no room")), [CloseLink, Finish]);
    let reason = Some(RefusalReason::new("no room"));
    let failure = SourceFailure::Refused { code: 1, reason };
    assert_eq!(failure.to_string(), "the destination refused: no room");
    assert_eq!(run.outcome(), &failed(failure, GuestFate::OnSource));
}

#[test]
fn a_reason_after_the_commit_point_explains_the_shut_and_is_none_itself() {
    let mut run = greeted(SourceConfig::default(), Features::NONE);
    run.all_after([setup_saved(), pong(PingPurpose::Setup), synced(0), SourceEvent::VmStopped, synced(0)]);
    run.all_after([precopy_completed(), devices_saved(), pong(PingPurpose::Switchover), end_sent()]);
    assert_eq!(run.after(because("the guest could not be started")), []);
    assert_eq!(run.source.state_name(), "awaiting shut");
    assert_eq!(run.after(shut(1)), [CloseLink, ResumeVm]);
    run.after(SourceEvent::VmResumed);
    let reason = Some(RefusalReason::new("the guest could not be started"));
    assert_eq!(run.outcome(), &failed(SourceFailure::Refused { code: 1, reason }, GuestFate::OnSource));
}

#[test]
fn a_reason_of_a_destination_that_never_said_hello_is_a_broken_rule() {
    let mut run = Run::in_phase(SourceConfig::default(), Phase::Round);
    assert_eq!(run.after(because("no room")), [CloseLink, Finish]);
    let ending = &run.outcome().ending;
    assert!(matches!(ending, SourceEnding::Failed(SourceFailure::Protocol(_))), "{ending:?}");
}

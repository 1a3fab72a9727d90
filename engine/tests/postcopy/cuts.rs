//! The connection is cut after any number of bytes of a postcopy: one side has the guest, and it can always be made whole.

use super::guest::Guest;
use super::relay::{Cut, End, Medium, Traffic, Way, relay};
use limosa_engine::{
    AutoPostcopy, Capabilities, GuestFate, Incoming, IncomingConfig, IncomingPostcopy, IncomingReport,
    NoObserver, OperatorWord, Outgoing, OutgoingConfig, OutgoingReport, Parameters, RunState,
};
use limosa_transport::Address;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes between two cuts, where a page passes; every byte elsewhere would take minutes more and finds the same.
const STRIDE: usize = 61;

/// A migration that takes as long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A small guest that goes over to postcopy as soon as it can.
fn config() -> OutgoingConfig {
    let at_once = AutoPostcopy { rounds_max: None, time_max: Some(Duration::ZERO) };
    OutgoingConfig {
        capabilities: Capabilities { postcopy_ram: true, ..OutgoingConfig::default().capabilities },
        parameters: Parameters { postcopy_auto: Some(at_once), ..Parameters::default() },
        ..OutgoingConfig::default()
    }
}

struct Ended {
    outgoing: OutgoingReport,
    incoming: IncomingReport,
    pauses: u32,
}

/// How a source in doubt hears where its guest is, once the destination has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// It asks.
    Ask,
    /// An operator looks there, and says so.
    BeTold,
}

/// A migration over a relay, ended as an operator would who looks at both sides.
fn migrate(
    source: &mut Guest,
    destination: &mut Guest,
    medium: Medium,
    cut: Option<Cut>,
    doubt: Doubt,
) -> (Ended, Traffic) {
    let (here, there, relay) = relay(medium, cut);
    let config_there =
        IncomingConfig { postcopy: Some(IncomingPostcopy::default()), ..IncomingConfig::default() };
    let observer = Arc::new(NoObserver);
    let (savevm, vm) = (destination.take_savevm(), destination.vm());
    let incoming = Incoming::over(there, config_there, savevm, vm, observer.clone()).unwrap();
    let outgoing = Outgoing::over(here, config(), source.take_savevm(), source.vm(), observer).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let figures = (outgoing.statistics(), incoming.statistics());
        assert!(Instant::now() < deadline, "{cut:?} {medium:?}: {figures:?}");
        let (status_here, status_there) = (figures.0.status, figures.1.status);
        match (status_here.as_str(), status_there.as_str()) {
            _ if outgoing.has_ended() && incoming.has_ended() => break,
            ("postcopy-paused", "completed" | "failed") if doubt == Doubt::Ask && incoming.has_ended() => {
                break;
            }
            ("postcopy-paused", "postcopy-paused") => {
                let anywhere: Address = "tcp:127.0.0.1:0".parse().unwrap();
                let address = incoming.recover_postcopy(&anywhere).unwrap();
                let pauses = figures.0.pauses;
                outgoing.resume_postcopy(address).unwrap();
                // Heard, or tried and paused again.
                while outgoing.statistics().status == status_here && outgoing.statistics().pauses == pauses {
                    std::thread::yield_now();
                }
            }
            // Said again until it is heard; then the migration has ended, and says so.
            ("postcopy-paused", "completed") => drop(outgoing.end_postcopy(OperatorWord::HasGuest)),
            ("postcopy-paused", "failed") => drop(outgoing.end_postcopy(OperatorWord::NeverRan)),
            _ => std::thread::yield_now(),
        }
    }
    let pauses = outgoing.statistics().pauses;
    let (incoming, savevm) = incoming.wait();
    destination.give_back(savevm);
    let listener = (!outgoing.has_ended()).then(|| {
        let word = incoming.last_word.as_ref().expect("it was asked for in the greeting");
        let listener = word.tell_at(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
        outgoing.resume_postcopy(listener.address().clone()).unwrap();
        listener
    });
    let (outgoing, savevm) = outgoing.wait();
    source.give_back(savevm);
    drop(listener);
    (Ended { outgoing, incoming, pauses }, relay.join().unwrap())
}

fn assert_one_guest(source: &Guest, destination: &Guest, memory: &[u8], ended: &Ended, what: &str) {
    let (here, there) = (source.run_state(), destination.run_state());
    match ended.outgoing.guest() {
        GuestFate::OnSource => {
            assert_eq!((here, there), (RunState::Running, RunState::InMigrate), "{what}");
            assert!(!ended.incoming.is_completed(), "{what}");
        }
        GuestFate::OnDestination => {
            assert_eq!((here, there), (RunState::Paused, RunState::Running), "{what}");
            assert!(ended.incoming.is_completed(), "{what}");
            assert!(destination.memory() == memory, "{what}");
            assert_eq!(*source.counter.lock(), *destination.counter.lock(), "{what}");
        }
        fate => panic!("{fate}: {what}"),
    }
}

#[test]
fn a_guest_is_whole_on_one_side_wherever_its_postcopy_is_cut() {
    let (mut source, mut destination) = (Guest::tiny(), Guest::tiny_incoming());
    let memory = source.memory();
    let (ended, traffic) = migrate(&mut source, &mut destination, Medium::Unix, None, Doubt::BeTold);
    assert_one_guest(&source, &destination, &memory, &ended, "undisturbed");
    assert_eq!(ended.outgoing.guest(), GuestFate::OnDestination);
    assert_eq!(ended.pauses, 0);

    let (mut recovered, mut stayed) = (0, 0);
    let there = (0..traffic.there.len()).step_by(STRIDE).map(|after| (Way::There, after));
    let back = (0..traffic.back.len()).map(|after| (Way::Back, after));
    for (number, (way, after)) in there.chain(back).enumerate() {
        source.put_into(RunState::Running);
        destination.put_into(RunState::InMigrate);
        let end = if number % 2 == 0 { End::Close } else { End::Reset };
        let medium = if end == End::Reset { Medium::Tcp } else { Medium::Unix };
        let cut = Cut { way, after, end };
        let doubt = if number / 2 % 2 == 0 { Doubt::Ask } else { Doubt::BeTold };
        let (ended, _) = migrate(&mut source, &mut destination, medium, Some(cut), doubt);
        let what = format!("{cut:?}: {:?} / {:?}", ended.outgoing, ended.incoming);
        assert_one_guest(&source, &destination, &memory, &ended, &what);
        match ended.outgoing.guest() {
            GuestFate::OnSource => stayed += 1,
            _ => recovered += u32::from(ended.pauses > 0),
        }
    }
    assert!(recovered > 10 && stayed > 10, "{recovered} recovered, {stayed} stayed");
}

#[test]
fn a_source_that_lost_the_last_word_hears_it_when_it_asks() {
    let (mut source, mut destination) = (Guest::tiny(), Guest::tiny_incoming());
    let memory = source.memory();
    let (_, traffic) = migrate(&mut source, &mut destination, Medium::Unix, None, Doubt::BeTold);
    source.put_into(RunState::Running);
    destination.put_into(RunState::InMigrate);
    // SHUT is the last that comes back; its last byte does not.
    let cut = Cut { way: Way::Back, after: traffic.back.len() - 1, end: End::Close };
    let (ended, _) = migrate(&mut source, &mut destination, Medium::Unix, Some(cut), Doubt::Ask);
    let what = format!("{:?} / {:?}", ended.outgoing, ended.incoming);
    assert_one_guest(&source, &destination, &memory, &ended, &what);
    assert!(ended.outgoing.is_completed() && ended.pauses == 1, "{what}");
}

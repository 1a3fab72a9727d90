//! A good stream whose parts are left out, sent twice or exchanged.

use super::stream::{What, pieces};
use super::{Recording, Verdict, Victim};
use limosa_wire::{Command, GREETING};
use std::ops::Range;

/// A part of the stream that could stand elsewhere.
#[derive(Clone, Debug, PartialEq)]
struct Unit {
    kind: Kind,
    range: Range<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Header,
    Configuration,
    OpenReturnPath,
    Ping,
    Greeting,
    Features,
    SwitchoverStart,
    RamStart,
    /// All pages: the guest stands still, so one PART has them.
    RamPart,
    RamEnd,
    Counter,
    GlobalState,
    EndOfStream,
    Description,
}

/// The stream as units, each section whole.
fn units(stream: &[u8]) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    let mut ram = [Kind::RamStart, Kind::RamPart, Kind::RamEnd].into_iter();
    let mut open = false;
    for piece in pieces(stream) {
        if open {
            units.last_mut().unwrap().range.end = piece.range.end;
            open = piece.what != What::Footer;
            continue;
        }
        let bytes = &stream[piece.range.clone()];
        let names = |name: &str| bytes.windows(name.len()).any(|window| window == name.as_bytes());
        let kind = match piece.what {
            What::Header => Kind::Header,
            What::Configuration => Kind::Configuration,
            What::Command(Command::OpenReturnPath) => Kind::OpenReturnPath,
            What::Command(Command::Ping(GREETING)) => Kind::Greeting,
            What::Command(Command::Ping(_)) => Kind::Ping,
            What::Command(Command::Features(_)) => Kind::Features,
            What::Command(Command::SwitchoverStart) => Kind::SwitchoverStart,
            What::SectionHead if names("counter") => Kind::Counter,
            What::SectionHead if names("globalstate") => Kind::GlobalState,
            What::SectionHead => ram.next().expect("START, one PART, END"),
            What::EndOfStream => Kind::EndOfStream,
            What::Description => Kind::Description,
            other => panic!("{other:?} outside of a section"),
        };
        open = piece.what == What::SectionHead;
        units.push(Unit { kind, range: piece.range });
    }
    units
}

/// Whether a destination may take units in this order: said without looking at how it decides.
fn is_whole(order: &[Kind]) -> bool {
    let Some(end) = order.iter().position(|kind| *kind == Kind::EndOfStream) else { return false };
    let body = &order[..end];
    let first = |kind| body.iter().position(|other| *other == kind);
    let last = |kind| body.iter().rposition(|other| *other == kind);
    let opens = order[0] == Kind::Header && order.get(1) == Some(&Kind::Configuration);
    // What follows the description is not read.
    let closes = order.get(end + 1) == Some(&Kind::Description);
    let once = |kind| body.iter().filter(|other| **other == kind).count() == 1;
    let framed = once(Kind::Header) && once(Kind::Configuration) && first(Kind::Description).is_none();
    let opened =
        |ping| first(ping).is_none_or(|ping| first(Kind::OpenReturnPath).is_some_and(|open| open < ping));
    let asked = opened(Kind::Ping) && opened(Kind::Greeting);
    let sections = [Kind::RamStart, Kind::RamPart, Kind::RamEnd, Kind::Counter, Kind::GlobalState];
    let first_section = body.iter().position(|kind| sections.contains(kind));
    let agreed = first(Kind::Features).is_none_or(|features| {
        let greeted = first(Kind::Greeting).is_some_and(|greeting| greeting < features);
        greeted && once(Kind::Features) && first_section.is_some_and(|section| features < section)
    });
    let ram = once(Kind::RamStart)
        && once(Kind::RamEnd)
        && first(Kind::RamStart) < first(Kind::RamPart)
        && last(Kind::RamPart) < first(Kind::RamEnd);
    opens && closes && framed && asked && agreed && ram && once(Kind::Counter) && once(Kind::GlobalState)
}

/// Offers units in the order given.
fn check(victim: &mut Victim, recording: &Recording, order: &[Unit]) -> bool {
    let stream: Vec<u8> =
        order.iter().flat_map(|unit| recording.stream[unit.range.clone()].to_vec()).collect();
    let kinds: Vec<Kind> = order.iter().map(|unit| unit.kind).collect();
    let whole = is_whole(&kinds);
    match victim.offer(&stream) {
        Verdict::Ran(ram, device) => {
            assert!(whole, "the guest runs after {kinds:?}");
            assert!(ram == recording.memory && device == recording.counter, "{kinds:?}");
        }
        Verdict::Refused(error) => {
            assert!(!whole, "{kinds:?} was refused: {error}");
            super::assert_names_place(&error, &format!("{kinds:?}"));
        }
    }
    whole
}

#[test]
fn a_stream_without_one_of_its_parts_is_refused_unless_it_is_whole_without_it() {
    let recording = Recording::new();
    let (mut victim, units) = (Victim::new(), units(&recording.stream));
    assert!(check(&mut victim, &recording, &units));
    for index in 0..units.len() {
        let mut order = units.clone();
        let left_out = order.remove(index).kind;
        let whole = check(&mut victim, &recording, &order);
        assert_eq!(
            whole,
            matches!(left_out, Kind::Ping | Kind::Features | Kind::SwitchoverStart),
            "{left_out:?}"
        );
    }
}

#[test]
fn a_stream_with_one_of_its_parts_twice_is_refused_unless_that_changes_nothing() {
    let recording = Recording::new();
    let (mut victim, units) = (Victim::new(), units(&recording.stream));
    for index in 0..units.len() {
        for at in 0..=units.len() {
            let mut order = units.clone();
            order.insert(at, units[index].clone());
            check(&mut victim, &recording, &order);
        }
    }
}

#[test]
fn a_stream_with_two_parts_exchanged_is_refused_unless_that_changes_nothing() {
    let recording = Recording::new();
    let (mut victim, units) = (Victim::new(), units(&recording.stream));
    for index in 0..units.len() {
        for other in index + 1..units.len() {
            let mut order = units.clone();
            order.swap(index, other);
            check(&mut victim, &recording, &order);
        }
    }
}

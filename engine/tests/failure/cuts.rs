//! The connection ends after any number of bytes, in either direction, in each way in which connections end.

use super::guest::Guest;
use super::relay::{Cut, End, Medium, Traffic, Way, relay};
use super::stream::{self, has_end, lets_source_commit, offset_in, pieces};
use super::{Ended, assert_migrates_now, migrate_over};
use limosa_engine::{GuestFate, OutgoingConfig, RunState};
use limosa_wire::ReturnMessage;

/// Cuts at places that no boundary is near.
const RANDOM_CUTS: usize = 200;

/// A source that is cut off again and again, and what it must look like each time.
struct Bench {
    source: Guest,
    destination: Guest,
    before: RunState,
    memory: Vec<u8>,
    runs: usize,
}

impl Bench {
    fn new(before: RunState) -> Self {
        let source = Guest::tiny();
        source.put_into(before);
        let memory = source.memory();
        Self { source, destination: Guest::tiny_incoming(), before, memory, runs: 0 }
    }

    /// The traffic of a migration that nothing disturbs.
    fn record(&mut self) -> Traffic {
        let (ended, traffic) = self.run(Medium::Unix, None);
        assert!(ended.outgoing.is_completed() && ended.incoming.is_completed());
        self.put_back();
        traffic
    }

    fn run(&mut self, medium: Medium, cut: Option<Cut>) -> (Ended, Traffic) {
        let (here, there, relay) = relay(medium, cut);
        let (source, destination) = (&mut self.source, &mut self.destination);
        let ended = migrate_over((here, there), source, destination, OutgoingConfig::default());
        (ended, relay.join().unwrap())
    }

    /// Cuts, checks what is left, and gives the guest back to the source as an operator would.
    fn cut(&mut self, medium: Medium, cut: Cut) {
        let (ended, traffic) = self.run(medium, Some(cut));
        let what = format!(
            "{cut:?} {medium:?}: source {:?} {}; destination {:?} {}",
            ended.outgoing.outcome,
            ended.source_error(),
            ended.incoming.outcome,
            ended.destination_error()
        );
        self.check_guest(&ended, &traffic, cut, &what);
        check_destination(&ended, &traffic, cut, &what);
        self.put_back();
        self.runs += 1;
        if self.runs.is_multiple_of(16) && self.before == RunState::Running {
            assert_migrates_now(&mut self.source, &mut self.destination);
        }
    }

    fn check_guest(&self, ended: &Ended, traffic: &Traffic, cut: Cut, what: &str) {
        let arrived = ended.incoming.is_completed();
        let there = self.destination.run_state();
        let runs_there = there == RunState::Running;
        assert_eq!(runs_there, arrived && self.before == RunState::Running, "{what}");
        assert!(self.source.memory() == self.memory, "{what}");
        match ended.outgoing.guest() {
            GuestFate::OnSource => {
                assert!(!arrived, "{what}");
                assert_eq!(self.source.run_state(), self.before, "{what}");
                assert!(ended.outgoing.statistics.error.is_some(), "{what}");
            }
            GuestFate::InDoubt => {
                assert!(lets_source_commit(&traffic.back), "doubt before the commit point: {what}");
                assert_eq!(self.source.run_state(), RunState::Paused, "{what}");
                assert!(ended.outgoing.statistics.error.is_some(), "{what}");
            }
            GuestFate::OnDestination => {
                assert!(arrived, "{what}");
                assert!(stream::answers(&traffic.back).contains(&ReturnMessage::Shut(0)), "{what}");
            }
            fate => panic!("{fate} without postcopy: {what}"),
        }
        if !lets_source_commit(&traffic.back) {
            assert_eq!(ended.outgoing.guest(), GuestFate::OnSource, "{what}");
        }
        if has_end(&traffic.there) && matches!(cut.end, End::Close | End::Reset) {
            let confirmed = stream::answers(&traffic.back).contains(&ReturnMessage::Shut(0));
            let fate = if confirmed { GuestFate::OnDestination } else { GuestFate::InDoubt };
            assert_eq!(ended.outgoing.guest(), fate, "{what}");
        }
    }

    fn put_back(&mut self) {
        self.source.put_into(self.before);
        self.destination.put_into(RunState::InMigrate);
    }
}

/// A destination that did not get everything names the place where the stream stopped.
fn check_destination(ended: &Ended, traffic: &Traffic, cut: Cut, what: &str) {
    if ended.incoming.is_completed() {
        return;
    }
    let error = ended.destination_error();
    let offset = offset_in(error);
    // What was passed on is at least what was read: a reset destroys the rest.
    assert!(offset <= traffic.there.len(), "{what}");
    // An answer that found the connection gone belongs to the question before.
    let is_answer = error.contains("channel: send");
    if cut.way == Way::There && cut.end != End::Reset && !is_answer {
        let whole = pieces(&traffic.there);
        let (begun, place) = match whole.last() {
            Some(last) if last.range.end == traffic.there.len() => {
                (last.range.start, place_behind(&traffic.there, last))
            }
            // The next piece begins behind the last whole one, and belongs where a probe byte would.
            Some(last) => (last.range.end, place_behind(&traffic.there, last)),
            None => (0, "header".to_owned()),
        };
        assert!(error.contains(&place), "expected {place}: {what}");
        assert!(offset >= begun, "expected an offset of at least {begun}: {what}");
    }
}

/// Where the bytes behind a whole piece belong.
fn place_behind(stream: &[u8], last: &stream::Piece) -> String {
    use stream::What;
    match last.what {
        What::Header => "configuration".to_owned(),
        What::EndOfStream | What::Description => "end of stream".to_owned(),
        // Only the next byte tells whether a configuration is whole.
        What::Configuration if last.range.end == stream.len() => "configuration".to_owned(),
        What::Configuration | What::Command(_) | What::Footer => "between sections".to_owned(),
        What::SectionHead => section_of_head(stream, last),
        What::BlockList | What::Record | What::Content | What::Device => last.place.clone(),
    }
}

/// The name that a section's head introduces or continues.
fn section_of_head(stream: &[u8], head: &stream::Piece) -> String {
    let bytes = &stream[head.range.clone()];
    let name = |name: &str| bytes.windows(name.len()).any(|window| window == name.as_bytes());
    ["counter", "globalstate"]
        .into_iter()
        .find(|idstr| name(idstr))
        .map_or("section ram/0".to_owned(), |idstr| format!("section {idstr}/0"))
}

/// Every boundary of the stream and its neighbours, without the end itself.
fn boundaries(stream: &[u8]) -> Vec<usize> {
    let ends = pieces(stream).into_iter().map(|piece| piece.range.end);
    let around = [0, 1].into_iter().chain(ends.flat_map(|end| [end - 1, end, end + 1]));
    let mut all: Vec<usize> = around.filter(|at| *at <= stream.len()).collect();
    all.dedup();
    all
}

/// Numbers below `limit`, the same in every run.
fn scattered(count: usize, limit: usize) -> impl Iterator<Item = usize> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % limit as u64) as usize
    })
    .take(count)
}

#[test]
fn a_stream_cut_anywhere_leaves_the_guest_on_one_side() {
    let mut bench = Bench::new(RunState::Running);
    let stream = bench.record().there;
    for after in boundaries(&stream).into_iter().chain(scattered(RANDOM_CUTS, stream.len())) {
        bench.cut(Medium::Unix, Cut { way: Way::There, after, end: End::Close });
    }
    assert_migrates_now(&mut bench.source, &mut bench.destination);
}

#[test]
fn a_stream_that_ends_early_while_answers_still_come_leaves_the_guest_on_one_side() {
    let mut bench = Bench::new(RunState::Running);
    let stream = bench.record().there;
    for after in boundaries(&stream) {
        bench.cut(Medium::Unix, Cut { way: Way::There, after, end: End::OneWay });
    }
    assert_migrates_now(&mut bench.source, &mut bench.destination);
}

#[test]
fn a_reset_anywhere_leaves_the_guest_on_one_side() {
    let mut bench = Bench::new(RunState::Running);
    let stream = bench.record().there;
    for after in boundaries(&stream).into_iter().chain(scattered(RANDOM_CUTS / 4, stream.len())) {
        bench.cut(Medium::Tcp, Cut { way: Way::There, after, end: End::Reset });
    }
    assert_migrates_now(&mut bench.source, &mut bench.destination);
}

#[test]
fn answers_cut_anywhere_leave_the_guest_on_one_side() {
    let mut bench = Bench::new(RunState::Running);
    let answers = bench.record().back;
    for after in 0..=answers.len() {
        bench.cut(Medium::Unix, Cut { way: Way::Back, after, end: End::Close });
        bench.cut(Medium::Unix, Cut { way: Way::Back, after, end: End::OneWay });
        bench.cut(Medium::Tcp, Cut { way: Way::Back, after, end: End::Reset });
    }
    assert_migrates_now(&mut bench.source, &mut bench.destination);
}

#[test]
fn a_paused_guest_that_is_cut_off_stays_paused_on_one_side() {
    let mut bench = Bench::new(RunState::Paused);
    let traffic = bench.record();
    for after in boundaries(&traffic.there).into_iter().step_by(3) {
        bench.cut(Medium::Unix, Cut { way: Way::There, after, end: End::Close });
    }
    for after in (0..=traffic.back.len()).step_by(3) {
        bench.cut(Medium::Unix, Cut { way: Way::Back, after, end: End::Close });
    }
}

#[test]
fn a_writing_guest_that_is_cut_off_goes_on_writing() {
    let (mut source, mut destination) = (Guest::running(900), Guest::incoming(900));
    // The first round alone has 500 pages of content: all of these are in the middle of it.
    for after in scattered(24, 500 * 4096) {
        let cut = Cut { way: Way::There, after, end: End::Close };
        let (here, there, relay) = relay(Medium::Unix, Some(cut));
        let ended = migrate_over((here, there), &mut source, &mut destination, OutgoingConfig::default());
        relay.join().unwrap();
        assert_eq!(ended.outgoing.guest(), GuestFate::OnSource, "{cut:?}");
        super::assert_on_source(&source, &destination, "cut in a round");
        assert!(offset_in(ended.destination_error()) <= after);
        source.let_write(16);
    }
}

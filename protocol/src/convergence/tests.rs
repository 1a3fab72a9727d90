//! Guests that converge, and guests that do not.
#![allow(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]

use super::*;
use proptest::prelude::*;

/// A link, a guest, and how long each round's overhead is.
#[derive(Clone, Copy, Debug)]
struct Model {
    /// Bytes per second of the link.
    link: u64,
    /// Bytes of RAM: what the first round sends.
    ram: u64,
    /// Bytes per second that the guest dirties...
    dirties: u64,
    /// ...within so many.
    working_set: u64,
}

/// What a simulated precopy came to.
#[derive(Clone, Copy, Debug)]
struct Precopy {
    rounds: u32,
    rest: u64,
    downtime: Duration,
}

const GIB: u64 = 1 << 30;
const ROUND_TRIP: Duration = Duration::from_micros(100);
const SYNC: Duration = Duration::from_micros(200);

impl Model {
    fn rest_after(self, time: Duration) -> u64 {
        BytesPerSecond(self.dirties).bytes_in(time).0.min(self.working_set)
    }

    /// Rounds until the switchover; `None` if there was none within `rounds_max`.
    fn migrate(self, convergence: &mut Convergence, rounds_max: u32) -> Option<Precopy> {
        let mut now = Instant::now();
        let mut owed = self.ram;
        for rounds in 0..=rounds_max {
            let rest = Rest { owed: ByteCount(owed), ..Rest::default() };
            match convergence.decide(rest, now) {
                Verdict::Switchover => {
                    let downtime = convergence.expected_downtime().unwrap_or_default();
                    return Some(Precopy { rounds, rest: owed, downtime });
                }
                verdict => assert_eq!(verdict, Verdict::Iterate, "nothing queues here"),
            }
            let time = BytesPerSecond(self.link).time_for(ByteCount(owed)) + ROUND_TRIP;
            let link = BandwidthSample { bytes: ByteCount(owed), time, throttled: false };
            let whole = time + SYNC;
            convergence.note_round_trip(ROUND_TRIP);
            convergence.note_sync(SYNC);
            convergence.round_finished(RoundSample { link, whole });
            now += whole;
            owed = self.rest_after(whole);
        }
        None
    }
}

fn with_limit(downtime_limit: Duration) -> Convergence {
    let config = ConvergenceConfig { downtime_limit, ..ConvergenceConfig::default() };
    Convergence::new(config, Instant::now())
}

fn with_default_limit() -> Convergence {
    with_limit(DOWNTIME_LIMIT_DEFAULT)
}

const IDLE: Model = Model { link: GIB, ram: 2 * GIB, dirties: 100_000, working_set: 200_000 };

#[test]
fn nothing_owed_switches_at_once() {
    assert_eq!(with_limit(Duration::ZERO).decide(Rest::default(), Instant::now()), Verdict::Switchover);
}

#[test]
fn an_idle_guest_switches_with_a_tiny_rest_although_the_limit_allows_more() {
    let precopy = IDLE.migrate(&mut with_default_limit(), 10).expect("it converges");
    assert!(precopy.rounds <= 3, "{precopy:?}");
    assert!(precopy.downtime < Duration::from_millis(2), "{precopy:?}");
}

#[test]
fn a_rest_that_fits_is_not_enough_for_a_guest_that_still_shrinks() {
    // A tenth of the link's rate: every round is a tenth of the one before.
    let model = Model { link: GIB, ram: GIB, dirties: GIB / 10, working_set: GIB };
    let precopy = model.migrate(&mut with_default_limit(), 20).expect("it converges");
    assert!(precopy.downtime < Duration::from_millis(10), "100 ms fitted after the first round: {precopy:?}");
}

#[test]
fn a_small_hot_working_set_switches_at_its_local_minimum() {
    // 50 MiB rewritten all the time: 49 ms whatever is done, and one round shows it.
    let model = Model { link: GIB, ram: 2 * GIB, dirties: 100 * GIB, working_set: 50 << 20 };
    let precopy = model.migrate(&mut with_default_limit(), 20).expect("it fits");
    assert_eq!(precopy.rest, 50 << 20);
    assert!(precopy.rounds <= 3, "{precopy:?}");
}

#[test]
fn a_guest_faster_than_the_link_is_sent_again_and_again() {
    let model = Model { link: GIB, ram: 2 * GIB, dirties: 2 * GIB, working_set: GIB };
    assert!(model.migrate(&mut with_default_limit(), 1000).is_none());
}

#[test]
fn a_higher_limit_lets_a_waiting_guest_go() {
    let model = Model { link: GIB, ram: 2 * GIB, dirties: 2 * GIB, working_set: GIB };
    let mut convergence = with_default_limit();
    assert!(model.migrate(&mut convergence, 5).is_none());
    convergence.set_downtime_limit(Duration::from_secs(2));
    let precopy = model.migrate(&mut convergence, 5).expect("a second fits two");
    assert_eq!(precopy.rounds, 1);
}

#[test]
fn a_lower_limit_holds_back_a_guest_that_would_have_gone() {
    let model = Model { link: GIB, ram: 2 * GIB, dirties: 100 * GIB, working_set: 50 << 20 };
    let mut convergence = with_default_limit();
    convergence.set_downtime_limit(Duration::from_millis(20));
    assert!(model.migrate(&mut convergence, 100).is_none());
}

#[test]
fn a_given_bandwidth_counts_in_place_of_the_measured_one() {
    let model = Model { link: GIB, ram: 2 * GIB, dirties: 100 * GIB, working_set: 50 << 20 };
    let mut convergence = with_default_limit();
    // At a hundredth of the rate 50 MiB take five seconds.
    convergence.set_switchover_bandwidth(Some(BytesPerSecond(GIB / 100)));
    assert!(model.migrate(&mut convergence, 100).is_none());
    convergence.set_switchover_bandwidth(None);
    assert!(model.migrate(&mut convergence, 100).is_some());
}

#[test]
fn the_first_round_is_sent_live_even_if_all_of_it_would_fit() {
    let config = ConvergenceConfig {
        downtime_limit: Duration::from_secs(10),
        switchover_bandwidth: Some(BytesPerSecond(10 * GIB)),
        ..ConvergenceConfig::default()
    };
    let mut convergence = Convergence::new(config, Instant::now());
    let rest = Rest { owed: ByteCount(GIB), ..Rest::default() };
    assert_eq!(convergence.decide(rest, Instant::now()), Verdict::Iterate);
}

#[test]
fn a_queue_in_front_of_nothing_is_waited_for_until_it_fits() {
    let mut convergence = with_limit(Duration::from_millis(10));
    convergence.set_switchover_bandwidth(Some(BytesPerSecond(1_000_000)));
    let queue = |bytes| Rest { queued: ByteCount(bytes), ..Rest::default() };
    assert_eq!(convergence.decide(queue(20_000), Instant::now()), Verdict::Wait);
    assert_eq!(convergence.decide(queue(10_000), Instant::now()), Verdict::Switchover);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_switchover_fits_the_limit_or_owes_nothing(
        link in 1_000_000_u64..20_000_000_000,
        ram in 1_u64..(8 * GIB),
        dirties in 0_u64..20_000_000_000,
        part in 1_u64..1000,
        limit_milliseconds in 0_u64..1000,
    ) {
        let model = Model { link, ram, dirties, working_set: ram / part };
        let limit = Duration::from_millis(limit_milliseconds);
        if let Some(precopy) = model.migrate(&mut with_limit(limit), 200) {
            prop_assert!(precopy.rest == 0 || precopy.downtime <= limit, "{precopy:?}");
        }
    }

    #[test]
    fn a_guest_at_less_than_half_the_links_rate_converges_soon(
        link in 10_000_000_u64..20_000_000_000,
        ram in (1_u64 << 24)..(8 * GIB),
        share in 0.0_f64..0.5,
    ) {
        let model = Model { link, ram, dirties: (link as f64 * share) as u64, working_set: ram };
        // Halving 8 GiB at 10 MB/s (14 minutes) down to 300 ms takes 12 rounds, and at most 16 polish it.
        let precopy = model.migrate(&mut with_default_limit(), 12 + POLISH_ROUNDS_MAX);
        prop_assert!(precopy.is_some());
    }
}

fn with_policy(auto_postcopy: AutoPostcopy) -> Convergence {
    let config = ConvergenceConfig { auto_postcopy: Some(auto_postcopy), ..ConvergenceConfig::default() };
    Convergence::new(config, Instant::now())
}

/// A round that sent `owed` over a link of 1 GiB/s.
fn round(convergence: &mut Convergence, owed: u64) {
    let time = BytesPerSecond(GIB).time_for(ByteCount(owed));
    let link = BandwidthSample { bytes: ByteCount(owed), time, throttled: false };
    convergence.round_finished(RoundSample { link, whole: time });
}

/// The verdicts of a migration that is owed these amounts, one after the other.
fn verdicts(convergence: &mut Convergence, owed: &[u64]) -> Vec<Verdict> {
    let mut before = None;
    let decide = |owed: &u64| {
        if let Some(sent) = before.replace(*owed) {
            round(convergence, sent);
        }
        let rest = Rest { owed: ByteCount(*owed), ..Rest::default() };
        convergence.decide(rest, Instant::now())
    };
    owed.iter().map(decide).collect()
}

#[test]
fn a_rest_that_no_longer_shrinks_goes_over_to_postcopy_and_one_that_does_goes_on() {
    use Verdict::{Iterate, Postcopy};
    let mut stalled = with_policy(AutoPostcopy::default());
    assert_eq!(verdicts(&mut stalled, &[8 * GIB, 4 * GIB, 4 * GIB]), [Iterate, Iterate, Postcopy]);
    let mut shrinking = with_policy(AutoPostcopy::default());
    assert_eq!(verdicts(&mut shrinking, &[8 * GIB, 4 * GIB, 3 * GIB, 2 * GIB]), [Iterate; 4]);
}

#[test]
fn a_first_round_is_compared_with_nothing() {
    let mut convergence = with_policy(AutoPostcopy::default());
    let verdicts = verdicts(&mut convergence, &[8 * GIB, 8 * GIB]);
    assert_eq!(verdicts, [Verdict::Iterate, Verdict::Iterate]);
}

#[test]
fn so_many_rounds_are_enough_for_policy() {
    let mut convergence = with_policy(AutoPostcopy { rounds_max: Some(1), time_max: None });
    let verdicts = verdicts(&mut convergence, &[8 * GIB, GIB]);
    assert_eq!(verdicts, [Verdict::Iterate, Verdict::Postcopy]);
}

#[test]
fn a_rest_that_fits_needs_no_postcopy_whatever_the_policy() {
    let mut convergence = with_policy(AutoPostcopy { rounds_max: Some(1), time_max: Some(Duration::ZERO) });
    round(&mut convergence, GIB);
    let small = Rest { owed: ByteCount(4096), ..Rest::default() };
    assert_ne!(convergence.decide(small, Instant::now()), Verdict::Postcopy);
}

#[test]
fn time_is_up_when_the_policy_says_so_and_never_without_one() {
    let now = Instant::now();
    let convergence = with_policy(AutoPostcopy { rounds_max: None, time_max: Some(Duration::from_secs(1)) });
    assert!(!convergence.postcopy_due(now));
    assert!(convergence.postcopy_due(now + Duration::from_secs(2)));
    assert!(!with_default_limit().postcopy_due(now + Duration::from_secs(1_000_000)));
}

use super::*;
use crate::choice::plan::Rung;

const FAST: Capacity = Capacity { rate: 4.096e9, workers: 2.0, ahead: 4.0 };

fn plan(heavy: usize, share: f64, seconds: f64) -> Plan {
    let rung = |method| Rung { method, delta: false };
    Plan { light: rung(0), heavy: rung(heavy), share, seconds }
}

fn raw() -> Plan {
    plan(0, 0.0, 1e-6)
}

/// Promises to be a quarter faster.
fn balance() -> Plan {
    plan(1, 0.4, 0.8e-6)
}

/// The outcomes of packets of 128 pages: so many, by a plan, at so many microseconds each.
struct Sent {
    outcomes: Outcomes,
    now: Duration,
}

impl Sent {
    fn new() -> Self {
        Self { outcomes: Outcomes::new(4), now: Duration::ZERO }
    }

    fn packets(&mut self, plan: &Plan, count: u32, microseconds: u64) {
        for _ in 0..count {
            self.now += Duration::from_micros(microseconds);
            self.outcomes.written(self.now, 128, plan, FAST);
        }
    }

    fn admits(&mut self, plan: Plan) -> bool {
        self.admit(plan).is_ok()
    }

    fn admit(&mut self, plan: Plan) -> Result<(), Reason> {
        self.outcomes.admit(&plan, &raw(), FAST)
    }
}

#[test]
fn raw_pages_are_measured_before_a_plan_that_promises_little_more() {
    let mut sent = Sent::new();
    assert_eq!(sent.admit(balance()), Err(Reason::RawTimed));
    assert!(sent.admits(plan(1, 1.0, 0.4e-6)), "a plan that promises much is believed");
    sent.packets(&raw(), 60, 128);
    assert!(sent.admits(balance()));
}

#[test]
fn a_plan_that_turns_out_slower_is_not_used_for_longer_each_time() {
    let mut sent = Sent::new();
    sent.packets(&raw(), 60, 128);
    sent.packets(&balance(), 60, 140);
    assert_eq!(sent.admit(balance()), Err(Reason::TurnedOutSlower));
    sent.packets(&raw(), BAN_FIRST - 1, 128);
    assert_eq!(sent.admit(balance()), Err(Reason::TurnedOutSlower));
    sent.packets(&raw(), 1, 128);
    assert!(sent.admits(balance()), "again");
    sent.outcomes.restart();
    sent.packets(&balance(), 60, 140);
    assert!(!sent.admits(balance()));
    sent.packets(&raw(), BAN_FIRST * 2 - 1, 128);
    assert!(!sent.admits(balance()));
}

#[test]
fn a_plan_for_other_content_is_another_plan() {
    let mut sent = Sent::new();
    sent.packets(&raw(), 60, 128);
    sent.packets(&balance(), 60, 140);
    assert!(!sent.admits(balance()));
    assert!(sent.admits(plan(1, 0.4, 0.65e-6)));
}

#[test]
fn a_plan_that_keeps_its_promise_is_kept() {
    let mut sent = Sent::new();
    sent.packets(&raw(), 60, 128);
    sent.packets(&balance(), 300, 103);
    assert!(sent.admits(balance()));
}

#[test]
fn what_raw_pages_took_holds_while_the_link_only_looks_slower() {
    let mut sent = Sent::new();
    sent.packets(&raw(), 60, 128);
    let seen = |factor| Capacity { rate: FAST.rate / factor, ..FAST };
    // Raw pages would seem to take twice as long.
    let plan = plan(1, 0.4, 0.9e-6);
    assert_eq!(sent.outcomes.admit(&plan, &self::plan(0, 0.0, 2e-6), seen(2.0)), Ok(()));
    sent.packets(&plan, 60, 150);
    assert!(sent.outcomes.admit(&plan, &self::plan(0, 0.0, 2e-6), seen(2.0)).is_err());
    let slow = self::plan(1, 0.4, 2.2e-6);
    assert_eq!(
        sent.outcomes.admit(&slow, &self::plan(0, 0.0, 5e-6), seen(5.0)),
        Ok(()),
        "it is another link"
    );
}

#[test]
fn packets_of_the_plan_before_and_time_without_packets_do_not_count() {
    let mut sent = Sent::new();
    sent.packets(&raw(), 60, 128);
    sent.outcomes.restart();
    sent.packets(&balance(), 4, 50_000);
    sent.packets(&balance(), 60, 103);
    sent.outcomes.restart();
    sent.now += Duration::from_secs(1);
    sent.packets(&balance(), 60, 103);
    assert!(sent.admits(balance()), "{:?}", sent.outcomes);
}

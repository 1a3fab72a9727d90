use super::*;
use crate::choice::PacketSample;
use std::time::Duration;

const FAST: Capacity = Capacity { rate: 5e9, workers: 1.0, ahead: 4.0 };
const TEN_GIGABIT: Capacity = Capacity { rate: 1.25e9, ..FAST };
const SLOW: Capacity = Capacity { rate: 12.5e6, ..FAST };

fn rung(method: usize) -> Rung {
    Rung { method, delta: false }
}

#[test]
fn one_worker_leaves_a_fast_link_to_pages_as_they_are() {
    let plan = Plan::FIRST.renewed(&Prices::new(), FAST);
    assert!(!plan.is_balance(), "{plan:?}");
    assert_eq!(plan.main(), rung(0));
}

#[test]
fn two_methods_in_turn_are_faster_than_either() {
    let prices = Prices::new();
    let plan = Plan::FIRST.renewed(&prices, TEN_GIGABIT);
    assert!(plan.is_balance(), "{plan:?}");
    for method in 0..LADDER.len() {
        let alone = Plan::of(rung(method), rung(method), &prices, TEN_GIGABIT);
        assert!(plan.seconds < alone.seconds, "{plan:?} {alone:?}");
    }
}

#[test]
fn a_channel_that_would_have_to_wait_for_a_heavy_packet_gets_none() {
    let prices = Prices::new();
    let impatient = Capacity { ahead: 1.0, ..TEN_GIGABIT };
    let plan = Plan::FIRST.renewed(&prices, impatient);
    assert_eq!((plan.main(), plan.is_balance()), (rung(0), false));
}

#[test]
fn a_slow_link_gets_the_smallest_packets_and_tries_deltas() {
    let plan = Plan::FIRST.renewed(&Prices::new(), SLOW);
    assert!(plan.heavy.method >= 2 && plan.heavy.delta, "{plan:?}");
}

#[test]
fn a_plan_is_kept_while_another_is_hardly_better() {
    let mut prices = Prices::new();
    let plan = Plan::FIRST.renewed(&prices, SLOW);
    let light = plan.main().method;
    // The method in use makes 2 % more bytes than it did.
    let bytes = prices.price(light, false).bytes * 1.02 * 128.0;
    let busy = Duration::from_secs_f64(prices.price(light, false).seconds * 128.0);
    let sample = PacketSample {
        pages: 128,
        compressed: 128,
        compressed_bytes: bytes as u32,
        busy,
        ..PacketSample::default()
    };
    prices.learn(light, false, &sample);
    assert_eq!(plan.renewed(&prices, SLOW).main().method, light);
}

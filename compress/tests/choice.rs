//! `compression=auto` against every fixed method, in a model of a sending side.

mod pipeline;

use limosa_compress::{Method, Reason};
use pipeline::{Content, Leg, METHODS, PACKET_PAGES, Policy, run};

/// Links of 0.1, 1, 2.5 and 10 Gbit/s, and one as fast as memory.
const RATES: [f64; 5] = [12.5e6, 125e6, 312.5e6, 1.25e9, 5e9];
const CONTENTS: [Content; 4] = [Content::Random, Content::Zero, Content::Text, Content::Mixed];
const WORKERS: [u32; 4] = [1, 2, 4, 8];
const CHANNELS: [usize; 2] = [1, 4];

/// Slower than the best fixed method by at most this factor.
const SLOWER_MAX: f64 = 1.1;

/// Three seconds of the link without compression, 200 MB at least, and 3 GB at most.
fn leg(content: Content, rate: f64) -> Leg {
    let packets = 3.0 * rate / (f64::from(PACKET_PAGES) * 4096.0);
    Leg { content, rate, packets: packets.clamp(400.0, 6000.0) as u32 }
}

/// What the best of all methods takes.
fn best(workers: u32, channels: usize, legs: &[Leg], deltas: &[bool]) -> f64 {
    let fixed = METHODS.into_iter().flat_map(|method| {
        deltas.iter().map(move |&delta| run(workers, channels, legs, Policy::Fixed { method, delta }).seconds)
    });
    fixed.min_by(f64::total_cmp).expect("there are methods")
}

/// Those of `migrations` in which `auto` is too slow, with any number of workers and channels, and what it did.
fn slow(migrations: &[Vec<Leg>], deltas: &[bool]) -> Vec<String> {
    let mut slow = Vec::new();
    for legs in migrations {
        for workers in WORKERS {
            for channels in CHANNELS {
                let auto = run(workers, channels, legs, Policy::Auto);
                let factor = auto.seconds / best(workers, channels, legs, deltas);
                if factor > SLOWER_MAX {
                    let report = auto.report;
                    let with = format!("{workers} workers and {channels} channels");
                    slow.push(format!("{factor:.3} with {with}: {legs:?}\n{report}"));
                }
            }
        }
    }
    slow
}

/// Every content over every link.
fn legs() -> impl Iterator<Item = Leg> {
    CONTENTS.into_iter().flat_map(|content| RATES.into_iter().map(move |rate| leg(content, rate)))
}

#[test]
fn auto_is_as_fast_as_the_best_method_over_every_link_and_content() {
    let migrations: Vec<_> = legs().map(|leg| vec![leg]).collect();
    let slow = slow(&migrations, &[false]);
    assert!(slow.is_empty(), "{}", slow.join("\n\n"));
}

#[test]
fn auto_notices_that_the_content_changes() {
    let pairs = legs().flat_map(|first| {
        let others = CONTENTS.into_iter().filter(move |&content| content != first.content);
        others.map(move |content| vec![first, leg(content, first.rate)])
    });
    let slow = slow(&pairs.collect::<Vec<_>>(), &[false]);
    assert!(slow.is_empty(), "{}", slow.join("\n\n"));
}

#[test]
fn auto_notices_that_the_link_changes() {
    let pairs = legs().flat_map(|first| {
        let others = RATES.into_iter().filter(move |&rate| rate != first.rate);
        others.map(move |rate| vec![first, leg(first.content, rate)])
    });
    let slow = slow(&pairs.collect::<Vec<_>>(), &[false]);
    assert!(slow.is_empty(), "{}", slow.join("\n\n"));
}

#[test]
fn auto_finds_out_that_deltas_pay() {
    let migrations: Vec<_> = RATES
        .into_iter()
        .map(|rate| vec![leg(Content::Random, rate), leg(Content::Rewritten, rate)])
        .collect();
    let slow = slow(&migrations, &[false, true]);
    assert!(slow.is_empty(), "{}", slow.join("\n\n"));
}

/// The method and the reason by which most packets of a migration went.
fn most(workers: u32, leg: Leg) -> (Method, Reason) {
    let report = run(workers, 2, &[leg], Policy::Auto).report;
    assert_eq!(report.packets(), u64::from(leg.packets));
    let most = report.counts().iter().max_by_key(|count| count.packets).expect("packets were sent");
    (most.choice.method, most.choice.reason)
}

#[test]
fn the_report_says_what_was_chosen_and_why() {
    let [slow, gigabit, _, fast, memory] = RATES;
    assert_eq!(most(1, leg(Content::Text, memory)), (Method::None, Reason::FastLink));
    assert_eq!(most(8, leg(Content::Text, gigabit)), (Method::Zstd { level: 9 }, Reason::SlowLink));
    assert_eq!(most(1, leg(Content::Text, slow)), (Method::Zstd { level: 9 }, Reason::SlowLink));
    // With one worker LZ4 alone would leave the link idle, and pages as they are the worker.
    assert_eq!(most(1, leg(Content::Text, fast)), (Method::None, Reason::Balance));
    // Before that it must know what they take.
    let report = run(1, 2, &[leg(Content::Text, fast)], Policy::Auto).report;
    let timed = report.counts().iter().find(|count| count.choice.reason == Reason::RawTimed);
    assert_eq!(timed.map(|count| count.choice.method), Some(Method::None));
}

#[test]
fn trials_are_few_even_where_nothing_is_to_be_gained() {
    let leg = leg(Content::Random, RATES[4]);
    let report = run(1, 1, &[leg], Policy::Auto).report;
    let trials = report.counts().iter().filter(|count| count.choice.reason == Reason::Trial);
    let trials: u64 = trials.map(|count| count.packets).sum();
    // One packet in 64 at most; and there have to be some, or a change would never be noticed.
    assert!((5..=u64::from(leg.packets).div_ceil(64)).contains(&trials), "{trials} trials");
}

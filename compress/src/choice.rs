//! Which method for the next packet: `compression=auto`.
//!
//! The link takes so many bytes a second, the pool has so many workers, and each method has its price in bytes and in
//! time. From what was measured of all three, [`Chooser`] makes a plan: the method, or the two methods in turn, with
//! which the pages get through soonest. Two methods keep link and pool busy alike where one alone would leave either
//! idle, so that a plan is never worse than its best method.
//!
//! Prices of methods that are not in use are renewed by trials, which may cost a fiftieth of the time. The link's rate
//! shows only while the link is busy: where the pool is the bottleneck, the plan trusts the link with a little more
//! from time to time, until it is. On a fast link a plan is held against what pages take as they are.
//!
//! A pure machine: whoever runs it measures, and says what time it is.

mod link;
mod outcome;
mod plan;
mod prices;
mod report;

pub use report::{ChoiceCount, ChoiceReport};

use crate::per_packet::Method;
use limosa_pages::ByteCount;
use limosa_wire::multifd::PACKET_PAGES;
use link::LinkRate;
use outcome::Outcomes;
use plan::{Capacity, Plan, Rung};
use prices::{LADDER, Prices};
use std::fmt;
use std::time::Duration;

/// Packets between two new plans; a plan costs a microsecond, a packet a hundred and more. With eight, a plan that the rate
/// of an empty buffer has made lasts too long.
const PLAN_PACKETS: u32 = 3;

/// Packets between two trials, at least.
const TRIAL_PACKETS: u32 = 8;

/// A price is tried again when it has not been measured for so many packets.
const STALE_PACKETS: u32 = 64;

/// Share of the time that trials may cost.
const TRIAL_SHARE: f64 = 0.02;

/// Seconds that trials may cost before any packet has paid for them: a packet on each of the lower rungs, with one
/// worker.
const TRIAL_ADVANCE: f64 = 0.004;

/// Seconds that can be saved up for trials: enough for one packet on the highest rung with one worker, or for 512 KiB
/// on a link of 10 MB/s.
const TRIAL_SAVINGS_MAX: f64 = 0.05;

/// Why a choice was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Nothing is known of the link yet.
    Unmeasured,
    /// The link takes the pages faster than the pool could compress them.
    FastLink,
    /// The link is fast, and what pages take as they are is not known yet, or not any more.
    RawTimed,
    /// Compression promised more and has turned out to be slower; it is left for a while.
    TurnedOutSlower,
    /// The link is the bottleneck, and the pool keeps up.
    SlowLink,
    /// The pool is the bottleneck, and would be with any lighter method that helps.
    BusyPool,
    /// Two methods in turn keep link and pool equally busy.
    Balance,
    /// To see what the method costs by now.
    Trial,
}

/// How a packet is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    /// How its pages are compressed. [`Method::None`] without delta: straight from guest RAM, without a copy.
    pub method: Method,
    /// Whether to look for older versions of its pages, and to keep these.
    pub delta: bool,
    /// Why.
    pub reason: Reason,
}

/// What became of a packet, and what it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketSample {
    /// Its normal pages.
    pub pages: u32,
    /// Those that were taken for incompressible, seen or unseen.
    pub incompressible: u32,
    /// Those that were given to the method; also if they went raw in the end.
    pub compressed: u32,
    /// Bytes in which those went.
    pub compressed_bytes: u32,
    /// Those that went as deltas.
    pub deltas: u32,
    /// Bytes in which those went.
    pub delta_bytes: u32,
    /// Time that a worker spent on the packet, with copies and zero test.
    pub busy: Duration,
}

/// Chooses for all packets of a sending side. Cost: a tenth of a microsecond a packet, a microsecond for each eighth.
#[derive(Clone, Debug)]
pub struct Chooser {
    workers: f64,
    ahead: f64,
    link: LinkRate,
    prices: Prices,
    outcomes: Outcomes,
    plan: Plan,
    reason: Reason,
    /// What is left of the share that goes by the plan's heavy method.
    share_due: f64,
    /// Seconds that trials may cost.
    savings: f64,
    /// Packets until there is a new plan, and since the last trial.
    plan_due: u32,
    since_trial: u32,
    report: ChoiceReport,
}

impl Chooser {
    /// A chooser for a pool of `workers` and for `channels` that write to one link. Each channel has at most
    /// `in_flight` packets between the choice and the end of its write.
    ///
    /// # Panics
    /// If one of them is 0.
    pub fn new(workers: u32, channels: u32, in_flight: u32) -> Self {
        let none = [workers, channels, in_flight].contains(&0);
        assert!(!none, "{workers} workers, {channels} channels with {in_flight} packets send nothing");
        Self {
            workers: f64::from(workers),
            // A channel with a single packet waits for that.
            ahead: f64::from((channels * (in_flight - 1)).max(1)),
            link: LinkRate::new(channels, workers),
            prices: Prices::new(),
            outcomes: Outcomes::new(channels * in_flight),
            plan: Plan::FIRST,
            reason: Reason::Unmeasured,
            share_due: 0.0,
            savings: TRIAL_ADVANCE,
            plan_due: 0,
            since_trial: 0,
            report: ChoiceReport::default(),
        }
    }

    /// The choice for the next packet.
    pub fn choose(&mut self) -> Choice {
        self.prices.grow_older();
        self.renew_plan();
        let (rung, reason) = match self.trial() {
            Some(rung) => (rung, Reason::Trial),
            None => (self.next_of_plan(), self.reason),
        };
        let choice = Choice { method: LADDER[rung.method], delta: rung.delta, reason };
        self.report.count(choice);
        choice
    }

    /// A packet was encoded as `choice` says. Not to be told of packets that went straight from guest RAM.
    ///
    /// # Panics
    /// If the packet had no pages, or the choice is not this chooser's.
    pub fn encoded(&mut self, choice: Choice, sample: &PacketSample) {
        assert!(sample.pages > 0, "a packet without pages says nothing");
        let method = LADDER.iter().position(|method| *method == choice.method);
        let method = method.expect("the chooser chose it");
        self.prices.learn(method, choice.delta, sample);
        self.link.encoded(sample.busy);
    }

    /// A channel has written `bytes`, of any packet with so many normal pages, and has been in the write for `writing`; it
    /// is `now`, on any clock that never goes back.
    pub fn written(&mut self, now: Duration, pages: u32, bytes: ByteCount, writing: Duration) {
        self.link.written(now, bytes.0, writing);
        if let Some(capacity) = self.capacity() {
            self.outcomes.written(now, pages, &self.plan, capacity);
        }
    }

    /// A channel had nothing to send for a while: the time says nothing of how packets were made.
    pub fn rested(&mut self) {
        self.outcomes.restart();
    }

    /// What was chosen so far, and why.
    pub fn report(&self) -> &ChoiceReport {
        &self.report
    }

    fn capacity(&self) -> Option<Capacity> {
        self.link.rate().map(|rate| Capacity { rate, workers: self.workers, ahead: self.ahead })
    }

    fn renew_plan(&mut self) {
        self.plan_due = self.plan_due.saturating_sub(1);
        let Some(capacity) = self.capacity() else { return };
        if self.plan_due > 0 {
            return;
        }
        self.plan_due = PLAN_PACKETS;
        let best = self.plan.renewed(&self.prices, capacity);
        let raw = Plan::raw(&self.prices, capacity);
        let refused = self.outcomes.admit(&best, &raw, capacity).err();
        let plan = if refused.is_some() { raw } else { best };
        if (plan.light, plan.heavy) != (self.plan.light, self.plan.heavy) || self.reason == Reason::Unmeasured
        {
            self.outcomes.restart();
        }
        let Rung { method, delta } = plan.main();
        let (link, pool) = capacity.seconds(self.prices.price(method, delta));
        self.reason = match refused {
            Some(reason) => reason,
            None if plan.is_balance() => Reason::Balance,
            None if method == 0 => Reason::FastLink,
            None if pool > link => Reason::BusyPool,
            None => Reason::SlowLink,
        };
        self.plan = plan;
    }

    fn next_of_plan(&mut self) -> Rung {
        self.share_due += self.plan.share;
        if self.share_due >= 1.0 {
            self.share_due -= 1.0;
            return self.plan.heavy;
        }
        self.plan.light
    }

    /// A rung whose price is to be measured with the next packet, if that is due and paid for.
    fn trial(&mut self) -> Option<Rung> {
        let capacity = self.capacity()?;
        let packet = |seconds: f64| seconds * PACKET_PAGES as f64;
        self.savings = (self.savings + packet(self.plan.seconds) * TRIAL_SHARE).min(TRIAL_SAVINGS_MAX);
        self.since_trial = self.since_trial.saturating_add(1);
        if self.since_trial < TRIAL_PACKETS {
            return None;
        }
        let delta = self.plan.heavy.delta;
        let stale = self.neighbours().filter(|&method| self.prices.age(method) >= STALE_PACKETS);
        let method = stale.max_by_key(|&method| self.prices.age(method))?;
        let loss = packet(capacity.loss(self.prices.price(method, delta), &self.plan));
        if loss > self.savings {
            return None;
        }
        self.savings -= loss;
        self.since_trial = 0;
        Some(Rung { method, delta })
    }

    /// The places on the ladder from just below the plan to just above it. What it costs to send pages as they are
    /// is known without trial.
    fn neighbours(&self) -> impl Iterator<Item = usize> + use<> {
        let lowest = self.plan.light.method.saturating_sub(1).max(1);
        lowest..=(self.plan.heavy.method + 1).min(LADDER.len() - 1)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unmeasured => "the link has not been measured yet",
            Self::FastLink => "the link takes pages faster than they can be compressed",
            Self::RawTimed => "pages are timed as they are, to hold compression against it",
            Self::TurnedOutSlower => "compression has turned out slower than the pages as they are",
            Self::SlowLink => "the link is the bottleneck, and the pool keeps up",
            Self::BusyPool => "the pool is the bottleneck",
            Self::Balance => "two methods in turn keep link and pool equally busy",
            Self::Trial => "a trial of what it costs by now",
        })
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let delta = if self.delta { " with deltas" } else { "" };
        write!(f, "{}{delta}: {}", self.method, self.reason)
    }
}

//! The one or two methods with which pages get through soonest.

use super::prices::{LADDER, Price, Prices};

#[cfg(test)]
mod tests;

/// A plan is given up for one that takes less than this share of its time.
const CLEARLY: f64 = 0.97;

/// A heavier method is preferred to a lighter one if it takes less than this share of its time.
const NOTABLY: f64 = 0.98;

/// Deltas that cost no more than this much longer are tried: what they save shows only by them.
const FREE: f64 = 1.005;

/// A place on the ladder, with or without deltas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rung {
    pub(super) method: usize,
    pub(super) delta: bool,
}

/// What is there to send with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    /// Bytes a second of the link.
    pub(super) rate: f64,
    /// Workers of the pool.
    pub(super) workers: f64,
    /// Packets that can be on their way while one of them is in the pool: a channel writes in order, and waits for
    /// the one whose turn it is.
    pub(super) ahead: f64,
}

/// Two rungs in turn; twice the same where one is best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Plan {
    /// The lower on the ladder.
    pub(super) light: Rung,
    pub(super) heavy: Rung,
    /// Share of the packets that go by `heavy`.
    pub(super) share: f64,
    /// Seconds a page, at the bottleneck.
    pub(super) seconds: f64,
}

impl Rung {
    /// Pages as they are.
    pub(super) const RAW: Self = Self { method: 0, delta: false };
}

impl Capacity {
    /// Seconds a page on the link, and in the pool.
    pub(super) fn seconds(&self, price: Price) -> (f64, f64) {
        (price.bytes / self.rate, price.seconds / self.workers)
    }

    /// Seconds a page by which others must last so that nobody waits for one at this price.
    fn waiting(&self, price: Price) -> f64 {
        price.seconds / self.ahead
    }

    /// Seconds a page that are lost if one packet at this price goes between those of a plan.
    pub(super) fn loss(&self, price: Price, plan: &Plan) -> f64 {
        let (link, pool) = self.seconds(price);
        let waited = price.seconds - self.ahead * plan.seconds;
        (link - plan.seconds).max(pool - plan.seconds).max(waited).max(0.0)
    }
}

impl Plan {
    /// What to do before anything is known: the method that is hardly ever much worse than another.
    pub(super) const FIRST: Self = {
        let lz4 = Rung { method: 1, delta: false };
        Self { light: lz4, heavy: lz4, share: 0.0, seconds: 0.0 }
    };

    /// The rung by which most packets go.
    pub(super) fn main(&self) -> Rung {
        if self.share >= 0.5 { self.heavy } else { self.light }
    }

    /// All pages as they are.
    pub(super) fn raw(prices: &Prices, capacity: Capacity) -> Self {
        Self::of(Rung::RAW, Rung::RAW, prices, capacity)
    }

    /// Whether all pages go as they are.
    pub(super) fn is_raw(&self) -> bool {
        !self.is_balance() && self.main() == Rung::RAW
    }

    /// Whether both rungs have their part.
    pub(super) fn is_balance(&self) -> bool {
        self.light != self.heavy && self.share > 0.0 && self.share < 1.0
    }

    /// The best plan at these prices, or `self` at these prices if it is hardly worse.
    pub(super) fn renewed(&self, prices: &Prices, capacity: Capacity) -> Self {
        let best = Self::best(prices, capacity);
        let kept = Self::of(self.light, self.heavy, prices, capacity);
        // Deltas that are tried for free have no price yet that could speak for them.
        let tries = best.heavy.delta && !kept.heavy.delta;
        if best.seconds < kept.seconds * CLEARLY || tries { best } else { kept }
    }

    fn best(prices: &Prices, capacity: Capacity) -> Self {
        let without = Self::best_of(false, prices, capacity);
        let with = Self::best_of(true, prices, capacity);
        // Where the link takes pages as they are, not even a delta is worth its time, unless it is known to be.
        let limit = if without.heavy.method > 0 { FREE } else { CLEARLY };
        if with.seconds <= without.seconds * limit { with } else { without }
    }

    fn best_of(delta: bool, prices: &Prices, capacity: Capacity) -> Self {
        let rung = |method| Rung { method, delta: delta && method > 0 };
        let pairs = (0..LADDER.len())
            .flat_map(|light| (light..LADDER.len()).map(move |heavy| (rung(light), rung(heavy))));
        let plans = pairs.map(|(light, heavy)| Self::of(light, heavy, prices, capacity));
        // Of near equals the first: the lightest.
        plans
            .reduce(|best, plan| if plan.seconds < best.seconds * NOTABLY { plan } else { best })
            .expect("the ladder has rungs")
    }

    /// The two rungs in the best proportion.
    fn of(light: Rung, heavy: Rung, prices: &Prices, capacity: Capacity) -> Self {
        let [light_price, heavy_price] = [light, heavy].map(|rung| prices.price(rung.method, rung.delta));
        let (light_link, light_pool) = capacity.seconds(light_price);
        let (heavy_link, heavy_pool) = capacity.seconds(heavy_price);
        let at = |share: f64| {
            let link = light_link + (heavy_link - light_link) * share;
            let pool = light_pool + (heavy_pool - light_pool) * share;
            let waiting = capacity.waiting(if share > 0.0 { heavy_price } else { light_price });
            Self { light, heavy, share, seconds: link.max(pool).max(waiting) }
        };
        // Where link and pool take as long as each other. Without such a point one of them is the bottleneck
        // throughout, and one end is best.
        let meeting = (light_link - light_pool) / (light_link - light_pool + heavy_pool - heavy_link);
        let meeting = (meeting > 0.0 && meeting < 1.0).then(|| at(meeting));
        let ends = [at(0.0), at(1.0)];
        ends.into_iter()
            .chain(meeting)
            .reduce(|best, plan| if plan.seconds < best.seconds { plan } else { best })
            .expect("there are two ends")
    }
}

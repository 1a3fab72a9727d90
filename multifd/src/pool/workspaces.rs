//! Memory for the packets under way.

use parking_lot::Mutex;

/// Packets that every channel may have under way: one on the pool, and one that its link takes or gives.
const OWN: usize = 2;

/// Packets that each of `channels` may have under way while all have the same.
pub(crate) fn packets_in_flight(workers: usize, channels: usize) -> usize {
    OWN + (2 * workers / channels).min(workers)
}

/// Memory for packets, made when it is first needed and used again.
///
/// There are at most 2 per channel and 2 per worker. The 2 of its own let a channel keep its link and one worker
/// busy. With those of the workers one channel alone can keep all workers busy, and a slow channel, which may hold
/// as many as there are workers, leaves as many to the others.
#[derive(Debug)]
pub(crate) struct Workspaces<T> {
    state: Mutex<State<T>>,
    workers: usize,
    make: fn() -> T,
}

#[derive(Debug)]
struct State<T> {
    spare: Vec<T>,
    /// Those of the workers that no channel has.
    extra: usize,
}

impl<T> Workspaces<T> {
    /// For the packets of any number of channels and `workers` workers, each `make`d when there is none to spare.
    pub(crate) fn new(workers: usize, make: fn() -> T) -> Self {
        Self { state: Mutex::new(State { spare: Vec::new(), extra: 2 * workers }), workers, make }
    }

    /// Memory for one more packet of a channel that has `held` already; `None` if it has to give one back first.
    pub(crate) fn take(&self, held: usize) -> Option<T> {
        let mut state = self.state.lock();
        if held >= OWN {
            if held >= OWN + self.workers || state.extra == 0 {
                return None;
            }
            state.extra -= 1;
        }
        // Fresh memory is zeroed, which takes too long for a lock.
        let spare = state.spare.pop();
        drop(state);
        Some(spare.unwrap_or_else(self.make))
    }

    /// Takes back what a channel had, of `held`.
    pub(crate) fn give(&self, held: usize, workspace: T) {
        let mut state = self.state.lock();
        state.extra += usize::from(held > OWN);
        state.spare.push(workspace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_that_gives_nothing_back_leaves_the_others_their_share() {
        let workers = 3;
        let workspaces = Workspaces::new(workers, || ());
        let take_all = || (0..).take_while(|held| workspaces.take(*held).is_some()).count();
        assert_eq!([take_all(), take_all(), take_all()], [OWN + workers, OWN + workers, OWN]);
        (1..=OWN + workers).rev().for_each(|held| workspaces.give(held, ()));
        assert_eq!([take_all(), take_all()], [OWN + workers, OWN]);
    }
}

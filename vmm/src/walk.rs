//! The order in which a worker writes the pages of its slice, and what that order proves.
//!
//! A worker with `len` pages writes, at step `s`, the page at position `s * stride mod len` of its slice. The
//! stride shares no factor with `len`, so `len` steps visit every page once, and from the number of steps done
//! alone follows how often each page was written.

use limosa_pages::{PageCount, PageIndex};

/// A worker's share of the working set and its way through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// First page of the slice.
    pub base: PageIndex,
    /// Pages in the slice; positive.
    pub len: PageCount,
    /// Positions between one step and the next, less than `len` unless `len` is 1; shares no factor with it.
    pub stride: u64,
}

impl Walk {
    /// The walk of worker `worker` of `workers` through `working_set` pages from `start`.
    ///
    /// Slices are neighbours, differ by at most one page and cover the working set.
    ///
    /// # Panics
    /// If the worker does not exist or a slice would be empty: a configuration is checked where it enters.
    pub fn of_worker(start: PageIndex, working_set: PageCount, worker: u32, workers: u32) -> Self {
        assert!(worker < workers && working_set.0 >= u64::from(workers));
        let edge = |index: u32| (u128::from(working_set.0) * u128::from(index) / u128::from(workers)) as u64;
        let (from, to) = (edge(worker), edge(worker + 1));
        let len = to - from;
        Self { base: start + PageCount(from), len: PageCount(len), stride: stride_for(len) }
    }

    /// The page written at step `step`, counted from 0.
    pub fn page_at(&self, step: u64) -> PageIndex {
        self.base + PageCount(times_modulo(step % self.len.0, self.stride, self.len.0))
    }

    /// How often `page` was written when `steps` steps are done, or `None` if it is not of this slice.
    pub fn generation_after(&self, page: PageIndex, steps: u64) -> Option<u64> {
        Generations::new(self, steps).of(page)
    }
}

/// The generations of a slice's pages after a number of steps; cheap to ask for page after page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generations {
    walk: Walk,
    /// stride * inverse = 1 modulo len: leads from a position back to its step.
    inverse: u64,
    full_rounds: u64,
    steps_in_round: u64,
}

impl Generations {
    pub(crate) fn new(walk: &Walk, steps: u64) -> Self {
        Self {
            walk: *walk,
            inverse: inverse_modulo(walk.stride, walk.len.0),
            full_rounds: steps / walk.len.0,
            steps_in_round: steps % walk.len.0,
        }
    }

    /// How often `page` was written, or `None` if it is not of this slice.
    pub(crate) fn of(&self, page: PageIndex) -> Option<u64> {
        let position = page.0.checked_sub(self.walk.base.0).filter(|position| *position < self.walk.len.0)?;
        let turn = times_modulo(position, self.inverse, self.walk.len.0);
        Some(self.full_rounds + u64::from(turn < self.steps_in_round))
    }
}

/// A stride that spreads neighbouring steps over the slice: the first number from `len` divided by the golden
/// ratio upward that shares no factor with `len`.
fn stride_for(len: u64) -> u64 {
    let golden = ((u128::from(len) * u128::from(crate::content::WEYL)) >> 64) as u64;
    (golden.max(1)..)
        .find(|stride| greatest_common_divisor(*stride, len) == 1)
        .expect("len + 1 shares no factor")
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn times_modulo(a: u64, b: u64, modulus: u64) -> u64 {
    (u128::from(a) * u128::from(b) % u128::from(modulus)) as u64
}

/// The inverse of `value` modulo `modulus`, which share no factor (extended Euclid).
fn inverse_modulo(value: u64, modulus: u64) -> u64 {
    let (mut remainder, mut next_remainder) = (i128::from(modulus), i128::from(value % modulus));
    let (mut inverse, mut next_inverse) = (0_i128, 1_i128);
    while next_remainder != 0 {
        let quotient = remainder / next_remainder;
        (remainder, next_remainder) = (next_remainder, remainder - quotient * next_remainder);
        (inverse, next_inverse) = (next_inverse, inverse - quotient * next_inverse);
    }
    inverse.rem_euclid(i128::from(modulus)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Lengths with many and with few divisors, and the smallest ones.
    const LENGTHS: [u64; 9] = [1, 2, 3, 4, 12, 97, 720, 1000, 4096];

    fn walk(len: u64) -> Walk {
        Walk::of_worker(PageIndex(256), PageCount(len), 0, 1)
    }

    #[test]
    fn one_round_visits_every_page_once() {
        for len in LENGTHS {
            let pages: BTreeSet<_> = (0..len).map(|step| walk(len).page_at(step)).collect();
            assert_eq!(pages, (256..256 + len).map(PageIndex).collect());
        }
    }

    #[test]
    fn generation_equals_the_number_of_writes_counted_one_by_one() {
        for len in [1_u64, 3, 12, 97] {
            let walk = walk(len);
            let mut writes = vec![0_u64; len as usize];
            for steps in 0..3 * len + 2 {
                for position in 0..len {
                    let page = PageIndex(256 + position);
                    assert_eq!(walk.generation_after(page, steps), Some(writes[position as usize]));
                }
                writes[(walk.page_at(steps).0 - 256) as usize] += 1;
            }
        }
    }

    #[test]
    fn slices_are_neighbours_and_cover_the_working_set() {
        for (pages, workers) in [(10, 3), (7, 7), (1000, 6)] {
            let walks: Vec<_> =
                (0..workers).map(|w| Walk::of_worker(PageIndex(256), PageCount(pages), w, workers)).collect();
            let mut next = PageIndex(256);
            for walk in walks {
                assert_eq!(walk.base, next);
                next = walk.base + walk.len;
            }
            assert_eq!(next, PageIndex(256 + pages));
        }
    }

    #[test]
    fn a_page_of_another_slice_has_no_generation_here() {
        assert_eq!(walk(12).generation_after(PageIndex(255), 50), None);
        assert_eq!(walk(12).generation_after(PageIndex(268), 50), None);
    }
}

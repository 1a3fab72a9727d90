//! Which pages would not shrink, from a few of their bytes.

use crate::Page;
use limosa_pages::PAGE_BYTES;

#[cfg(test)]
mod tests;

/// Places looked at in a page; in each a run of bytes as long as a vector register.
const SAMPLES: usize = 8;
const SAMPLE_BYTES: usize = 32;

/// Distance of the places: a prime, so that records of a usual size are not met at the same field each time.
/// The last one ends at 7 * 521 + 32 = 3679.
const STRIDE_BYTES: usize = 521;

/// A page with at least so many different values in its samples is incompressible.
///
/// Of 256 bytes that are drawn from 256 values evenly, 256 * (1 - (255/256)^256) = 162 differ, with a standard
/// deviation of 5; drawn from 128 values, 111. A threshold five deviations below the first mistakes one
/// incompressible page in three million, and no content of seven bits or less in each byte.
const DISTINCT_INCOMPRESSIBLE: usize = 137;

/// Incompressible pages in a row before pages are skipped: in content that is half compressible, one page in 65536
/// begins such a row.
const PATIENCE: u32 = 16;

/// Most pages skipped between two that are looked at: a page costs 0.2 us to look at, 1 us to send, so that
/// every 32nd is a cost of 0.6 %. It is also what a change of content goes raw at most before it is noticed.
const SKIP_MAX: u32 = 31;

/// Tells incompressible pages from others in a stream of pages, without a look at most of those that come in long
/// rows.
#[derive(Clone, Debug, Default)]
pub struct Sampler {
    /// Incompressible pages in a row, among those that were looked at.
    row: u32,
    /// Pages left that are taken for incompressible unseen.
    skip: u32,
}

impl Sampler {
    /// A sampler that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the next page is to be taken for incompressible without a look: it then need not even be copied.
    pub fn skips(&mut self) -> bool {
        let skips = self.skip > 0;
        self.skip -= u32::from(skips);
        skips
    }

    /// Whether `page` would not shrink. To be asked for each page that is not [skipped](Self::skips).
    ///
    /// Wrong for pages that repeat themselves in long distances only; they are sent as they are.
    pub fn is_incompressible(&mut self, page: &Page) -> bool {
        let incompressible = distinct_values(page) >= DISTINCT_INCOMPRESSIBLE;
        if incompressible {
            self.row += 1;
            // Twice as many pages each time.
            let doublings = self.row.saturating_sub(PATIENCE).min(SKIP_MAX.ilog2() + 1);
            self.skip = (1 << doublings) - 1;
        } else {
            self.row = 0;
        }
        incompressible
    }
}

/// How many different values the sampled bytes of `page` have.
fn distinct_values(page: &Page) -> usize {
    const { assert!((SAMPLES - 1) * STRIDE_BYTES + SAMPLE_BYTES <= PAGE_BYTES) };
    let mut seen = [0_u8; 256];
    for sample in 0..SAMPLES {
        let at = sample * STRIDE_BYTES;
        page[at..at + SAMPLE_BYTES].iter().for_each(|&byte| seen[usize::from(byte)] = 1);
    }
    // 256 at most, and so too many for a byte; 32 of each lane are not.
    seen.iter().map(|&value| usize::from(value)).sum()
}

//! What a check of a guest's memory found.

use limosa_pages::{PageCount, PageIndex};
use std::fmt;

/// Bad pages that a report describes; the others are only counted. 16 fill a screen.
pub const EXAMPLES_MAX: usize = 16;

/// What the check of a guest's memory found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Pages that could be compared: exactly what they must be, or bad.
    pub pages_checked: PageCount,
    /// Pages that were being written, and could not be compared.
    pub pages_in_flight: PageCount,
    /// Pages that are not what they must be.
    pub pages_bad: PageCount,
    /// The first bad pages, in ascending order; at most [`EXAMPLES_MAX`].
    pub examples: Vec<BadPage>,
    /// How far each worker was, at the end of the check.
    pub workers: Vec<WorkerProgress>,
    /// Contradictions in the workers' own accounts.
    pub contradictions: Vec<Contradiction>,
}

/// One bad page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPage {
    /// Which page.
    pub page: PageIndex,
    /// What is wrong with it.
    pub fault: PageFault,
}

/// How a page differs from what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFault {
    /// A sound page of another generation: stale, if `got` is less than `expected`.
    Generation {
        /// The generation that the worker's steps demand.
        expected: u64,
        /// The one in the page.
        got: u64,
    },
    /// A sound page of another place.
    Misplaced {
        /// The page number in the page.
        got: PageIndex,
    },
    /// All zeros where there must be content.
    Missing {
        /// The generation that the worker's steps demand.
        expected: u64,
    },
    /// The first byte that differs.
    Byte {
        /// Where in the page.
        offset: usize,
        /// What it must be.
        expected: u8,
        /// What it is.
        got: u8,
    },
}

/// How far one worker is, by its control page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerProgress {
    /// Pages it has finished writing since the guest was started first, anywhere.
    pub steps: u64,
    /// The page it is in the middle of.
    pub in_flight: Option<PageIndex>,
}

/// A worker whose accounts do not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contradiction {
    /// The page declared is neither the one of this step nor the one just finished.
    Declared {
        /// Which worker.
        worker: u32,
        /// The page of its next step.
        expected: PageIndex,
        /// The page declared.
        got: PageIndex,
    },
    /// The steps in the vCPU's register, or the worker's state, are not those in the control page.
    Steps {
        /// Which worker.
        worker: u32,
        /// In guest memory.
        control_page: u64,
        /// In the register.
        register: u64,
    },
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.pages_bad == PageCount(0) && self.contradictions.is_empty()
    }

    pub(crate) fn add_bad(&mut self, bad: BadPage) {
        self.pages_bad += PageCount(1);
        let at = self.examples.partition_point(|example| example.page < bad.page);
        self.examples.insert(at, bad);
        self.examples.truncate(EXAMPLES_MAX);
    }

    /// Adds the pages of `other`, the check of another part of the same memory.
    pub(crate) fn merge(&mut self, other: Self) {
        self.pages_checked += other.pages_checked;
        self.pages_in_flight += other.pages_in_flight;
        let undescribed = other.pages_bad.0 - other.examples.len() as u64;
        other.examples.into_iter().for_each(|bad| self.add_bad(bad));
        self.pages_bad += PageCount(undescribed);
    }
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Generation { expected, got } => write!(f, "generation {got}, expected {expected}"),
            Self::Misplaced { got } => write!(f, "the content of page {got}"),
            Self::Missing { expected } => write!(f, "zero, expected generation {expected}"),
            Self::Byte { offset, expected, got } => {
                write!(f, "byte {offset} is {got:#04x}, expected {expected:#04x}")
            }
        }
    }
}

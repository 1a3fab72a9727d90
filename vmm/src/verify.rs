//! Checking every byte of a guest's memory against what its workers must have written.
//!
//! The steps in the control pages say which generation each page must have. Nothing of the guest's own code is
//! used: the expected page is computed here, from [`crate::content`].
//!
//! A page that a worker is in the middle of writing may be old, new or torn; it is the one that the control page
//! declares. While the guest runs, the same holds for every page written during the look at it.

use crate::content::{PAGE_WORDS, PageClass, PageRecipe, PageWords, TAG, checksum};
use crate::guest_map::{FIRST_CONTENT_PAGE, control, control_page};
use crate::prefill::{bytes_of, for_each_share};
use crate::report::{BadPage, Contradiction, PageFault, VerifyReport, WorkerProgress};
use crate::system_image::{Executor, live_bytes, system_image};
use crate::walk::Generations;
use crate::workload::Workload;
use limosa_pages::{PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_ram::{Populated, RamBlock};
use parking_lot::Mutex;

/// Whether the memory may change during the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Paused,
    Running,
}

/// How far the workers are, from their control pages. May be asked while they run.
pub(crate) fn read_progress(ram: &RamBlock, workers: u32) -> Vec<WorkerProgress> {
    (0..workers).map(|worker| read_worker(ram, worker)).collect()
}

/// Checks all of `ram`. Cost: about 1 us per page that holds content, on all processors.
pub(crate) fn verify(
    ram: &RamBlock,
    executor: Executor,
    workload: &Workload,
    moment: Moment,
    register_steps: Option<&[u64]>,
) -> VerifyReport {
    let check = Check { ram, workload, moment, populated: ram.populated() };
    let report = Mutex::new(VerifyReport::default());
    let content = PageRun::new(FIRST_CONTENT_PAGE, PageCount(ram.pages().0 - FIRST_CONTENT_PAGE.0));
    for_each_share(content, |share| {
        let found = check.share(share);
        report.lock().merge(found);
    });
    let mut report = report.into_inner();
    check.system_pages(executor, &mut report);
    report.workers = read_progress(ram, workload.workers);
    report.contradictions = contradictions(workload, &report.workers, register_steps);
    report
}

struct Check<'a> {
    ram: &'a RamBlock,
    workload: &'a Workload,
    moment: Moment,
    populated: Populated,
}

impl Check<'_> {
    /// Compares the pages of `share`, all of them content pages.
    fn share(&self, share: PageRun) -> VerifyReport {
        let before = Expectation::new(self.workload, &self.progress(), |_, _| 0);
        let pages: Vec<Option<Box<PageWords>>> =
            share.pages().map(|page| self.read_unless_surely_zero(page, &before)).collect();
        let after = Expectation::new(self.workload, &self.progress(), |worker, progress| match self.moment {
            Moment::Running => 1,
            Moment::Paused => {
                let next = self.workload.walk(worker).page_at(progress.steps);
                u64::from(progress.in_flight == Some(next))
            }
        });
        let mut report = VerifyReport::default();
        for (page, words) in share.pages().zip(&pages) {
            let words = words.as_deref().unwrap_or(&[0; PAGE_WORDS]);
            match self.compare(page, words, before.generation(page), after.generation(page)) {
                Comparison::Equal => report.pages_checked += PageCount(1),
                Comparison::InFlight => report.pages_in_flight += PageCount(1),
                Comparison::Different(fault) => {
                    report.pages_checked += PageCount(1);
                    report.add_bad(BadPage { page, fault });
                }
            }
        }
        report
    }

    /// A page that was never touched is zero; reading it would make the kernel allocate it.
    fn read_unless_surely_zero(&self, page: PageIndex, before: &Expectation) -> Option<Box<PageWords>> {
        let zero = || self.workload.recipe(page, before.generation(page)).class == PageClass::Zero;
        if !self.populated.contains(page) && zero() {
            return None;
        }
        let mut bytes = [0_u8; PAGE_BYTES];
        self.ram.copy_out(page.byte_offset(), &mut bytes);
        let mut words = Box::new([0; PAGE_WORDS]);
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Some(words)
    }

    /// Compares `words` with the generations that the page may have had while it was read.
    fn compare(&self, page: PageIndex, words: &PageWords, oldest: u64, newest: u64) -> Comparison {
        let recipe = self.workload.recipe(page, oldest);
        let mut expected = [0; PAGE_WORDS];
        recipe.write_into(&mut expected);
        if *words == expected {
            return Comparison::Equal;
        }
        if oldest == newest {
            return Comparison::Different(describe(&recipe, &expected, words));
        }
        if (oldest + 1..=newest).contains(&words[2]) {
            self.workload.recipe(page, words[2]).write_into(&mut expected);
            if *words == expected {
                return Comparison::Equal;
            }
        }
        Comparison::InFlight
    }

    /// Compares the first MiB, but for the live words of the control pages.
    fn system_pages(&self, executor: Executor, report: &mut VerifyReport) {
        let mut expected = system_image(executor, self.workload, self.ram.pages());
        let mut got = vec![0; expected.len()];
        self.ram.copy_out(0, &mut got);
        for worker in 0..self.workload.workers {
            let live = live_bytes(worker);
            expected[live.clone()].copy_from_slice(&got[live]);
        }
        let pages = expected.chunks_exact(PAGE_BYTES).zip(got.chunks_exact(PAGE_BYTES));
        for (page, (expected, got)) in (0..).map(PageIndex).zip(pages) {
            report.pages_checked += PageCount(1);
            if let Some(fault) = first_difference(expected, got) {
                report.add_bad(BadPage { page, fault });
            }
        }
    }

    fn progress(&self) -> Vec<WorkerProgress> {
        read_progress(self.ram, self.workload.workers)
    }
}

enum Comparison {
    Equal,
    InFlight,
    Different(PageFault),
}

/// The generation that each page must have, by the progress of its worker.
struct Expectation {
    slices: Vec<Generations>,
}

impl Expectation {
    /// After the steps of `progress`, and for each worker `more` steps.
    fn new(
        workload: &Workload,
        progress: &[WorkerProgress],
        more: impl Fn(u32, &WorkerProgress) -> u64,
    ) -> Self {
        let slice = |(worker, progress): (u32, &WorkerProgress)| {
            // A damaged counter must not overflow: it is found by the pages that contradict it.
            let steps = progress.steps.saturating_add(more(worker, progress));
            Generations::new(&workload.walk(worker), steps)
        };
        Self { slices: (0..).zip(progress).map(slice).collect() }
    }

    /// 0 for a page outside of the working set.
    fn generation(&self, page: PageIndex) -> u64 {
        self.slices.iter().find_map(|slice| slice.of(page)).unwrap_or(0)
    }
}

fn read_worker(ram: &RamBlock, worker: u32) -> WorkerProgress {
    // One access of 16 aligned bytes: the two words belong to one moment.
    let mut live = [0; control::LIVE_BYTES];
    ram.copy_out(control_page(worker), &mut live);
    let (words, _) = live.as_chunks::<8>();
    let in_flight = u64::from_le_bytes(words[control::IN_FLIGHT]);
    WorkerProgress {
        steps: u64::from_le_bytes(words[control::STEPS]),
        in_flight: (in_flight != 0).then_some(PageIndex(in_flight)),
    }
}

fn contradictions(
    workload: &Workload,
    progress: &[WorkerProgress],
    register_steps: Option<&[u64]>,
) -> Vec<Contradiction> {
    let mut found = Vec::new();
    for (worker, progress) in (0..).zip(progress) {
        let walk = workload.walk(worker);
        let next = walk.page_at(progress.steps);
        let finished = progress.steps.checked_sub(1).map(|step| walk.page_at(step));
        if let Some(got) = progress.in_flight.filter(|page| *page != next && Some(*page) != finished) {
            found.push(Contradiction::Declared { worker, expected: next, got });
        }
        if let Some(register) = register_steps.map(|steps| steps[worker as usize]) {
            // The guest counts in the register first; between the two the page is still declared.
            let counted = progress.in_flight == Some(next) && register == progress.steps.wrapping_add(1);
            if register != progress.steps && !counted {
                found.push(Contradiction::Steps { worker, control_page: progress.steps, register });
            }
        }
    }
    found
}

/// Says how `got` differs from `expected`, which it does.
fn describe(recipe: &PageRecipe, expected: &PageWords, got: &PageWords) -> PageFault {
    if got[0] == TAG && got[3] == checksum(got) {
        if got[1] != recipe.page.0 {
            return PageFault::Misplaced { got: PageIndex(got[1]) };
        }
        if got[2] != recipe.generation {
            return PageFault::Generation { expected: recipe.generation, got: got[2] };
        }
    }
    if got.iter().all(|word| *word == 0) {
        return PageFault::Missing { expected: recipe.generation };
    }
    first_difference(&bytes_of(expected), &bytes_of(got)).expect("the pages differ")
}

fn first_difference(expected: &[u8], got: &[u8]) -> Option<PageFault> {
    let offset = expected.iter().zip(got).position(|(expected, got)| expected != got)?;
    Some(PageFault::Byte { offset, expected: expected[offset], got: got[offset] })
}

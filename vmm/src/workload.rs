//! What the built-in guest does with its memory.

use crate::content::{Content, PageRecipe};
use crate::guest_map::{FIRST_CONTENT_PAGE, SYSTEM_PAGES};
use crate::pace::Rate;
use crate::walk::Walk;
use limosa_pages::{PageCount, PageIndex};

/// How a worker renews a page that it has written before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writing {
    /// All 4 KiB, in every generation.
    #[default]
    Full,
    /// Only generation and checksum: 16 bytes. A page's first generation is written in full.
    Light,
}

/// What content pages hold before a worker writes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefill {
    /// Zeros: memory that nobody has touched.
    #[default]
    Untouched,
    /// This content, written by the VMM at start, with all processors.
    Write(Content),
    /// This content, which the memory file has already ([`write_memory_file`](crate::write_memory_file)).
    Present(Content),
}

/// The built-in guest as its owner orders it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dirtier {
    /// Makes one guest's content different from another's.
    pub seed: u64,
    /// What the workers write.
    pub content: Content,
    /// What is there before.
    pub prefill: Prefill,
    /// How many pages are written again and again; `None` is all content pages.
    pub working_set: Option<PageCount>,
    /// How fast, all workers together.
    pub rate: Rate,
    /// How much of a page is written.
    pub writing: Writing,
}

/// All that determines the content of a guest's memory, given the steps its workers have done.
///
/// It is the part of the guest's configuration that migrates: an incoming VMM learns it from the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Makes one guest's content different from another's.
    pub seed: u64,
    /// What the workers write.
    pub content: Content,
    /// What content pages hold before: `None` is zero.
    pub prefill: Option<Content>,
    /// The pages written again and again, from the first content page on; at least one per worker.
    pub working_set: PageCount,
    /// How much of a page is written.
    pub writing: Writing,
    /// Workers or vCPUs, each with its slice of the working set.
    pub workers: u32,
}

impl Dirtier {
    /// The workload of this guest with `memory` pages and `workers` workers, or `None` if the working set does not
    /// lie between one page per worker and all content pages.
    pub(crate) fn workload(&self, memory: PageCount, workers: u32) -> Option<Workload> {
        let content_pages = content_pages(memory);
        let workload = Workload {
            seed: self.seed,
            content: self.content,
            prefill: match self.prefill {
                Prefill::Untouched => None,
                Prefill::Write(content) | Prefill::Present(content) => Some(content),
            },
            working_set: self.working_set.unwrap_or(content_pages),
            writing: self.writing,
            workers,
        };
        workload.fits(memory).then_some(workload)
    }
}

impl Workload {
    /// Whether a guest with `memory` pages has room for it.
    pub(crate) fn fits(&self, memory: PageCount) -> bool {
        self.working_set <= content_pages(memory) && self.working_set.0 >= u64::from(self.workers)
    }

    /// The way of worker `worker` through the working set.
    pub fn walk(&self, worker: u32) -> Walk {
        Walk::of_worker(FIRST_CONTENT_PAGE, self.working_set, worker, self.workers)
    }

    /// The content of `page` in its `generation`; 0 is the prefill.
    pub(crate) fn recipe(&self, page: PageIndex, generation: u64) -> PageRecipe {
        let content = if generation == 0 { self.prefill.unwrap_or(Content::Zero) } else { self.content };
        PageRecipe {
            seed: self.seed,
            class: content.class_of(self.seed, page),
            page,
            generation,
            body_generation: match self.writing {
                Writing::Full => generation,
                Writing::Light => generation.min(1),
            },
        }
    }
}

impl Writing {
    /// The number that stands for it in guest memory and in the migration stream.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Full => 0,
            Self::Light => 1,
        }
    }

    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Full),
            1 => Some(Self::Light),
            _ => None,
        }
    }
}

/// Pages above the first MiB.
pub(crate) fn content_pages(memory: PageCount) -> PageCount {
    PageCount(memory.0.saturating_sub(SYSTEM_PAGES.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_working_set_must_give_every_worker_a_page_and_fit_into_ram() {
        let dirtier = |pages| Dirtier { working_set: Some(PageCount(pages)), ..Dirtier::default() };
        // 512 pages of RAM are 256 pages of content.
        assert_eq!(dirtier(3).workload(PageCount(512), 4), None);
        assert_eq!(dirtier(257).workload(PageCount(512), 4), None);
        assert!(dirtier(256).workload(PageCount(512), 4).is_some());
        assert_eq!(
            Dirtier::default().workload(PageCount(512), 1).map(|w| w.working_set),
            Some(PageCount(256))
        );
    }

    #[test]
    fn light_writing_keeps_the_body_of_the_first_generation() {
        let dirtier = Dirtier { writing: Writing::Light, ..Dirtier::default() };
        let workload = dirtier.workload(PageCount(512), 1).expect("it fits");
        let bodies: Vec<_> =
            (0..4).map(|generation| workload.recipe(PageIndex(300), generation).body_generation).collect();
        assert_eq!(bodies, [0, 1, 1, 1]);
    }
}

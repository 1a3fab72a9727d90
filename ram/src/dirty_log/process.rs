//! Dirty log of memory that threads of this process write: asynchronous write protection of userfaultfd, read out and
//! armed again by `PAGEMAP_SCAN` (Linux 6.7).
//!
//! The kernel resolves the write faults itself and remembers which pages were written; one ioctl reports them and
//! protects them again, page by page in one step, so no write falls between. It works for private memory and
//! files alike, but per mapping: what is written through another mapping, the engine's alias too, is not seen.
//!
//! Not for the memory of KVM guests: each scan throws the guest's page tables away, also those of clean pages.

use super::{DirtyLog, DirtyLogError, HostWrites};
use crate::block::{Backing, RamBlock};
use crate::guest_ram::GuestRam;
use crate::pagemap::{Category, Pagemap, Request};
use crate::populated::{Evidence, Populated};
use limosa_pages::{BlockId, DirtyMap, PageCount};
use std::io;
use std::sync::Arc;
use userfaultfd::{FeatureFlags, RegisterMode, Uffd, UffdBuilder};

/// Dirty log of process memory.
///
/// It watches the guest mapping of every block. While it runs, the first write to each page after each
/// [`sync_into`](DirtyLog::sync_into) costs the writer about a microsecond.
pub struct PagemapDirtyLog {
    ram: GuestRam,
    host_writes: Arc<HostWrites>,
    uffd: Uffd,
    pagemap: Pagemap,
    /// While the log runs: what was populated when it began, block by block.
    populated: Option<Vec<Populated>>,
}

impl PagemapDirtyLog {
    /// A log of the guest mappings of `ram`.
    ///
    /// # Errors
    /// [`DirtyLogError::Unavailable`], as [`Self::detect`] says.
    pub fn new(ram: GuestRam, host_writes: Arc<HostWrites>) -> Result<Self, DirtyLogError> {
        let uffd = open_uffd()?;
        let pagemap = Pagemap::open().map_err(no_pagemap)?;
        Ok(Self { ram, host_writes, uffd, pagemap, populated: None })
    }

    /// Whether this kernel lets this process have such a log.
    ///
    /// # Errors
    /// [`DirtyLogError::Unavailable`], with what to do about it: userfaultfd may be missing, forbidden, or too old for
    /// asynchronous write protection, and `PAGEMAP_SCAN` may be missing.
    pub fn detect() -> Result<(), DirtyLogError> {
        open_uffd()?;
        // A kernel without the ioctl refuses it whatever the range is.
        let probe =
            std::ptr::NonNull::<u8>::dangling().map_addr(|_| std::num::NonZero::new(4096).expect("4096"));
        Pagemap::open()
            .and_then(|mut pagemap| pagemap.scan(probe, PageCount(1), Request::default(), |_, _| {}))
            .map_err(no_pagemap)
    }

    /// Where devices report writes that do not go through the guest mapping.
    pub fn host_writes(&self) -> &Arc<HostWrites> {
        &self.host_writes
    }

    /// Watches `block` and says what was populated at that moment.
    fn arm(&mut self, id: BlockId) -> Result<Populated, DirtyLogError> {
        let block = self.ram.block(id);
        let (base, whole) = (block.guest_address(), block.whole());
        self.uffd
            .register_with_mode(base.as_ptr().cast(), block.length().0 as usize, RegisterMode::WRITE_PROTECT)
            .map_err(|error| kernel_error(block, "UFFDIO_REGISTER", uffd_error(error)))?;
        // Registered and not yet protected, every page counts as written. This scan protects each page in the same
        // step in which it says whether it was populated; a write falls either before, and the page is populated, or
        // after, and it is logged.
        let populated_now = Category::PRESENT | Category::SWAPPED;
        let request = Request {
            any_of: Category::WRITTEN,
            tell: populated_now | Category::PFN_ZERO,
            protect: true,
            ..Request::default()
        };
        let mut populated = Populated::nothing(Evidence::PageTables);
        let scan_error = |source| kernel_error(block, "PAGEMAP_SCAN", source);
        self.pagemap
            .scan(base, whole.count, request, |run, categories| {
                if categories.intersects(populated_now) && !categories.intersects(Category::PFN_ZERO) {
                    populated.push(run);
                }
            })
            .map_err(scan_error)?;
        // Where a whole page table is missing, the kernel reports first and protects then. A page that came between is
        // present now; the markers of protection are not.
        let mut late = Populated::nothing(Evidence::PageTables);
        let request =
            Request { any_of: Category::PRESENT, none_of: Category::PFN_ZERO, ..Request::default() };
        self.pagemap.scan(base, whole.count, request, |run, _| late.push(run)).map_err(scan_error)?;
        Ok(populated.or(&late))
    }

    fn disarm(&self, block: &RamBlock) -> Result<(), DirtyLogError> {
        self.uffd
            .unregister(block.guest_address().as_ptr().cast(), block.length().0 as usize)
            .map_err(|error| kernel_error(block, "UFFDIO_UNREGISTER", uffd_error(error)))
    }
}

impl DirtyLog for PagemapDirtyLog {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        assert!(self.populated.is_none(), "the log runs already");
        self.host_writes.forget();
        let mut populated = Vec::new();
        for index in 0..self.ram.layout().block_count() {
            match self.arm(BlockId(index as u32)) {
                Ok(block) => populated.push(block),
                Err(error) => {
                    // Best effort: the first error is the one to report.
                    self.ram.iter().take(index + 1).for_each(|(_, block)| drop(self.disarm(block)));
                    return Err(error);
                }
            }
        }
        self.populated = Some(populated);
        Ok(())
    }

    fn populated(&mut self, block: BlockId) -> Result<Populated, DirtyLogError> {
        let at_start = self.populated.as_ref().expect("the log runs");
        Ok(match self.ram.block(block).backing() {
            Backing::Anonymous => at_start[block.index()].clone(),
            // Others may have filled the file; and what the guest writes after this look, it writes after `start`.
            Backing::SharedFile { .. } | Backing::Unknown => self.ram.block(block).populated(),
        })
    }

    fn sync_into(&mut self, dirty: &DirtyMap) -> Result<PageCount, DirtyLogError> {
        assert!(self.populated.is_some(), "the log does not run");
        let mut fresh = self.host_writes.take_into(dirty);
        let request = Request { any_of: Category::WRITTEN, protect: true, ..Request::default() };
        for (id, block) in self.ram.iter() {
            let owed = dirty.block(id);
            self.pagemap
                .scan(block.guest_address(), block.pages(), request, |run, _| fresh += owed.mark(run))
                .map_err(|source| kernel_error(block, "PAGEMAP_SCAN", source))?;
        }
        Ok(fresh)
    }

    fn clear_before_read(
        &mut self,
        _block: BlockId,
        _run: limosa_pages::PageRun,
    ) -> Result<(), DirtyLogError> {
        // I2 holds already: `sync_into` has protected whatever it reported.
        assert!(self.populated.is_some(), "the log does not run");
        Ok(())
    }

    /// Ends the log. Stop the guest first: its next write to each page of a file costs it a fault again.
    fn stop(&mut self) -> Result<(), DirtyLogError> {
        if self.populated.take().is_some() {
            self.ram.iter().try_for_each(|(_, block)| self.disarm(block))?;
        }
        Ok(())
    }
}

/// A userfaultfd that protects asynchronously: empty pages and files too, and writes of the kernel too.
fn open_uffd() -> Result<Uffd, DirtyLogError> {
    const PAGEFAULT_FLAG_WP: u64 = 1 << 0;
    const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    const WP_UNPOPULATED: u64 = 1 << 13;
    const WP_ASYNC: u64 = 1 << 15;
    let features = PAGEFAULT_FLAG_WP | WP_HUGETLBFS_SHMEM | WP_UNPOPULATED | WP_ASYNC;
    UffdBuilder::new()
        .close_on_exec(true)
        .non_blocking(true)
        .user_mode_only(false)
        .require_features(FeatureFlags::from_bits_retain(features))
        .create()
        .map_err(|error| {
            let source = uffd_error(error);
            let remedy = match source.raw_os_error() {
                Some(libc::EINVAL) => "it needs Linux 6.7, for asynchronous write protection",
                Some(libc::EPERM | libc::EACCES) => {
                    "give this process access to /dev/userfaultfd, or CAP_SYS_PTRACE"
                }
                _ => "it needs Linux 6.7 with CONFIG_USERFAULTFD",
            };
            DirtyLogError::Unavailable { what: "asynchronous userfaultfd write protection", remedy, source }
        })
}

fn no_pagemap(source: io::Error) -> DirtyLogError {
    DirtyLogError::Unavailable {
        what: "PAGEMAP_SCAN",
        remedy: "it needs Linux 6.7 with CONFIG_PROC_PAGE_MONITOR and /proc mounted",
        source,
    }
}

fn kernel_error(block: &RamBlock, call: &'static str, source: io::Error) -> DirtyLogError {
    DirtyLogError::Kernel { block: block.name().clone(), call, source }
}

fn uffd_error(error: userfaultfd::Error) -> io::Error {
    match error {
        userfaultfd::Error::OpenDevUserfaultfd(source) => source,
        userfaultfd::Error::SystemError(errno) => io::Error::from_raw_os_error(errno as i32),
        other => io::Error::other(other),
    }
}

//! The ioctl `PAGEMAP_SCAN` (Linux 6.7): what the page tables say about a range, and write protection with it.
//!
//! Source: kernel documentation, admin-guide/mm/pagemap.
//!
//! Safety argument of the module: the kernel reads the address range only as numbers, and writes at most
//! `vec_len` regions into a buffer that outlives the call.
#![allow(unsafe_code, reason = "one ioctl")]

use limosa_pages::{PAGE_BYTES, PageCount, PageIndex, PageRun};
use std::fs::File;
use std::io;
use std::ops::BitOr;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// Regions per call: 65,536 of 24 bytes, 1.5 MiB. Longer answers take another call, so more buys nothing.
const REGIONS: usize = 1 << 16;

/// Properties of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Category(u64);

impl Category {
    /// Written since it was write-protected; also, never protected.
    pub(crate) const WRITTEN: Self = Self(1 << 1);
    /// In memory.
    pub(crate) const PRESENT: Self = Self(1 << 3);
    /// In swap; also, empty but carrying a marker of write protection.
    pub(crate) const SWAPPED: Self = Self(1 << 4);
    /// The shared page of zeros.
    pub(crate) const PFN_ZERO: Self = Self(1 << 5);

    /// Whether the two have a property in common.
    pub(crate) fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Category {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Which pages to report and what to do with them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Request {
    /// Report pages with at least one of these.
    pub(crate) any_of: Category,
    /// Do not report pages with one of these.
    pub(crate) none_of: Category,
    /// Say of each page which of these it has, besides `any_of`.
    pub(crate) tell: Category,
    /// Write-protect what is reported, in the same step; fail unless every page is watched for writes.
    pub(crate) protect: bool,
}

/// The page tables of this process.
pub(crate) struct Pagemap {
    file: File,
    regions: Vec<Region>,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, ScanArguments);
const _: () = assert!(nix::request_code_readwrite!(b'f', 16, size_of::<ScanArguments>()) == 0xc060_6610);

impl Pagemap {
    /// The page tables of this process.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { file: File::open("/proc/self/pagemap")?, regions: Vec::new() })
    }

    /// Calls `visit` for every run of equal pages that match, of `count` pages at `base`, in ascending order.
    ///
    /// Pages are counted from `base`. With `protect`, a page reported is protected in the same step, so a write falls
    /// either before (and is reported now) or after (and will be).
    pub(crate) fn scan(
        &mut self,
        base: NonNull<u8>,
        count: PageCount,
        request: Request,
        mut visit: impl FnMut(PageRun, Category),
    ) -> io::Result<()> {
        self.regions.resize(REGIONS, Region::default());
        let base = base.addr().get() as u64;
        let end = base + count.bytes().0;
        let mut start = base;
        while start < end {
            let found = self.call(start, end, request)?;
            for region in &self.regions[..found] {
                let first = PageIndex((region.start - base) / PAGE_BYTES as u64);
                let count = PageCount((region.end - region.start) / PAGE_BYTES as u64);
                visit(PageRun::new(first, count), Category(region.categories));
            }
            if found < self.regions.len() {
                return Ok(()); // The walk ended with room to spare; `walk_end` would be stale.
            }
            // Everything up to the end of the last region has been looked at, and that always lies ahead.
            start = self.regions[found - 1].end;
        }
        Ok(())
    }

    /// One ioctl; returns how many regions it found.
    fn call(&mut self, start: u64, end: u64, request: Request) -> io::Result<usize> {
        let mut arguments = ScanArguments {
            size: size_of::<ScanArguments>() as u64,
            flags: if request.protect { PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC } else { 0 },
            start,
            end,
            vec: self.regions.as_mut_ptr() as u64,
            vec_len: self.regions.len() as u64,
            category_inverted: request.none_of.0,
            category_mask: request.none_of.0,
            category_anyof_mask: request.any_of.0,
            return_mask: request.any_of.0 | request.tell.0,
            ..ScanArguments::default()
        };
        // SAFETY: the arguments have the kernel's layout and size; `vec` points at `vec_len` regions that stay
        // borrowed during the call.
        let found = unsafe { pagemap_scan(self.file.as_raw_fd(), &mut arguments) }?;
        Ok(found as usize)
    }
}

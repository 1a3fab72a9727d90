//! Units as types: an index, a count and a size cannot be taken for one another.

use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};

/// Bytes in a target page of x86-64: the unit of every bitmap and of every record on the wire.
pub const PAGE_BYTES: usize = 4096;

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteCount(pub u64);

/// A number of 4 KiB target pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageCount(pub u64);

/// Position of a 4 KiB target page inside its block, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u64);

/// Position of a block in its [`RamLayout`](crate::RamLayout), from 0. Never on the wire: names are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

/// Size of the host pages that back a block: a power of two, at least 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u64);

/// A stretch of neighbouring pages of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageRun {
    /// First page.
    pub start: PageIndex,
    /// Length; a run may be empty.
    pub count: PageCount,
}

impl PageCount {
    /// The bytes in this many pages.
    pub const fn bytes(self) -> ByteCount {
        ByteCount(self.0 * PAGE_BYTES as u64)
    }
}

impl ByteCount {
    /// The pages that this many bytes touch, when they begin at a page boundary.
    pub const fn pages_rounded_up(self) -> PageCount {
        PageCount(self.0.div_ceil(PAGE_BYTES as u64))
    }
}

impl PageIndex {
    /// The page that holds the byte at `offset` of its block.
    pub const fn containing(offset: u64) -> Self {
        Self(offset / PAGE_BYTES as u64)
    }

    /// Byte offset of the page's first byte inside its block.
    pub const fn byte_offset(self) -> u64 {
        self.0 * PAGE_BYTES as u64
    }
}

impl BlockId {
    /// As an index into per-block tables.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl PageSize {
    /// The ordinary page of x86-64.
    pub const FOUR_KIB: Self = Self(PAGE_BYTES as u64);

    /// `bytes` as a page size, or `None` unless it is a power of two of at least 4 KiB.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= PAGE_BYTES as u64 { Some(Self(bytes)) } else { None }
    }

    /// Bytes in a page.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Target pages in a host page of this size.
    pub const fn target_pages(self) -> PageCount {
        PageCount(self.0 / PAGE_BYTES as u64)
    }
}

impl PageRun {
    /// The run of `count` pages from `start`.
    pub const fn new(start: PageIndex, count: PageCount) -> Self {
        Self { start, count }
    }

    /// The page after the last.
    pub const fn end(self) -> PageIndex {
        PageIndex(self.start.0 + self.count.0)
    }

    /// Whether the run holds no page.
    pub const fn is_empty(self) -> bool {
        self.count.0 == 0
    }

    /// Whether `page` lies inside.
    pub const fn contains(self, page: PageIndex) -> bool {
        page.0 >= self.start.0 && page.0 < self.start.0 + self.count.0
    }

    /// The pages, in order.
    pub fn pages(self) -> impl Iterator<Item = PageIndex> {
        (self.start.0..self.end().0).map(PageIndex)
    }

    /// Byte offset of the first page in its block.
    pub const fn byte_offset(self) -> u64 {
        self.start.byte_offset()
    }

    /// Bytes covered.
    pub const fn bytes(self) -> ByteCount {
        self.count.bytes()
    }
}

impl fmt::Debug for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageSize({})", self.0)
    }
}

macro_rules! counts {
    ($($type:ty),*) => {$(
        impl Add for $type {
            type Output = Self;
            fn add(self, other: Self) -> Self { Self(self.0 + other.0) }
        }
        impl AddAssign for $type {
            fn add_assign(&mut self, other: Self) { self.0 += other.0; }
        }
        impl Sub for $type {
            type Output = Self;
            fn sub(self, other: Self) -> Self { Self(self.0 - other.0) }
        }
        impl SubAssign for $type {
            fn sub_assign(&mut self, other: Self) { self.0 -= other.0; }
        }
        impl std::iter::Sum for $type {
            fn sum<I: Iterator<Item = Self>>(items: I) -> Self { Self(items.map(|item| item.0).sum()) }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
    )*};
}
counts!(ByteCount, PageCount);

impl Add<PageCount> for PageIndex {
    type Output = Self;
    fn add(self, pages: PageCount) -> Self {
        Self(self.0 + pages.0)
    }
}

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

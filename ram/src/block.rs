//! One named piece of guest RAM.
#![allow(unsafe_code, reason = "hands addresses that it has checked to the unsafe copies and zero tests")]

use crate::error::RamError;
use crate::mapping::{self, Mapping};
use crate::populated::{self, Evidence, Populated};
use crate::{volatile, zero};
use limosa_pages::{
    BlockLayout, BlockName, ByteCount, LayoutError, PAGE_BYTES, PageCount, PageIndex, PageRun, PageSize,
};
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MmapAdvise, madvise};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use std::any::Any;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

/// What lies behind the pages of a block.
#[derive(Debug)]
pub enum Backing {
    /// Private anonymous memory: nobody else has it, and a page never touched is zero.
    Anonymous,
    /// A file (a memfd, tmpfs, a disk) mapped with `MAP_SHARED`.
    SharedFile {
        /// The file, readable and writable.
        file: OwnedFd,
        /// Where the block begins in it, in bytes; a multiple of the page size.
        offset: u64,
    },
    /// Anything else. Every page counts as populated, and there is no alias.
    Unknown,
}

/// A named, mapped array of pages: guest memory.
///
/// Offsets and runs given to its methods must lie inside: they are validated where they enter, with
/// [`Self::page_at`] and [`BlockLayout::contains`]; a wrong one of our own panics.
pub struct RamBlock {
    layout: BlockLayout,
    /// The guest's mapping: KVM slots and worker threads use it, and dirty logs watch it.
    guest: Mapping,
    /// The engine's mapping of the same file; without a file there is only the guest's.
    alias: Option<Mapping>,
    backing: Backing,
    begins_zero: bool,
    /// Keeps an embedder's mapping alive.
    _owner: Option<Arc<dyn Any + Send + Sync>>,
}

impl RamBlock {
    /// New zeroed memory over a memfd, mapped twice: for the guest and for the engine.
    ///
    /// The file is sealed against a change of size, so no access can run past its end. Nothing is allocated yet.
    ///
    /// # Errors
    /// A length that is not a positive multiple of 4 KiB, or what the kernel says.
    pub fn memfd(name: BlockName, length: ByteCount) -> Result<Self, RamError> {
        let layout = checked_layout(name, length, PageSize::FOUR_KIB)?;
        let file = sealed_memfd(length).map_err(|source| map_error(&layout, "memfd_create", source))?;
        Self::over_file(layout, file, true)
    }

    /// New zeroed private memory without a file. There is no alias: prefer [`Self::memfd`].
    ///
    /// # Errors
    /// A length that is not a positive multiple of 4 KiB, or what the kernel says.
    pub fn anonymous(name: BlockName, length: ByteCount) -> Result<Self, RamError> {
        let layout = checked_layout(name, length, PageSize::FOUR_KIB)?;
        let guest = Mapping::anonymous(mapped_length(&layout)?)
            .map_err(|source| map_error(&layout, "mmap", source))?;
        Ok(Self { layout, guest, alias: None, backing: Backing::Anonymous, begins_zero: true, _owner: None })
    }

    /// The first `length` bytes of the file at `path`, shared: what is in the file is in the guest, and back.
    ///
    /// The file is created if missing and grown if shorter; on hugetlbfs the block has its page size. Whoever shrinks it while it is mapped kills this process
    /// (`SIGBUS`): the file must be the user's own.
    ///
    /// # Errors
    /// A length that is not a positive multiple of 4 KiB, or what the kernel says.
    pub fn file(name: BlockName, path: &Path, length: ByteCount) -> Result<Self, RamError> {
        let file_error = |source| RamError::File { block: name.clone(), path: path.to_owned(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .and_then(|file| {
                if file.metadata()?.len() < length.0 {
                    file.set_len(length.0)?;
                }
                Ok(file)
            })
            .map_err(file_error)?;
        let page_size = host_page_size(&file);
        let layout = checked_layout(name, length, page_size)?;
        Self::over_file(layout, file.into(), false)
    }

    /// Memory that an embedder has mapped, used as the guest's mapping and never unmapped here.
    ///
    /// With [`Backing::SharedFile`] the engine's alias is mapped from the file.
    ///
    /// # Errors
    /// A wrong length or alignment, or what the kernel says to the alias.
    ///
    /// # Safety
    /// `length` bytes from `base` must be mapped, readable and writable for the life of the block, and `backing` must
    /// be the truth about them. Nobody may hold a Rust reference into them while the block is in use.
    pub unsafe fn from_mapping(
        name: BlockName,
        base: NonNull<u8>,
        length: ByteCount,
        page_size: PageSize,
        backing: Backing,
    ) -> Result<Self, RamError> {
        let layout = checked_layout(name, length, page_size)?;
        let address = base.addr().get();
        if !(address as u64).is_multiple_of(page_size.bytes()) {
            let block = layout.name;
            return Err(RamError::Misaligned { block, address, page_size: page_size.bytes() });
        }
        let bytes = mapped_length(&layout)?;
        // SAFETY: the caller vouches for exactly this range, for as long as the block lives.
        let guest = unsafe { Mapping::foreign(base, bytes) };
        let alias = match &backing {
            Backing::SharedFile { file, offset } => Some(
                Mapping::shared(file.as_fd(), *offset, bytes)
                    .map_err(|source| map_error(&layout, "mmap", source))?,
            ),
            Backing::Anonymous | Backing::Unknown => None,
        };
        Ok(Self { layout, guest, alias, backing, begins_zero: false, _owner: None })
    }

    /// Keeps `owner` alive for as long as the block: it owns the embedder's mapping.
    #[must_use]
    pub fn kept_alive_by(self, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { _owner: Some(owner), ..self }
    }

    /// Name, length and page size.
    pub fn layout(&self) -> &BlockLayout {
        &self.layout
    }

    /// Name on the wire.
    pub fn name(&self) -> &BlockName {
        &self.layout.name
    }

    /// Bytes of guest memory.
    pub fn length(&self) -> ByteCount {
        self.layout.length
    }

    /// Target pages of 4 KiB.
    pub fn pages(&self) -> PageCount {
        self.layout.pages()
    }

    /// All pages of the block.
    pub fn whole(&self) -> PageRun {
        PageRun::new(PageIndex(0), self.pages())
    }

    /// What lies behind the pages.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Whether this process made the memory, so that a page nobody has written reads as zero.
    ///
    /// A file may have been filled before, and so may an embedder's mapping.
    pub fn begins_zero(&self) -> bool {
        self.begins_zero
    }

    /// Where the guest sees the block: for KVM slots, worker threads and userfaultfd. Valid as long as the block.
    ///
    /// Write through this address, not through [`Self::copy_in`], if a [`DirtyLog`](crate::DirtyLog) of process
    /// memory is to see the write.
    pub fn guest_address(&self) -> NonNull<u8> {
        self.guest.base()
    }

    /// Where the engine sees the block: the alias, or the guest's mapping if there is none.
    pub fn engine_address(&self) -> NonNull<u8> {
        self.engine().base()
    }

    /// Whether the engine has a mapping of its own.
    pub fn has_alias(&self) -> bool {
        self.alias.is_some()
    }

    /// The page that begins at byte `offset`, a number that came from a peer.
    ///
    /// `None` if no page of the block begins there.
    pub fn page_at(&self, offset: u64) -> Option<PageIndex> {
        let inside = offset.is_multiple_of(PAGE_BYTES as u64) && offset < self.length().0;
        inside.then(|| PageIndex::containing(offset))
    }

    /// Copies `out.len()` bytes at `offset` out of the guest. They may be torn if the guest writes them now.
    ///
    /// # Panics
    /// If they leave the block.
    pub fn copy_out(&self, offset: u64, out: &mut [u8]) {
        let from = self.engine().at(offset, out.len());
        // SAFETY: the range is mapped, by `at`, for as long as `self` is borrowed.
        unsafe { volatile::copy_out(from.as_ptr(), out) }
    }

    /// Copies `bytes` into the guest at `offset`.
    ///
    /// Dirty logs do not see it: whoever writes for a running guest reports it to
    /// [`HostWrites`](crate::dirty_log::HostWrites), after the write.
    ///
    /// # Panics
    /// If they leave the block.
    pub fn copy_in(&self, offset: u64, bytes: &[u8]) {
        let to = self.engine().at(offset, bytes.len());
        // SAFETY: the range is mapped, by `at`, for as long as `self` is borrowed.
        unsafe { volatile::copy_in(to.as_ptr(), bytes) }
    }

    /// Whether `page` is zero. Cost: 20 ns in cache, 160 ns from memory; a page of data a few nanoseconds.
    ///
    /// Reading a page that was never touched makes the kernel allocate it: ask [`Self::populated`] first.
    ///
    /// # Panics
    /// If the page is outside the block.
    pub fn is_zero(&self, page: PageIndex) -> bool {
        let address = self.engine().at(page.byte_offset(), PAGE_BYTES);
        // SAFETY: a whole page, mapped by `at`; mappings begin at a page, so the page is aligned.
        unsafe { zero::is_zero_at(address.as_ptr()) }
    }

    /// Which pages of `run` are zero: bit 0 stands for its first page.
    ///
    /// # Panics
    /// If the run is longer than 64 pages or leaves the block.
    pub fn zero_mask(&self, run: PageRun) -> u64 {
        assert!(run.count.0 <= u64::from(u64::BITS), "{run:?} has more pages than a mask has bits");
        run.pages().enumerate().fold(0, |mask, (bit, page)| mask | u64::from(self.is_zero(page)) << bit)
    }

    /// Makes every page of `run` zero, and writes only those that are not.
    ///
    /// Pages that were never touched stay unallocated where the file can tell. Cost: a seek and a zero test per page.
    ///
    /// # Panics
    /// If the run leaves the block.
    pub fn fill_zero(&self, run: PageRun) {
        const ZERO: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
        populated::for_each_data_page(&self.backing, self.inside(run), |page| {
            if !self.is_zero(page) {
                self.copy_in(page.byte_offset(), &ZERO);
            }
        });
    }

    /// Which pages can hold anything but zero, without reading them.
    ///
    /// Cost: nothing for empty stretches; in a file about 0.1 microseconds per populated page.
    ///
    /// While the guest runs this is a look like any other, and the log must be asked in the right order:
    /// [`DirtyLog::populated`](crate::DirtyLog::populated) does that.
    ///
    /// An anonymous block that is armed for [`PagemapDirtyLog`](crate::dirty_log::PagemapDirtyLog) answers that
    /// everything is populated, because the kernel's markers look like swapped pages.
    pub fn populated(&self) -> Populated {
        match &self.backing {
            Backing::SharedFile { file, offset } => {
                populated::by_seeking(file.as_fd(), *offset, self.whole())
            }
            Backing::Anonymous => populated::by_pagemap(self.guest_address(), self.whole()),
            Backing::Unknown => Populated::everything(self.whole(), Evidence::Unknown),
        }
    }

    /// Allocates the pages of `run` now, as huge pages where the kernel can, and leaves their contents alone.
    ///
    /// For a destination, before the stream begins: a page that the kernel has to allocate while it receives costs
    /// several times what the page itself does. Cost: 60 to 90 ms for a GiB in huge pages, ten times that without.
    ///
    /// # Errors
    /// What the kernel says, for example that there is not enough memory.
    ///
    /// # Panics
    /// If the run leaves the block.
    pub fn preallocate(&self, run: PageRun) -> Result<(), RamError> {
        let (start, length) = self.engine_range(self.inside(run));
        mapping::preallocate(start, length).map_err(|source| RamError::Pages {
            block: self.name().clone(),
            call: "madvise",
            run,
            source,
        })
    }

    /// Gives the pages of `run` back to the kernel; they read as zero from then on.
    ///
    /// # Errors
    /// What the kernel says.
    ///
    /// # Panics
    /// If the run leaves the block.
    pub fn punch(&self, run: PageRun) -> Result<(), RamError> {
        let run = self.inside(run);
        let bytes = run.bytes().0;
        if bytes == 0 {
            return Ok(());
        }
        let (call, done) = match &self.backing {
            Backing::SharedFile { file, offset } => {
                let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                ("fallocate", fallocate(file, how, (offset + run.byte_offset()) as i64, bytes as i64))
            }
            Backing::Anonymous => {
                let start = self.guest.at(run.byte_offset(), bytes as usize).cast();
                // SAFETY: private memory of this block, which is data and may be any; no reference into it exists.
                ("madvise", unsafe { madvise(start, bytes as usize, MmapAdvise::MADV_DONTNEED) })
            }
            Backing::Unknown => {
                self.fill_zero(run);
                return Ok(());
            }
        };
        done.map_err(|errno| RamError::Pages { block: self.name().clone(), call, run, source: errno.into() })
    }

    /// Engine-side address of `run`, for vectored I/O.
    pub(crate) fn engine_range(&self, run: PageRun) -> (NonNull<u8>, usize) {
        let length = run.bytes().0 as usize;
        (self.engine().at(run.byte_offset(), length), length)
    }

    fn engine(&self) -> &Mapping {
        self.alias.as_ref().unwrap_or(&self.guest)
    }

    fn inside(&self, run: PageRun) -> PageRun {
        assert!(self.layout.contains(run), "{run:?} leaves {} of {} pages", self.name(), self.pages());
        run
    }

    fn over_file(layout: BlockLayout, file: OwnedFd, begins_zero: bool) -> Result<Self, RamError> {
        let bytes = mapped_length(&layout)?;
        let map =
            || Mapping::shared(file.as_fd(), 0, bytes).map_err(|source| map_error(&layout, "mmap", source));
        let (guest, alias) = (map()?, Some(map()?));
        let backing = Backing::SharedFile { file, offset: 0 };
        Ok(Self { layout, guest, alias, backing, begins_zero, _owner: None })
    }
}

/// The pages that back a shared mapping of `file`: 4 KiB, unless it lies on hugetlbfs.
pub(crate) fn host_page_size(file: &File) -> PageSize {
    let huge = fstatfs(file).ok().filter(|system| system.filesystem_type() == HUGETLBFS_MAGIC);
    huge.and_then(|system| PageSize::new(system.block_size() as u64)).unwrap_or(PageSize::FOUR_KIB)
}

fn sealed_memfd(length: ByteCount) -> io::Result<OwnedFd> {
    let file = memfd_create(c"limosa-ram", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let size = i64::try_from(length.0).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    nix::unistd::ftruncate(&file, size)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW))?;
    Ok(file)
}

fn checked_layout(name: BlockName, length: ByteCount, page_size: PageSize) -> Result<BlockLayout, RamError> {
    if length.0 == 0 || !length.0.is_multiple_of(page_size.bytes()) {
        return Err(LayoutError::Length { name, length, page_size: page_size.bytes() }.into());
    }
    Ok(BlockLayout { name, length, page_size })
}

/// The block's length as something to map; `checked_layout` made it positive.
fn mapped_length(layout: &BlockLayout) -> Result<NonZeroUsize, RamError> {
    let too_long = || map_error(layout, "mmap", io::Error::from_raw_os_error(libc::ENOMEM));
    usize::try_from(layout.length.0).ok().and_then(NonZeroUsize::new).ok_or_else(too_long)
}

fn map_error(layout: &BlockLayout, call: &'static str, source: io::Error) -> RamError {
    RamError::Map { block: layout.name.clone(), call, length: layout.length, source }
}

//! The two mappings of a transfer.

use super::ChannelBenchError;
use crate::memory_file::MemoryFile;
use limosa_pages::{BlockId, BlockName, ByteCount, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_ram::{GuestRam, RamBlock};
use limosa_vmm::Content;
use std::path::Path;

/// The only block.
pub(super) const RAM: BlockId = BlockId(0);

/// Compared at once.
const COMPARED: PageCount = PageCount(64);

/// What the source holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No two pages alike, no byte predictable.
    Random,
    /// Zero pages that were written to.
    Zero,
    /// Nothing was ever written.
    Untouched,
    /// Compresses to about a third.
    Text,
    /// A third each of random, text and zero.
    Mixed,
}

/// What the memory of both sides is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// 2 MiB folios.
    Huge,
    /// 4 KiB pages.
    Small,
}

/// A source and a destination of the same size and layout.
pub struct Pair {
    pub(super) source: GuestRam,
    pub(super) destination: GuestRam,
    layout: Layout,
    _file: MemoryFile,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Random, Self::Zero, Self::Untouched, Self::Text, Self::Mixed];

    /// As on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Zero => "zero",
            Self::Untouched => "untouched",
            Self::Text => "text",
            Self::Mixed => "mixed",
        }
    }

    const fn content(self) -> Content {
        match self {
            Self::Random => Content::Random,
            Self::Zero | Self::Untouched => Content::Zero,
            Self::Text => Content::Text,
            Self::Mixed => Content::Mixed,
        }
    }
}

impl Pair {
    /// A source of `memory` bytes filled with `kind`, in a file in `folder`, and a destination.
    ///
    /// # Errors
    /// No room for either.
    pub fn new(
        folder: &Path,
        kind: Kind,
        layout: Layout,
        memory: ByteCount,
    ) -> Result<Self, ChannelBenchError> {
        let file = MemoryFile::fill(folder, memory, kind.content())?;
        let name = || BlockName::new("ram").expect("a short name");
        let source = RamBlock::file(name(), file.path(), memory)?;
        match kind {
            Kind::Untouched => source.punch(source.whole())?,
            Kind::Zero => {
                source.whole().pages().for_each(|page| source.copy_in(page.byte_offset(), &[0; PAGE_BYTES]))
            }
            _ => {}
        }
        if layout == Layout::Huge && kind != Kind::Untouched {
            source.preallocate(source.whole())?;
        }
        let ram = |block| GuestRam::new(vec![block]);
        let (source, destination) = (ram(source)?, ram(RamBlock::memfd(name(), memory)?)?);
        Ok(Self { source, destination, layout, _file: file })
    }

    /// Bytes on each side.
    pub fn memory(&self) -> ByteCount {
        self.source.block(RAM).length()
    }

    /// Gives the destination all of its memory, in the pair's layout, or none.
    ///
    /// # Errors
    /// There is not so much.
    pub fn prepare(&self, populated: bool) -> Result<(), ChannelBenchError> {
        let block = self.destination.block(RAM);
        block.punch(block.whole())?;
        match (populated, self.layout) {
            (false, _) => {}
            (true, Layout::Huge) => block.preallocate(block.whole())?,
            (true, Layout::Small) => {
                block.whole().pages().for_each(|page| block.copy_in(page.byte_offset(), &[0]));
            }
        }
        Ok(())
    }

    /// Compares both sides.
    ///
    /// # Errors
    /// [`ChannelBenchError::Differs`].
    pub fn compare(&self) -> Result<(), ChannelBenchError> {
        let (source, destination) = (self.source.block(RAM), self.destination.block(RAM));
        let (here, there) = (source.populated(), destination.populated());
        let bytes = COMPARED.bytes().0 as usize;
        let (mut ours, mut theirs) = (vec![0; bytes], vec![0; bytes]);
        for start in (0..source.pages().0).step_by(COMPARED.0 as usize) {
            let run = PageRun::new(PageIndex(start), PageCount(COMPARED.0.min(source.pages().0 - start)));
            // What neither has is zero on both.
            if !run.pages().any(|page| here.contains(page) || there.contains(page)) {
                continue;
            }
            let bytes = run.bytes().0 as usize;
            source.copy_out(run.byte_offset(), &mut ours[..bytes]);
            destination.copy_out(run.byte_offset(), &mut theirs[..bytes]);
            if let Some(at) = (0..bytes).find(|&at| ours[at] != theirs[at]) {
                return Err(ChannelBenchError::Differs {
                    page: run.start + PageCount((at / PAGE_BYTES) as u64),
                });
            }
        }
        Ok(())
    }
}

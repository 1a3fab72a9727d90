//! Names, sizes and order of a guest's RAM blocks.

use crate::units::{BlockId, ByteCount, PAGE_BYTES, PageCount, PageRun, PageSize};
use std::fmt;
use thiserror::Error;

/// Name of a RAM block: 1 to 255 bytes, the length that a `str8` of the wire can carry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockName(String);

/// What one block looks like from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockLayout {
    /// Name on the wire, for example `pc.ram`.
    pub name: BlockName,
    /// Bytes in use; a multiple of 4 KiB.
    pub length: ByteCount,
    /// Host pages behind the block.
    pub page_size: PageSize,
}

/// All migratable blocks of a guest, in the order in which its [`BlockId`]s count them.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RamLayout {
    blocks: Vec<BlockLayout>,
}

/// A list of blocks that cannot be a guest's RAM.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// A name the wire cannot carry.
    #[error("a RAM block name has {got} bytes; 1 to 255 are possible")]
    NameLength {
        /// Bytes in the name.
        got: usize,
    },
    /// Two blocks with one name.
    #[error("two RAM blocks are called {name}")]
    DuplicateName {
        /// The name.
        name: BlockName,
    },
    /// A length that is empty or no multiple of the page.
    #[error("RAM block {name} has {length} bytes; expected a positive multiple of its page size {page_size}")]
    Length {
        /// Which block.
        name: BlockName,
        /// Its length.
        length: ByteCount,
        /// Its page size in bytes.
        page_size: u64,
    },
}

impl BlockName {
    /// `name` as a block name.
    ///
    /// # Errors
    /// [`LayoutError::NameLength`] unless it has 1 to 255 bytes.
    pub fn new(name: impl Into<String>) -> Result<Self, LayoutError> {
        let name = name.into();
        match name.len() {
            1..=255 => Ok(Self(name)),
            got => Err(LayoutError::NameLength { got }),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl BlockLayout {
    /// Target pages in the block.
    pub fn pages(&self) -> PageCount {
        PageCount(self.length.0 / PAGE_BYTES as u64)
    }

    /// Whether `run` lies inside the block.
    pub fn contains(&self, run: PageRun) -> bool {
        run.start.0.checked_add(run.count.0).is_some_and(|end| end <= self.pages().0)
    }
}

impl RamLayout {
    /// The layout of `blocks`, in this order.
    ///
    /// # Errors
    /// Duplicate names and lengths that are not a positive multiple of the block's page size.
    pub fn new(blocks: Vec<BlockLayout>) -> Result<Self, LayoutError> {
        for (index, block) in blocks.iter().enumerate() {
            if block.length.0 == 0 || !block.length.0.is_multiple_of(block.page_size.bytes()) {
                return Err(LayoutError::Length {
                    name: block.name.clone(),
                    length: block.length,
                    page_size: block.page_size.bytes(),
                });
            }
            if blocks[..index].iter().any(|other| other.name == block.name) {
                return Err(LayoutError::DuplicateName { name: block.name.clone() });
            }
        }
        Ok(Self { blocks })
    }

    /// The blocks with their ids, in order.
    pub fn iter(&self) -> impl Iterator<Item = (BlockId, &BlockLayout)> {
        self.blocks.iter().enumerate().map(|(index, block)| (BlockId(index as u32), block))
    }

    /// The block `id`.
    ///
    /// # Panics
    /// If `id` is not of this layout: ids come from [`Self::find`] or [`Self::iter`], never from a peer.
    pub fn block(&self, id: BlockId) -> &BlockLayout {
        &self.blocks[id.index()]
    }

    /// The block called `name`.
    pub fn find(&self, name: &str) -> Option<BlockId> {
        self.blocks.iter().position(|block| block.name.as_str() == name).map(|index| BlockId(index as u32))
    }

    /// How many blocks there are.
    pub fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Bytes of all blocks together.
    pub fn total(&self) -> ByteCount {
        self.blocks.iter().map(|block| block.length).sum()
    }
}

//! The bitmaps of all blocks of a guest.

use crate::bitmap::{DirtyBitmap, ReceivedBitmap};
use crate::layout::RamLayout;
use crate::units::{BlockId, PageCount};

/// What the destination is owed, block by block.
pub struct DirtyMap {
    blocks: Box<[DirtyBitmap]>,
}

/// What the destination holds, block by block.
pub struct ReceivedMap {
    blocks: Box<[ReceivedBitmap]>,
}

impl DirtyMap {
    /// Nothing owed.
    pub fn clean(layout: &RamLayout) -> Self {
        Self { blocks: layout.iter().map(|(_, block)| DirtyBitmap::clean(block.pages())).collect() }
    }

    /// The bitmap of block `id`.
    pub fn block(&self, id: BlockId) -> &DirtyBitmap {
        &self.blocks[id.index()]
    }

    /// The bitmaps with their ids, in order.
    pub fn iter(&self) -> impl Iterator<Item = (BlockId, &DirtyBitmap)> {
        self.blocks.iter().enumerate().map(|(index, bitmap)| (BlockId(index as u32), bitmap))
    }

    /// Pages owed in all blocks together. Cost: one load per 64 pages of RAM.
    pub fn count(&self) -> PageCount {
        self.blocks.iter().map(DirtyBitmap::count).sum()
    }

    /// Owes all RAM.
    pub fn owe_all(&self) {
        self.blocks.iter().for_each(DirtyBitmap::owe_all);
    }

    /// Recovery: owed becomes exactly what is not in `received` (I1).
    pub fn replace_with_missing(&self, received: &ReceivedMap) {
        for (owed, held) in self.blocks.iter().zip(&received.blocks) {
            owed.replace_with_missing(held);
        }
    }
}

impl ReceivedMap {
    /// Nothing received.
    pub fn empty(layout: &RamLayout) -> Self {
        Self { blocks: layout.iter().map(|(_, block)| ReceivedBitmap::empty(block.pages())).collect() }
    }

    /// The bitmap of block `id`.
    pub fn block(&self, id: BlockId) -> &ReceivedBitmap {
        &self.blocks[id.index()]
    }

    /// Pages held in all blocks together.
    pub fn count(&self) -> PageCount {
        self.blocks.iter().map(ReceivedBitmap::count).sum()
    }
}

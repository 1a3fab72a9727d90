//! All RAM blocks of a guest.

use crate::block::RamBlock;
use crate::error::RamError;
use limosa_pages::{BlockId, RamLayout};
use std::sync::Arc;

/// The blocks of a guest's RAM in the order of their [`BlockId`]s. A clone is another handle to the same memory.
#[derive(Clone)]
pub struct GuestRam {
    shared: Arc<Shared>,
}

struct Shared {
    blocks: Vec<RamBlock>,
    layout: RamLayout,
}

impl GuestRam {
    /// The RAM made of `blocks`.
    ///
    /// # Errors
    /// Two blocks of one name.
    pub fn new(blocks: Vec<RamBlock>) -> Result<Self, RamError> {
        let layout = RamLayout::new(blocks.iter().map(|block| block.layout().clone()).collect())?;
        Ok(Self { shared: Arc::new(Shared { blocks, layout }) })
    }

    /// Names, lengths and order of the blocks.
    pub fn layout(&self) -> &RamLayout {
        &self.shared.layout
    }

    /// The block `id`.
    ///
    /// # Panics
    /// If `id` is not of this layout: ids come from [`RamLayout::find`] or [`RamLayout::iter`], never from a peer.
    pub fn block(&self, id: BlockId) -> &RamBlock {
        &self.shared.blocks[id.index()]
    }

    /// The blocks with their ids, in order.
    pub fn iter(&self) -> impl Iterator<Item = (BlockId, &RamBlock)> {
        self.shared.blocks.iter().enumerate().map(|(index, block)| (BlockId(index as u32), block))
    }
}

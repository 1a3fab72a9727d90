//! Which page of ours a record speaks of.

use crate::error::LoadFault;
use limosa_pages::{BlockId, PageIndex, RamLayout};
use limosa_wire::{BlockUse, PageAddress, RamDecoder};

/// Finds the pages of one channel's records: the block of a record may be that of the one before (wire 3.1).
#[derive(Debug, Default)]
pub(super) struct Locator {
    /// The block of the latest record.
    block: Option<BlockId>,
}

impl Locator {
    /// The page that a record which `decoder` has just returned speaks of.
    #[inline]
    pub(super) fn locate(
        &mut self,
        address: PageAddress,
        decoder: &RamDecoder,
        layout: &RamLayout,
    ) -> Result<(BlockId, PageIndex), LoadFault> {
        let block = match (address.block, self.block) {
            (BlockUse::Continued, Some(block)) => block,
            _ => self.look_up(decoder, layout)?,
        };
        let length = layout.block(block).length;
        if address.offset >= length.0 {
            let name = layout.block(block).name.as_str().to_owned();
            return Err(LoadFault::PageOutside { name, offset: address.offset, length });
        }
        Ok((block, PageIndex::containing(address.offset)))
    }

    fn look_up(&mut self, decoder: &RamDecoder, layout: &RamLayout) -> Result<BlockId, LoadFault> {
        let name = decoder.block_name().expect("a page record has or continues a block");
        let block = layout.find(name).ok_or_else(|| LoadFault::UnknownBlock { name: name.to_owned() })?;
        self.block = Some(block);
        Ok(block)
    }
}

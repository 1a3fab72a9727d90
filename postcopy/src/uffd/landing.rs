//! Memory that pages are received into before the guest can see them.
//!
//! The argument is the island's, in `uffd/mod.rs`.
#![allow(unsafe_code, reason = "lends aliases to landing blocks that keep them mapped")]

use crate::error::UffdError;
use limosa_pages::BlockLayout;
use limosa_ram::{Backing, GuestRam, RamBlock};
use std::sync::Arc;

/// RAM of the same layout as `ram`, into which received bytes go: the alias of a block that has one, and private memory
/// beside a block that has none, from which its pages are copied and which is then given back.
pub(crate) fn landing_ram(ram: &GuestRam) -> Result<GuestRam, UffdError> {
    if ram.iter().all(|(_, block)| block.has_alias()) {
        return Ok(ram.clone());
    }
    let blocks = ram.iter().map(|(_, block)| landing_block(ram, block)).collect::<Result<Vec<_>, _>>()?;
    GuestRam::new(blocks).map_err(UffdError::Landing)
}

fn landing_block(ram: &GuestRam, block: &RamBlock) -> Result<RamBlock, UffdError> {
    let BlockLayout { name, length, page_size } = block.layout().clone();
    if !block.has_alias() {
        return RamBlock::anonymous(name, length).map_err(UffdError::Landing);
    }
    // SAFETY: the alias is mapped with this length, readable and writable, as long as `ram`, which the new block keeps;
    // `Unknown` claims nothing about it.
    let lent =
        unsafe { RamBlock::from_mapping(name, block.engine_address(), length, page_size, Backing::Unknown) };
    Ok(lent.map_err(UffdError::Landing)?.kept_alive_by(Arc::new(ram.clone())))
}

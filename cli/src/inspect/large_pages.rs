//! Which blocks of a list carry the size of their host pages.
//!
//! The list does not say so: a destination knows its own blocks. Here only the stream is known, so the list is read
//! ahead: where a block's name should begin, a large page size cannot be mistaken for it, because its first byte, the
//! name's length, is 0.

use crate::inspect::ram::FOUR_KIB;
use limosa_pages::{BlockLayout, BlockName, ByteCount, PageSize, RamLayout};
use limosa_wire::MAX_RAM_BLOCKS;

/// Bytes that hold any block list: total, and per block a name of 256 bytes, length, page size and address.
pub(super) const MAX_BLOCK_LIST_BYTES: usize = 8 + MAX_RAM_BLOCKS * (256 + 8 + 8 + 8);

/// The blocks of the list at the start of `input` whose page size stands on the wire.
///
/// `sizes` are the page sizes in use, ORed, as the source announced them; `addresses` says that every block has its
/// guest-physical address behind the page size. An input that is no block list
/// gives an empty layout; whoever decodes the list says what is wrong with it.
pub(super) fn large_page_blocks(input: &[u8], sizes: u64, addresses: bool) -> RamLayout {
    read(input, sizes, addresses).and_then(|blocks| RamLayout::new(blocks).ok()).unwrap_or_default()
}

fn read(mut input: &[u8], sizes: u64, addresses: bool) -> Option<Vec<BlockLayout>> {
    let mut left = word(&mut input)? & !(FOUR_KIB - 1);
    let mut blocks = Vec::new();
    for _ in 0..MAX_RAM_BLOCKS {
        if left == 0 {
            break;
        }
        let (&name_bytes, rest) = input.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(name_bytes))?;
        input = rest;
        let length = word(&mut input)?;
        left = left.checked_sub(length)?;
        let mut ahead = input;
        if let Some(page_size) = word(&mut ahead).and_then(|size| large_page_size(size, sizes)) {
            input = ahead;
            let name = BlockName::new(std::str::from_utf8(name).ok()?).ok()?;
            blocks.push(BlockLayout { name, length: ByteCount(length), page_size });
        }
        if addresses {
            word(&mut input)?;
        }
    }
    Some(blocks)
}

fn large_page_size(size: u64, sizes: u64) -> Option<PageSize> {
    if size > FOUR_KIB && size & sizes == size { PageSize::new(size) } else { None }
}

fn word(input: &mut &[u8]) -> Option<u64> {
    let (word, rest) = input.split_first_chunk()?;
    *input = rest;
    Some(u64::from_be_bytes(*word))
}

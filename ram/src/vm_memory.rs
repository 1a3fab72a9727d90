//! Regions of the `vm-memory` crate as RAM blocks.
#![allow(unsafe_code, reason = "lends mappings that vm-memory owns to blocks that keep them alive")]

use crate::block::{Backing, RamBlock, host_page_size};
use crate::error::RamError;
use limosa_pages::{BlockName, ByteCount, PageSize};
use std::ptr::NonNull;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

/// A block for each region of `memory`, in its order, named by `name`.
///
/// The blocks keep the regions alive. The bitmap of a region is not consulted: report what your devices write to
/// [`HostWrites`](crate::dirty_log::HostWrites). A region that is neither private anonymous memory nor a shared file
/// counts as populated throughout.
///
/// # Errors
/// Two regions of one name are found by [`GuestRam::new`](crate::GuestRam::new); here, what [`RamBlock::from_mapping`]
/// says, and a file that cannot be duplicated.
///
/// # Panics
/// If a region is not both readable and writable.
pub fn blocks_of<B: Bitmap + Send + Sync + 'static>(
    memory: &GuestMemoryMmap<B>,
    mut name: impl FnMut(&GuestRegionMmap<B>) -> BlockName,
) -> Result<Vec<RamBlock>, RamError> {
    memory.iter().map(|region| block_of(region, name(region))).collect()
}

fn block_of<B: Bitmap + Send + Sync + 'static>(
    region: &GuestRegionMmap<B>,
    name: BlockName,
) -> Result<RamBlock, RamError> {
    let mapping = region.get_mmap();
    let read_write = libc::PROT_READ | libc::PROT_WRITE;
    assert_eq!(mapping.prot() & read_write, read_write, "region {name} is not readable and writable");
    let length = ByteCount(mapping.size() as u64);
    let shared = mapping.flags() & libc::MAP_SHARED != 0;
    let (backing, page_size) = match mapping.file_offset() {
        Some(place) if shared => {
            let file = place.file().try_clone().map_err(|source| RamError::Map {
                block: name.clone(),
                call: "fcntl",
                length,
                source,
            })?;
            let page_size = host_page_size(&file);
            (Backing::SharedFile { file: file.into(), offset: place.start() }, page_size)
        }
        None if !shared => (Backing::Anonymous, PageSize::FOUR_KIB),
        _ => (Backing::Unknown, PageSize::FOUR_KIB),
    };
    let base = NonNull::new(mapping.as_ptr()).expect("a region is mapped somewhere");
    // SAFETY: the region is mapped at `base` with `length` bytes, readable and writable by the assertion, until its
    // last owner goes; the block is one of them. vm-memory gives out no references into it, only volatile slices.
    let block = unsafe { RamBlock::from_mapping(name, base, length, page_size, backing) }?;
    Ok(block.kept_alive_by(mapping))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryRegion};

    #[test]
    fn blocks_show_the_bytes_of_the_regions_and_outlive_the_collection() {
        let ranges = [(GuestAddress(0), 0x4000), (GuestAddress(1 << 32), 0x2000)];
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        memory.write_slice(b"limosa", GuestAddress((1 << 32) + 0x1000)).unwrap();

        let name =
            |region: &GuestRegionMmap| BlockName::new(format!("ram@{:x}", region.start_addr().0)).unwrap();
        let blocks = blocks_of(&memory, name).unwrap();
        drop(memory);

        assert_eq!(blocks[0].name().as_str(), "ram@0");
        assert_eq!(blocks[1].length(), ByteCount(0x2000));
        let mut bytes = [0; 6];
        blocks[1].copy_out(0x1000, &mut bytes);
        assert_eq!(&bytes, b"limosa");
    }
}

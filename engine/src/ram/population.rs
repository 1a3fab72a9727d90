//! Which parts of RAM have memory, told by the source and used by the destination (wire 3.7).

use limosa_multifd::RamSink;
use limosa_pages::{BlockId, PageCount, PageIndex};
use limosa_ram::{Evidence, GuestRam, Populated, REGION};
use limosa_wire::{MAX_POPULATED_REGIONS, POPULATED_REGION, RamEncoder};

const _: () = assert!(REGION.0 == POPULATED_REGION.0, "a number on the wire stands for a region here");

/// How many pages of each region have memory, for the blocks of which that is known.
#[derive(Debug, Default)]
pub(super) struct PopulationReport {
    blocks: Vec<(BlockId, Vec<u16>)>,
}

impl PopulationReport {
    /// Adds a block. Of one that nobody knows anything about, nothing is said: the destination has to guess.
    pub(super) fn add(&mut self, ram: &GuestRam, block: BlockId, populated: &Populated) {
        if populated.evidence() != Evidence::Unknown {
            self.blocks.push((block, populated.by_region(ram.block(block).pages())));
        }
    }

    /// Appends the report.
    pub(super) fn encode(&self, ram: &GuestRam, encoder: &mut RamEncoder, out: &mut Vec<u8>) {
        for (id, regions) in &self.blocks {
            let name = ram.block(*id).name();
            for (piece, pages) in regions.chunks(MAX_POPULATED_REGIONS).enumerate() {
                let first = PageIndex((piece * MAX_POPULATED_REGIONS) as u64 * POPULATED_REGION.0);
                encoder.populated(*id, name, first.byte_offset(), pages, out);
            }
        }
    }
}

/// Lets `sink` know what the source has in the regions of `block` from page `start` on.
pub(super) fn expect(sink: &RamSink, block: BlockId, start: PageIndex, pages: &[u16]) {
    let starts = (start.0..).step_by(POPULATED_REGION.0 as usize);
    for (start, &pages) in starts.zip(pages) {
        sink.preallocation().expect(block, PageIndex(start), PageCount(u64::from(pages)));
    }
}

#[cfg(test)]
mod tests;

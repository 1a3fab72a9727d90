//! Which parts of a block have memory on the source: a record between Limosas only (wire 3.7).

use crate::cursor::{Cursor, Halt, at_most};
use crate::encode;
use crate::error::{Field, WireError};
use limosa_pages::{PAGE_BYTES, PageCount};

/// Pages of a region, for which one number stands: 2 MiB, a huge page of x86.
pub const POPULATED_REGION: PageCount = PageCount(512);

/// Most regions of a record: 8192 numbers of 2 bytes are 16 KiB, for 16 GiB of RAM.
pub const MAX_POPULATED_REGIONS: usize = 8192;

/// Bytes from one region to the next.
pub(super) const REGION_BYTES: u64 = POPULATED_REGION.0 * PAGE_BYTES as u64;

/// Appends what follows the head of the record.
///
/// # Panics
/// If there are no regions or more than [`MAX_POPULATED_REGIONS`], or one has more pages than there are.
pub(super) fn encode(populated: &[u16], out: &mut Vec<u8>) {
    assert!((1..=MAX_POPULATED_REGIONS).contains(&populated.len()), "{} regions", populated.len());
    encode::u16(populated.len() as u16, out);
    for &pages in populated {
        assert!(u64::from(pages) <= POPULATED_REGION.0, "{pages} pages in a region");
        encode::u16(pages, out);
    }
}

/// Reads what follows the head of the record.
pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Vec<u16>, Halt> {
    let at = cursor.at();
    let regions = cursor.u16()?;
    if regions == 0 {
        return Err(WireError::Empty { at, field: Field::PopulatedRegions }.into());
    }
    at_most(at, Field::PopulatedRegions, u64::from(regions), MAX_POPULATED_REGIONS as u64)?;
    let at = cursor.at();
    let numbers = cursor.take(2 * usize::from(regions))?.chunks_exact(2);
    let pages: Vec<u16> = numbers.map(|number| u16::from_be_bytes([number[0], number[1]])).collect();
    for (index, &pages) in pages.iter().enumerate() {
        at_most(at + 2 * index, Field::PopulatedPages, u64::from(pages), POPULATED_REGION.0)?;
    }
    Ok(pages)
}

//! XBZRLE: a page as its difference from what the other side already holds (wire 3.4).
//!
//! An encoding alternates runs of bytes that are equal in both pages (their length only) and runs of new bytes
//! (length and bytes). It begins with an equal run, which may be empty; no later run is. Equal bytes at the
//! end are left out. Lengths are uleb128 of at most two bytes, the low 7 bits first.
//!
//! Example: byte 0 of the page becomes 0x80 and nothing else changes: `00 01 80`.

use limosa_pages::PAGE_BYTES;
use thiserror::Error;

#[cfg(test)]
mod tests;

/// The bytes of one page.
pub type Page = [u8; PAGE_BYTES];

/// Longest encoding that [`encode`] makes: one byte less than the page, which would rather go raw.
pub const ENCODED_BYTES_MAX: usize = PAGE_BYTES - 1;

/// Longest encoding that [`decode`] takes: QEMU's own limit.
pub const ACCEPTED_BYTES_MAX: usize = PAGE_BYTES;

/// Bytes compared at once inside a run.
const WORD_BYTES: usize = size_of::<u64>();

/// Bytes compared at once where nothing has changed: a cache line, four to eight vector instructions.
const STRIDE_BYTES: usize = 64;

/// Lengths below this take one byte, the others two; a page needs 13 bits of the 14.
const SHORT_LENGTHS: usize = 0x80;

/// What became of a page in [`encode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// The pages are identical: nothing needs to be sent.
    Same,
    /// This many bytes, 3 to [`ENCODED_BYTES_MAX`], were appended to the output.
    Delta(usize),
    /// The encoding would be no smaller than the page: send the page.
    Overflow,
}

/// Bytes that are not an encoding. `at` counts from the first of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum XbzrleError {
    /// More bytes than an encoding may have.
    #[error("an XBZRLE encoding has {got} bytes; at most {ACCEPTED_BYTES_MAX} are possible")]
    TooLong {
        /// Bytes in the encoding.
        got: usize,
    },
    /// The end comes inside a run, or after an equal run.
    #[error("an XBZRLE encoding ends at byte {at}; at least {missing} more bytes belong to it")]
    Truncated {
        /// Bytes in the encoding.
        at: usize,
        /// Bytes known to be missing.
        missing: usize,
    },
    /// A length of more than two bytes.
    #[error("the XBZRLE run length at byte {at} has more than two bytes")]
    LongLength {
        /// Where the length begins.
        at: usize,
    },
    /// An empty run where only the first equal run may be empty.
    #[error("the XBZRLE run at byte {at} is empty")]
    EmptyRun {
        /// Where its length is.
        at: usize,
    },
    /// A run that reaches beyond the page.
    #[error("the XBZRLE run at byte {at} ends at byte {end} of a page of {PAGE_BYTES}")]
    BeyondPage {
        /// Where its length is.
        at: usize,
        /// Where it would end in the page.
        end: usize,
    },
}

/// Appends the difference of `new` from `old` to `out`, if it is smaller than a page.
///
/// `out` is as before unless the answer is [`Encoded::Delta`].
///
/// Cost: unchanged bytes are compared 64 at a time, and encoding stops as soon as it cannot pay.
pub fn encode(old: &Page, new: &Page, out: &mut Vec<u8>) -> Encoded {
    let start = out.len();
    let mut at = 0;
    loop {
        let changed = end_of_equal(old, new, at);
        if changed == PAGE_BYTES {
            break;
        }
        let end = end_of_changed(old, new, changed);
        push_length(changed - at, out);
        push_length(end - changed, out);
        // At most two lengths of two bytes beyond the limit are in `out` by now.
        if out.len() - start + (end - changed) > ENCODED_BYTES_MAX {
            out.truncate(start);
            return Encoded::Overflow;
        }
        out.extend_from_slice(&new[changed..end]);
        at = end;
    }
    match out.len() - start {
        0 => Encoded::Same,
        bytes => Encoded::Delta(bytes),
    }
}

/// Applies `delta` to `page`, which holds what the encoder called `old`.
///
/// # Errors
/// [`XbzrleError`] if `delta` is not an encoding; `page` is then as before.
pub fn decode(delta: &[u8], page: &mut Page) -> Result<(), XbzrleError> {
    if delta.len() > ACCEPTED_BYTES_MAX {
        return Err(XbzrleError::TooLong { got: delta.len() });
    }
    if delta.is_empty() {
        // Two lengths and one new byte are the least that a change can be.
        return Err(XbzrleError::Truncated { at: 0, missing: 3 });
    }
    // Twice, so that a bad run behind good ones cannot leave a page half patched. A second look at lengths
    // that are still in the cache costs little.
    for change in Changes::new(delta) {
        change?;
    }
    for change in Changes::new(delta).flatten() {
        page[change.start..change.start + change.bytes.len()].copy_from_slice(change.bytes);
    }
    Ok(())
}

/// The changed runs of an encoding; ends after the first error.
struct Changes<'a> {
    delta: &'a [u8],
    /// Position in `delta`.
    at: usize,
    /// Position in the page.
    start: usize,
}

/// New bytes inside the page.
struct Change<'a> {
    start: usize,
    bytes: &'a [u8],
}

impl<'a> Changes<'a> {
    fn new(delta: &'a [u8]) -> Self {
        Self { delta, at: 0, start: 0 }
    }

    fn change(&mut self) -> Result<Change<'a>, XbzrleError> {
        let equal_at = self.at;
        let equal = self.length()?;
        if equal == 0 && equal_at > 0 {
            return Err(XbzrleError::EmptyRun { at: equal_at });
        }
        let start = inside_page(self.start + equal, equal_at)?;
        let changed_at = self.at;
        let changed = self.length()?;
        if changed == 0 {
            return Err(XbzrleError::EmptyRun { at: changed_at });
        }
        let end = inside_page(start + changed, changed_at)?;
        let rest = &self.delta[self.at..];
        let Some(bytes) = rest.get(..changed) else {
            return Err(XbzrleError::Truncated { at: self.delta.len(), missing: changed - rest.len() });
        };
        self.at += changed;
        self.start = end;
        Ok(Change { start, bytes })
    }

    fn length(&mut self) -> Result<usize, XbzrleError> {
        let continued = |byte: u8| usize::from(byte) >= SHORT_LENGTHS;
        match self.delta[self.at..] {
            [low, ..] if !continued(low) => {
                self.at += 1;
                Ok(usize::from(low))
            }
            [_, high, ..] if continued(high) => Err(XbzrleError::LongLength { at: self.at }),
            [low, high, ..] => {
                self.at += 2;
                Ok(usize::from(low) - SHORT_LENGTHS + usize::from(high) * SHORT_LENGTHS)
            }
            _ => Err(XbzrleError::Truncated { at: self.delta.len(), missing: 1 }),
        }
    }
}

impl<'a> Iterator for Changes<'a> {
    type Item = Result<Change<'a>, XbzrleError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.delta.len() {
            return None;
        }
        let change = self.change();
        if change.is_err() {
            self.at = self.delta.len();
        }
        Some(change)
    }
}

fn inside_page(end: usize, at: usize) -> Result<usize, XbzrleError> {
    if end <= PAGE_BYTES { Ok(end) } else { Err(XbzrleError::BeyondPage { at, end }) }
}

fn push_length(length: usize, out: &mut Vec<u8>) {
    if length < SHORT_LENGTHS {
        out.push(length as u8);
    } else {
        out.extend_from_slice(&[
            (length % SHORT_LENGTHS + SHORT_LENGTHS) as u8,
            (length / SHORT_LENGTHS) as u8,
        ]);
    }
}

/// The first byte from `at` on that differs, or the page's end.
fn end_of_equal(old: &Page, new: &Page, mut at: usize) -> usize {
    while at + WORD_BYTES <= PAGE_BYTES {
        let difference = word(old, at) ^ word(new, at);
        if difference != 0 {
            return at + difference.trailing_zeros() as usize / 8;
        }
        at += WORD_BYTES;
        while at + STRIDE_BYTES <= PAGE_BYTES && !stride_differs(old, new, at) {
            at += STRIDE_BYTES;
        }
    }
    (at..PAGE_BYTES).find(|&at| old[at] != new[at]).unwrap_or(PAGE_BYTES)
}

/// The first byte from `at` on that is equal, or the page's end.
fn end_of_changed(old: &Page, new: &Page, mut at: usize) -> usize {
    const LOW_BITS: u64 = 0x0101_0101_0101_0101;
    const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
    while at + WORD_BYTES <= PAGE_BYTES {
        let difference = word(old, at) ^ word(new, at);
        // The high bit of every byte that is zero. A borrow can mark a byte above a zero one too, so only the
        // lowest mark is exact, and only that one is used.
        let equal = difference.wrapping_sub(LOW_BITS) & !difference & HIGH_BITS;
        if equal != 0 {
            return at + equal.trailing_zeros() as usize / 8;
        }
        at += WORD_BYTES;
    }
    (at..PAGE_BYTES).find(|&at| old[at] == new[at]).unwrap_or(PAGE_BYTES)
}

/// Whether any byte differs. Without an early exit, so that it becomes a few vector instructions.
fn stride_differs(old: &Page, new: &Page, at: usize) -> bool {
    let (old, new) = (&old[at..at + STRIDE_BYTES], &new[at..at + STRIDE_BYTES]);
    old.iter().zip(new).fold(0, |difference, (old, new)| difference | (old ^ new)) != 0
}

/// Eight bytes of the page, the first one lowest.
fn word(page: &Page, at: usize) -> u64 {
    u64::from_le_bytes(page[at..at + WORD_BYTES].try_into().expect("a word has eight bytes"))
}

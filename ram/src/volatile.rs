//! Copies between guest memory and ours.
//!
//! Safety argument of the module: guest memory is mapped outside of every Rust allocation and others write it
//! while we read. Each access here is volatile: the compiler performs it exactly once, as it stands, and may
//! assume nothing about the bytes before or after. A torn value is possible and allowed: the bytes are data, every bit
//! pattern of them is valid, and a page that was torn by a write is sent again because of that write.
#![allow(unsafe_code, reason = "volatile reads and writes through pointers into guest memory")]

/// What one access moves: the widest that every processor of the architecture has.
#[cfg(target_arch = "x86_64")]
type Word = core::arch::x86_64::__m128i;
#[cfg(not(target_arch = "x86_64"))]
type Word = u64;

const WORD: usize = size_of::<Word>();

/// Copies `out.len()` bytes at `from` out of guest memory.
///
/// # Safety
/// The bytes at `from` must be mapped and readable. Nothing in Rust may hold a reference to them.
pub(crate) unsafe fn copy_out(from: *const u8, out: &mut [u8]) {
    let (head, body) = split(from, out.len());
    let to = out.as_mut_ptr();
    // SAFETY: every index is below out.len(), which both sides cover; `from` is aligned to a Word from `head` on,
    // and the other side is accessed unaligned. `out` is ours alone, so it cannot overlap guest memory.
    unsafe {
        for at in (0..head).chain(body..out.len()) {
            *to.add(at) = from.add(at).read_volatile();
        }
        for at in (head..body).step_by(WORD) {
            to.add(at).cast::<Word>().write_unaligned(from.add(at).cast::<Word>().read_volatile());
        }
    }
}

/// Copies `bytes` into guest memory at `to`.
///
/// # Safety
/// The bytes at `to` must be mapped and writable. Nothing in Rust may hold a reference to them.
pub(crate) unsafe fn copy_in(to: *mut u8, bytes: &[u8]) {
    let (head, body) = split(to, bytes.len());
    let from = bytes.as_ptr();
    // SAFETY: as in `copy_out`, with the sides exchanged.
    unsafe {
        for at in (0..head).chain(body..bytes.len()) {
            to.add(at).write_volatile(*from.add(at));
        }
        for at in (head..body).step_by(WORD) {
            to.add(at).cast::<Word>().write_volatile(from.add(at).cast::<Word>().read_unaligned());
        }
    }
}

/// Where the aligned words of `length` bytes at `guest` begin and end, as offsets.
fn split(guest: *const u8, length: usize) -> (usize, usize) {
    let head = guest.align_offset(WORD).min(length);
    (head, head + (length - head) / WORD * WORD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alignment_and_length_copies_exactly_its_bytes() {
        let source: Vec<u8> = (0..200).map(|byte| byte as u8 + 1).collect();
        for start in 0..40 {
            for length in 0..100 {
                let mut out = vec![0; length];
                // SAFETY: start + length < 200, inside `source`, which nobody writes.
                unsafe { copy_out(source.as_ptr().add(start), &mut out) };
                assert_eq!(out, source[start..start + length]);

                let mut target = vec![0; 200];
                // SAFETY: start + length < 200, inside `target`; no reference to it is alive during the call.
                unsafe { copy_in(target.as_mut_ptr().add(start), &out) };
                assert_eq!(target[start..start + length], out);
                assert!(target[..start].iter().chain(&target[start + length..]).all(|&byte| byte == 0));
            }
        }
    }
}

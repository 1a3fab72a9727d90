//! The part of a stream that holds the device sections, and its division by known sizes.

use crate::cursor::Step;
use crate::devices::description::VmDescription;
use crate::error::WireError;
use crate::stream::{
    END_OF_STREAM, MAX_VM_DESCRIPTION_BYTES, SectionHeader, SectionId, StartKind, StreamDecoder, StreamItem,
    VM_DESCRIPTION,
};
use thiserror::Error;

/// Bytes of end mark, vmdescription mark and length.
const DESCRIPTION_HEAD_BYTES: usize = 6;

/// Where a tail ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailEnd {
    /// Offset of the end-of-stream byte: the device sections end before it.
    pub end_of_stream: usize,
    /// Offset of the vmdescription's JSON text, which reaches to the end of the input.
    pub description: usize,
}

/// One device section with the bytes of its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSection<'a> {
    /// Its header.
    pub header: SectionHeader,
    /// Its body, without header and footer.
    pub body: &'a [u8],
}

/// Device sections that cannot be divided.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// Bytes that are no section, or a footer that is not where the sizes say.
    #[error("the device sections break off at byte {base}")]
    Stream {
        /// Offset of the decoder's input in the tail; the error's own offset counts from here.
        base: usize,
        /// What is wrong there.
        source: WireError,
    },
    /// The tail ends inside a section.
    #[error("the tail ends inside a section: {needed} bytes needed at byte {at}, {got} left")]
    Truncated {
        /// Offset in the tail.
        at: usize,
        /// Bytes needed from there on.
        needed: u64,
        /// Bytes left from there on.
        got: u64,
    },
    /// A section that the vmdescription does not list in this place.
    #[error("section {id} ({idstr}, instance {instance_id}) is not the next one of the vmdescription")]
    NotDescribed {
        /// Its id.
        id: SectionId,
        /// Its name.
        idstr: String,
        /// Its instance.
        instance_id: u32,
    },
    /// A section with live state, whose body only its owner can read.
    #[error("section {id} at byte {at} is not a device section")]
    NotADevice {
        /// Offset in the tail.
        at: usize,
        /// Its id.
        id: SectionId,
    },
    /// No chain of footers reaches the end of the tail.
    #[error("no division of the device sections reaches the end")]
    NoDivision,
    /// Too many bytes look like a footer.
    #[error("the division was given up after {candidates} possible footers in {searched} bytes searched")]
    TooAmbiguous {
        /// Places that look like a footer.
        candidates: usize,
        /// Bytes searched, counted again for every section tried.
        searched: usize,
    },
}

/// Whether `tail` ends with a complete vmdescription, and where it begins.
///
/// `tail` is whatever has arrived from any point between two sections on. A peer that waits for our answer keeps
/// its connection open, so this is how the end of its stream shows. An empty description is not recognised: its
/// six bytes are common inside device state. Cost: one pass over `tail`, from the end.
pub fn find_end(tail: &[u8]) -> Option<TailEnd> {
    let last = tail.len().checked_sub(DESCRIPTION_HEAD_BYTES)?;
    let first = last.saturating_sub(MAX_VM_DESCRIPTION_BYTES);
    // From the end: a description can contain no NUL, and device bytes before it may look like one.
    (first..=last).rev().find_map(|at| {
        let (head, json) = tail[at..].split_first_chunk::<DESCRIPTION_HEAD_BYTES>()?;
        let [END_OF_STREAM, VM_DESCRIPTION, length @ ..] = *head else { return None };
        let length = u32::from_be_bytes(length) as usize;
        let plausible = length == json.len() && json.starts_with(b"{") && json.ends_with(b"}");
        plausible.then_some(TailEnd { end_of_stream: at, description: at + DESCRIPTION_HEAD_BYTES })
    })
}

/// Divides `tail`, which begins with a section and ends with (or before) the end-of-stream byte, by the sizes of
/// `description`. Commands between the sections are passed over. Every footer is checked.
///
/// # Errors
/// Sections other than the described ones, in another order or of other sizes.
pub fn split_by_sizes<'a>(
    tail: &'a [u8],
    description: &VmDescription,
) -> Result<Vec<DeviceSection<'a>>, DeviceError> {
    let mut described = description.devices.iter();
    let mut decoder = StreamDecoder::without_header();
    let mut sections = Vec::new();
    let mut at = 0;
    while at < tail.len() {
        let item =
            match decoder.next(&tail[at..]).map_err(|source| DeviceError::Stream { base: at, source })? {
                Step::Need(needed) => return Err(truncated(tail, at, needed as u64)),
                Step::Item { used, item } => {
                    at += used;
                    item
                }
            };
        match item {
            StreamItem::SectionStart(header) if header.kind == StartKind::Full => {
                let device = described.next().filter(|device| {
                    device.idstr == header.idstr && device.instance_id == header.instance_id
                });
                let Some(device) = device else { return Err(not_described(header)) };
                let body = take(tail, &mut at, device.body_bytes)?;
                decoder.end_of_body();
                sections.push(DeviceSection { header, body });
            }
            StreamItem::SectionStart(SectionHeader { id, .. }) | StreamItem::SectionContinue { id, .. } => {
                return Err(DeviceError::NotADevice { at, id });
            }
            StreamItem::EndOfStream => break,
            _ => {}
        }
    }
    Ok(sections)
}

fn take<'a>(tail: &'a [u8], at: &mut usize, count: u64) -> Result<&'a [u8], DeviceError> {
    let left = &tail[*at..];
    let body = usize::try_from(count).ok().and_then(|count| left.get(..count));
    let body = body.ok_or_else(|| truncated(tail, *at, count))?;
    *at += body.len();
    Ok(body)
}

fn truncated(tail: &[u8], at: usize, needed: u64) -> DeviceError {
    DeviceError::Truncated { at, needed, got: (tail.len() - at) as u64 }
}

fn not_described(header: SectionHeader) -> DeviceError {
    DeviceError::NotDescribed { id: header.id, idstr: header.idstr, instance_id: header.instance_id }
}

//! Writing the frame of the stream: header, section headers, footers, end.
//!
//! Every function appends to the caller's buffer. Messages with a type of their own
//! ([`Configuration`](crate::Configuration), [`Command`](crate::Command), ...) encode themselves.

use crate::stream::{self, ContinueKind, SectionHeader, SectionId, StartKind};

/// Appends the stream's magic and version (wire 1.1).
pub fn header(out: &mut Vec<u8>) {
    u32(stream::STREAM_MAGIC, out);
    u32(stream::STREAM_VERSION, out);
}

/// Appends the header of a START or FULL section; the body and [`footer`] follow (wire 1.4).
///
/// # Panics
/// Unless the idstr has 1 to 255 bytes.
pub fn section_start(section: &SectionHeader, out: &mut Vec<u8>) {
    out.push(match section.kind {
        StartKind::Start => stream::SECTION_START,
        StartKind::Full => stream::SECTION_FULL,
    });
    u32(section.id.0, out);
    str8(&section.idstr, out);
    u32(section.instance_id, out);
    u32(section.version_id, out);
}

/// Appends the header of a PART or END section; the body and [`footer`] follow (wire 1.4).
pub fn section_continue(kind: ContinueKind, id: SectionId, out: &mut Vec<u8>) {
    out.push(match kind {
        ContinueKind::Part => stream::SECTION_PART,
        ContinueKind::End => stream::SECTION_END,
    });
    u32(id.0, out);
}

/// Appends the footer that closes the body of section `id` (wire 1.4).
pub fn footer(id: SectionId, out: &mut Vec<u8>) {
    out.push(stream::SECTION_FOOTER);
    u32(id.0, out);
}

/// Appends the end-of-stream byte (wire 1.9).
pub fn end_of_stream(out: &mut Vec<u8>) {
    out.push(stream::END_OF_STREAM);
}

/// Appends the vmdescription, which follows the end of a stream that completed in precopy. An empty one is
/// accepted by QEMU; none at all makes it wait for more, or report a failure (wire 1.9).
///
/// # Panics
/// If `json` is longer than [`MAX_VM_DESCRIPTION_BYTES`](crate::MAX_VM_DESCRIPTION_BYTES).
pub fn vm_description(json: &[u8], out: &mut Vec<u8>) {
    assert!(json.len() <= stream::MAX_VM_DESCRIPTION_BYTES, "vmdescription of {} bytes", json.len());
    out.push(stream::VM_DESCRIPTION);
    u32(json.len() as u32, out);
    out.extend_from_slice(json);
}

pub(crate) fn u16(value: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.to_be_bytes());
}

pub(crate) fn u32(value: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.to_be_bytes());
}

pub(crate) fn u64(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// One length byte and the text.
pub(crate) fn str8(text: &str, out: &mut Vec<u8>) {
    assert!((1..=255).contains(&text.len()), "a name on the wire has 1 to 255 bytes, not {}", text.len());
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

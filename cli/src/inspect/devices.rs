//! Where the bodies of device sections end.
//!
//! A body has no length. The vmdescription tells it, and comes last; so the device part is read ahead. The footer
//! has the last word: where it does not stand where the description says, or where there is no description because
//! the stream is cut, the body ends at the first footer with something plausible behind it.

use limosa_wire::devices::{DescribedDevice, VmDescription, find_end};
use limosa_wire::{
    MAX_VM_DESCRIPTION_BYTES, SectionHeader, SectionId, StartKind, Step, StreamDecoder, StreamItem, encode,
};

/// Most bytes of the device part that are held: a vmdescription at its limit of 64 MiB, and 256 MiB of device state. A
/// vCPU has up to 12 KiB; the largest known is a graphics device that carries its resources.
pub(super) const MAX_DEVICE_PART_BYTES: usize = MAX_VM_DESCRIPTION_BYTES + (256 << 20);

/// Most texts tried as a description when there are bytes behind it.
const MAX_CANDIDATES: usize = 16;

const FOOTER_BYTES: usize = 5;

/// First byte of a vmdescription.
pub(super) const DESCRIPTION_MARK: u8 = 0x06;

/// End mark, vmdescription mark and length.
const DESCRIPTION_HEAD_BYTES: usize = 6;

/// Finds the ends of the bodies, one section after the other.
#[derive(Debug, Default)]
pub(super) struct BodyEnds {
    description: Option<VmDescription>,
    /// Device sections so far.
    seen: usize,
}

/// What is known about the end of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyEnd {
    /// After this many bytes stands its footer.
    After(usize),
    /// Nowhere in the bytes given. The description says so many, if there is one.
    Nowhere { described: Option<u64> },
}

impl BodyEnds {
    /// Whether a description has been found.
    pub(super) fn has_description(&self) -> bool {
        self.description.is_some()
    }

    /// Looks for the description in `part`, which begins inside a device section. Unless that is `behind_ram`, only the
    /// very end is looked at: pages may hold anything, also a description.
    pub(super) fn look_ahead(&mut self, part: &[u8], behind_ram: bool) {
        self.description = match find_end(part) {
            Some(end) => VmDescription::parse(&part[end.description..]).ok(),
            None if behind_ram => search_description(part),
            None => None,
        };
    }

    /// The description's entry for the section that comes next, if it has that name and instance.
    pub(super) fn described(&self, header: &SectionHeader) -> Option<&DescribedDevice> {
        self.description.as_ref()?.devices.get(self.seen).filter(|device| is_of(device, header))
    }

    /// Where the body of section `header` ends, which begins at the start of `rest`; `whole` says that nothing
    /// comes behind `rest`. Cost: one pass over the body if the description does not help.
    pub(super) fn next(&mut self, header: &SectionHeader, rest: &[u8], whole: bool) -> BodyEnd {
        let described = self.described(header).map(|device| device.body_bytes);
        self.seen += 1;
        let footer = footer(header.id);
        if let Some(bytes) = described.and_then(|bytes| usize::try_from(bytes).ok())
            && rest.get(bytes..).is_some_and(|rest| rest.starts_with(&footer))
        {
            return BodyEnd::After(bytes);
        }
        let following = self.description.as_ref().map(|description| description.devices.get(self.seen));
        let mut footers = rest.windows(FOOTER_BYTES).enumerate().filter(|(_, window)| *window == footer);
        let end =
            footers.find(|(at, _)| is_plausible(&rest[at + FOOTER_BYTES..], whole, header.id, following));
        end.map_or(BodyEnd::Nowhere { described }, |(at, _)| BodyEnd::After(at))
    }
}

/// Whether `device` describes section `header`.
pub(super) fn is_of(device: &DescribedDevice, header: &SectionHeader) -> bool {
    device.idstr == header.idstr && device.instance_id == header.instance_id
}

fn footer(id: SectionId) -> [u8; FOOTER_BYTES] {
    let mut bytes = Vec::with_capacity(FOOTER_BYTES);
    encode::footer(id, &mut bytes);
    bytes.try_into().expect("a footer has five bytes")
}

/// Whether `rest` can stand behind the footer of section `id`. `following` is the description's next device: outer
/// `None` without a description, inner `None` if it has no more.
fn is_plausible(
    rest: &[u8],
    whole: bool,
    id: SectionId,
    following: Option<Option<&DescribedDevice>>,
) -> bool {
    match StreamDecoder::without_header().next(rest) {
        Ok(Step::Item { item: StreamItem::SectionStart(next), .. }) => match following {
            Some(device) if next.kind == StartKind::Full => device.is_some_and(|device| is_of(device, &next)),
            _ => next.id != id && next.idstr.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '),
        },
        Ok(Step::Item { item: StreamItem::EndOfStream, used }) => {
            let behind = &rest[used..];
            behind.is_empty() || decodes_as_description(behind, whole)
        }
        Ok(Step::Item { item, .. }) => {
            matches!(item, StreamItem::Command(_) | StreamItem::SectionContinue { .. })
        }
        // The stream is cut here, or the bytes held end here.
        Ok(Step::Need(_)) => true,
        Err(_) => false,
    }
}

/// Whether `behind` begins with a vmdescription, possibly a cut one.
fn decodes_as_description(behind: &[u8], whole: bool) -> bool {
    let Some((head, json)) = behind.split_first_chunk::<{ DESCRIPTION_HEAD_BYTES - 1 }>() else {
        return whole;
    };
    head[0] == DESCRIPTION_MARK && (json.is_empty() || head[1..] == [0; 4] || json[0] == b'{')
}

/// The first text behind an end mark that is a description: other bytes stand behind it, or it is cut.
fn search_description(part: &[u8]) -> Option<VmDescription> {
    let candidates = part.windows(DESCRIPTION_HEAD_BYTES + 1).enumerate().filter_map(|(at, window)| {
        let &[0, DESCRIPTION_MARK, a, b, c, d, b'{'] = window else { return None };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        part[at + DESCRIPTION_HEAD_BYTES..].get(..length).filter(|json| json.ends_with(b"}"))
    });
    candidates.take(MAX_CANDIDATES).find_map(|json| VmDescription::parse(json).ok())
}

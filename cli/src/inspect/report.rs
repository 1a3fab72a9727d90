//! What is known about a stream. The names of the fields are the names in the JSON output.

use crate::inspect::values::DeviceValues;
use limosa_wire::Configuration;
use serde::{Serialize, Serializer};
use std::fmt;

/// Most rows that the list of elements keeps. Consecutive PARTs of a section share one row, so a stream of any length
/// has some dozens to some thousands; 65,536 rows of at most 400 bytes are 26 MiB.
pub(super) const MAX_ROWS: usize = 65_536;

/// What a stream holds, as far as it could be read. Sizes are in bytes, offsets count from the input's start.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Bytes that were understood.
    pub(super) bytes: u64,
    /// Version of the stream's format; `None` before the header.
    pub(super) version: Option<u32>,
    pub(super) configuration: Option<ConfigurationReport>,
    /// What the stream is made of, in order.
    pub(super) elements: Vec<Row>,
    /// Elements beyond [`MAX_ROWS`], not listed.
    pub(super) elements_not_listed: u64,
    /// RAM blocks in the order of the block list.
    pub(super) ram: Vec<BlockReport>,
    /// Marks at which the destination waits for its multifd channels: RAM went over those, not over this one.
    pub(super) multifd_flushes: u64,
    pub(super) devices: Vec<DeviceReport>,
    pub(super) vmdescription: DescriptionReport,
    /// Bytes behind the end of the stream.
    pub(super) trailing_bytes: u64,
    /// Fields of the devices that were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) device_values: Vec<DeviceValues>,
}

/// What the source says about itself.
#[derive(Debug, Serialize)]
pub(super) struct ConfigurationReport {
    pub(super) machine: String,
    pub(super) target_page_bits: Option<u32>,
    /// `None` when the stream has no such list, which means the same as an empty one.
    pub(super) capabilities: Option<Vec<String>>,
    pub(super) uuid: Option<String>,
}

/// One row of the list of elements.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    pub(super) offset: u64,
    /// Size, with type byte, header and footer.
    pub(super) bytes: u64,
    /// How many elements of the same kind stand here one behind the other.
    pub(super) count: u64,
    #[serde(flatten)]
    pub(super) element: Element,
}

/// One thing that the main channel is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "element", rename_all = "kebab-case")]
pub(super) enum Element {
    Header,
    Configuration,
    Command {
        command: &'static str,
        /// Its payload, in words.
        #[serde(skip_serializing_if = "String::is_empty")]
        detail: String,
    },
    Section {
        kind: SectionKind,
        id: u32,
        idstr: String,
        instance_id: u32,
        version_id: u32,
    },
    EndOfStream,
    #[serde(rename = "vmdescription")]
    VmDescription,
    TrailingBytes,
}

/// How a section stands in the life of its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SectionKind {
    Start,
    Part,
    End,
    Full,
}

/// What the stream says about one RAM block.
#[derive(Debug, Serialize)]
pub(super) struct BlockReport {
    pub(super) name: String,
    pub(super) length: u64,
    /// Size of the host's pages, where the stream tells it.
    pub(super) host_page_bytes: Option<u64>,
    /// Guest-physical address, where the stream tells it.
    pub(super) guest_address: Option<u64>,
    /// Pages of 4 KiB in the block.
    pub(super) pages: u64,
    /// Records of each kind.
    pub(super) zero: u64,
    pub(super) normal: u64,
    pub(super) xbzrle: u64,
    /// Bytes of all XBZRLE encodings, without their heads.
    pub(super) xbzrle_bytes: u64,
    /// Bytes of all records, heads included.
    pub(super) bytes: u64,
    /// Records for a page that had one before; `None` if pages were not tracked.
    pub(super) repeated: Option<u64>,
    /// Pages without any record, likewise.
    pub(super) untouched: Option<u64>,
}

/// One device section.
#[derive(Debug, Serialize)]
pub(super) struct DeviceReport {
    pub(super) id: u32,
    pub(super) idstr: String,
    pub(super) instance_id: u32,
    pub(super) version_id: u32,
    /// Offset of the section, and of its body.
    pub(super) offset: u64,
    pub(super) body_offset: u64,
    /// Size of the body.
    pub(super) bytes: u64,
    /// Name of the format, from the vmdescription.
    pub(super) vmsd_name: Option<String>,
    /// Size of the body as the vmdescription has it. It may be wrong where an array's elements differ in size; the
    /// footer has the last word.
    pub(super) described_bytes: Option<u64>,
}

/// What stands behind the end of all sections.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(super) enum DescriptionReport {
    /// None was seen.
    #[default]
    Absent,
    /// It has no bytes.
    Empty,
    /// It was read.
    Read { bytes: usize, page_size: Option<u64>, devices: usize },
}

impl Report {
    /// Adds an element to the list; a PART behind a PART of its section, and a command behind its like, share a row.
    pub(super) fn element(&mut self, offset: u64, bytes: u64, element: Element) {
        self.bytes = offset + bytes;
        let repeats = matches!(element, Element::Section { kind: SectionKind::Part, .. });
        if let Some(last) = self.elements.last_mut()
            && repeats
            && self.elements_not_listed == 0
            && last.element == element
        {
            last.bytes += bytes;
            last.count += 1;
        } else if self.elements.len() < MAX_ROWS {
            self.elements.push(Row { offset, bytes, count: 1, element });
        } else {
            self.elements_not_listed += 1;
        }
    }
}

impl From<Configuration> for ConfigurationReport {
    fn from(configuration: Configuration) -> Self {
        let Configuration { machine, target_page_bits, capabilities, uuid } = configuration;
        Self { machine, target_page_bits, capabilities, uuid: uuid.map(uuid_text) }
    }
}

fn uuid_text(uuid: [u8; 16]) -> String {
    let mut text = String::new();
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Start => "START",
            Self::Part => "PART",
            Self::End => "END",
            Self::Full => "FULL",
        })
    }
}

/// Bytes as one hexadecimal text.
pub(super) fn hexadecimal<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push_str(&format!("{byte:02x}"));
    }
    serializer.serialize_str(&text)
}

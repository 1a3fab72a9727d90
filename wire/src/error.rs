//! What is wrong with bytes that cannot be a message.

use std::fmt;
use thiserror::Error;

/// Bytes that cannot be a message. The peer is broken, hostile or speaks another protocol: close.
///
/// `at` is the offset of the offending byte in the input given to the decoder; the owner of the stream
/// adds the position at which that input began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// A field that can have one value only has another.
    #[error("{field} at byte {at}: expected {expected:#x}, got {got:#x}")]
    Mismatch {
        /// Offset in the input.
        at: usize,
        /// Which field.
        field: Field,
        /// The value it must have.
        expected: u64,
        /// The value it has.
        got: u64,
    },
    /// A length, count or number above what this crate accepts.
    #[error("{field} at byte {at}: {got} is above the limit {limit}")]
    TooLarge {
        /// Offset in the input.
        at: usize,
        /// Which field.
        field: Field,
        /// The value it has.
        got: u64,
        /// The largest value accepted.
        limit: u64,
    },
    /// A number of a list that has no such entry.
    #[error("{field} at byte {at}: {got:#x} is unknown")]
    Unknown {
        /// Offset in the input.
        at: usize,
        /// Which field.
        field: Field,
        /// The value it has.
        got: u64,
    },
    /// A name of a list that has no such entry.
    #[error("{field} at byte {at} is unknown")]
    UnknownName {
        /// Offset in the input.
        at: usize,
        /// Which field.
        field: Field,
    },
    /// A known element where it may not stand.
    #[error("{field} at byte {at}: {got:#x} may not stand here")]
    Misplaced {
        /// Offset in the input.
        at: usize,
        /// Which field.
        field: Field,
        /// The value it has.
        got: u64,
    },
    /// A text or list that must not be empty.
    #[error("{field} at byte {at} is empty")]
    Empty {
        /// Offset in the input.
        at: usize,
        /// Which field.
        field: Field,
    },
    /// A name that is not UTF-8, or a reason with control characters.
    #[error("{field} at byte {at} is no plain UTF-8")]
    NotText {
        /// Offset in the input.
        at: usize,
        /// Which field.
        field: Field,
    },
    /// An address or length off its grid.
    #[error("{field} at byte {at}: {got:#x} is not a multiple of {unit:#x}")]
    Misaligned {
        /// Offset in the input.
        at: usize,
        /// Which field.
        field: Field,
        /// The value it has.
        got: u64,
        /// What it must be a multiple of.
        unit: u64,
    },
    /// A RAM record that continues a block on a channel that has named none yet.
    #[error("RAM record at byte {at} continues the previous block, and there is none")]
    NoPreviousBlock {
        /// Offset in the input.
        at: usize,
    },
}

impl WireError {
    /// Offset of the offending byte in the input given to the decoder.
    pub fn at(&self) -> usize {
        match *self {
            Self::Mismatch { at, .. }
            | Self::TooLarge { at, .. }
            | Self::Unknown { at, .. }
            | Self::UnknownName { at, .. }
            | Self::Misplaced { at, .. }
            | Self::Empty { at, .. }
            | Self::NotText { at, .. }
            | Self::Misaligned { at, .. }
            | Self::NoPreviousBlock { at } => at,
        }
    }
}

macro_rules! fields {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// Which part of a message an error is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Field {
            $(#[doc = $text] $name,)*
        }

        impl fmt::Display for Field {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $text,)* })
            }
        }
    };
}

fields! {
    StreamMagic = "stream magic",
    StreamVersion = "stream version",
    SectionType = "section type",
    MachineName = "machine name",
    Subsection = "configuration subsection",
    SubsectionName = "configuration subsection name",
    SubsectionVersion = "configuration subsection version",
    TargetPageBits = "target page bits",
    CapabilityCount = "capability count",
    CapabilityName = "capability name",
    SectionName = "section idstr",
    FooterMark = "footer mark",
    FooterSectionId = "section id in a footer",
    VmDescriptionLength = "vmdescription length",
    VmDescriptionMark = "vmdescription mark",
    AfterEnd = "byte after the end of the stream",
    CommandNumber = "command number",
    CommandLength = "command payload length",
    PackageLength = "package length",
    DiscardVersion = "discard payload version",
    DiscardTerminator = "discard name terminator",
    DiscardRange = "discard range",
    BlockName = "RAM block name",
    BlockLength = "RAM block length",
    BlockCount = "RAM block count",
    BlockPageSize = "RAM block page size",
    BlockLengthSum = "sum of the RAM block lengths",
    RamFlags = "RAM record flags",
    RamOffset = "RAM page offset",
    ZeroByte = "byte of a zero-page record",
    PopulatedRegions = "number of reported regions",
    PopulatedPages = "populated pages of a region",
    XbzrleEncoding = "XBZRLE encoding",
    XbzrleLength = "XBZRLE length",
    ReturnType = "return-path message type",
    ReturnLength = "return-path message length",
    BitmapLength = "received-bitmap length",
    BitmapEndMark = "received-bitmap end mark",
    RequestedPages = "requested pages",
    ResumeAckValue = "resume acknowledgement",
    MultifdMagic = "multifd magic",
    MultifdVersion = "multifd version",
    MultifdFlags = "multifd flags",
    MultifdMethod = "multifd compression method",
    PagesAllocated = "multifd allocated pages",
    NormalPages = "multifd normal pages",
    ZeroPages = "multifd zero pages",
    PayloadLength = "multifd payload length",
    BlockMethod = "method of a per-packet block",
    PerPacketReserved = "reserved byte of a per-packet head",
    CompressedLength = "length of a per-packet block",
    DeltaLength = "length of the delta records",
    RawMap = "map of raw pages",
    DeltaMap = "map of delta pages",
    DeviceName = "device-state idstr",
    MappedRamVersion = "mapped-ram header version",
    MappedRamPageSize = "mapped-ram page size",
    MappedRamBitmapOffset = "mapped-ram bitmap offset",
    MappedRamPagesOffset = "mapped-ram pages offset",
    DirtyBitmapFlags = "dirty-bitmap chunk flags",
    DirtyBitmapNodeName = "dirty-bitmap node name",
    DirtyBitmapName = "dirty-bitmap name",
    DirtyBitmapStartFlags = "dirty-bitmap start flags",
    DirtyBitmapDataLength = "dirty-bitmap data length",
    ExtensionsVersion = "version of the extensions",
    Features = "chosen features",
    RefusalReason = "reason of a refusal",
}

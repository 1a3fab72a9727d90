//! Why a stream was not read to its end, and where.

use crate::inspect::devices::MAX_DEVICE_PART_BYTES;
use crate::inspect::fields::FieldsError;
use crate::inspect::ram::RamProblem;
use crate::inspect::refusal::Refusal;
use crate::inspect::report::SectionKind;
use limosa_wire::devices::{DescriptionError, MAX_DESCRIBED_DEVICES};
use limosa_wire::{SectionId, WireError};
use std::fmt;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why `inspect` failed. Offsets count from the start of the input.
#[derive(Debug, Error)]
pub(crate) enum InspectError {
    #[error("{} cannot be opened", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("the report cannot be written")]
    Output(#[source] io::Error),
    #[error("offset {offset:#x}, in {place}: the input cannot be read")]
    Read { offset: u64, place: Place, source: io::Error },
    #[error("offset {offset:#x}: {refusal}; inspect reads plain precopy streams only")]
    Refused { offset: u64, refusal: Refusal },
    #[error(
        "the stream is cut off at offset {end:#x}, in {place}: the element that begins at {began:#x} {needs}"
    )]
    Truncated { end: u64, place: Place, began: u64, needs: Needs },
    #[error("in {place}: the element at offset {offset:#x} cannot be read: {source}")]
    Wire { offset: u64, place: Place, source: WireError },
    #[error("offset {offset:#x}: a section continues section {id}, which is not open")]
    NotOpen { offset: u64, id: SectionId },
    #[error("offset {offset:#x}: section {id} ({idstr:?}) starts although its number or name is taken")]
    Repeated { offset: u64, id: SectionId, idstr: String },
    #[error("in {place}: the record at offset {offset:#x} is impossible: {problem}")]
    Ram { offset: u64, place: Place, problem: RamProblem },
    #[error("offset {offset:#x}, in {place}: no end of the body is found{}", DescribedAs(*.described))]
    NoBodyEnd { offset: u64, place: Place, described: Option<u64> },
    #[error(
        "offset {offset:#x}, in {place}: the end of the body is not within the {MAX_DEVICE_PART_BYTES} bytes that \
         inspect holds of the device part"
    )]
    DevicePartTooLarge { offset: u64, place: Place },
    #[error("offset {offset:#x}: more than {MAX_DESCRIBED_DEVICES} device sections")]
    TooManyDevices { offset: u64 },
    #[error("offset {offset:#x}: the vmdescription of {bytes} bytes is damaged")]
    Description { offset: u64, bytes: usize, source: DescriptionError },
    #[error(
        "offset {offset:#x}: the vmdescription lists {described} devices, the stream has {seen}: {first}"
    )]
    OtherDevices { offset: u64, described: usize, seen: usize, first: FirstDifference },
    #[error("the fields of device {wanted:?} are unknown: the stream has no vmdescription")]
    NoDescription { wanted: String },
    #[error("the stream has no device {wanted:?}; it has {known}")]
    NoSuchDevice { wanted: String, known: String },
    #[error("the fields of device {device:?} cannot be shown")]
    Fields { device: String, source: FieldsError },
}

/// What a truncated element lacks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Needs {
    /// This many more bytes, at least.
    More(u64),
    /// Its length is told by a vmdescription, which is missing.
    Description,
}

/// The first place where devices and vmdescription part.
#[derive(Clone, Debug)]
pub(crate) enum FirstDifference {
    /// The stream has this one, the description another in its place or none.
    Undescribed(String),
    /// The description has this one, the stream ends before it.
    Absent(String),
}

/// Where in the stream something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Head,
    Between,
    Section { kind: SectionKind, id: SectionId, idstr: String },
    Description,
    Trailing,
}

impl InspectError {
    /// The class of the error in one word, for programs.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Open { .. } | Self::Output(_) | Self::Read { .. } => "io",
            Self::Refused { .. } => "refused",
            Self::Truncated { .. } => "truncated",
            Self::DevicePartTooLarge { .. } | Self::TooManyDevices { .. } => "too-large",
            Self::NoDescription { .. } | Self::NoSuchDevice { .. } => "no-such-device",
            Self::Wire { .. }
            | Self::NotOpen { .. }
            | Self::Repeated { .. }
            | Self::Ram { .. }
            | Self::NoBodyEnd { .. }
            | Self::Description { .. }
            | Self::OtherDevices { .. }
            | Self::Fields { .. } => "damaged",
        }
    }

    /// Offset in the input, if the error has one.
    pub(super) fn offset(&self) -> Option<u64> {
        match self {
            Self::Open { .. }
            | Self::Output(_)
            | Self::NoDescription { .. }
            | Self::NoSuchDevice { .. }
            | Self::Fields { .. } => None,
            Self::Truncated { end, .. } => Some(*end),
            Self::Wire { offset, source, .. } => Some(offset + source.at() as u64),
            Self::Read { offset, .. }
            | Self::Refused { offset, .. }
            | Self::NotOpen { offset, .. }
            | Self::Repeated { offset, .. }
            | Self::Ram { offset, .. }
            | Self::NoBodyEnd { offset, .. }
            | Self::DevicePartTooLarge { offset, .. }
            | Self::TooManyDevices { offset }
            | Self::Description { offset, .. }
            | Self::OtherDevices { offset, .. } => Some(*offset),
        }
    }
}

/// What the vmdescription says about a body, if anything.
struct DescribedAs(Option<u64>);

impl fmt::Display for DescribedAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |bytes| write!(f, " (the vmdescription says {bytes} bytes)"))
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::More(1) => f.write_str("lacks at least 1 byte"),
            Self::More(bytes) => write!(f, "lacks at least {bytes} bytes"),
            Self::Description => {
                f.write_str("has a length that only a vmdescription tells, and there is none")
            }
        }
    }
}

impl fmt::Display for FirstDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undescribed(idstr) => write!(f, "section {idstr:?} is not described in its place"),
            Self::Absent(idstr) => write!(f, "device {idstr:?} is described but absent"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("the header and configuration"),
            Self::Between => f.write_str("the space between two sections"),
            Self::Section { kind, id, idstr } => write!(f, "the {kind} section of {idstr:?} (id {id})"),
            Self::Description => f.write_str("the vmdescription"),
            Self::Trailing => f.write_str("the bytes behind the stream"),
        }
    }
}

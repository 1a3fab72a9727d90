//! What two Limosas agree on beyond QEMU's protocol, before any section (wire 14.1).

use crate::cursor::{Cursor, Halt};
use crate::encode;
use crate::error::{Field, WireError};
use crate::multifd::Compression;
use std::fmt;
use std::ops::{BitAnd, BitOr};

/// Value of the PING that asks for a HELLO: "LIM1". Any destination answers it with a PONG; only one that knows
/// extensions says HELLO before it.
pub const GREETING: u32 = 0x4c49_4d31;

/// Version of the extensions described here.
pub const EXTENSIONS_VERSION: u16 = 1;

/// Longest reason of a refusal: a sentence or two, and nothing that fills a log.
pub const MAX_REFUSAL_BYTES: u16 = 1024;

/// Bytes of a HELLO: version and features.
pub(crate) const HELLO_BYTES: usize = 2 + 8;

/// Bytes of FEATURES: features, number of channels, compression.
pub(crate) const AGREEMENT_BYTES: usize = 8 + 1 + 1;

/// A set of extensions. A set read from a HELLO may hold some that this version does not know; they stay unused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features(u64);

/// What a destination can do besides what QEMU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`EXTENSIONS_VERSION`], or that of a later peer, which understands ours.
    pub version: u16,
    /// What it offers.
    pub features: Features,
}

/// What the source has chosen, and what it says of itself so that the destination can compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// In use from now on; some of those that were offered.
    pub features: Features,
    /// The source's channels.
    pub multifd: MultifdSettings,
}

/// Settings of the multifd channels that must be the same on both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MultifdSettings {
    /// How many; 0 without multifd.
    pub channels: u8,
    /// What the packets say; [`Compression::None`] without multifd.
    pub compression: Compression,
}

/// Why a destination gives up, in its own words: 1 to [`MAX_REFUSAL_BYTES`] bytes without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusalReason(String);

impl Features {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// Packets on multifd channels that are compressed one by one (wire 4.10).
    pub const PER_PACKET_CODECS: Self = Self(1 << 0);
    /// The source says in its RAM setup which pages have memory (wire 3.7).
    pub const POPULATED_REPORT: Self = Self(1 << 1);
    /// Pages on multifd channels during postcopy.
    pub const POSTCOPY_CHANNELS: Self = Self(1 << 2);
    /// The destination says whether the guest runs there, or never did.
    pub const RUNNING_ANSWERS: Self = Self(1 << 3);
    /// Links beside the main one are replaced when they are lost in postcopy.
    pub const LINK_REPLACEMENT: Self = Self(1 << 4);
    /// All that this version knows.
    pub const KNOWN: Self = Self(0b1_1111);

    const NAMES: [(Self, &str); 5] = [
        (Self::PER_PACKET_CODECS, "codecs per packet"),
        (Self::POPULATED_REPORT, "report of populated pages"),
        (Self::POSTCOPY_CHANNELS, "channels during postcopy"),
        (Self::RUNNING_ANSWERS, "answers whether the guest runs"),
        (Self::LINK_REPLACEMENT, "replacement of lost links"),
    ];

    /// The set with these bits on the wire.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Bits on the wire.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `others` are in the set.
    pub const fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// The set without `others`.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Features {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMES.iter().filter(|(feature, _)| self.contains(*feature));
        let mut separator = "";
        for (_, name) in named {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        match self.without(Self::KNOWN) {
            Self::NONE if self.is_empty() => f.write_str("none"),
            Self::NONE => Ok(()),
            unknown => write!(f, "{separator}{:#x}", unknown.0),
        }
    }
}

impl Hello {
    pub(crate) fn encode(self, out: &mut Vec<u8>) {
        encode::u16(self.version, out);
        encode::u64(self.features.0, out);
    }

    pub(crate) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Halt> {
        let at = cursor.at();
        let version = cursor.u16()?;
        if version == 0 {
            return Err(WireError::Empty { at, field: Field::ExtensionsVersion }.into());
        }
        Ok(Self { version, features: Features(cursor.u64()?) })
    }
}

impl Agreement {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        encode::u64(self.features.0, out);
        out.push(self.multifd.channels);
        out.push(self.multifd.compression.method());
    }

    pub(crate) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Halt> {
        let at = cursor.at();
        let features = Features(cursor.u64()?);
        let unknown = features.without(Features::KNOWN);
        if !unknown.is_empty() {
            return Err(WireError::Unknown { at, field: Field::Features, got: unknown.0 }.into());
        }
        let channels = cursor.u8()?;
        let at = cursor.at();
        let compression = Compression::from_method(at, u32::from(cursor.u8()?))?;
        Ok(Self { features, multifd: MultifdSettings { channels, compression } })
    }
}

impl RefusalReason {
    /// The reason in `text`: control characters become spaces, and what is too long is cut off.
    ///
    /// # Panics
    /// If `text` is empty.
    pub fn new(text: &str) -> Self {
        assert!(!text.is_empty(), "a refusal without a reason");
        let longest = text.len().min(usize::from(MAX_REFUSAL_BYTES));
        let end = (0..=longest).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        let clean = |letter: char| if letter.is_control() { ' ' } else { letter };
        // A control character of two bytes becomes a space of one: it never grows.
        Self(text[..end].chars().map(clean).collect())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads the payload of a message, `length` bytes.
    pub(crate) fn read(length: u16, cursor: &mut Cursor<'_>) -> Result<Self, Halt> {
        let (at, field) = (cursor.at(), Field::RefusalReason);
        if length == 0 {
            return Err(WireError::Empty { at, field }.into());
        }
        let bytes = cursor.take(usize::from(length))?;
        match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains(char::is_control) => Ok(Self(text.to_owned())),
            // It would end up on a terminal.
            _ => Err(WireError::NotText { at, field }.into()),
        }
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

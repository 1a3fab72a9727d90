//! What can be wrong with a device's state, and where.

use crate::input::InputError;
use crate::path::FieldPath;
use crate::scalar::ScalarValue;
use thiserror::Error;

/// Why a device's own hook refused: any error type of the device's author.
pub type HookError = Box<dyn std::error::Error + Send + Sync>;

/// A device that could not be loaded. Its state is partly overwritten and must not be run.
#[derive(Debug, Error)]
#[error("{path}, at offset {offset}: {problem}")]
pub struct LoadError {
    /// The device and the field in it.
    pub path: FieldPath,
    /// Where in the stream the field begins.
    pub offset: u64,
    /// What is wrong there.
    pub problem: LoadProblem,
}

/// What is wrong with one field of a stream.
#[derive(Debug, Error)]
pub enum LoadProblem {
    /// The stream gave no more bytes.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A version that this side cannot read.
    #[error("version {got} is not one of {minimum} to {maximum}")]
    Version {
        /// On the wire.
        got: u32,
        /// Oldest readable one.
        minimum: u32,
        /// Newest readable one: the one this side writes.
        maximum: u32,
    },
    /// A bool that is neither 0 nor 1.
    #[error("a bool has the value {got}; expected 0 or 1")]
    NotABool {
        /// The byte.
        got: u8,
    },
    /// A value that the two sides must agree about, and do not.
    #[error("the source has {got}, here it is {expected}; they must be equal")]
    NotEqual {
        /// The value of this side.
        expected: ScalarValue,
        /// The value on the wire.
        got: ScalarValue,
    },
    /// A count of elements beyond what the device allows.
    #[error("the count is {got}; expected 0 to {maximum}")]
    Count {
        /// The count field's value.
        got: ScalarValue,
        /// The device's limit.
        maximum: usize,
    },
    /// A subsection that bears this device's name and is not in its list.
    #[error("unknown subsection {name:?}")]
    UnknownSubsection {
        /// Its name on the wire.
        name: String,
    },
    /// A subsection that came twice.
    #[error("subsection {name:?} comes twice")]
    RepeatedSubsection {
        /// Its name.
        name: &'static str,
    },
    /// Structs inside structs beyond any real device.
    #[error("structs are nested more than {maximum} deep")]
    TooDeep {
        /// The limit.
        maximum: usize,
    },
    /// The device's hook refused the state.
    #[error("refused by the device: {0}")]
    Refused(#[source] HookError),
    /// A thread panicked while it held the device's lock; what the lock guards may be half changed.
    #[error("a thread panicked while it was changing this device")]
    Poisoned,
}

/// A device that could not be saved.
#[derive(Debug, Error)]
#[error("{path}: {problem}")]
pub struct SaveError {
    /// The device and the field in it.
    pub path: FieldPath,
    /// What is wrong there.
    pub problem: SaveProblem,
}

/// What is wrong with one field of a device to be saved.
#[derive(Debug, Error)]
pub enum SaveProblem {
    /// More elements than the device's own limit, or than its count field can hold.
    #[error("{got} elements; at most {maximum} can be saved")]
    Count {
        /// Elements in the device.
        got: usize,
        /// The limit.
        maximum: usize,
    },
    /// An array that shares its count field with another one, of a different length.
    #[error("{got} elements, but the count field says {count}")]
    CountMismatch {
        /// Elements in the device.
        got: usize,
        /// The count field's value.
        count: ScalarValue,
    },
    /// A bitmap whose words do not fit its count of bits, or with more bits than the device's own limit.
    #[error("{got} words in a bitmap of {bits} bits; at most {maximum} bits can be saved")]
    BitmapLength {
        /// Words in the device.
        got: usize,
        /// The count field's value.
        bits: ScalarValue,
        /// The device's limit, in bits.
        maximum: usize,
    },
    /// Structs inside structs beyond what a destination reads.
    #[error("structs are nested more than {maximum} deep")]
    TooDeep {
        /// The limit.
        maximum: usize,
    },
    /// The device's hook refused.
    #[error("refused by the device: {0}")]
    Refused(#[source] HookError),
    /// A thread panicked while it held the device's lock; what the lock guards may be half changed.
    #[error("a thread panicked while it was changing this device")]
    Poisoned,
}

//! Integers and bools, big-endian and of their natural width.

use std::fmt;

/// A value that is one number on the wire. Implemented for `bool`, `u8` to `u64` and `i8` to `i64`; sealed.
pub trait Scalar: Copy + PartialEq + sealed::Sealed {
    /// Its name in a vmdescription.
    const TYPE: &'static str;
    /// Its name there when it is only compared with the local value.
    const EQUAL_TYPE: &'static str;
    /// Its width.
    const BYTES: usize;
    /// The value, for messages.
    fn value(self) -> ScalarValue;
    /// Appends its bytes to `out`.
    fn append(self, out: &mut Vec<u8>);
    /// The value of `bytes`, which are [`Self::BYTES`] many; `None` if no value has these bytes.
    fn from_wire(bytes: &[u8]) -> Option<Self>;
}

/// A scalar that can count the elements of a later field: `u8` to `u64` and `i32`.
pub trait Count: Scalar {
    /// The most it can count.
    const MAX_COUNT: usize;
    /// `count` in this type, if it fits.
    fn from_count(count: usize) -> Option<Self>;
    /// As a number of elements, if it is one.
    fn to_count(self) -> Option<usize>;
}

/// A scalar's value whatever its type, to be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScalarValue {
    /// Of an unsigned integer.
    Unsigned(u64),
    /// Of a signed integer.
    Signed(i64),
    /// Of a bool.
    Bool(bool),
}

impl fmt::Display for ScalarValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(value) => write!(f, "{value}"),
            Self::Signed(value) => write!(f, "{value}"),
            Self::Bool(value) => write!(f, "{value}"),
        }
    }
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! integer {
    ($($ty:ty, $name:literal, $equal:literal, $value:ident;)+) => {$(
        impl sealed::Sealed for $ty {}
        impl Scalar for $ty {
            const TYPE: &'static str = $name;
            const EQUAL_TYPE: &'static str = $equal;
            const BYTES: usize = size_of::<Self>();

            fn value(self) -> ScalarValue {
                ScalarValue::$value(self.into())
            }

            fn append(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }

            fn from_wire(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self::from_be_bytes)
            }
        }
    )+};
}

// QEMU has one "equal" type of 64 bits, and calls it int64 although it is unsigned.
integer! {
    u8, "uint8", "uint8 equal", Unsigned;
    u16, "uint16", "uint16 equal", Unsigned;
    u32, "uint32", "uint32 equal", Unsigned;
    u64, "uint64", "int64 equal", Unsigned;
    i8, "int8", "int8 equal", Signed;
    i16, "int16", "int16 equal", Signed;
    i32, "int32", "int32 equal", Signed;
    i64, "int64", "int64 equal", Signed;
}

impl sealed::Sealed for bool {}
impl Scalar for bool {
    const TYPE: &'static str = "bool";
    const EQUAL_TYPE: &'static str = "bool equal";
    const BYTES: usize = 1;

    fn value(self) -> ScalarValue {
        ScalarValue::Bool(self)
    }

    fn append(self, out: &mut Vec<u8>) {
        out.push(self.into());
    }

    fn from_wire(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }
}

macro_rules! count {
    ($($ty:ty)+) => {$(
        impl Count for $ty {
            // On a host of fewer bits than the type the host's own limit is the lower one.
            const MAX_COUNT: usize =
                if size_of::<Self>() < size_of::<usize>() { Self::MAX as usize } else { usize::MAX };

            fn from_count(count: usize) -> Option<Self> {
                count.try_into().ok()
            }

            fn to_count(self) -> Option<usize> {
                self.try_into().ok()
            }
        }
    )+};
}

count!(u8 u16 u32 u64 i32);

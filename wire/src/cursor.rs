//! A place in the input, and the two reasons to stop reading there.

use crate::error::{Field, WireError};
use limosa_pages::BlockName;

/// What a decoder made of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// Nothing can be said before the input holds at least this many bytes, counted from its start.
    /// Nothing was consumed: call again with the same bytes and more behind them.
    Need(usize),
    /// The first `used` bytes of the input made `item`.
    Item {
        /// Bytes consumed.
        used: usize,
        /// The message.
        item: T,
    },
}

/// Why a message could not be read to its end.
pub(crate) enum Halt {
    /// The input ends before this many bytes.
    Need(usize),
    /// The input is wrong.
    Wrong(WireError),
}

impl From<WireError> for Halt {
    fn from(error: WireError) -> Self {
        Self::Wrong(error)
    }
}

/// Reads `input` with `read`; what `read` has passed over is used up.
pub(crate) fn step<'a, T>(
    input: &'a [u8],
    read: impl FnOnce(&mut Cursor<'a>) -> Result<T, Halt>,
) -> Result<Step<T>, WireError> {
    let mut cursor = Cursor { input, at: 0 };
    match read(&mut cursor) {
        Ok(item) => Ok(Step::Item { used: cursor.at, item }),
        Err(Halt::Need(total)) => Ok(Step::Need(total)),
        Err(Halt::Wrong(error)) => Err(error),
    }
}

/// Reads big-endian fields one after the other.
pub(crate) struct Cursor<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Offset of the next byte.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The next `count` bytes. Callers have held `count` against a limit, so the sum cannot overflow.
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Halt> {
        let end = self.at + count;
        let bytes = self.input.get(self.at..end).ok_or(Halt::Need(end))?;
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Halt> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("take returns as many bytes as asked for"))
    }

    /// The next byte, which stays where it is.
    pub(crate) fn peek(&self) -> Result<u8, Halt> {
        self.input.get(self.at).copied().ok_or(Halt::Need(self.at + 1))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Halt> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Halt> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Halt> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Halt> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn u128(&mut self) -> Result<u128, Halt> {
        self.array().map(u128::from_be_bytes)
    }

    /// 16 raw bytes.
    pub(crate) fn uuid(&mut self) -> Result<[u8; 16], Halt> {
        self.array()
    }

    /// A `str8`: one length byte, 1 to 255, and that many bytes of UTF-8.
    pub(crate) fn str8(&mut self, field: Field) -> Result<&'a str, Halt> {
        let at = self.at;
        let length = usize::from(self.u8()?);
        if length == 0 {
            return Err(WireError::Empty { at, field }.into());
        }
        let at = self.at;
        std::str::from_utf8(self.take(length)?).map_err(|_| WireError::NotText { at, field }.into())
    }

    /// A `str8` that names a RAM block.
    pub(crate) fn block_name(&mut self) -> Result<BlockName, Halt> {
        let name = self.str8(Field::BlockName)?;
        Ok(BlockName::new(name).expect("a str8 has 1 to 255 bytes, as a block name may"))
    }

    /// A field that must have the value `expected`.
    pub(crate) fn expect_u32(&mut self, field: Field, expected: u32) -> Result<(), Halt> {
        let at = self.at;
        let got = self.u32()?;
        expect(at, field, u64::from(expected), u64::from(got)).map_err(Halt::from)
    }

    /// A byte that must have the value `expected`.
    pub(crate) fn expect_u8(&mut self, field: Field, expected: u8) -> Result<(), Halt> {
        let at = self.at;
        let got = self.u8()?;
        expect(at, field, u64::from(expected), u64::from(got)).map_err(Halt::from)
    }
}

/// `got` must be `expected`.
pub(crate) fn expect(at: usize, field: Field, expected: u64, got: u64) -> Result<(), WireError> {
    if got == expected { Ok(()) } else { Err(WireError::Mismatch { at, field, expected, got }) }
}

/// `got` must not be above `limit`.
pub(crate) fn at_most(at: usize, field: Field, got: u64, limit: u64) -> Result<(), WireError> {
    if got <= limit { Ok(()) } else { Err(WireError::TooLarge { at, field, got, limit }) }
}

/// `got` must be a multiple of `unit`.
pub(crate) fn aligned(at: usize, field: Field, got: u64, unit: u64) -> Result<(), WireError> {
    if got.is_multiple_of(unit) { Ok(()) } else { Err(WireError::Misaligned { at, field, got, unit }) }
}

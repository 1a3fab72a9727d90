//! One pass over a device's fields, to save or to load them.

use crate::field::Element;
use crate::scalar::{Count, Scalar};
use crate::state::VmState;

/// Deepest nesting of fields in fields; QEMU's own devices reach 6. Only a struct that contains itself
/// could go on for as long as a stream says.
pub const NESTING_MAX: usize = 16;

/// What `#[derive(VmState)]` calls for each field; implemented by this crate's saver and loader, and sealed.
///
/// `name` is the field's name in descriptions and messages.
pub trait Walk: sealed::Sealed {
    /// Why a walk stops early.
    type Error;
    /// Whether the walk saves; otherwise it loads.
    const SAVES: bool;

    /// Whether a field that exists since `version` is on this wire. Always, when saving.
    fn carries(&self, version: u32) -> bool;

    /// One number.
    ///
    /// # Errors
    /// Of the walk.
    fn scalar<S: Scalar>(&mut self, value: &mut S) -> Result<(), Self::Error>;

    /// `bytes` bytes without a meaning.
    ///
    /// # Errors
    /// Of the walk.
    fn unused(&mut self, bytes: usize) -> Result<(), Self::Error>;

    /// A nested struct.
    ///
    /// # Errors
    /// Of the walk.
    fn structure<T: VmState>(&mut self, state: &mut T) -> Result<(), Self::Error>;

    /// A field of one or more elements.
    ///
    /// # Errors
    /// Of the walk.
    fn elements<T: Element>(&mut self, name: &'static str, elements: &mut [T]) -> Result<(), Self::Error>;

    /// Expiry times in ns; all ones is a timer that is not armed.
    ///
    /// # Errors
    /// Of the walk.
    fn timers(&mut self, name: &'static str, expiries: &mut [u64]) -> Result<(), Self::Error>;

    /// Numbers that are compared with the local ones instead of replacing them.
    ///
    /// # Errors
    /// Of the walk.
    fn equal<S: Scalar>(&mut self, name: &'static str, values: &mut [S]) -> Result<(), Self::Error>;

    /// Raw bytes.
    ///
    /// # Errors
    /// Of the walk.
    fn buffer(&mut self, name: &'static str, bytes: &mut [u8]) -> Result<(), Self::Error>;

    /// 64-bit words of a bitmap; bit 0 is the lowest of word 0.
    ///
    /// # Errors
    /// Of the walk.
    fn bitmap(&mut self, name: &'static str, words: &mut [u64]) -> Result<(), Self::Error>;

    /// Sets the count field of a variable field before anything is saved; does nothing when loading.
    ///
    /// # Errors
    /// If `length` is over `maximum` or does not fit.
    fn set_count<C: Count>(
        &mut self,
        name: &'static str,
        count: &mut C,
        length: usize,
        maximum: usize,
    ) -> Result<(), Self::Error>;

    /// `count` elements, at most `maximum`; loading resizes `elements`, with defaults for new ones.
    ///
    /// # Errors
    /// Of the walk, and if `count` is over `maximum`.
    fn variable_elements<T: Element + Default, C: Count>(
        &mut self,
        name: &'static str,
        elements: &mut Vec<T>,
        count: C,
        maximum: usize,
    ) -> Result<(), Self::Error>;

    /// `count` raw bytes, at most `maximum`; loading resizes `bytes`.
    ///
    /// # Errors
    /// Of the walk, and if `count` is over `maximum`.
    fn variable_buffer<C: Count>(
        &mut self,
        name: &'static str,
        bytes: &mut Vec<u8>,
        count: C,
        maximum: usize,
    ) -> Result<(), Self::Error>;

    /// A bitmap of `count` bits, at most `maximum`; loading resizes `words`.
    ///
    /// # Errors
    /// Of the walk, and if `count` is over `maximum`.
    fn variable_bitmap<C: Count>(
        &mut self,
        name: &'static str,
        words: &mut Vec<u64>,
        count: C,
        maximum: usize,
    ) -> Result<(), Self::Error>;

    /// A subsection, saved if `needed`; left alone if a stream lacks it.
    ///
    /// # Errors
    /// Of the walk.
    fn subsection<T: VmState>(
        &mut self,
        name: &'static str,
        state: &mut T,
        needed: bool,
    ) -> Result<(), Self::Error>;

    /// A subsection, saved if there; `None` if a stream lacks it.
    ///
    /// # Errors
    /// Of the walk.
    fn optional_subsection<T: VmState + Default>(
        &mut self,
        name: &'static str,
        state: &mut Option<T>,
    ) -> Result<(), Self::Error>;
}

pub(crate) mod sealed {
    pub trait Sealed {}
}

//! What a field of a device may be.

use crate::scalar::Scalar;
use crate::state::VmState;
use crate::walk::Walk;

/// One element of a field: a [`Scalar`], [`Unused`] bytes, or a struct that derives [`VmState`].
pub trait Element {
    /// Its type name in a vmdescription.
    const TYPE: &'static str;
    /// Whether every value takes the same number of bytes, so that one element describes a whole array.
    const FIXED_SIZE: bool;
    /// Saves or loads it.
    ///
    /// # Errors
    /// Those of the walk.
    fn walk<W: Walk>(&mut self, walk: &mut W) -> Result<(), W::Error>;
}

/// A field as its elements: a lone element is an array of one, as it is in QEMU's description.
pub trait Field {
    /// What it consists of.
    type Element: Element;
    /// Its elements in wire order; rows of a two-dimensional array one after the other.
    fn elements(&mut self) -> &mut [Self::Element];
}

/// `N` bytes that mean nothing: zeros are written, anything is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Unused<const N: usize>;

macro_rules! scalar_element {
    ($($ty:ty)+) => {$(
        impl Element for $ty {
            const TYPE: &'static str = <$ty as Scalar>::TYPE;
            const FIXED_SIZE: bool = true;

            fn walk<W: Walk>(&mut self, walk: &mut W) -> Result<(), W::Error> {
                walk.scalar(self)
            }
        }
    )+};
}

scalar_element!(bool u8 u16 u32 u64 i8 i16 i32 i64);

impl<const N: usize> Element for Unused<N> {
    const TYPE: &'static str = "unused_buffer";
    const FIXED_SIZE: bool = true;

    fn walk<W: Walk>(&mut self, walk: &mut W) -> Result<(), W::Error> {
        walk.unused(N)
    }
}

impl<T: VmState> Element for T {
    const TYPE: &'static str = "struct";
    const FIXED_SIZE: bool = T::FIXED_SIZE;

    fn walk<W: Walk>(&mut self, walk: &mut W) -> Result<(), W::Error> {
        walk.structure(self)
    }
}

impl<T: Element> Field for T {
    type Element = T;

    fn elements(&mut self) -> &mut [T] {
        std::slice::from_mut(self)
    }
}

impl<T: Element, const N: usize> Field for [T; N] {
    type Element = T;

    fn elements(&mut self) -> &mut [T] {
        self
    }
}

impl<T: Element, const N: usize, const M: usize> Field for [[T; N]; M] {
    type Element = T;

    fn elements(&mut self) -> &mut [T] {
        self.as_flattened_mut()
    }
}

//! From bytes to a device.

use crate::error::{LoadError, LoadProblem};
use crate::field::Element;
use crate::input::Input;
use crate::path::Trail;
use crate::scalar::{Count, Scalar};
use crate::state::VmState;
use crate::subsection;
use crate::walk::{NESTING_MAX, Walk, sealed};
use std::mem;

/// Widest scalar, and the piece in which unused bytes are skipped.
const SCALAR_BYTES_MAX: usize = 8;

/// Loads `state` from the body of a section of `version`.
///
/// # Errors
/// [`LoadError`]; `state` is then partly overwritten.
pub(crate) fn load_device<T: VmState>(
    state: &mut T,
    version: u32,
    input: &mut dyn Input,
) -> Result<(), LoadError> {
    let mut loader = Loader {
        input,
        version,
        trail: Trail::new(T::NAME),
        announced: None,
        subsections_loaded: Vec::new(),
    };
    loader.load_state(state, version)
}

struct Loader<'a> {
    input: &'a mut dyn Input,
    /// Of the struct being walked.
    version: u32,
    trail: Trail,
    /// A subsection of the struct being walked that comes next, until its field takes it.
    announced: Option<String>,
    /// Of the struct being walked.
    subsections_loaded: Vec<&'static str>,
}

impl Loader<'_> {
    fn load_state<T: VmState>(&mut self, state: &mut T, version: u32) -> Result<(), LoadError> {
        if self.trail.depth() > NESTING_MAX {
            return Err(self.error(LoadProblem::TooDeep { maximum: NESTING_MAX }));
        }
        if !(T::MINIMUM_VERSION..=T::VERSION).contains(&version) {
            let (minimum, maximum) = (T::MINIMUM_VERSION, T::VERSION);
            return Err(self.error(LoadProblem::Version { got: version, minimum, maximum }));
        }
        let outer_version = mem::replace(&mut self.version, version);
        let outer_loaded = mem::take(&mut self.subsections_loaded);
        state.pre_load().map_err(|hook| self.error(LoadProblem::Refused(hook)))?;
        state.walk_fields(self)?;
        self.load_subsections(state)?;
        state.post_load(version).map_err(|hook| self.error(LoadProblem::Refused(hook)))?;
        self.version = outer_version;
        self.subsections_loaded = outer_loaded;
        Ok(())
    }

    /// Loads whatever subsections follow, in any order, each at most once.
    fn load_subsections<T: VmState>(&mut self, state: &mut T) -> Result<(), LoadError> {
        // With nothing announced, a walk empties the optional ones.
        state.walk_subsections(self)?;
        loop {
            let offset = self.input.offset();
            self.announced = subsection::peek(self.input, T::NAME).map_err(|error| self.error(error))?;
            if self.announced.is_none() {
                return Ok(());
            }
            state.walk_subsections(self)?;
            if let Some(name) = self.announced.take() {
                return Err(self.error_at(offset, LoadProblem::UnknownSubsection { name }));
            }
        }
    }

    /// Whether the subsection that comes next is `T`.
    fn is_announced<T: VmState>(&self) -> bool {
        self.announced.as_deref() == Some(T::NAME)
    }

    fn subsection_state<T: VmState>(&mut self, name: &'static str, state: &mut T) -> Result<(), LoadError> {
        self.announced = None;
        self.trail.enter(name);
        if self.subsections_loaded.contains(&T::NAME) {
            return Err(self.error(LoadProblem::RepeatedSubsection { name: T::NAME }));
        }
        self.subsections_loaded.push(T::NAME);
        let version = subsection::accept(self.input, T::NAME.len()).map_err(|error| self.error(error))?;
        self.load_state(state, version)?;
        self.trail.leave();
        Ok(())
    }

    /// Loads `elements` one by one with `take`.
    fn array<E>(
        &mut self,
        name: &'static str,
        elements: &mut [E],
        mut take: impl FnMut(&mut Self, &mut E) -> Result<(), LoadError>,
    ) -> Result<(), LoadError> {
        let lone = elements.len() == 1;
        for (index, element) in elements.iter_mut().enumerate() {
            if lone {
                self.trail.enter(name);
            } else {
                self.trail.enter_element(name, index);
            }
            take(self, element)?;
            self.trail.leave();
        }
        Ok(())
    }

    fn read_scalar<S: Scalar>(&mut self) -> Result<S, LoadError> {
        let offset = self.input.offset();
        let mut bytes = [0; SCALAR_BYTES_MAX];
        let bytes = &mut bytes[..S::BYTES];
        self.input.read(bytes).map_err(|error| self.error_at(offset, error))?;
        // Every pattern is a value of an integer; only a bool, of one byte, can refuse.
        S::from_wire(bytes).ok_or_else(|| self.error_at(offset, LoadProblem::NotABool { got: bytes[0] }))
    }

    /// `count` as a length within `maximum`, for field `name`.
    fn length<C: Count>(&mut self, name: &'static str, count: C, maximum: usize) -> Result<usize, LoadError> {
        match count.to_count() {
            Some(length) if length <= maximum => Ok(length),
            _ => {
                self.trail.enter(name);
                Err(self.error(LoadProblem::Count { got: count.value(), maximum }))
            }
        }
    }

    fn error(&self, problem: impl Into<LoadProblem>) -> LoadError {
        self.error_at(self.input.offset(), problem)
    }

    fn error_at(&self, offset: u64, problem: impl Into<LoadProblem>) -> LoadError {
        LoadError { path: self.trail.to_path(), offset, problem: problem.into() }
    }
}

impl sealed::Sealed for Loader<'_> {}

impl Walk for Loader<'_> {
    type Error = LoadError;
    const SAVES: bool = false;

    fn carries(&self, version: u32) -> bool {
        version <= self.version
    }

    fn scalar<S: Scalar>(&mut self, value: &mut S) -> Result<(), LoadError> {
        *value = self.read_scalar()?;
        Ok(())
    }

    fn unused(&mut self, bytes: usize) -> Result<(), LoadError> {
        let mut rest = bytes;
        let mut piece = [0; SCALAR_BYTES_MAX];
        while rest > 0 {
            let piece = &mut piece[..rest.min(SCALAR_BYTES_MAX)];
            let offset = self.input.offset();
            self.input.read(piece).map_err(|error| self.error_at(offset, error))?;
            rest -= piece.len();
        }
        Ok(())
    }

    fn structure<T: VmState>(&mut self, state: &mut T) -> Result<(), LoadError> {
        // A nested struct has no version of its own on the wire: both sides know the same one.
        self.load_state(state, T::VERSION)
    }

    fn elements<T: Element>(&mut self, name: &'static str, elements: &mut [T]) -> Result<(), LoadError> {
        self.array(name, elements, |loader, element| element.walk(loader))
    }

    fn timers(&mut self, name: &'static str, expiries: &mut [u64]) -> Result<(), LoadError> {
        self.elements(name, expiries)
    }

    fn equal<S: Scalar>(&mut self, name: &'static str, values: &mut [S]) -> Result<(), LoadError> {
        self.array(name, values, |loader, value| {
            let offset = loader.input.offset();
            let got: S = loader.read_scalar()?;
            if got == *value {
                return Ok(());
            }
            let problem = LoadProblem::NotEqual { expected: value.value(), got: got.value() };
            Err(loader.error_at(offset, problem))
        })
    }

    fn buffer(&mut self, name: &'static str, bytes: &mut [u8]) -> Result<(), LoadError> {
        self.trail.enter(name);
        let offset = self.input.offset();
        self.input.read(bytes).map_err(|error| self.error_at(offset, error))?;
        self.trail.leave();
        Ok(())
    }

    fn bitmap(&mut self, name: &'static str, words: &mut [u64]) -> Result<(), LoadError> {
        self.elements(name, words)
    }

    fn set_count<C: Count>(
        &mut self,
        _name: &'static str,
        _count: &mut C,
        _length: usize,
        _maximum: usize,
    ) -> Result<(), LoadError> {
        Ok(())
    }

    fn variable_elements<T: Element + Default, C: Count>(
        &mut self,
        name: &'static str,
        elements: &mut Vec<T>,
        count: C,
        maximum: usize,
    ) -> Result<(), LoadError> {
        let length = self.length(name, count, maximum)?;
        elements.resize_with(length, T::default);
        self.elements(name, elements)
    }

    fn variable_buffer<C: Count>(
        &mut self,
        name: &'static str,
        bytes: &mut Vec<u8>,
        count: C,
        maximum: usize,
    ) -> Result<(), LoadError> {
        let length = self.length(name, count, maximum)?;
        bytes.resize(length, 0);
        self.buffer(name, bytes)
    }

    fn variable_bitmap<C: Count>(
        &mut self,
        name: &'static str,
        words: &mut Vec<u64>,
        count: C,
        maximum: usize,
    ) -> Result<(), LoadError> {
        let bits = self.length(name, count, maximum)?;
        words.resize(bits.div_ceil(64), 0);
        self.bitmap(name, words)
    }

    fn subsection<T: VmState>(
        &mut self,
        name: &'static str,
        state: &mut T,
        _needed: bool,
    ) -> Result<(), LoadError> {
        if self.is_announced::<T>() { self.subsection_state(name, state) } else { Ok(()) }
    }

    fn optional_subsection<T: VmState + Default>(
        &mut self,
        name: &'static str,
        state: &mut Option<T>,
    ) -> Result<(), LoadError> {
        if self.is_announced::<T>() {
            return self.subsection_state(name, state.get_or_insert_default());
        }
        if self.announced.is_none() && !self.subsections_loaded.contains(&T::NAME) {
            *state = None;
        }
        Ok(())
    }
}

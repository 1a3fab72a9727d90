//! From a device to bytes and a description of them.

use crate::device::SavedDevice;
use crate::error::{SaveError, SaveProblem};
use crate::field::Element;
use crate::path::Trail;
use crate::scalar::{Count, Scalar};
use crate::state::VmState;
use crate::subsection;
use crate::walk::{NESTING_MAX, Walk, sealed};
use serde_json::{Map, Value};
use std::mem;

/// Saves `state` as the body of a section.
///
/// # Errors
/// [`SaveError`] if a hook refuses or a limit is passed.
pub(crate) fn save_device<T: VmState>(state: &mut T) -> Result<SavedDevice, SaveError> {
    let mut saver = Saver {
        body: Vec::new(),
        trail: Trail::new(T::NAME),
        fields: Vec::new(),
        subsections: Vec::new(),
        structure: None,
    };
    let description = saver.describe_state(state)?;
    Ok(SavedDevice { body: saver.body, description })
}

struct Saver {
    body: Vec<u8>,
    trail: Trail,
    /// Descriptions of the fields of the struct being walked.
    fields: Vec<Value>,
    /// Descriptions of its subsections.
    subsections: Vec<Value>,
    /// Description of the struct that was the last element.
    structure: Option<Map<String, Value>>,
}

/// Which part of its field an entry of the description stands for.
#[derive(Clone, Copy)]
enum Share {
    Whole,
    /// One of so many elements, which are all alike.
    EachOf(usize),
    /// The element of this index.
    Element(usize),
}

impl Saver {
    fn describe_state<T: VmState>(&mut self, state: &mut T) -> Result<Map<String, Value>, SaveError> {
        if self.trail.depth() > NESTING_MAX {
            return Err(self.error(SaveProblem::TooDeep { maximum: NESTING_MAX }));
        }
        state.pre_save().map_err(|hook| self.error(SaveProblem::Refused(hook)))?;
        let outer_fields = mem::take(&mut self.fields);
        let outer_subsections = mem::take(&mut self.subsections);
        state.walk_fields(self)?;
        state.walk_subsections(self)?;
        let fields = mem::replace(&mut self.fields, outer_fields);
        let subsections = mem::replace(&mut self.subsections, outer_subsections);

        let mut description = Map::new();
        description.insert("vmsd_name".to_owned(), T::NAME.into());
        description.insert("version".to_owned(), T::VERSION.into());
        description.insert("fields".to_owned(), fields.into());
        if !subsections.is_empty() {
            description.insert("subsections".to_owned(), subsections.into());
        }
        Ok(description)
    }

    /// Adds an entry for the bytes of the body from `start` on.
    fn describe_field(&mut self, name: &str, share: Share, type_name: &str, start: usize) {
        let mut entry = Map::new();
        entry.insert("name".to_owned(), name.into());
        match share {
            Share::Whole => {}
            Share::EachOf(length) => {
                entry.insert("array_len".to_owned(), length.into());
            }
            Share::Element(index) => {
                entry.insert("index".to_owned(), index.into());
            }
        }
        entry.insert("type".to_owned(), type_name.into());
        if let Some(structure) = self.structure.take() {
            entry.insert("struct".to_owned(), structure.into());
        }
        entry.insert("size".to_owned(), (self.body.len() - start).into());
        self.fields.push(Value::Object(entry));
    }

    /// Saves `elements` one by one with `put`; they are all of one size if `fixed_size`.
    fn array<E>(
        &mut self,
        name: &'static str,
        type_name: &str,
        fixed_size: bool,
        elements: &mut [E],
        mut put: impl FnMut(&mut Self, &mut E) -> Result<(), SaveError>,
    ) -> Result<(), SaveError> {
        let length = elements.len();
        for (index, element) in elements.iter_mut().enumerate() {
            let share = match (length, fixed_size) {
                (1, _) => Share::Whole,
                (_, true) => Share::EachOf(length),
                (_, false) => Share::Element(index),
            };
            match share {
                Share::Whole => self.trail.enter(name),
                _ => self.trail.enter_element(name, index),
            }
            let start = self.body.len();
            put(self, element)?;
            // Elements that are all alike are described once.
            if index == 0 || !fixed_size {
                self.describe_field(name, share, type_name, start);
            }
            self.structure = None;
            self.trail.leave();
        }
        Ok(())
    }

    fn subsection_state<T: VmState>(&mut self, name: &'static str, state: &mut T) -> Result<(), SaveError> {
        self.trail.enter(name);
        subsection::announce(T::NAME, T::VERSION, &mut self.body);
        let description = self.describe_state(state)?;
        self.subsections.push(Value::Object(description));
        self.trail.leave();
        Ok(())
    }

    /// Two arrays may share a count field; then they must be of one length.
    fn check_count<C: Count>(&mut self, name: &'static str, count: C, got: usize) -> Result<(), SaveError> {
        if count.to_count() == Some(got) {
            return Ok(());
        }
        Err(self.error_in(name, SaveProblem::CountMismatch { got, count: count.value() }))
    }

    fn error(&self, problem: SaveProblem) -> SaveError {
        SaveError { path: self.trail.to_path(), problem }
    }

    fn error_in(&mut self, name: &'static str, problem: SaveProblem) -> SaveError {
        self.trail.enter(name);
        self.error(problem)
    }
}

impl sealed::Sealed for Saver {}

impl Walk for Saver {
    type Error = SaveError;
    const SAVES: bool = true;

    fn carries(&self, _version: u32) -> bool {
        true
    }

    fn scalar<S: Scalar>(&mut self, value: &mut S) -> Result<(), SaveError> {
        value.append(&mut self.body);
        Ok(())
    }

    fn unused(&mut self, bytes: usize) -> Result<(), SaveError> {
        self.body.resize(self.body.len() + bytes, 0);
        Ok(())
    }

    fn structure<T: VmState>(&mut self, state: &mut T) -> Result<(), SaveError> {
        self.structure = Some(self.describe_state(state)?);
        Ok(())
    }

    fn elements<T: Element>(&mut self, name: &'static str, elements: &mut [T]) -> Result<(), SaveError> {
        self.array(name, T::TYPE, T::FIXED_SIZE, elements, |saver, element| element.walk(saver))
    }

    fn timers(&mut self, name: &'static str, expiries: &mut [u64]) -> Result<(), SaveError> {
        self.array(name, "timer", true, expiries, |saver, expiry| saver.scalar(expiry))
    }

    fn equal<S: Scalar>(&mut self, name: &'static str, values: &mut [S]) -> Result<(), SaveError> {
        self.array(name, S::EQUAL_TYPE, true, values, |saver, value| saver.scalar(value))
    }

    fn buffer(&mut self, name: &'static str, bytes: &mut [u8]) -> Result<(), SaveError> {
        let start = self.body.len();
        self.body.extend_from_slice(bytes);
        self.describe_field(name, Share::Whole, "buffer", start);
        Ok(())
    }

    fn bitmap(&mut self, name: &'static str, words: &mut [u64]) -> Result<(), SaveError> {
        let start = self.body.len();
        for word in words {
            word.append(&mut self.body);
        }
        self.describe_field(name, Share::Whole, "bitmap", start);
        Ok(())
    }

    fn set_count<C: Count>(
        &mut self,
        name: &'static str,
        count: &mut C,
        length: usize,
        maximum: usize,
    ) -> Result<(), SaveError> {
        *count = match C::from_count(length) {
            Some(count) if length <= maximum => count,
            _ => {
                let maximum = maximum.min(C::MAX_COUNT);
                return Err(self.error_in(name, SaveProblem::Count { got: length, maximum }));
            }
        };
        Ok(())
    }

    fn variable_elements<T: Element + Default, C: Count>(
        &mut self,
        name: &'static str,
        elements: &mut Vec<T>,
        count: C,
        _maximum: usize,
    ) -> Result<(), SaveError> {
        self.check_count(name, count, elements.len())?;
        self.elements(name, elements)
    }

    fn variable_buffer<C: Count>(
        &mut self,
        name: &'static str,
        bytes: &mut Vec<u8>,
        count: C,
        _maximum: usize,
    ) -> Result<(), SaveError> {
        self.check_count(name, count, bytes.len())?;
        self.buffer(name, bytes)
    }

    fn variable_bitmap<C: Count>(
        &mut self,
        name: &'static str,
        words: &mut Vec<u64>,
        count: C,
        maximum: usize,
    ) -> Result<(), SaveError> {
        match count.to_count() {
            Some(bits) if bits <= maximum && bits.div_ceil(64) == words.len() => self.bitmap(name, words),
            _ => {
                let problem = SaveProblem::BitmapLength { got: words.len(), bits: count.value(), maximum };
                Err(self.error_in(name, problem))
            }
        }
    }

    fn subsection<T: VmState>(
        &mut self,
        name: &'static str,
        state: &mut T,
        needed: bool,
    ) -> Result<(), SaveError> {
        if needed { self.subsection_state(name, state) } else { Ok(()) }
    }

    fn optional_subsection<T: VmState + Default>(
        &mut self,
        name: &'static str,
        state: &mut Option<T>,
    ) -> Result<(), SaveError> {
        state.as_mut().map_or(Ok(()), |state| self.subsection_state(name, state))
    }
}

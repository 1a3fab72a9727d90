//! The way from a device to one of its fields, for error messages.

use std::fmt;

/// A device's vmsd name and the fields below it, as in `serial.fifo[3].level`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldPath(String);

impl FieldPath {
    /// The path of a whole device.
    pub fn device(vmsd_name: &str) -> Self {
        Self(vmsd_name.to_owned())
    }

    /// The text; the device's name is its beginning.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The path of the field being walked; text is made of it only for an error.
#[derive(Debug)]
pub(crate) struct Trail {
    device: &'static str,
    steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Field(&'static str),
    Element(&'static str, usize),
}

impl Trail {
    pub(crate) fn new(device: &'static str) -> Self {
        Self { device, steps: Vec::new() }
    }

    pub(crate) fn enter(&mut self, field: &'static str) {
        self.steps.push(Step::Field(field));
    }

    pub(crate) fn enter_element(&mut self, field: &'static str, index: usize) {
        self.steps.push(Step::Element(field, index));
    }

    pub(crate) fn leave(&mut self) {
        self.steps.pop().expect("every leave follows an enter");
    }

    pub(crate) fn depth(&self) -> usize {
        self.steps.len()
    }

    pub(crate) fn to_path(&self) -> FieldPath {
        use fmt::Write;
        let mut text = self.device.to_owned();
        for step in &self.steps {
            match step {
                Step::Field(name) => write!(text, ".{name}"),
                Step::Element(name, index) => write!(text, ".{name}[{index}]"),
            }
            .expect("writing into a String cannot fail");
        }
        FieldPath(text)
    }
}

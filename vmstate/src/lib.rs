//! Device state as data: QEMU's body encoding and its description, from one annotated struct.
#![forbid(unsafe_code)]

mod device;
mod error;
mod field;
mod input;
mod load;
mod path;
mod save;
mod scalar;
mod state;
mod subsection;
mod walk;

pub use device::{Device, SavedDevice};
pub use error::{HookError, LoadError, LoadProblem, SaveError, SaveProblem};
pub use field::{Element, Field, Unused};
pub use input::{Input, InputError, PEEK_MAX, SliceInput};
pub use limosa_vmstate_derive::VmState;
pub use path::FieldPath;
pub use scalar::{Count, Scalar, ScalarValue};
pub use state::{HookOutcome, VmState};
#[doc(hidden)]
pub use subsection::{OptionalSubsection, is_subsection_name};
pub use walk::{NESTING_MAX, Walk};

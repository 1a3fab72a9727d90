//! A struct that can be saved and loaded.

use crate::error::HookError;
use crate::walk::Walk;

/// State as an ordered list of fields, then subsections: what `#[derive(VmState)]` writes.
///
/// It is not meant to be written by hand. One walk serves both directions, so what is saved and what is loaded
/// cannot differ.
pub trait VmState {
    /// Name of the description on the wire: of subsections, and in the vmdescription.
    const NAME: &'static str;
    /// The version that is written, and the newest that can be read.
    const VERSION: u32;
    /// The oldest version that can be read.
    const MINIMUM_VERSION: u32;
    /// Whether every value takes the same number of bytes: no variable arrays, conditions or subsections,
    /// here or in a nested struct.
    const FIXED_SIZE: bool;

    /// Whether the device is worth a section of its own now.
    fn needed(&self) -> bool {
        true
    }

    /// Brings the fields up to date before they are saved.
    ///
    /// # Errors
    /// Whatever the device's hook says.
    fn pre_save(&mut self) -> Result<(), HookError> {
        Ok(())
    }

    /// Gives fields that the stream may lack their default, before anything is loaded.
    ///
    /// # Errors
    /// Whatever the device's hook says.
    fn pre_load(&mut self) -> Result<(), HookError> {
        Ok(())
    }

    /// Checks and applies what was loaded from a stream of `version`, subsections included.
    ///
    /// # Errors
    /// Whatever the device's hook says; the load fails with it.
    fn post_load(&mut self, version: u32) -> Result<(), HookError> {
        let _ = version;
        Ok(())
    }

    /// Takes the fields through `walk`, in wire order.
    ///
    /// # Errors
    /// Those of the walk.
    fn walk_fields<W: Walk>(&mut self, walk: &mut W) -> Result<(), W::Error>;

    /// Takes the subsections through `walk`.
    ///
    /// # Errors
    /// Those of the walk.
    fn walk_subsections<W: Walk>(&mut self, walk: &mut W) -> Result<(), W::Error>;
}

/// What a hook may return: nothing, or a `Result` whose error becomes a [`HookError`].
pub trait HookOutcome {
    /// As a result.
    ///
    /// # Errors
    /// The hook's.
    fn outcome(self) -> Result<(), HookError>;
}

impl HookOutcome for () {
    fn outcome(self) -> Result<(), HookError> {
        Ok(())
    }
}

impl<E: Into<HookError>> HookOutcome for Result<(), E> {
    fn outcome(self) -> Result<(), HookError> {
        self.map_err(Into::into)
    }
}

//! What a worker needs for a packet of any channel, and what is too large to be made for each.

use parking_lot::Mutex;

/// Tools that the workers share. There are never more than workers: each has one while it is at work.
#[derive(Debug)]
pub(crate) struct Tools<T> {
    /// The one used last comes first: its memory is the warmest.
    spare: Mutex<Vec<T>>,
}

impl<T> Tools<T> {
    /// No tools yet.
    pub(crate) fn new() -> Self {
        Self { spare: Mutex::new(Vec::new()) }
    }

    /// Does `work` with a tool that nobody else uses, made if there is none. After an error it is gone: it may be
    /// in any state.
    pub(crate) fn with<R, E>(
        &self,
        make: impl FnOnce() -> Result<T, E>,
        work: impl FnOnce(&mut T) -> Result<R, E>,
    ) -> Result<R, E> {
        let spare = self.spare.lock().pop();
        let mut tool = spare.map_or_else(make, Ok)?;
        let result = work(&mut tool)?;
        self.spare.lock().push(tool);
        Ok(result)
    }
}

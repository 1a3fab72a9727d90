//! Device sections kept as opaque bytes: where each body ends (wire 8).
//!
//! The body of a FULL section has no length. Two ways to find it without knowing the device: the
//! [`VmDescription`] at the end of a precopy stream tells the size of every field; without one, as in the package
//! of a postcopy, [`split_by_footers`] looks for a chain of footers and headers that reaches the end.
//!
//! [`find_end`] tells when the tail of a stream is complete, so that a destination can buffer the device sections
//! of a peer it does not understand and replay them verbatim.

mod description;
mod footers;
mod tail;

pub use description::{
    DescribedDevice, DescriptionError, MAX_DESCRIBED_DEVICES, MAX_DESCRIPTION_NAME_BYTES,
    MAX_SUBSECTION_DEPTH, VmDescription,
};
pub use footers::{MAX_FOOTER_CANDIDATES, split_by_footers};
pub use tail::{DeviceError, DeviceSection, TailEnd, find_end, split_by_sizes};

#[cfg(test)]
mod tests;

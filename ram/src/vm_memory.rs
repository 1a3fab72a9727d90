//! Regions of the `vm-memory` crate as RAM blocks.

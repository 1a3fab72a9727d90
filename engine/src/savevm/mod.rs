//! The savevm list: everything of a guest that travels, in the order in which it leaves.
//!
//! An entry is either *live* ([`LiveState`]: sent while the guest runs, section by section; RAM is the first)
//! or a *device* (a [`limosa_vmstate::Device`]: sent whole while the guest is stopped). Entries are sorted by
//! [`Priority`], then by registration; their section ids are given at registration and mean something to the
//! sender alone (wire 1.4).

mod entry;
mod list;
mod load;
mod postcopy;
mod save;

pub use entry::{
    Budget, ChannelSync, EntryIdentity, LiveState, LoadSetup, Opaque, Priority, SaveSetup, SaveStateEntry,
    Switchover,
};
pub(crate) use entry::{ReceiveLinks, SendLinks};
pub use list::SaveVm;
pub(crate) use load::LoadProgress;

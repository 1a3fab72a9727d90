//! QEMU's migration stream, version 3: bytes to messages and back, and nothing else.
//!
//! The decoders are pushed: they look at the bytes that have arrived and answer with a [`Step`], either a whole
//! message and how many bytes it used, or how many bytes they need. [`StreamDecoder`] reads the main channel
//! from above (header, configuration, sections, commands, end); inside a section called `ram` a
//! [`RamDecoder`] takes over, and its pages' bytes are read by the caller straight into guest RAM.
//! [`ReturnDecoder`] reads the other direction, [`multifd`] the additional channels. Whatever decodes also
//! encodes, into a `Vec<u8>` of the caller.
//!
//! A device section has no length of its own. A destination that owns the devices reads them field by field
//! with `limosa-vmstate`; [`devices`] finds the lengths for those who only keep the bytes.
//!
//! ```
//! use limosa_wire::{Step, StreamDecoder, StreamItem, encode};
//!
//! let mut stream = Vec::new();
//! encode::header(&mut stream);
//!
//! let mut decoder = StreamDecoder::new();
//! assert_eq!(decoder.next(&stream[..5]), Ok(Step::Need(8)));
//! assert_eq!(decoder.next(&stream), Ok(Step::Item { used: 8, item: StreamItem::Header }));
//! ```
//!
//! Trade-off taken: a message is decoded when all of it has arrived, so the caller's buffer must be able to
//! hold the largest one. Every maximum is a named constant, and only a vmdescription, a package and a received
//! bitmap may exceed 2 MiB.
//!
//! **Deliberately absent:** I/O, guest RAM, the order in which messages make sense (that is
//! `limosa-protocol`), streams without section footers (only Xen machines send them), RDMA records.
#![forbid(unsafe_code)]

mod command;
mod configuration;
mod cursor;
pub mod devices;
pub mod dirty_bitmap;
pub mod encode;
mod error;
mod extensions;
pub mod mapped_ram;
pub mod multifd;
mod ram;
mod return_path;
mod stream;

pub use command::{Command, DiscardRange, MAX_DISCARD_RANGES, MAX_PACKAGE_BYTES, PostcopyAdvice};
pub use configuration::{Configuration, MAX_CAPABILITIES, MAX_MACHINE_NAME_BYTES, MAX_TARGET_PAGE_BITS};
pub use cursor::Step;
pub use error::{Field, WireError};
pub use extensions::{
    Agreement, EXTENSIONS_VERSION, Features, GREETING, Hello, MAX_REFUSAL_BYTES, MultifdSettings,
    RefusalReason,
};
pub use ram::{
    BlockUse, MAX_POPULATED_REGIONS, MAX_RAM_BLOCKS, MAX_XBZRLE_BYTES, POPULATED_REGION, PageAddress,
    RAM_IDSTR, RAM_VERSION, RamContext, RamDecoder, RamEncoder, RamItem, RamSetup, SetupBlock,
};
pub use return_path::{
    MAX_RECEIVED_BITMAP_BYTES, MAX_RETURN_PAYLOAD_BYTES, ReceivedPages, RequestedPages, ReturnDecoder,
    ReturnMessage, received_bitmap_bytes,
};
pub use stream::{
    ContinueKind, MAX_VM_DESCRIPTION_BYTES, STREAM_MAGIC, STREAM_VERSION, SectionHeader, SectionId,
    StartKind, StreamDecoder, StreamItem,
};

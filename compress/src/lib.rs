//! Page codecs over plain buffers.
//!
//! A codec turns a page into fewer bytes in the caller's buffer, and back. [`xbzrle`] sends only what changed
//! since the other side last saw the page; [`packet`] compresses the pages of a multifd packet as zlib or zstd, with
//! the state of its channel, [`per_packet`] as LZ4 or zstd without it, and [`delta`] by words against a page of
//! [`versions`]. [`choice`] says which of these gets pages through soonest. Output is bounded. A decoder takes its
//! input for hostile: it makes exactly the bytes that were announced, or says what is wrong.
//!
//! Trade-off taken: codecs work on private copies of pages, because a running guest may write to its own page
//! at any moment; the copy costs less than an encoder that must survive bytes that change under it.
//!
//! **Deliberately absent:** the cache of pages that XBZRLE needs, threads and locks, clocks, I/O.
#![forbid(unsafe_code)]

pub mod choice;
pub mod delta;
pub mod packet;
pub mod per_packet;
pub mod versions;
pub mod xbzrle;

pub use choice::{Choice, ChoiceReport, Chooser, PacketSample, Reason};
pub use packet::{PacketDecoder, PacketEncoder, PacketError};
pub use per_packet::{Method, PacketPages, PerPacketDecoder, PerPacketEncoder, PerPacketError, Sampler};
pub use versions::PageVersions;
pub use xbzrle::Page;

//! A guest that is nothing but what its stream said: RAM in a vector, devices as opaque bytes.

use limosa_pages::{BlockName, PAGE_BYTES};
use limosa_wire::devices::DeviceError;
use limosa_wire::{Configuration, SectionId, WireError};
use std::io;
use thiserror::Error;

/// A whole guest, taken out of a precopy stream by [`receive`](super::receive) and put into another by
/// [`CapturedGuest::send`].
#[derive(Clone, Debug)]
pub struct CapturedGuest {
    /// What the source said about itself.
    pub configuration: Configuration,
    /// RAM, in the order of the source's block list.
    pub blocks: Vec<CapturedBlock>,
    /// All device sections with their headers and footers, unread.
    pub devices: Vec<u8>,
    /// JSON text of the vmdescription.
    pub description: Vec<u8>,
    /// What the stream was made of.
    pub counts: RecordCounts,
}

/// One RAM block.
#[derive(Clone, Debug)]
pub struct CapturedBlock {
    /// Name on the wire.
    pub name: BlockName,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// Records of a stream, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordCounts {
    /// Zero pages.
    pub zero: u64,
    /// Whole pages.
    pub page: u64,
    /// Patches of pages.
    pub xbzrle: u64,
}

/// A peer that does not speak as it should.
#[derive(Debug, Error)]
pub enum PeerError {
    /// The connection.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The peer closed in the middle.
    #[error("the stream ends at byte {at}; {needed} more were needed")]
    Truncated {
        /// Bytes of the stream so far.
        at: u64,
        /// Bytes needed from there on.
        needed: usize,
    },
    /// Bytes that are no message.
    #[error("byte {base} of the stream: {source}")]
    Wire {
        /// Where the decoder's input began in the stream.
        base: u64,
        /// What is wrong.
        source: WireError,
    },
    /// A message that a plain precopy stream has not.
    #[error("byte {at} of the stream: not in a plain precopy stream: {got}")]
    Unexpected {
        /// Where in the stream.
        at: u64,
        /// The message.
        got: String,
    },
    /// A page outside of the block list.
    #[error("page {offset:#x} of block {block} is not in the block list")]
    NoSuchPage {
        /// The record's block.
        block: String,
        /// The record's byte offset.
        offset: u64,
    },
    /// A section that was not opened as `ram`.
    #[error("section {0} is not ram's")]
    NotRam(SectionId),
    /// An XBZRLE encoding that is none.
    #[error("XBZRLE: {0}")]
    Xbzrle(#[from] limosa_compress::xbzrle::XbzrleError),
    /// The device sections are not what the vmdescription says.
    #[error("device sections: {0}")]
    Devices(#[from] DeviceError),
    /// The vmdescription is no description.
    #[error("vmdescription: {0}")]
    Description(#[from] limosa_wire::devices::DescriptionError),
    /// The destination's last word was not success.
    #[error("the destination said {0:?} where SHUT 0 should end it")]
    Refused(Option<limosa_wire::ReturnMessage>),
}

impl CapturedGuest {
    /// The block called `name`.
    pub fn block(&self, name: &str) -> Option<&CapturedBlock> {
        self.blocks.iter().find(|block| block.name.as_str() == name)
    }

    /// The page at byte `offset` of block `name`, to be written to.
    pub(super) fn page_mut(
        &mut self,
        name: Option<&str>,
        offset: u64,
    ) -> Result<&mut [u8; PAGE_BYTES], PeerError> {
        let name = name.unwrap_or_default();
        let block = self.blocks.iter_mut().find(|block| block.name.as_str() == name);
        let page = block.and_then(|block| block.bytes.get_mut(usize::try_from(offset).ok()?..));
        page.and_then(|bytes| bytes.first_chunk_mut())
            .ok_or_else(|| PeerError::NoSuchPage { block: name.to_owned(), offset })
    }
}

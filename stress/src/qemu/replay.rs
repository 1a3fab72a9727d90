//! The smallest source that a QEMU destination accepts: sends a captured guest.

use super::captured::{CapturedBlock, CapturedGuest, PeerError};
use limosa_compress::xbzrle::{self, Encoded};
use limosa_pages::{BlockId, ByteCount, PAGE_BYTES};
use limosa_wire::{
    Command, ContinueKind, RAM_IDSTR, RAM_VERSION, RamEncoder, RamSetup, ReturnDecoder, ReturnMessage,
    SectionHeader, SectionId, SetupBlock, StartKind, Step, encode,
};
use std::io::{Read, Write};

/// How the pages are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// Each page once, zero pages as such.
    Once,
    /// First every page with a few bytes wrong, then what is wrong as XBZRLE.
    StaleThenDelta,
}

/// The section id for ram; any unique one will do, as long as it is not QEMU's own.
const RAM_SECTION: SectionId = SectionId(0x7777);

const PING: u32 = 1;

/// Pages that go into one buffer before it is written.
const PAGES_PER_WRITE: usize = 256;

impl CapturedGuest {
    /// Sends the guest over `connection`, return path open; returns when the destination has said SHUT 0.
    ///
    /// # Errors
    /// The connection fails, or the destination does not take the guest.
    pub fn send(&self, mut connection: impl Read + Write, replay: Replay) -> Result<(), PeerError> {
        let mut out = Vec::new();
        let mut ram = RamEncoder::new();
        self.open(&mut ram, &mut out);
        connection.write_all(&out)?;

        let stale = replay == Replay::StaleThenDelta;
        self.send_part(&mut connection, |page, index, name, offset, out| {
            if page.iter().all(|&byte| byte == 0) && !stale {
                ram.zero(index, name, offset, out);
                return;
            }
            ram.page(index, name, offset, out);
            match stale {
                true => out.extend_from_slice(&make_stale(page)),
                false => out.extend_from_slice(page),
            }
        })?;
        if stale {
            self.send_part(&mut connection, |page, index, name, offset, out| {
                let mut delta = Vec::new();
                let encoded = xbzrle::encode(&make_stale(page), page, &mut delta);
                assert!(matches!(encoded, Encoded::Delta(_)), "three wrong bytes make a delta: {encoded:?}");
                ram.xbzrle(index, name, offset, &delta, out);
            })?;
        }

        let mut out = Vec::new();
        encode::section_continue(ContinueKind::End, RAM_SECTION, &mut out);
        ram.end_of_section(&mut out);
        encode::footer(RAM_SECTION, &mut out);
        out.extend_from_slice(&self.devices);
        encode::end_of_stream(&mut out);
        encode::vm_description(&self.description, &mut out);
        connection.write_all(&out)?;
        expect_success(connection)
    }

    /// Everything up to the first page.
    fn open(&self, ram: &mut RamEncoder, out: &mut Vec<u8>) {
        encode::header(out);
        self.configuration.encode(out);
        Command::OpenReturnPath.encode(out);
        Command::Ping(PING).encode(out);
        let section = SectionHeader {
            kind: StartKind::Start,
            id: RAM_SECTION,
            idstr: RAM_IDSTR.to_owned(),
            instance_id: 0,
            version_id: RAM_VERSION,
        };
        encode::section_start(&section, out);
        let block =
            |block: &CapturedBlock| SetupBlock::new(block.name.clone(), ByteCount(block.bytes.len() as u64));
        ram.setup(&RamSetup { blocks: self.blocks.iter().map(block).collect() }, out);
        ram.end_of_section(out);
        encode::footer(RAM_SECTION, out);
    }

    /// One PART section with one record for every page.
    fn send_part(
        &self,
        connection: &mut impl Write,
        mut record: impl FnMut(&[u8; PAGE_BYTES], BlockId, &limosa_pages::BlockName, u64, &mut Vec<u8>),
    ) -> Result<(), PeerError> {
        let mut out = Vec::new();
        encode::section_continue(ContinueKind::Part, RAM_SECTION, &mut out);
        for (index, block) in (0..).map(BlockId).zip(&self.blocks) {
            let (pages, _) = block.bytes.as_chunks::<PAGE_BYTES>();
            for (number, page) in pages.iter().enumerate() {
                record(page, index, &block.name, (number * PAGE_BYTES) as u64, &mut out);
                if out.len() >= PAGES_PER_WRITE * PAGE_BYTES {
                    connection.write_all(&out)?;
                    out.clear();
                }
            }
        }
        RamEncoder::new().end_of_section(&mut out);
        encode::footer(RAM_SECTION, &mut out);
        Ok(connection.write_all(&out)?)
    }
}

/// `page` with its first, its last and a middle byte wrong.
fn make_stale(page: &[u8; PAGE_BYTES]) -> [u8; PAGE_BYTES] {
    let mut stale = *page;
    for at in [0, PAGE_BYTES / 3, PAGE_BYTES - 1] {
        stale[at] = !stale[at];
    }
    stale
}

/// Reads the return path to its end: the PONG to our PING, then SHUT 0.
fn expect_success(mut connection: impl Read) -> Result<(), PeerError> {
    let mut bytes = Vec::new();
    connection.read_to_end(&mut bytes)?;
    let mut decoder = ReturnDecoder::new();
    let mut at = 0;
    let mut last = None;
    while at < bytes.len() {
        match decoder.next(&bytes[at..]).map_err(|source| PeerError::Wire { base: at as u64, source })? {
            Step::Need(needed) => return Err(PeerError::Truncated { at: at as u64, needed }),
            Step::Item { used, item } => {
                at += used;
                last = Some(item);
            }
        }
    }
    if last == Some(ReturnMessage::Shut(0)) { Ok(()) } else { Err(PeerError::Refused(last)) }
}

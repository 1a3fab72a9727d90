//! What `inspect` does not read, by name.

use limosa_wire::{
    BlockUse, Command, RamContext, RamDecoder, RamItem, ReturnDecoder, STREAM_MAGIC, Step, StreamDecoder,
    StreamItem, multifd,
};
use std::fmt;
use thiserror::Error;

/// Bytes that suffice to recognise what an input is.
pub(super) const RECOGNISED_BYTES: usize = 512;

/// Something other than a plain precopy stream.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Refusal {
    #[error("no migration stream: the input is empty")]
    Empty,
    #[error("no migration stream: it begins with {0}, not with 51 45 56 4d (\"QEVM\")")]
    NoStream(FirstBytes),
    #[error("no migration stream but {0}; decompress it first")]
    Compressed(&'static str),
    #[error("no migration stream but {0}, which may hold one further on")]
    Container(&'static str),
    #[error("no main channel but a multifd channel: it begins with 11 22 33 44")]
    MultifdChannel,
    #[error("no main channel but a return path: it begins with an answer of a destination")]
    ReturnPath,
    #[error("no main channel but a postcopy preempt channel: it begins with a bare page of block {block:?}")]
    PreemptChannel { block: String },
    #[error("the main channel of a postcopy recovery: it begins with {0} instead of a header")]
    Recovery(&'static str),
    #[error("a CPR channel: it begins with 51 43 50 52 (\"QCPR\")")]
    Cpr,
    #[error("a mapped-ram file: its configuration names the capability, and RAM lies at fixed offsets")]
    MappedRam,
    #[error("a postcopy stream: here is {0}")]
    Postcopy(&'static str),
    #[error("a COLO stream: here is ENABLE_COLO")]
    Colo,
    #[error("a background snapshot: device section {device:?} comes here, but RAM has had no END section")]
    BackgroundSnapshot { device: String },
    #[error("live section {idstr:?} of version {version} has a format unknown to inspect")]
    LiveSection { idstr: String, version: u32 },
}

/// The first bytes of an input; at most eight are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FirstBytes(Vec<u8>);

/// Magic numbers of files that are taken for streams now and then.
const COMPRESSED: [(&[u8], &str); 5] = [
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"BZh", "a bzip2 file"),
    (b"\x04\x22\x4d\x18", "an lz4 file"),
];

const CONTAINERS: [(&[u8], &str); 3] = [
    (b"LibvirtQemudSave", "a libvirt save image"),
    (b"LibvirtQemudPart", "an unfinished libvirt save image"),
    (b"QFI\xfb", "a qcow2 image"),
];

const CPR_MAGIC: &[u8] = b"QCPR";

/// Says what an input is that begins with `first`, unless it is the main channel of a migration.
pub(super) fn recognise(first: &[u8]) -> Result<(), Refusal> {
    let name = |table: &[(&[u8], &'static str)]| {
        table.iter().find(|(magic, _)| first.starts_with(magic)).map(|(_, name)| *name)
    };
    if first.is_empty() {
        return Err(Refusal::Empty);
    }
    // Fewer than four bytes may still be the beginning of a stream that was cut.
    let magic = STREAM_MAGIC.to_be_bytes();
    if first.iter().zip(magic).all(|(byte, expected)| *byte == expected) {
        return Ok(());
    }
    if first.starts_with(&multifd::MULTIFD_MAGIC.to_be_bytes()) {
        return Err(Refusal::MultifdChannel);
    }
    if first.starts_with(CPR_MAGIC) {
        return Err(Refusal::Cpr);
    }
    if let Some(name) = name(&COMPRESSED) {
        return Err(Refusal::Compressed(name));
    }
    if let Some(name) = name(&CONTAINERS) {
        return Err(Refusal::Container(name));
    }
    Err(other_channel(first).unwrap_or_else(|| Refusal::NoStream(FirstBytes(first.to_vec()))))
}

/// Channels of a migration that have no magic: what their first message looks like.
fn other_channel(first: &[u8]) -> Option<Refusal> {
    if let Ok(Step::Item { item: StreamItem::Command(command), .. }) =
        StreamDecoder::without_header().next(first)
        && matches!(command, Command::PostcopyResume | Command::RecvBitmap { .. })
    {
        return Some(Refusal::Recovery(command.name()));
    }
    let mut ram = RamDecoder::new(RamContext::new());
    if let Ok(Step::Item { item: RamItem::Page(page), .. }) = ram.next(first)
        && page.block == BlockUse::Named
    {
        let block = ram.block_name().expect("the record named its block").to_owned();
        let readable = block.bytes().all(|byte| byte.is_ascii_graphic());
        return readable.then_some(Refusal::PreemptChannel { block });
    }
    let answer = matches!(ReturnDecoder::new().next(first), Ok(Step::Item { .. }));
    answer.then_some(Refusal::ReturnPath)
}

/// Why a stream with this command is refused; `None` for commands of a plain precopy.
pub(super) fn by_command(command: &Command) -> Option<Refusal> {
    match command {
        Command::OpenReturnPath
        | Command::Ping(_)
        | Command::PostcopyAdvise(_)
        | Command::SwitchoverStart
        | Command::Features(_)
        | Command::ReplaceLinks => None,
        Command::EnableColo => Some(Refusal::Colo),
        Command::PostcopyListen
        | Command::PostcopyRun
        | Command::PostcopyRamDiscard { .. }
        | Command::Packaged { .. }
        | Command::PostcopyResume
        | Command::RecvBitmap { .. } => Some(Refusal::Postcopy(command.name())),
    }
}

impl fmt::Display for FirstBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().take(8).enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{byte:02x}")?;
        }
        Ok(())
    }
}

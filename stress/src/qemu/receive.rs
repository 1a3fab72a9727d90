//! The smallest destination that a QEMU source accepts: reads a precopy stream into memory.
//!
//! It uses the decoders of `limosa-wire` and nothing of the engine, so that a failure of the engine against a
//! real QEMU can be told from a failure of the wire.

use super::captured::{CapturedBlock, CapturedGuest, PeerError, RecordCounts};
use limosa_compress::xbzrle;
use limosa_pages::PAGE_BYTES;
use limosa_wire::devices::{self, VmDescription};
use limosa_wire::{
    Command, Configuration, ContinueKind, PageAddress, RAM_IDSTR, RAM_VERSION, RamContext, RamDecoder,
    RamItem, ReturnMessage, SectionId, Step, StreamDecoder, StreamItem, WireError,
};
use std::io::{Read, Write};

/// Bytes asked of the connection at once.
const READ_BYTES: usize = 64 << 10;

/// The value of SHUT that means success.
const SUCCESS: u32 = 0;

/// Receives a guest from `connection`, answers PINGs, and says SHUT 0 if the source opened the return path:
/// from then on the source's guest is stopped for good.
///
/// # Errors
/// The connection fails, or the stream is not a complete precopy stream of RAM and devices. The source is not
/// answered then; its guest goes on when `connection` is dropped.
pub fn receive(connection: impl Read + Write) -> Result<CapturedGuest, PeerError> {
    let mut receiver = Receiver {
        input: Input { connection, buffer: Vec::new(), start: 0, consumed: 0 },
        guest: CapturedGuest {
            configuration: Configuration::default(),
            blocks: Vec::new(),
            devices: Vec::new(),
            description: Vec::new(),
            counts: RecordCounts::default(),
        },
        ram: RamDecoder::new(RamContext::new()),
        ram_id: None,
        return_path: false,
    };
    receiver.read_until_ram_ends()?;
    receiver.read_devices()?;
    if receiver.return_path {
        receiver.say(&ReturnMessage::Shut(SUCCESS))?;
    }
    receiver.input.drain()?;
    Ok(receiver.guest)
}

struct Receiver<C> {
    input: Input<C>,
    guest: CapturedGuest,
    ram: RamDecoder,
    ram_id: Option<SectionId>,
    return_path: bool,
}

impl<C: Read + Write> Receiver<C> {
    fn read_until_ram_ends(&mut self) -> Result<(), PeerError> {
        let mut stream = StreamDecoder::new();
        let mut ram_ended = false;
        loop {
            match self.input.item(|bytes| stream.next(bytes))? {
                StreamItem::Header => {}
                StreamItem::Configuration(configuration) => self.guest.configuration = configuration,
                StreamItem::Command(command) => self.obey(command)?,
                StreamItem::SectionStart(section)
                    if section.idstr == RAM_IDSTR && section.version_id == RAM_VERSION =>
                {
                    self.ram_id = Some(section.id);
                    self.read_ram()?;
                    stream.end_of_body();
                }
                StreamItem::SectionContinue { kind, id } => {
                    if self.ram_id != Some(id) {
                        return Err(PeerError::NotRam(id));
                    }
                    self.read_ram()?;
                    stream.end_of_body();
                    ram_ended = kind == ContinueKind::End;
                }
                StreamItem::Footer(_) if ram_ended => return Ok(()),
                StreamItem::Footer(_) => {}
                other => return Err(self.input.unexpected(&other)),
            }
        }
    }

    fn obey(&mut self, command: Command) -> Result<(), PeerError> {
        match command {
            Command::OpenReturnPath => self.return_path = true,
            Command::Ping(value) if self.return_path => self.say(&ReturnMessage::Pong(value))?,
            Command::SwitchoverStart => {}
            other => return Err(self.input.unexpected(&other)),
        }
        Ok(())
    }

    fn say(&mut self, message: &ReturnMessage) -> Result<(), PeerError> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        Ok(self.input.connection.write_all(&bytes)?)
    }

    /// One body of the ram section.
    fn read_ram(&mut self) -> Result<(), PeerError> {
        loop {
            match self.input.item(|bytes| self.ram.next(bytes))? {
                RamItem::Setup(setup) => {
                    let block = |block: limosa_wire::SetupBlock| CapturedBlock {
                        bytes: vec![0; block.length.0 as usize],
                        name: block.name,
                    };
                    self.guest.blocks = setup.blocks.into_iter().map(block).collect();
                }
                RamItem::Zero(PageAddress { offset, .. }) => {
                    self.guest.page_mut(self.ram.block_name(), offset)?.fill(0);
                    self.guest.counts.zero += 1;
                }
                RamItem::Page(PageAddress { offset, .. }) => {
                    let bytes = self.input.take(PAGE_BYTES)?;
                    self.guest.page_mut(self.ram.block_name(), offset)?.copy_from_slice(bytes);
                    self.guest.counts.page += 1;
                }
                RamItem::Xbzrle { page, length } => {
                    let delta = self.input.take(usize::from(length))?;
                    xbzrle::decode(delta, self.guest.page_mut(self.ram.block_name(), page.offset)?)?;
                    self.guest.counts.xbzrle += 1;
                }
                RamItem::EndOfSection => return Ok(()),
                other => return Err(self.input.unexpected(&other)),
            }
        }
    }

    /// Everything behind ram's END. A source with a return path keeps its connection open, so only the description
    /// shows the end.
    fn read_devices(&mut self) -> Result<(), PeerError> {
        let end = loop {
            if let Some(end) = devices::find_end(self.input.rest()) {
                break end;
            }
            self.input.more(1)?;
        };
        let tail = self.input.take(self.input.rest().len())?;
        self.guest.devices = tail[..end.end_of_stream].to_vec();
        self.guest.description = tail[end.description..].to_vec();
        // The bytes stay opaque; that they divide as described is what makes the end believable.
        let description = VmDescription::parse(&self.guest.description)?;
        devices::split_by_sizes(&self.guest.devices, &description)?;
        Ok(())
    }
}

/// What has arrived and was not used yet.
struct Input<C> {
    connection: C,
    buffer: Vec<u8>,
    /// Where the unused bytes begin in the buffer.
    start: usize,
    /// Bytes of the stream used before `start`.
    consumed: u64,
}

impl<C: Read> Input<C> {
    fn rest(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// The next item of a decoder.
    fn item<T>(&mut self, mut next: impl FnMut(&[u8]) -> Result<Step<T>, WireError>) -> Result<T, PeerError> {
        loop {
            let step = next(self.rest()).map_err(|source| PeerError::Wire { base: self.consumed, source })?;
            match step {
                Step::Need(total) => self.more(total - self.rest().len())?,
                Step::Item { used, item } => {
                    self.skip(used);
                    return Ok(item);
                }
            }
        }
    }

    /// The next `count` bytes.
    fn take(&mut self, count: usize) -> Result<&[u8], PeerError> {
        while self.rest().len() < count {
            self.more(count - self.rest().len())?;
        }
        let start = self.start;
        self.skip(count);
        Ok(&self.buffer[start..start + count])
    }

    fn skip(&mut self, count: usize) {
        self.start += count;
        self.consumed += count as u64;
    }

    /// Reads at least one byte more; `needed` is what the caller is waiting for.
    fn more(&mut self, needed: usize) -> Result<(), PeerError> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let length = self.buffer.len();
        self.buffer.resize(length + READ_BYTES, 0);
        let count = self.connection.read(&mut self.buffer[length..])?;
        self.buffer.truncate(length + count);
        match count {
            0 => Err(PeerError::Truncated { at: self.consumed + length as u64, needed }),
            _ => Ok(()),
        }
    }

    /// Reads to the peer's end, so that closing does not reset the connection.
    fn drain(&mut self) -> Result<(), PeerError> {
        self.buffer.resize(READ_BYTES, 0);
        while self.connection.read(&mut self.buffer)? > 0 {}
        Ok(())
    }

    fn unexpected(&self, item: &impl std::fmt::Debug) -> PeerError {
        PeerError::Unexpected { at: self.consumed, got: format!("{item:?}") }
    }
}

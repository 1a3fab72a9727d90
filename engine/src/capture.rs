//! A guest of a machine that we do not know, taken out of its stream and kept whole.
//!
//! The RAM of any QEMU guest can be received, because the stream lists its blocks. Its devices can only be kept as
//! they came and replayed to a peer of the same machine: bodies have no length, and where they end is told by the
//! vmdescription, which comes last (wire 8). So a guest is captured, not run.

use crate::error::{LoadError, LoadFault, Place};
use crate::ram::{RamHandler, RamLoad, RamStatistics};
use crate::savevm::{Opaque, SaveVm};
use crate::stream::{StreamReader, StreamWriter};
use limosa_pages::{BlockId, DirtyMap, PageCount, PageIndex, PageRun, RamLayout};
use limosa_ram::{DirtyLog, DirtyLogError, Evidence, GuestRam, Populated, RamBlock};
use limosa_transport::Link;
use limosa_wire::devices::{self, DeviceSection, VmDescription};
use limosa_wire::{
    Command, Configuration, ContinueKind, RAM_IDSTR, RAM_VERSION, RamContext, RamDecoder, RamItem, RamSetup,
    ReturnMessage, SectionHeader, SectionId, StartKind, StreamDecoder, StreamItem,
};

/// Most device state that is kept: 4096 vCPUs of 16 KiB each, as large as the longest vmdescription.
const DEVICES_MAX: usize = 64 << 20;

/// What SHUT says when all is well.
const SUCCESS: u32 = 0;
/// What SHUT says when it is not.
const FAILURE: u32 = 1;

/// A guest that is nothing but what its stream said.
pub struct CapturedGuest {
    /// What the source said about itself.
    pub configuration: Configuration,
    /// Its RAM.
    pub ram: GuestRam,
    /// Its device sections, in order.
    pub devices: Vec<CapturedDevice>,
    /// The vmdescription, as JSON text.
    pub description: Vec<u8>,
    /// What the RAM section was made of.
    pub statistics: RamStatistics,
}

/// One device section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedDevice {
    /// Name of the section.
    pub idstr: String,
    /// Which of several.
    pub instance_id: u32,
    /// Version and body.
    pub section: Opaque,
}

impl CapturedGuest {
    /// Receives a plain precopy stream over `link`; the source is told that the guest has arrived.
    ///
    /// The calling thread reads until the source is done. RAM goes to new memory, block by block as the stream
    /// lists it; device state is kept as it is, up to 64 MiB.
    ///
    /// # Errors
    /// The link fails, or the stream is not a complete precopy stream of RAM and devices. A source that listens is
    /// told so, and its guest goes on there.
    pub fn receive(link: Link) -> Result<Self, LoadError> {
        let (reader, writer) = link.split();
        let mut capture = Capture {
            stream: StreamDecoder::new(),
            input: StreamReader::new(reader),
            answers: StreamWriter::new(writer),
            return_path: false,
            place: Place::Header,
        };
        let captured = capture.run();
        if capture.return_path {
            let code = if captured.is_ok() { SUCCESS } else { FAILURE };
            let said = capture.say(&ReturnMessage::Shut(code));
            return captured.and_then(|guest| said.map(|()| guest)).map_err(|fault| capture.error(fault));
        }
        captured.map_err(|fault| capture.error(fault))
    }

    /// The guest as a list to be sent: RAM from our memory, device sections as they came.
    pub fn into_savevm(self) -> SaveVm {
        let mut savevm = SaveVm::replaying(self.configuration);
        let still = Still { layout: self.ram.layout().clone() };
        savevm.register_ram(RamHandler::new(self.ram, Some(Box::new(still))));
        for device in self.devices {
            savevm.register_opaque(&device.idstr, device.instance_id, device.section);
        }
        savevm
    }
}

/// One stream on its way in.
struct Capture {
    stream: StreamDecoder,
    input: StreamReader,
    answers: StreamWriter,
    return_path: bool,
    place: Place,
}

impl Capture {
    fn run(&mut self) -> Result<CapturedGuest, LoadFault> {
        let (configuration, ram) = self.read_live_part()?;
        self.place = Place::End;
        let (devices, description) = self.read_tail()?;
        let (ram, statistics) = ram.into_parts();
        Ok(CapturedGuest { configuration, ram, devices, description, statistics })
    }

    /// Reads up to the end of RAM.
    fn read_live_part(&mut self) -> Result<(Configuration, RamLoad), LoadFault> {
        let mut configuration = None;
        let mut ram: Option<(SectionId, RamLoad)> = None;
        loop {
            let stream = &mut self.stream;
            match self.input.decode(|bytes| stream.next(bytes))? {
                StreamItem::Header => self.place = Place::Configuration,
                StreamItem::Configuration(theirs) => {
                    configuration = Some(theirs);
                    self.place = Place::BetweenSections;
                }
                StreamItem::Command(command) => self.obey(&command)?,
                StreamItem::SectionStart(header) => {
                    self.enter(&header);
                    check_is_ram(&header, ram.is_some())?;
                    ram = Some((header.id, self.begin_ram()?));
                    self.stream.end_of_body();
                }
                StreamItem::SectionContinue { kind, id } => {
                    let (known, mut load) = ram.take().ok_or(LoadFault::UnknownSectionId { id: id.0 })?;
                    if known != id {
                        return Err(LoadFault::UnknownSectionId { id: id.0 });
                    }
                    self.place = Place::Section { idstr: RAM_IDSTR.to_owned(), instance_id: 0 };
                    load.read_section(&mut self.input)?;
                    self.stream.end_of_body();
                    if kind == ContinueKind::End {
                        let stream = &mut self.stream;
                        self.input.decode(|bytes| stream.next(bytes))?;
                        load.check_whole()?;
                        return Ok((configuration.unwrap_or_default(), load));
                    }
                    ram = Some((known, load));
                }
                StreamItem::Footer(_) => self.place = Place::BetweenSections,
                StreamItem::EndOfStream | StreamItem::VmDescription(_) => {
                    return Err(LoadFault::Missing { idstr: RAM_IDSTR.to_owned(), instance_id: 0 });
                }
            }
        }
    }

    /// Reads the list of blocks, and makes memory for them.
    fn begin_ram(&mut self) -> Result<RamLoad, LoadFault> {
        let mut decoder = RamDecoder::new(RamContext::new());
        let RamItem::Setup(setup) = self.input.decode(|bytes| decoder.next(bytes))? else {
            return Err(LoadFault::PageBeforeSetup);
        };
        let mut load = RamLoad::begin(new_memory(&setup)?, Default::default(), None, RamContext::new())?;
        load.agree(&setup)?;
        load.read_section(&mut self.input)?;
        Ok(load)
    }

    /// Collects everything behind RAM until it ends with a whole vmdescription, and divides it.
    fn read_tail(&mut self) -> Result<(Vec<CapturedDevice>, Vec<u8>), LoadFault> {
        let end = loop {
            if let Some(end) = devices::find_end(self.input.buffered()) {
                break end;
            }
            let have = self.input.buffered().len();
            if have > DEVICES_MAX {
                return Err(LoadFault::ItemTooLong { needed: have, limit: DEVICES_MAX });
            }
            if !self.input.wait_for_more()? {
                return Err(LoadFault::Ended { wanted: 1 });
            }
        };
        let tail = self.input.buffered();
        let text = tail[end.description..].to_vec();
        let sections = &tail[..end.end_of_stream];
        let described = VmDescription::parse(&text)?;
        let devices = devices::split_by_sizes(sections, &described)
            .or_else(|_| devices::split_by_footers(sections))?
            .into_iter()
            .map(CapturedDevice::from)
            .collect();
        self.input.consume(self.input.buffered().len());
        Ok((devices, text))
    }

    fn obey(&mut self, command: &Command) -> Result<(), LoadFault> {
        match command {
            Command::OpenReturnPath => self.return_path = true,
            Command::Ping(value) if self.return_path => self.say(&ReturnMessage::Pong(*value))?,
            Command::SwitchoverStart => {}
            _ => return Err(LoadFault::UnexpectedRecord { record: "command of another mode" }),
        }
        Ok(())
    }

    fn say(&mut self, message: &ReturnMessage) -> Result<(), LoadFault> {
        message.encode(self.answers.buffer());
        Ok(self.answers.flush()?)
    }

    fn enter(&mut self, header: &SectionHeader) {
        self.place = Place::Section { idstr: header.idstr.clone(), instance_id: header.instance_id };
    }

    fn error(&self, source: LoadFault) -> LoadError {
        LoadError { place: self.place.clone(), offset: self.input.offset(), source: Box::new(source) }
    }
}

/// Only RAM is live state that can be read without knowing the machine.
fn check_is_ram(header: &SectionHeader, seen: bool) -> Result<(), LoadFault> {
    if seen || header.kind != StartKind::Start || header.idstr != RAM_IDSTR {
        let (idstr, instance_id) = (header.idstr.clone(), header.instance_id);
        return Err(LoadFault::UnknownSection { idstr, instance_id });
    }
    if header.version_id != RAM_VERSION {
        let got = header.version_id;
        return Err(LoadFault::Version { got, minimum: RAM_VERSION, maximum: RAM_VERSION });
    }
    Ok(())
}

/// Memory for the blocks of a list. Nothing is allocated before a page is written.
fn new_memory(setup: &RamSetup) -> Result<GuestRam, LoadFault> {
    let blocks = setup.blocks.iter().map(|block| RamBlock::memfd(block.name.clone(), block.length));
    Ok(GuestRam::new(blocks.collect::<Result<_, _>>()?)?)
}

impl From<DeviceSection<'_>> for CapturedDevice {
    fn from(DeviceSection { header, body }: DeviceSection<'_>) -> Self {
        let section = Opaque { version: header.version_id, body: body.to_vec() };
        Self { idstr: header.idstr, instance_id: header.instance_id, section }
    }
}

/// The log of a guest without vCPUs: nothing is ever written.
struct Still {
    layout: RamLayout,
}

impl DirtyLog for Still {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn populated(&mut self, block: BlockId) -> Result<Populated, DirtyLogError> {
        let whole = PageRun::new(PageIndex(0), self.layout.block(block).pages());
        Ok(Populated::everything(whole, Evidence::Unknown))
    }

    fn sync_into(&mut self, _dirty: &DirtyMap) -> Result<PageCount, DirtyLogError> {
        Ok(PageCount(0))
    }

    fn clear_before_read(&mut self, _block: BlockId, _run: PageRun) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }
}

//! One pass over a stream.

use crate::inspect::devices::{BodyEnd, BodyEnds, DESCRIPTION_MARK, MAX_DEVICE_PART_BYTES, is_of};
use crate::inspect::error::{FirstDifference, InspectError, Needs, Place};
use crate::inspect::large_pages::{MAX_BLOCK_LIST_BYTES, large_page_blocks};
use crate::inspect::ram::{FOUR_KIB, Next, RamCounter};
use crate::inspect::refusal::{self, RECOGNISED_BYTES, Refusal};
use crate::inspect::report::{DescriptionReport, DeviceReport, Element, Report, SectionKind};
use crate::inspect::source::Source;
use crate::inspect::values::{self, KeptBody};
use limosa_wire::devices::{MAX_DESCRIBED_DEVICES, VmDescription};
use limosa_wire::dirty_bitmap::{
    DIRTY_BITMAP_IDSTR, DIRTY_BITMAP_VERSION, DirtyBitmapChunk, DirtyBitmapItem,
};
use limosa_wire::mapped_ram::MAPPED_RAM_CAPABILITY;
use limosa_wire::{
    Command, Configuration, ContinueKind, RAM_IDSTR, RAM_VERSION, RamContext, STREAM_VERSION, SectionHeader,
    SectionId, StartKind, Step, StreamDecoder, StreamItem, WireError,
};
use std::io::{self, Read};

/// Name of the capability in the configuration with which every block carries an address.
const IGNORE_SHARED_CAPABILITY: &str = "x-ignore-shared";

/// Reads `input` to its end. The report holds what was understood, whatever the outcome. `wanted` names a device whose
/// fields are to be reported too.
pub(super) fn walk(input: impl Read, wanted: Option<String>) -> (Report, Result<(), InspectError>) {
    let mut walk = Walk {
        source: Source::new(input),
        decoder: StreamDecoder::new(),
        place: Place::Head,
        live: Vec::new(),
        page_sizes: 0,
        addresses: false,
        ram: None,
        ends: BodyEnds::default(),
        looked_ahead: None,
        headers: Vec::new(),
        kept: Vec::new(),
        wanted,
        report: Report::default(),
    };
    let outcome = walk.run();
    (walk.finish(), outcome)
}

struct Walk<R> {
    source: Source<R>,
    decoder: StreamDecoder,
    place: Place,
    /// Sections with live state: no more than the two whose format is known.
    live: Vec<Live>,
    /// Sizes of the source's pages, ORed; 0 if it has not told.
    page_sizes: u64,
    addresses: bool,
    ram: Option<RamCounter>,
    ends: BodyEnds,
    /// Whether the device part has been read ahead, and whether that was behind RAM.
    looked_ahead: Option<bool>,
    /// Headers of the device sections, in the order of `report.devices`.
    headers: Vec<SectionHeader>,
    kept: Vec<KeptBody>,
    wanted: Option<String>,
    report: Report,
}

/// A handler with live state, from its START to its END.
struct Live {
    header: SectionHeader,
    format: Format,
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Ram,
    DirtyBitmap,
}

impl<R: Read> Walk<R> {
    fn run(&mut self) -> Result<(), InspectError> {
        let first = self.peek(RECOGNISED_BYTES)?;
        let first = &first[..first.len().min(RECOGNISED_BYTES)];
        refusal::recognise(first).map_err(|refusal| InspectError::Refused { offset: 0, refusal })?;
        loop {
            let offset = self.source.offset();
            match self.item()? {
                StreamItem::Header => {
                    self.report.version = Some(STREAM_VERSION);
                    self.element(offset, Element::Header);
                    // The place stays: a configuration may come, and only then sections.
                    continue;
                }
                StreamItem::Configuration(configuration) => self.configuration(offset, configuration)?,
                StreamItem::Command(command) => self.command(offset, &command)?,
                StreamItem::SectionStart(header) => self.start_section(offset, header)?,
                StreamItem::SectionContinue { kind, id } => self.continue_section(offset, kind, id)?,
                StreamItem::EndOfStream => {
                    self.element(offset, Element::EndOfStream);
                    return self.behind_the_end();
                }
                StreamItem::Footer(_) | StreamItem::VmDescription(_) => {
                    unreachable!("footers are read with their sections, the vmdescription behind the end")
                }
            }
            self.place = Place::Between;
        }
    }

    fn configuration(&mut self, offset: u64, configuration: Configuration) -> Result<(), InspectError> {
        let mapped = configuration.has_capability(MAPPED_RAM_CAPABILITY);
        self.addresses = configuration.has_capability(IGNORE_SHARED_CAPABILITY);
        self.report.configuration = Some(configuration.into());
        self.element(offset, Element::Configuration);
        if mapped { Err(InspectError::Refused { offset, refusal: Refusal::MappedRam }) } else { Ok(()) }
    }

    fn command(&mut self, offset: u64, command: &Command) -> Result<(), InspectError> {
        let detail = match command {
            Command::Ping(value) => format!("{value:#x}"),
            Command::PostcopyAdvise(Some(advice)) => {
                self.page_sizes = advice.page_size_summary;
                let (all, target) = (advice.page_size_summary, advice.target_page_size);
                format!("page sizes {all:#x}, target page {target:#x}")
            }
            Command::PostcopyAdvise(None) => "for block dirty bitmaps only".to_owned(),
            Command::Features(agreement) => agreement.features.to_string(),
            _ => String::new(),
        };
        self.element(offset, Element::Command { command: command.name(), detail });
        refusal::by_command(command).map_or(Ok(()), |refusal| Err(InspectError::Refused { offset, refusal }))
    }

    fn start_section(&mut self, offset: u64, header: SectionHeader) -> Result<(), InspectError> {
        if header.kind == StartKind::Full {
            return self.device(offset, header);
        }
        let format = match (header.idstr.as_str(), header.version_id) {
            (RAM_IDSTR, RAM_VERSION) => Format::Ram,
            (DIRTY_BITMAP_IDSTR, DIRTY_BITMAP_VERSION) => Format::DirtyBitmap,
            _ => {
                let refusal = Refusal::LiveSection { idstr: header.idstr, version: header.version_id };
                return Err(InspectError::Refused { offset, refusal });
            }
        };
        let taken = |live: &Live| live.header.id == header.id || live.format == format;
        if self.live.iter().any(taken) {
            return Err(InspectError::Repeated { offset, id: header.id, idstr: header.idstr });
        }
        self.enter(SectionKind::Start, &header);
        if format == Format::Ram {
            self.ram = Some(RamCounter::new(self.ram_context()?));
        }
        self.live.push(Live { header: header.clone(), format, ended: false });
        self.live_body(format)?;
        self.leave(offset, SectionKind::Start, &header)
    }

    fn continue_section(
        &mut self,
        offset: u64,
        kind: ContinueKind,
        id: SectionId,
    ) -> Result<(), InspectError> {
        let Some(live) = self.live.iter_mut().find(|live| live.header.id == id && !live.ended) else {
            return Err(InspectError::NotOpen { offset, id });
        };
        let (header, format) = (live.header.clone(), live.format);
        live.ended = kind == ContinueKind::End;
        let kind = match kind {
            ContinueKind::Part => SectionKind::Part,
            ContinueKind::End => SectionKind::End,
        };
        self.enter(kind, &header);
        self.live_body(format)?;
        self.leave(offset, kind, &header)
    }

    fn live_body(&mut self, format: Format) -> Result<(), InspectError> {
        match format {
            Format::Ram => self.ram_body(),
            Format::DirtyBitmap => loop {
                let chunk = step(&mut self.source, &self.place, DirtyBitmapChunk::decode)?;
                if chunk.kind == DirtyBitmapItem::EndOfSection {
                    return Ok(());
                }
            },
        }
    }

    fn ram_body(&mut self) -> Result<(), InspectError> {
        let Self { source, ram, place, .. } = self;
        let ram = ram.as_mut().expect("the counter is made when the section starts");
        loop {
            let offset = source.offset();
            let item = step(source, place, |input| ram.decode(input))?;
            let head = source.offset() - offset;
            let next = ram.count(item, head).map_err(|problem| InspectError::Ram {
                offset,
                place: place.clone(),
                problem,
            })?;
            match next {
                Next::Skip(0) => {}
                Next::Skip(bytes) => {
                    let got = source.skip(bytes).map_err(|error| read_error(source, place, error))?;
                    if got < bytes {
                        return Err(truncated(source, place, offset, Needs::More(bytes - got)));
                    }
                }
                Next::End => return Ok(()),
            }
        }
    }

    /// What a reader of the block list must know and the list does not tell.
    fn ram_context(&mut self) -> Result<RamContext, InspectError> {
        let mut context = RamContext::new();
        if self.page_sizes & !FOUR_KIB != 0 {
            let (sizes, addresses) = (self.page_sizes, self.addresses);
            let layout = large_page_blocks(self.peek(MAX_BLOCK_LIST_BYTES)?, sizes, addresses);
            context = context.with_postcopy(&layout);
        }
        Ok(if self.addresses { context.with_guest_addresses() } else { context })
    }

    fn device(&mut self, offset: u64, header: SectionHeader) -> Result<(), InspectError> {
        let ram = self.live.iter().find(|live| live.format == Format::Ram);
        if ram.is_some_and(|live| !live.ended) {
            let refusal = Refusal::BackgroundSnapshot { device: header.idstr };
            return Err(InspectError::Refused { offset, refusal });
        }
        if self.headers.len() == MAX_DESCRIBED_DEVICES {
            return Err(InspectError::TooManyDevices { offset });
        }
        self.enter(SectionKind::Full, &header);
        self.look_ahead()?;
        let described = self.ends.described(&header);
        let vmsd_name = described.and_then(|device| device.vmsd_name.clone());
        let body_offset = self.source.offset();
        let bytes = self.device_body(&header, offset)?;
        let keep = self.wanted.as_ref().is_some_and(|wanted| {
            *wanted == header.idstr || vmsd_name.as_ref().is_some_and(|name| name == wanted)
        });
        if keep {
            let body = self.peek(bytes)?[..bytes].to_vec();
            self.kept.push(KeptBody { device: self.headers.len(), body });
        }
        self.source.consume(bytes);
        self.leave(offset, SectionKind::Full, &header)?;
        self.report.devices.push(DeviceReport {
            id: header.id.0,
            idstr: header.idstr.clone(),
            instance_id: header.instance_id,
            version_id: header.version_id,
            offset,
            body_offset,
            bytes: bytes as u64,
            vmsd_name: None,
            described_bytes: None,
        });
        self.headers.push(header);
        Ok(())
    }

    /// Reads the device part ahead: at its first section, and once more behind RAM, because a device may send a section
    /// early, before RAM.
    fn look_ahead(&mut self) -> Result<(), InspectError> {
        let behind_ram = !self.live.is_empty();
        if self.ends.has_description() || self.looked_ahead.is_some_and(|then| then == behind_ram) {
            return Ok(());
        }
        self.looked_ahead = Some(behind_ram);
        match self.source.peek(MAX_DEVICE_PART_BYTES) {
            Ok(part) => self.ends.look_ahead(part, behind_ram),
            Err(error) => return Err(read_error(&self.source, &self.place, error)),
        }
        Ok(())
    }

    /// Bytes in the body of section `header`, which the source stands before; all of them are buffered then.
    fn device_body(&mut self, header: &SectionHeader, began: u64) -> Result<usize, InspectError> {
        let whole = self.source.ended();
        let rest = self.source.buffered();
        let buffered = rest.len();
        match self.ends.next(header, rest, whole) {
            BodyEnd::After(bytes) => Ok(bytes),
            BodyEnd::Nowhere { .. } if !whole => {
                let offset = self.source.offset();
                Err(InspectError::DevicePartTooLarge { offset, place: self.place.clone() })
            }
            // With a description the stream is not cut: it came last.
            BodyEnd::Nowhere { described } if self.ends.has_description() => {
                let offset = self.source.offset();
                Err(InspectError::NoBodyEnd { offset, place: self.place.clone(), described })
            }
            BodyEnd::Nowhere { .. } => {
                self.source.consume(buffered);
                Err(truncated(&self.source, &self.place, began, Needs::Description))
            }
        }
    }

    fn behind_the_end(&mut self) -> Result<(), InspectError> {
        self.place = Place::Description;
        let offset = self.source.offset();
        if self.peek(1)?.first() == Some(&DESCRIPTION_MARK) {
            let StreamItem::VmDescription(json) = self.item()? else {
                unreachable!("behind the end only a vmdescription decodes")
            };
            self.element(offset, Element::VmDescription);
            self.description(offset, &json)?;
        }
        self.place = Place::Trailing;
        let offset = self.source.offset();
        let skipped = self.source.skip(u64::MAX);
        self.report.trailing_bytes = self.source.offset() - offset;
        if self.report.trailing_bytes > 0 {
            self.element(offset, Element::TrailingBytes);
        }
        skipped.map_err(|error| read_error(&self.source, &self.place, error))?;
        self.require_values()
    }

    /// Joins the vmdescription with the sections.
    fn description(&mut self, offset: u64, json: &[u8]) -> Result<(), InspectError> {
        if json.is_empty() {
            self.report.vmdescription = DescriptionReport::Empty;
            return Ok(());
        }
        let bytes = json.len();
        let description = VmDescription::parse(json).map_err(|source| InspectError::Description {
            offset,
            bytes,
            source,
        })?;
        let VmDescription { page_size, devices } = description;
        self.report.vmdescription = DescriptionReport::Read { bytes, page_size, devices: devices.len() };
        let (described, seen) = (devices.len(), self.headers.len());
        let other = |first| Err(InspectError::OtherDevices { offset, described, seen, first });
        let mut devices = devices.into_iter();
        for (header, report) in self.headers.iter().zip(&mut self.report.devices) {
            let Some(device) = devices.next().filter(|device| is_of(device, header)) else {
                return other(FirstDifference::Undescribed(header.idstr.clone()));
            };
            report.vmsd_name = device.vmsd_name;
            report.described_bytes = Some(device.body_bytes);
        }
        if let Some(absent) = devices.next() {
            return other(FirstDifference::Absent(absent.idstr));
        }
        if self.wanted.is_some() {
            self.report.device_values = values::decode(json, &self.headers, &self.kept)?;
        }
        Ok(())
    }

    fn require_values(&self) -> Result<(), InspectError> {
        let Some(wanted) = self.wanted.clone().filter(|_| self.report.device_values.is_empty()) else {
            return Ok(());
        };
        if !matches!(self.report.vmdescription, DescriptionReport::Read { .. }) {
            return Err(InspectError::NoDescription { wanted });
        }
        let mut known: Vec<&str> = self.headers.iter().map(|header| header.idstr.as_str()).collect();
        known.dedup();
        Err(InspectError::NoSuchDevice { wanted, known: known.join(", ") })
    }

    fn finish(mut self) -> Report {
        if let Some(ram) = self.ram {
            (self.report.ram, self.report.multifd_flushes) = ram.finish();
        }
        self.report.bytes = self.source.offset();
        self.report
    }

    fn enter(&mut self, kind: SectionKind, header: &SectionHeader) {
        self.place = Place::Section { kind, id: header.id, idstr: header.idstr.clone() };
    }

    /// Reads the footer and lists the section.
    fn leave(&mut self, offset: u64, kind: SectionKind, header: &SectionHeader) -> Result<(), InspectError> {
        self.decoder.end_of_body();
        let footer = self.item()?;
        assert_eq!(footer, StreamItem::Footer(header.id), "only a footer decodes behind a body");
        let SectionHeader { id, idstr, instance_id, version_id, .. } = header.clone();
        self.element(offset, Element::Section { kind, id: id.0, idstr, instance_id, version_id });
        Ok(())
    }

    fn element(&mut self, offset: u64, element: Element) {
        self.report.element(offset, self.source.offset() - offset, element);
    }

    fn item(&mut self) -> Result<StreamItem, InspectError> {
        let Self { source, decoder, place, .. } = self;
        step(source, place, |input| decoder.next(input))
    }

    fn peek(&mut self, wanted: usize) -> Result<&[u8], InspectError> {
        let offset = self.source.offset();
        let place = &self.place;
        self.source.peek(wanted).map_err(|source| InspectError::Read { offset, place: place.clone(), source })
    }
}

/// Decodes the next message of `source`, and consumes it.
#[inline]
fn step<R: Read, T>(
    source: &mut Source<R>,
    place: &Place,
    mut decode: impl FnMut(&[u8]) -> Result<Step<T>, WireError>,
) -> Result<T, InspectError> {
    let offset = source.offset();
    let mut wanted = 1;
    loop {
        let input = match source.peek(wanted) {
            Ok(input) => input,
            Err(error) => return Err(read_error(source, place, error)),
        };
        let got = input.len();
        match decode(input) {
            Ok(Step::Item { used, item }) => {
                source.consume(used);
                return Ok(item);
            }
            Ok(Step::Need(needed)) if source.ended() => {
                source.consume(got);
                return Err(truncated(source, place, offset, Needs::More((needed - got) as u64)));
            }
            Ok(Step::Need(needed)) => wanted = needed,
            Err(error) => return Err(InspectError::Wire { offset, place: place.clone(), source: error }),
        }
    }
}

/// The input ended where `source` stands, inside an element that began at `began`.
fn truncated<R: Read>(source: &Source<R>, place: &Place, began: u64, needs: Needs) -> InspectError {
    InspectError::Truncated { end: source.offset(), place: place.clone(), began, needs }
}

fn read_error<R: Read>(source: &Source<R>, place: &Place, error: io::Error) -> InspectError {
    InspectError::Read { offset: source.offset(), place: place.clone(), source: error }
}

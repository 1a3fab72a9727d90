//! Walks through recordings: every byte is either part of a message or counted as a page or body.

#![allow(clippy::disallowed_methods, reason = "this ring reads recordings from a folder of the machine")]

use limosa_wire::devices::{VmDescription, find_end, split_by_footers};
use limosa_wire::mapped_ram::{MAPPED_RAM_CAPABILITY, bitmap_bytes};
use limosa_wire::multifd::{self, Compression, InitPacket, Packet};
use limosa_wire::{
    Command, RamContext, RamDecoder, RamItem, SectionHeader, StartKind, Step, StreamDecoder, StreamItem,
};
use std::path::{Path, PathBuf};
use std::{env, fs, io, io::Write as _};

const PAGE: usize = limosa_pages::PAGE_BYTES;

/// The recording called `name`, decompressed; `None` (said aloud) when the recordings are not on this machine.
pub(crate) fn load(name: &str) -> Option<Vec<u8>> {
    let folder = env::var_os("LIMOSA_CAPTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures"), PathBuf::from);
    if !folder.is_dir() {
        let reason = format!("no recordings at {} (set LIMOSA_CAPTURES)", folder.display());
        assert!(
            env::var("LIMOSA_REQUIRE_ALL_RINGS").as_deref() != Ok("1"),
            "captures ring required, but {reason}"
        );
        // Not eprintln: the test harness would keep that to itself when the test passes.
        writeln!(io::stderr(), "LEFT OUT: captures ring: {reason}").expect("stderr takes a line");
        return None;
    }
    let path = folder.join(format!("{name}.zst"));
    let compressed = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(
        zstd::decode_all(compressed.as_slice()).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    )
}

/// How a main channel's recording ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Inside a section or a page.
    #[default]
    Cut,
    /// With the end mark.
    EndOfStream,
    /// With a vmdescription.
    VmDescription,
}

/// What a main channel held.
#[derive(Debug, Default)]
pub(crate) struct MainChannel {
    pub(crate) machine: String,
    pub(crate) capabilities: Vec<String>,
    pub(crate) blocks: Vec<(String, u64)>,
    pub(crate) devices: Vec<String>,
    pub(crate) packaged_devices: Vec<String>,
    pub(crate) first_device: Option<usize>,
    pub(crate) pages: usize,
    pub(crate) zero_pages: usize,
    pub(crate) mapped_pages: u32,
    pub(crate) flushes: usize,
    pub(crate) ram_sections: usize,
    pub(crate) ends: usize,
    pub(crate) discards: usize,
    pub(crate) packages: usize,
    pub(crate) pings: Vec<u32>,
    pub(crate) bitmap_requests: Vec<String>,
    pub(crate) ending: Ending,
}

/// A walk in progress.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    found: MainChannel,
    description: Option<VmDescription>,
    ram: RamDecoder,
}

/// The recording ends inside an element.
struct CutShort;

impl MainChannel {
    /// Walks a main channel from its header to the last byte.
    pub(crate) fn walk(bytes: &[u8]) -> Self {
        Self::walk_with(bytes, StreamDecoder::new())
    }

    /// Walks the main channel of a recovery.
    pub(crate) fn walk_recovered(bytes: &[u8]) -> Self {
        Self::walk_with(bytes, StreamDecoder::without_header())
    }

    fn walk_with(bytes: &[u8], mut decoder: StreamDecoder) -> Self {
        let description = find_end(bytes)
            .map(|end| VmDescription::parse(&bytes[end.description..]).expect("QEMU's own description"));
        let ram = RamDecoder::new(RamContext::new());
        let mut walk = Walk { bytes, at: 0, found: MainChannel::default(), description, ram };
        while walk.at < bytes.len() {
            if walk.element(&mut decoder).is_err() {
                assert!(bytes.len() - walk.at < PAGE, "a cut leaves less than a page unread");
                break;
            }
        }
        walk.found
    }
}

impl Walk<'_> {
    fn take<T>(&mut self, step: Step<T>) -> Result<T, CutShort> {
        match step {
            Step::Need(total) => {
                assert!(total > self.bytes.len() - self.at, "needs {total}, which are there");
                Err(CutShort)
            }
            Step::Item { used, item } => {
                self.at += used;
                Ok(item)
            }
        }
    }

    fn skip(&mut self, count: usize) -> Result<&[u8], CutShort> {
        let bytes = self.bytes.get(self.at..self.at + count).ok_or(CutShort)?;
        self.at += count;
        Ok(bytes)
    }

    fn element(&mut self, decoder: &mut StreamDecoder) -> Result<(), CutShort> {
        let start = self.at;
        let step =
            decoder.next(&self.bytes[start..]).unwrap_or_else(|error| panic!("from byte {start}: {error}"));
        match self.take(step)? {
            StreamItem::Configuration(configuration) => {
                let mapped = configuration.has_capability(MAPPED_RAM_CAPABILITY);
                self.found.machine = configuration.machine;
                self.found.capabilities = configuration.capabilities.unwrap_or_default();
                if mapped {
                    self.ram = RamDecoder::new(RamContext::new().with_mapped_ram());
                }
            }
            StreamItem::SectionStart(header) => {
                match header.kind {
                    StartKind::Start => self.ram_body()?,
                    StartKind::Full => self.device_body(start, &header)?,
                }
                decoder.end_of_body();
            }
            StreamItem::SectionContinue { kind, .. } => {
                self.ram_body()?;
                self.found.ends += usize::from(kind == limosa_wire::ContinueKind::End);
                decoder.end_of_body();
            }
            StreamItem::Command(command) => self.command(command)?,
            StreamItem::EndOfStream => self.found.ending = Ending::EndOfStream,
            StreamItem::VmDescription(_) => self.found.ending = Ending::VmDescription,
            StreamItem::Header | StreamItem::Footer(_) => {}
        }
        Ok(())
    }

    fn ram_body(&mut self) -> Result<(), CutShort> {
        loop {
            let start = self.at;
            let step = self.ram.next(&self.bytes[start..]);
            match self.take(step.unwrap_or_else(|error| panic!("ram from byte {start}: {error}")))? {
                RamItem::Setup(setup) => {
                    let named =
                        setup.blocks.into_iter().map(|block| (block.name.to_string(), block.length.0));
                    self.found.blocks.extend(named);
                }
                RamItem::MappedSetup { total } => assert!(total.0 > 0),
                RamItem::MappedBlock(block) => {
                    let header = block.mapped.expect("in this mode every block has a header");
                    assert_eq!(
                        header.bitmap_offset, self.at as u64,
                        "the bitmap is directly behind the header"
                    );
                    let bitmap = self.skip(bitmap_bytes(block.length).0 as usize)?;
                    let present: u32 = bitmap.iter().map(|byte| byte.count_ones()).sum();
                    self.found.mapped_pages += present;
                    self.found.blocks.push((block.name.to_string(), block.length.0));
                    self.at = block.mapped_resume_offset().expect("it has a header") as usize;
                }
                RamItem::Zero(_) => self.found.zero_pages += 1,
                RamItem::Page(_) => {
                    self.skip(PAGE)?;
                    self.found.pages += 1;
                }
                RamItem::Xbzrle { length, .. } => {
                    self.skip(usize::from(length))?;
                }
                RamItem::Populated { .. } => panic!("a QEMU does not know this record"),
                RamItem::MultifdFlush => self.found.flushes += 1,
                RamItem::EndOfSection => {
                    self.found.ram_sections += 1;
                    return Ok(());
                }
            }
        }
    }

    fn device_body(&mut self, start: usize, header: &SectionHeader) -> Result<(), CutShort> {
        let description = self.description.as_ref().expect("device sections come with a description");
        let device = &description.devices[self.found.devices.len()];
        assert_eq!((&device.idstr, device.instance_id), (&header.idstr, header.instance_id));
        let body_bytes = device.body_bytes as usize;
        self.found.first_device.get_or_insert(start);
        self.found.devices.push(header.idstr.clone());
        self.skip(body_bytes).map(|_| ())
    }

    fn command(&mut self, command: Command) -> Result<(), CutShort> {
        match command {
            Command::Ping(value) => self.found.pings.push(value),
            Command::PostcopyRamDiscard { .. } => self.found.discards += 1,
            Command::RecvBitmap { block } => self.found.bitmap_requests.push(block.to_string()),
            Command::Packaged { length } => {
                let blob = self.skip(length as usize)?.to_vec();
                self.package(&blob);
            }
            _ => {}
        }
        Ok(())
    }

    /// A package is a stream of its own: LISTEN, devices, PING, RUN, and nothing behind.
    fn package(&mut self, blob: &[u8]) {
        let sections = split_by_footers(blob).expect("footers chain up to the end of the package");
        let idstrs = sections.iter().map(|section| section.header.idstr.clone());
        self.found.packaged_devices.extend(idstrs);
        let last = sections.last().expect("a package holds devices");
        let closing = last.body.as_ptr_range().end as usize - blob.as_ptr() as usize + 5;
        let mut commands = Vec::new();
        for part in [&blob[..5], &blob[closing..]] {
            let mut decoder = StreamDecoder::without_header();
            let mut at = 0;
            while let Step::Item { used, item: StreamItem::Command(command) } =
                decoder.next(&part[at..]).expect("only commands around the devices")
            {
                at += used;
                commands.push(command);
            }
            assert_eq!(at, part.len());
        }
        assert_eq!(commands, [Command::PostcopyListen, Command::Ping(3), Command::PostcopyRun]);
        self.found.pings.push(3);
        self.found.packages += 1;
    }
}

/// What a multifd channel held.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) id: u8,
    pub(crate) syncs: usize,
    /// Of the packets with pages.
    pub(crate) compressions: Vec<Compression>,
    pub(crate) packet_numbers: Vec<u64>,
}

impl Channel {
    /// Walks a channel from its init packet to the last byte.
    pub(crate) fn walk(bytes: &[u8]) -> Self {
        let Ok(Step::Item { used, item: init }) = InitPacket::decode(bytes) else { panic!("no init packet") };
        let mut channel =
            Self { id: init.channel, syncs: 0, compressions: Vec::new(), packet_numbers: Vec::new() };
        let mut at = used;
        while at < bytes.len() {
            let step =
                multifd::decode(&bytes[at..]).unwrap_or_else(|error| panic!("from byte {at}: {error}"));
            let Step::Item { used, item: packet } = step else { panic!("cut at byte {at}") };
            at += used + packet.payload_bytes();
            let Packet::Pages(header) = packet else { panic!("no device sends state beside") };
            channel.packet_numbers.push(header.packet_number);
            channel.syncs += usize::from(header.sync);
            if header.block().is_some() {
                channel.compressions.push(header.compression);
            }
        }
        assert_eq!(at, bytes.len(), "the last payload ends with the recording");
        channel
    }
}

/// What a preempt channel held.
#[derive(Debug)]
pub(crate) struct Preempt {
    pub(crate) block: Option<String>,
    pub(crate) pages: usize,
}

impl Preempt {
    /// Walks a preempt channel, which has records and no sections.
    pub(crate) fn walk(bytes: &[u8]) -> Self {
        let mut decoder = RamDecoder::new(RamContext::new());
        let (mut at, mut pages) = (0, 0);
        while at < bytes.len() {
            let step = decoder.next(&bytes[at..]).unwrap_or_else(|error| panic!("from byte {at}: {error}"));
            let Step::Item { used, item: RamItem::Page(_) } = step else {
                panic!("no page at byte {at}: {step:?}")
            };
            at += used + PAGE;
            pages += 1;
        }
        assert_eq!(at, bytes.len());
        Self { block: decoder.block_name().map(str::to_owned), pages }
    }
}

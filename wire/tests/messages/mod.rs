//! Strategies for every message of the wire, within its limits.

#![allow(dead_code, reason = "each test binary takes the strategies it needs")]

use limosa_pages::{BlockName, ByteCount, PAGE_BYTES, PageSize};
use limosa_wire::dirty_bitmap::{DirtyBitmapChunk, DirtyBitmapItem};
use limosa_wire::multifd::{
    Compression, InitPacket, MAX_COMPRESSED_BYTES, PACKET_PAGES, max_per_packet_bytes,
};
use limosa_wire::{
    Agreement, Command, Configuration, DiscardRange, Features, Hello, MultifdSettings, POPULATED_REGION,
    PostcopyAdvice, RamSetup, ReceivedPages, RefusalReason, RequestedPages, ReturnMessage, SectionHeader,
    SectionId, SetupBlock, StartKind,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

const PAGE: u64 = PAGE_BYTES as u64;

/// A `str8`: 1 to 255 bytes of UTF-8.
pub(crate) fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9./@:_-]{1,40}", "\\PC{1,60}", Just("x".repeat(255))]
}

pub(crate) fn block_name() -> impl Strategy<Value = BlockName> {
    name().prop_map(|name| BlockName::new(name).expect("1 to 255 bytes"))
}

/// A multiple of 4 KiB that a record's word can carry.
pub(crate) fn page_offset() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![0..64_u64, any::<u64>()].prop_map(|page| (page << 12) & !0xfff)
}

pub(crate) fn configuration() -> impl Strategy<Value = Configuration> {
    let machine = prop_oneof![Just(String::new()), name()];
    let bits = option::of(0..=30_u32);
    let capabilities = option::of(vec(name(), 0..5));
    (machine, bits, capabilities, option::of(any::<[u8; 16]>())).prop_map(
        |(machine, target_page_bits, capabilities, uuid)| Configuration {
            machine,
            target_page_bits,
            capabilities,
            uuid,
        },
    )
}

pub(crate) fn section_header() -> impl Strategy<Value = SectionHeader> {
    let kind = prop_oneof![Just(StartKind::Start), Just(StartKind::Full)];
    (kind, any::<u32>(), name(), any::<u32>(), any::<u32>()).prop_map(
        |(kind, id, idstr, instance_id, version_id)| SectionHeader {
            kind,
            id: SectionId(id),
            idstr,
            instance_id,
            version_id,
        },
    )
}

pub(crate) fn command() -> impl Strategy<Value = Command> {
    let advice = (any::<u64>(), any::<u64>()).prop_map(|(page_size_summary, target_page_size)| {
        PostcopyAdvice { page_size_summary, target_page_size }
    });
    let range = (0..1_u64 << 50, 0..1_u64 << 50)
        .prop_map(|(start, length)| DiscardRange { start: start * PAGE, length: length * PAGE });
    prop_oneof![
        Just(Command::OpenReturnPath),
        any::<u32>().prop_map(Command::Ping),
        option::of(advice).prop_map(Command::PostcopyAdvise),
        Just(Command::PostcopyListen),
        Just(Command::PostcopyRun),
        (block_name(), vec(range, 1..14))
            .prop_map(|(block, ranges)| Command::PostcopyRamDiscard { block, ranges }),
        (0..=limosa_wire::MAX_PACKAGE_BYTES).prop_map(|length| Command::Packaged { length }),
        Just(Command::EnableColo),
        Just(Command::PostcopyResume),
        block_name().prop_map(|block| Command::RecvBitmap { block }),
        Just(Command::SwitchoverStart),
        agreement().prop_map(Command::Features),
        Just(Command::ReplaceLinks),
    ]
}

fn agreement() -> impl Strategy<Value = Agreement> {
    (0..=Features::KNOWN.bits(), any::<u8>(), compression()).prop_map(|(bits, channels, compression)| {
        let multifd = MultifdSettings { channels, compression };
        Agreement { features: Features::from_bits(bits), multifd }
    })
}

fn compression() -> impl Strategy<Value = Compression> {
    use Compression::{None, PerPacket, Qatzip, Qpl, Uadk, Zlib, Zstd};
    proptest::sample::select(vec![None, Zlib, Zstd, Qpl, Uadk, Qatzip, PerPacket])
}

pub(crate) fn return_message() -> impl Strategy<Value = ReturnMessage> {
    let pages = (0..1_u64 << 50, 1..1_u32 << 19)
        .prop_map(|(start, length)| RequestedPages { start: start * PAGE, length: length * PAGE as u32 });
    let bitmap =
        vec(any::<u64>(), 0..40).prop_map(|words| words.into_iter().flat_map(u64::to_le_bytes).collect());
    prop_oneof![
        any::<u32>().prop_map(ReturnMessage::Shut),
        any::<u32>().prop_map(ReturnMessage::Pong),
        (option::of(block_name()), pages)
            .prop_map(|(block, pages)| ReturnMessage::RequestPages { block, pages }),
        (block_name(), bitmap)
            .prop_map(|(block, bitmap)| ReturnMessage::RecvBitmap(ReceivedPages { block, bitmap })),
        Just(ReturnMessage::ResumeAck),
        Just(ReturnMessage::SwitchoverAck),
        Just(ReturnMessage::Running),
        Just(ReturnMessage::NeverRan),
        Just(ReturnMessage::LinkLost),
        (1_u16.., any::<u64>()).prop_map(|(version, bits)| {
            ReturnMessage::Hello(Hello { version, features: Features::from_bits(bits) })
        }),
        ".{1,700}".prop_map(|text| ReturnMessage::Refused(RefusalReason::new(&text))),
    ]
}

/// A block list in which some blocks have large pages; the flag says whether all have addresses.
pub(crate) fn ram_setup() -> impl Strategy<Value = (RamSetup, bool)> {
    let block = (block_name(), 1..1_u64 << 30, any::<bool>(), any::<u64>());
    (vec(block, 0..6), any::<bool>()).prop_map(|(blocks, addresses)| {
        let mut setup = RamSetup::default();
        for (index, (name, pages, large, address)) in blocks.into_iter().enumerate() {
            // One name, one page size: the number in front makes names differ.
            let name: String = format!("{index}{name}").chars().take(60).collect();
            let name = BlockName::new(name).expect("at most 240 bytes");
            let page_size = if large { PageSize::new(2 << 20) } else { None };
            let length = ByteCount(if large { pages << 21 } else { pages << 12 });
            let guest_address = addresses.then_some(address);
            setup.blocks.push(SetupBlock { page_size, guest_address, ..SetupBlock::new(name, length) });
        }
        (setup, addresses)
    })
}

/// One record that an encoder can be asked for; blocks and offsets are small so that records meet.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    Page { block: u32, offset: u64 },
    Zero { block: u32, offset: u64 },
    Xbzrle { block: u32, offset: u64, delta: Vec<u8> },
    Populated { block: u32, region: u64, pages: Vec<u16> },
    Flush,
    EndOfSection,
    ForgetBlock,
}

pub(crate) fn records() -> impl Strategy<Value = Vec<Record>> {
    let page = (0..3_u32, page_offset());
    let record = prop_oneof![
        4 => page.clone().prop_map(|(block, offset)| Record::Page { block, offset }),
        4 => page.clone().prop_map(|(block, offset)| Record::Zero { block, offset }),
        2 => (page, vec(any::<u8>(), 0..300))
            .prop_map(|((block, offset), delta)| Record::Xbzrle { block, offset, delta }),
        1 => (0..3_u32, 0..1_u64 << 20, vec(0..=POPULATED_REGION.0 as u16, 1..40))
            .prop_map(|(block, region, pages)| Record::Populated { block, region, pages }),
        1 => Just(Record::Flush),
        1 => Just(Record::EndOfSection),
        1 => Just(Record::ForgetBlock),
    ];
    vec(record, 0..40)
}

pub(crate) fn init_packet() -> impl Strategy<Value = InitPacket> {
    (any::<[u8; 16]>(), any::<u8>()).prop_map(|(uuid, channel)| InitPacket { uuid, channel })
}

/// What a packet with pages is made of.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    pub(crate) block: BlockName,
    pub(crate) normal: Vec<u64>,
    pub(crate) zero: Vec<u64>,
    pub(crate) compression: Compression,
    pub(crate) payload_bytes: u32,
    pub(crate) packet_number: u64,
}

pub(crate) fn pages() -> impl Strategy<Value = Pages> {
    let block =
        block_name().prop_filter("NUL ends the name in a packet", |name| !name.as_str().contains('\0'));
    let offsets = vec(page_offset(), 1..=PACKET_PAGES);
    let split = any::<proptest::sample::Index>();
    let bytes = 1..=MAX_COMPRESSED_BYTES;
    (block, offsets, split, compression(), bytes, any::<u64>()).prop_map(
        |(block, mut normal, split, compression, bytes, packet_number)| {
            let zero = normal.split_off(split.index(normal.len() + 1));
            let payload_bytes = match (normal.len(), compression) {
                (0, _) => 0,
                (count, Compression::None) => (count * PAGE_BYTES) as u32,
                // As if all pages were raw.
                (count, Compression::PerPacket) => max_per_packet_bytes(count) as u32,
                _ => bytes,
            };
            Pages { block, normal, zero, compression, payload_bytes, packet_number }
        },
    )
}

pub(crate) fn dirty_bitmap_chunk() -> impl Strategy<Value = DirtyBitmapChunk> {
    let kind = prop_oneof![
        (any::<u32>(), any::<bool>(), any::<bool>()).prop_map(|(granularity, enabled, persistent)| {
            DirtyBitmapItem::Start { granularity, enabled, persistent }
        }),
        (any::<u64>(), any::<u32>(), option::of(vec(any::<u8>(), 0..1200)))
            .prop_map(|(first_sector, sectors, data)| DirtyBitmapItem::Bits { first_sector, sectors, data }),
        Just(DirtyBitmapItem::Complete),
        Just(DirtyBitmapItem::EndOfSection),
    ];
    (option::of(name()), option::of(name()), kind).prop_map(|(node, bitmap, kind)| DirtyBitmapChunk {
        node,
        bitmap,
        kind,
    })
}

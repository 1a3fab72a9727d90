//! Decode of encode is the identity, any split of the input gives the same items, and no input panics.

mod messages;

use limosa_pages::{BlockId, BlockLayout, BlockName, ByteCount, PageSize, RamLayout};
use limosa_wire::dirty_bitmap::DirtyBitmapChunk;
use limosa_wire::mapped_ram::{MappedRamHeader, bitmap_bytes};
use limosa_wire::multifd::{
    self, DeviceStateHeader, InitPacket, MAX_DEVICE_STATE_BYTES, Packet, PagesPacket,
};
use limosa_wire::{
    Command, Configuration, ContinueKind, MAX_VM_DESCRIPTION_BYTES, RamContext, RamDecoder, RamEncoder,
    RamItem, ReturnDecoder, SectionHeader, SectionId, SetupBlock, Step, StreamDecoder, StreamItem, WireError,
    encode,
};
use messages::Record;
use proptest::collection::vec;
use proptest::prelude::*;
use std::fmt::Debug;

/// Decodes `bytes` as they arrive in pieces of `pieces` bytes (the last length repeats); `decode` says how many
/// bytes behind an item belong to it.
fn in_pieces<T>(
    bytes: &[u8],
    pieces: &[usize],
    mut decode: impl FnMut(&[u8]) -> Result<Step<(T, usize)>, WireError>,
) -> Vec<T> {
    let mut pieces = pieces.iter().chain(std::iter::repeat(pieces.last().expect("at least one length")));
    let (mut items, mut start, mut arrived) = (Vec::new(), 0, 0);
    loop {
        match decode(&bytes[start..arrived]).expect("valid bytes") {
            Step::Item { used, item: (item, behind) } => {
                items.push(item);
                start += used + behind;
                arrived = arrived.max(start);
            }
            Step::Need(total) => {
                assert!(total > arrived - start, "needs {total} of {}", arrived - start);
                if arrived == bytes.len() {
                    assert_eq!(start, arrived, "every byte belongs to an item");
                    return items;
                }
                arrived = (arrived + pieces.next().expect("endless")).min(bytes.len());
            }
        }
    }
}

/// A message alone decodes to itself, and every shorter input asks for more, never past `lookahead`.
fn assert_identity<T: PartialEq + Debug>(
    message: &T,
    bytes: &[u8],
    lookahead: usize,
    mut decode: impl FnMut(&[u8]) -> Result<Step<T>, WireError>,
) {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len() + lookahead, 0);
    let Step::Item { used, item } = decode(&padded).expect("our own bytes") else { panic!("bytes missing") };
    assert_eq!((used, &item), (bytes.len(), message));
    for end in 0..padded.len() {
        let Ok(Step::Need(total)) = decode(&padded[..end]) else { panic!("{end} bytes are not enough") };
        assert!((end + 1..=padded.len()).contains(&total), "{end} bytes: needs {total}");
    }
}

fn after_header() -> StreamDecoder {
    let mut header = Vec::new();
    encode::header(&mut header);
    let mut decoder = StreamDecoder::new();
    decoder.next(&header).expect("the header");
    decoder
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes);
    bytes
}

/// One element of a stream as a source would write it.
#[derive(Clone, Debug)]
enum Element {
    Command(Command),
    Section(SectionHeader),
    Continue(ContinueKind, u32),
}

fn element() -> impl Strategy<Value = Element> {
    let kind = prop_oneof![Just(ContinueKind::Part), Just(ContinueKind::End)];
    prop_oneof![
        messages::command().prop_map(Element::Command),
        messages::section_header().prop_map(Element::Section),
        (kind, any::<u32>()).prop_map(|(kind, id)| Element::Continue(kind, id)),
    ]
}

/// The bytes of a whole stream with empty bodies, and the items it decodes to.
fn stream(configuration: Configuration, elements: &[Element], json: &[u8]) -> (Vec<u8>, Vec<StreamItem>) {
    let mut bytes = Vec::new();
    let mut items = vec![StreamItem::Header];
    encode::header(&mut bytes);
    configuration.encode(&mut bytes);
    items.push(StreamItem::Configuration(configuration));
    for element in elements.iter().cloned() {
        let opened = match element {
            Element::Command(command) => {
                command.encode(&mut bytes);
                items.push(StreamItem::Command(command));
                continue;
            }
            Element::Section(header) => {
                encode::section_start(&header, &mut bytes);
                let id = header.id;
                items.push(StreamItem::SectionStart(header));
                id
            }
            Element::Continue(kind, id) => {
                let id = SectionId(id);
                encode::section_continue(kind, id, &mut bytes);
                items.push(StreamItem::SectionContinue { kind, id });
                id
            }
        };
        encode::footer(opened, &mut bytes);
        items.push(StreamItem::Footer(opened));
    }
    encode::end_of_stream(&mut bytes);
    encode::vm_description(json, &mut bytes);
    items.extend([StreamItem::EndOfStream, StreamItem::VmDescription(json.to_vec())]);
    (bytes, items)
}

/// [`StreamDecoder::next`] for streams with empty bodies.
fn next_element(decoder: &mut StreamDecoder, input: &[u8]) -> Result<Step<(StreamItem, usize)>, WireError> {
    let step = decoder.next(input)?;
    Ok(match step {
        Step::Need(total) => Step::Need(total),
        Step::Item { used, item } => {
            if matches!(item, StreamItem::SectionStart(_) | StreamItem::SectionContinue { .. }) {
                decoder.end_of_body();
            }
            Step::Item { used, item: (item, 0) }
        }
    })
}

/// Bytes behind a RAM record that its owner takes.
fn behind(item: &RamItem) -> usize {
    match item {
        RamItem::Page(_) => 4096,
        RamItem::Xbzrle { length, .. } => usize::from(*length),
        _ => 0,
    }
}

/// What a record says, with the block that it belongs to.
type Resolved = (Option<String>, &'static str, u64, usize);

fn resolve(item: &RamItem, block: Option<&str>) -> Resolved {
    let block = block.map(str::to_owned);
    match item {
        RamItem::Page(page) => (block, "page", page.offset, 0),
        RamItem::Zero(page) => (block, "zero", page.offset, 0),
        RamItem::Xbzrle { page, length } => (block, "xbzrle", page.offset, usize::from(*length)),
        RamItem::Populated { start, pages } => {
            let sum = pages.iter().map(|&pages| usize::from(pages)).sum();
            (block, "populated", start.offset, sum)
        }
        RamItem::MultifdFlush => (None, "flush", 0, 0),
        RamItem::EndOfSection => (None, "end", 0, 0),
        other => panic!("{other:?} was not encoded"),
    }
}

/// Encodes `records`; returns the bytes and what they must decode to.
fn ram_channel(records: &[Record]) -> (Vec<u8>, Vec<Resolved>) {
    let names = ["pc.ram", "pc.bios", "vga.vram"].map(|name| BlockName::new(name).expect("short"));
    let (mut encoder, mut bytes, mut expected) = (RamEncoder::new(), Vec::new(), Vec::new());
    for record in records {
        let of = |block: u32| (BlockId(block), &names[block as usize]);
        let named = |block: u32| Some(names[block as usize].to_string());
        match record {
            Record::Page { block, offset } => {
                let (id, name) = of(*block);
                encoder.page(id, name, *offset, &mut bytes);
                bytes.resize(bytes.len() + 4096, 0xab);
                expected.push((named(*block), "page", *offset, 0));
            }
            Record::Zero { block, offset } => {
                let (id, name) = of(*block);
                encoder.zero(id, name, *offset, &mut bytes);
                expected.push((named(*block), "zero", *offset, 0));
            }
            Record::Xbzrle { block, offset, delta } => {
                let (id, name) = of(*block);
                encoder.xbzrle(id, name, *offset, delta, &mut bytes);
                expected.push((named(*block), "xbzrle", *offset, delta.len()));
            }
            Record::Populated { block, region, pages } => {
                let (id, name) = of(*block);
                encoder.populated(id, name, region << 21, pages, &mut bytes);
                let sum = pages.iter().map(|&pages| usize::from(pages)).sum();
                expected.push((named(*block), "populated", region << 21, sum));
            }
            Record::Flush => {
                encoder.multifd_flush(&mut bytes);
                expected.push((None, "flush", 0, 0));
            }
            Record::EndOfSection => {
                encoder.end_of_section(&mut bytes);
                expected.push((None, "end", 0, 0));
            }
            Record::ForgetBlock => encoder.forget_block(),
        }
    }
    (bytes, expected)
}

proptest! {
    #[test]
    fn a_configuration_decodes_to_itself(configuration in messages::configuration()) {
        let bytes = encoded(|out| configuration.encode(out));
        let message = StreamItem::Configuration(configuration);
        assert_identity(&message, &bytes, 1, |input| after_header().next(input));
    }

    #[test]
    fn a_command_decodes_to_itself(command in messages::command()) {
        let bytes = encoded(|out| command.encode(out));
        let message = StreamItem::Command(command);
        assert_identity(&message, &bytes, 0, |input| StreamDecoder::without_header().next(input));
    }

    #[test]
    fn a_section_header_decodes_to_itself(header in messages::section_header()) {
        let bytes = encoded(|out| encode::section_start(&header, out));
        let message = StreamItem::SectionStart(header);
        assert_identity(&message, &bytes, 0, |input| StreamDecoder::without_header().next(input));
    }

    #[test]
    fn a_return_message_decodes_to_itself(message in messages::return_message()) {
        let bytes = encoded(|out| message.encode(out));
        assert_identity(&message, &bytes, 0, |input| ReturnDecoder::new().next(input));
    }

    #[test]
    fn a_block_list_decodes_to_itself((setup, addresses) in messages::ram_setup()) {
        let bytes = encoded(|out| RamEncoder::new().setup(&setup, out));
        let layout = RamLayout::new(setup.blocks.iter().map(|block| BlockLayout {
            name: block.name.clone(),
            length: block.length,
            page_size: block.page_size.unwrap_or(PageSize::FOUR_KIB),
        }).collect()).expect("names differ and lengths fit");
        let mut context = RamContext::new().with_postcopy(&layout);
        if addresses {
            context = context.with_guest_addresses();
        }
        let message = RamItem::Setup(setup);
        assert_identity(&message, &bytes, 0, |input| RamDecoder::new(context.clone()).next(input));
    }

    #[test]
    fn a_mapped_block_list_decodes_to_itself((setup, _) in messages::ram_setup(), position in 0..1_u64 << 40) {
        let mut encoder = RamEncoder::new();
        let mut decoder = RamDecoder::new(RamContext::new().with_mapped_ram());
        let bytes = encoded(|out| encoder.mapped_setup(setup.total(), out));
        let expected = RamItem::MappedSetup { total: setup.total() };
        prop_assert_eq!(decoder.next(&bytes), Ok(Step::Item { used: 8, item: expected }));
        for block in setup.blocks {
            let mapped = Some(MappedRamHeader::at(position, block.length));
            let block = SetupBlock { mapped, ..SetupBlock::new(block.name, block.length) };
            let bytes = encoded(|out| encoder.mapped_block(&block, out));
            let expected = Step::Item { used: bytes.len(), item: RamItem::MappedBlock(block) };
            prop_assert_eq!(decoder.next(&bytes), Ok(expected));
        }
        let bytes = encoded(|out| encoder.end_of_section(out));
        prop_assert_eq!(decoder.next(&bytes), Ok(Step::Item { used: 8, item: RamItem::EndOfSection }));
    }

    #[test]
    fn a_mapped_ram_header_decodes_to_itself(position in 0..1_u64 << 50, pages in 1..1_u64 << 30) {
        let length = ByteCount(pages << 12);
        let header = MappedRamHeader::at(position, length);
        prop_assert!(header.pages_offset - header.bitmap_offset >= bitmap_bytes(length).0);
        let bytes = encoded(|out| header.encode(out));
        prop_assert_eq!(bytes.len(), MappedRamHeader::BYTES);
        assert_identity(&header, &bytes, 0, |input| MappedRamHeader::decode(length, input));
    }

    #[test]
    fn a_dirty_bitmap_chunk_decodes_to_itself(chunk in messages::dirty_bitmap_chunk()) {
        let bytes = encoded(|out| chunk.encode(out));
        assert_identity(&chunk, &bytes, 0, DirtyBitmapChunk::decode);
    }

    #[test]
    fn an_init_packet_decodes_to_itself(packet in messages::init_packet()) {
        let bytes = encoded(|out| packet.encode(out));
        prop_assert_eq!(bytes.len(), InitPacket::BYTES);
        assert_identity(&packet, &bytes, 0, InitPacket::decode);
    }

    #[test]
    fn a_packet_with_pages_decodes_to_itself(pages in messages::pages()) {
        let messages::Pages { block, normal, zero, compression, payload_bytes, packet_number } = &pages;
        let packet = PagesPacket {
            block, normal, zero, compression: *compression,
            payload_bytes: *payload_bytes, packet_number: *packet_number,
        };
        let bytes = encoded(|out| packet.encode(out));
        let Ok(Step::Item { used, item: Packet::Pages(header) }) = multifd::decode(&bytes) else {
            panic!("our own packet")
        };
        prop_assert_eq!(used, multifd::PagesHeader::BYTES);
        prop_assert_eq!(header.block(), Some(block.as_str()));
        prop_assert_eq!(header.normal().collect::<Vec<_>>(), normal.as_slice());
        prop_assert_eq!(header.zero().collect::<Vec<_>>(), zero.as_slice());
        prop_assert_eq!((header.sync, header.compression), (false, *compression));
        prop_assert_eq!(header.payload_bytes(), *payload_bytes as usize);
        prop_assert_eq!(header.packet_number, *packet_number);
        for end in [0, 3, 4, 11, 12, 63, 64, 319, 320, 1343] {
            let Ok(Step::Need(total)) = multifd::decode(&bytes[..end]) else { panic!("{end} bytes suffice") };
            prop_assert!(total > end && total <= multifd::PagesHeader::BYTES);
        }
    }

    #[test]
    fn a_sync_packet_decodes_to_itself(number in any::<u64>()) {
        let bytes = encoded(|out| PagesPacket::encode_sync(number, out));
        let Ok(Step::Item { used, item: Packet::Pages(header) }) = multifd::decode(&bytes) else {
            panic!("our own packet")
        };
        prop_assert_eq!((used, header.sync, header.packet_number), (1344, true, number));
        prop_assert_eq!((header.block(), header.normal().len(), header.zero().len()), (None, 0, 0));
        prop_assert_eq!(header.payload_bytes(), 0);
    }

    #[test]
    fn a_device_state_header_decodes_to_itself(
        idstr in messages::name().prop_filter("NUL ends the name", |name| !name.contains('\0')),
        instance_id in any::<u32>(),
        payload_bytes in 1..=MAX_DEVICE_STATE_BYTES,
    ) {
        let header = DeviceStateHeader { idstr: &idstr, instance_id, payload_bytes };
        let bytes = encoded(|out| header.encode(out));
        let expected = Step::Item { used: DeviceStateHeader::BYTES, item: Packet::DeviceState(header) };
        prop_assert_eq!(multifd::decode(&bytes), Ok(expected));
    }

    #[test]
    fn any_split_of_a_stream_gives_the_same_items(
        configuration in messages::configuration(),
        elements in vec(element(), 0..12),
        json in vec(any::<u8>(), 0..200),
        pieces in vec(1..40_usize, 1..30),
    ) {
        let (bytes, expected) = stream(configuration, &elements, &json);
        let mut decoder = StreamDecoder::new();
        let items = in_pieces(&bytes, &pieces, |input| next_element(&mut decoder, input));
        prop_assert_eq!(items, expected);
    }

    #[test]
    fn any_split_of_a_ram_channel_gives_the_same_records(
        records in messages::records(),
        pieces in vec(1..40_usize, 1..30),
    ) {
        let (bytes, expected) = ram_channel(&records);
        let mut decoder = RamDecoder::new(RamContext::new());
        let resolved = in_pieces(&bytes, &pieces, |input| {
            Ok(match decoder.next(input)? {
                Step::Need(total) => Step::Need(total),
                Step::Item { used, item } => {
                    Step::Item { used, item: (resolve(&item, decoder.block_name()), behind(&item)) }
                }
            })
        });
        prop_assert_eq!(resolved, expected);
    }

    #[test]
    fn any_split_of_a_return_path_gives_the_same_messages(
        messages in vec(messages::return_message(), 0..10),
        pieces in vec(1..40_usize, 1..30),
    ) {
        let bytes = encoded(|out| messages.iter().for_each(|message| message.encode(out)));
        let mut decoder = ReturnDecoder::new();
        let items = in_pieces(&bytes, &pieces, |input| {
            Ok(match decoder.next(input)? {
                Step::Need(total) => Step::Need(total),
                Step::Item { used, item } => Step::Item { used, item: (item, 0) },
            })
        });
        prop_assert_eq!(items, messages);
    }

    #[test]
    fn any_damage_to_a_stream_is_survived(
        configuration in messages::configuration(),
        elements in vec(element(), 0..8),
        damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (mut bytes, _) = stream(configuration, &elements, b"{}");
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let mut decoder = StreamDecoder::new();
        let mut at = 0;
        loop {
            match next_element(&mut decoder, &bytes[at..]) {
                Ok(Step::Item { used, .. }) => at += used,
                Ok(Step::Need(total)) => {
                    prop_assert!(total > bytes.len() - at && total <= MAX_VM_DESCRIPTION_BYTES + 5);
                    break;
                }
                Err(error) => {
                    prop_assert!(error.at() < bytes.len() - at, "{error}: the offset is in the input");
                    break;
                }
            }
        }
    }
}

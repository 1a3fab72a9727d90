//! Bytes as QEMU writes them: each message of the wire against its worked example.

use limosa_pages::{BlockId, BlockName, ByteCount};
use limosa_wire::mapped_ram::{MappedRamHeader, bitmap_bytes};
use limosa_wire::multifd::{self, Compression, InitPacket, Packet, PagesPacket};
use limosa_wire::{
    Agreement, Command, Configuration, ContinueKind, DiscardRange, EXTENSIONS_VERSION, Features, Field,
    GREETING, Hello, MultifdSettings, PostcopyAdvice, RamContext, RamDecoder, RamEncoder, RamItem, RamSetup,
    ReceivedPages, RefusalReason, RequestedPages, ReturnDecoder, ReturnMessage, SectionHeader, SectionId,
    SetupBlock, StartKind, Step, StreamDecoder, StreamItem, WireError, encode, received_bitmap_bytes,
};

/// Hexadecimal digits with spaces between, as bytes.
fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pairs = digits.as_chunks::<2>().0.iter();
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn name(text: &str) -> BlockName {
    BlockName::new(text).unwrap()
}

fn assert_bytes(encode: impl FnOnce(&mut Vec<u8>), expected: &str) {
    let mut bytes = Vec::new();
    encode(&mut bytes);
    assert_eq!(bytes, hex(expected));
}

#[test]
fn a_stream_of_pc_begins_with_header_and_machine() {
    let configuration = Configuration { machine: "pc-i440fx-10.0".to_owned(), ..Configuration::default() };
    let write = |out: &mut Vec<u8>| {
        encode::header(out);
        configuration.encode(out);
    };
    assert_bytes(write, "5145564d 00000003 07 0000000e 70632d6934343066782d31302e30");
}

#[test]
fn the_capabilities_subsection_has_a_count_and_names() {
    let capabilities = Some(vec!["mapped-ram".to_owned()]);
    let configuration = Configuration { capabilities, ..Configuration::default() };
    let expected = "07 00000000 05 1a 636f6e66696775726174696f6e2f6361706162696c6974696573 00000001 \
                    00000001 0a 6d61707065642d72616d";
    assert_bytes(|out| configuration.encode(out), expected);
}

#[test]
fn configuration_subsections_come_once_and_in_order() {
    let next = |subsections: &[&str]| {
        let bytes = hex(&format!("5145564d 00000003 07 00000000 {} 00", subsections.concat()));
        let mut decoder = StreamDecoder::new();
        assert_eq!(decoder.next(&bytes), Ok(Step::Item { used: 8, item: StreamItem::Header }));
        decoder.next(&bytes[8..])
    };
    let bits = "05 1e 636f6e66696775726174696f6e2f7461726765742d706167652d62697473 00000001 0000000c";
    let uuid = "05 12 636f6e66696775726174696f6e2f75756964 00000001 000102030405060708090a0b0c0d0e0f";
    assert!(matches!(next(&[bits, uuid]), Ok(Step::Item { item: StreamItem::Configuration(_), .. })));
    let misplaced = |at| Err(WireError::Misplaced { at, field: Field::Subsection, got: 5 });
    assert_eq!(next(&[bits, bits]), misplaced(45));
    assert_eq!(next(&[uuid, bits]), misplaced(45));
    let unknown = WireError::UnknownName { at: 6, field: Field::SubsectionName };
    assert_eq!(next(&["05 01 61 00000001"]), Err(unknown));
}

#[test]
fn section_frames_are_as_qemu_writes_them() {
    let ram = SectionHeader {
        kind: StartKind::Start,
        id: SectionId(1),
        idstr: "ram".to_owned(),
        instance_id: 0,
        version_id: 4,
    };
    assert_bytes(|out| encode::section_start(&ram, out), "01 00000001 03 72616d 00000000 00000004");
    assert_bytes(|out| encode::section_continue(ContinueKind::End, SectionId(1), out), "03 00000001");
    assert_bytes(|out| encode::footer(SectionId(1), out), "7e 00000001");
    assert_bytes(encode::end_of_stream, "00");
    assert_bytes(|out| encode::vm_description(b"", out), "06 00000000");
}

#[test]
fn commands_are_as_qemu_writes_them() {
    let advice = PostcopyAdvice { page_size_summary: 0x1000, target_page_size: 0x1000 };
    let ranges = vec![DiscardRange { start: 0, length: 0x20000 }];
    let examples = [
        (Command::OpenReturnPath, "08 0001 0000"),
        (Command::Ping(1), "08 0002 0004 00000001"),
        (Command::PostcopyAdvise(Some(advice)), "08 0003 0010 0000000000001000 0000000000001000"),
        (Command::PostcopyAdvise(None), "08 0003 0000"),
        (Command::PostcopyListen, "08 0004 0000"),
        (Command::PostcopyRun, "08 0005 0000"),
        (
            Command::PostcopyRamDiscard { block: name("pc.bios"), ranges },
            "08 0006 001a 00 07 70632e62696f73 00 0000000000000000 0000000000020000",
        ),
        (Command::Packaged { length: 0xd30 }, "08 0007 0004 00000d30"),
        (Command::EnableColo, "08 0008 0000"),
        (Command::PostcopyResume, "08 0009 0000"),
        (Command::RecvBitmap { block: name("microvm.ram") }, "08 000a 000c 0b 6d6963726f766d2e72616d"),
        (Command::SwitchoverStart, "08 000b 0000"),
        (Command::ReplaceLinks, "08 4c01 0000"),
    ];
    for (command, expected) in examples {
        assert_bytes(|out| command.encode(out), expected);
    }
}

#[test]
fn extensions_are_as_described() {
    assert_bytes(|out| Command::Ping(GREETING).encode(out), "08 0002 0004 4c494d31");
    let features = Features::PER_PACKET_CODECS | Features::RUNNING_ANSWERS;
    let hello = ReturnMessage::Hello(Hello { version: EXTENSIONS_VERSION, features });
    assert_bytes(|out| hello.encode(out), "4c00 000a 0001 0000000000000009");
    let multifd = MultifdSettings { channels: 4, compression: Compression::Zstd };
    let agreement = Agreement { features: Features::PER_PACKET_CODECS, multifd };
    assert_bytes(|out| Command::Features(agreement).encode(out), "08 4c00 000a 0000000000000001 04 04");
    let refused = ReturnMessage::Refused(RefusalReason::new("no\x1broom"));
    assert_bytes(|out| refused.encode(out), "4c01 0007 6e6f20726f6f6d");
}

#[test]
fn a_reason_is_cut_to_its_limit_between_two_letters() {
    let reason = RefusalReason::new(&"\u{20ac}".repeat(400));
    assert_eq!(reason.as_str(), "\u{20ac}".repeat(341), "341 x 3 bytes = 1023");
}

#[test]
fn extensions_that_cannot_be_are_refused() {
    let features = |digits| StreamDecoder::without_header().next(&hex(digits));
    let unknown = |at, field, got| Err(WireError::Unknown { at, field, got });
    assert_eq!(features("08 4c00 000a 0000000000000020 00 00"), unknown(5, Field::Features, 0x20));
    assert_eq!(features("08 4c00 000a 0000000000000001 04 03"), unknown(14, Field::MultifdMethod, 3));
    let mut decoder = ReturnDecoder::new();
    let zero = WireError::Empty { at: 4, field: Field::ExtensionsVersion };
    assert_eq!(decoder.next(&hex("4c00 000a 0000 0000000000000001")), Err(zero));
    let silent = WireError::Empty { at: 4, field: Field::RefusalReason };
    assert_eq!(decoder.next(&hex("4c01 0000")), Err(silent));
    let escape = WireError::NotText { at: 4, field: Field::RefusalReason };
    assert_eq!(decoder.next(&hex("4c01 0003 1b5b4a")), Err(escape));
    let long = WireError::TooLarge { at: 2, field: Field::ReturnLength, got: 1025, limit: 1024 };
    assert_eq!(decoder.next(&hex("4c01 0401")), Err(long));
    // A later peer may offer what we do not know.
    assert!(matches!(decoder.next(&hex("4c00 000a 0002 ffffffffffffffff")), Ok(Step::Item { used: 14, .. })));
}

#[test]
fn return_messages_are_as_qemu_writes_them() {
    let pages = |start| RequestedPages { start, length: 0x1000 };
    let bitmap = vec![0, 1, 8, 0, 0, 0, 0, 0];
    let block = name("pc.bios");
    let examples = [
        (ReturnMessage::Pong(1), "0002 0004 00000001"),
        (ReturnMessage::Shut(0), "0001 0004 00000000"),
        (ReturnMessage::SwitchoverAck, "0007 0000"),
        (ReturnMessage::Running, "4c02 0000"),
        (ReturnMessage::NeverRan, "4c03 0000"),
        (ReturnMessage::LinkLost, "4c04 0000"),
        (
            ReturnMessage::RequestPages { block: Some(block.clone()), pages: pages(0x13000) },
            "0003 0014 0000000000013000 00001000 07 70632e62696f73",
        ),
        (
            ReturnMessage::RequestPages { block: None, pages: pages(0x14000) },
            "0004 000c 0000000000014000 00001000",
        ),
        (
            ReturnMessage::RecvBitmap(ReceivedPages { block, bitmap }),
            "0005 0008 07 70632e62696f73 0000000000000008 0001080000000000 0123456789abcdef",
        ),
        (ReturnMessage::ResumeAck, "0006 0004 00000001"),
    ];
    for (message, expected) in examples {
        assert_bytes(|out| message.encode(out), expected);
    }
}

#[test]
fn ram_records_are_as_qemu_writes_them() {
    let (pc_ram, id) = (name("pc.ram"), BlockId(0));
    let mut encoder = RamEncoder::new();
    assert_bytes(|out| encoder.zero(id, &pc_ram, 0, out), "0000000000000002 06 70632e72616d 00");
    assert_bytes(|out| encoder.zero(id, &pc_ram, 0x1000, out), "0000000000001022 00");
    assert_bytes(|out| encoder.page(id, &pc_ram, 0x6000, out), "0000000000006028");
    let delta = [0x00, 0x01, 0x80];
    let expected = "0000000000020060 01 0003 00 01 80";
    assert_bytes(|out| encoder.xbzrle(id, &pc_ram, 0x20000, &delta, out), expected);
    assert_bytes(|out| encoder.multifd_flush(out), "0000000000000200");
    assert_bytes(|out| encoder.end_of_section(out), "0000000000000010");
    encoder.forget_block();
    assert_bytes(|out| encoder.page(id, &pc_ram, 0, out), "0000000000000008 06 70632e72616d");
}

#[test]
fn the_block_list_of_microvm_is_as_qemu_writes_it() {
    let blocks = [
        ("microvm.ram", 0x100_0000),
        ("/rom@etc/acpi/tables", 0x1000),
        ("pc.bios", 0x20000),
        ("/rom@etc/table-loader", 0x1000),
        ("/rom@etc/acpi/rsdp", 0x1000),
    ];
    let blocks = blocks.map(|(text, length)| SetupBlock::new(name(text), ByteCount(length))).to_vec();
    let expected = "0000000001023004 0b 6d6963726f766d2e72616d 0000000001000000 \
        14 2f726f6d406574632f616370692f7461626c6573 0000000000001000 07 70632e62696f73 0000000000020000 \
        15 2f726f6d406574632f7461626c652d6c6f61646572 0000000000001000 \
        12 2f726f6d406574632f616370692f72736470 0000000000001000";
    assert_bytes(|out| RamEncoder::new().setup(&RamSetup { blocks }, out), expected);
}

#[test]
fn multifd_packets_are_as_qemu_writes_them() {
    let init = InitPacket { uuid: [0; 16], channel: 2 };
    let expected = format!("11223344 00000001 {} 02 {}", "00".repeat(16), "00".repeat(39));
    assert_bytes(|out| init.encode(out), &expected);
    let sync =
        format!("11223344 00000001 00000001 {} 0000000000000001 {}", "00".repeat(12), "00".repeat(1312));
    assert_bytes(|out| PagesPacket::encode_sync(1, out), &sync);
    let block = name("pc.ram");
    let normal: Vec<u64> = (0..128).map(|page| page * 4096).collect();
    let packet = PagesPacket {
        block: &block,
        normal: &normal,
        zero: &[],
        compression: Compression::Zlib,
        payload_bytes: 0x12f4,
        packet_number: 7,
    };
    let mut bytes = Vec::new();
    packet.encode(&mut bytes);
    let expected = "11223344 00000001 00000002 00000080 00000080 000012f4 0000000000000007 00000000";
    assert_eq!(bytes[..36], hex(expected));
    assert_eq!(bytes.len(), 1344);
}

#[test]
fn the_mapped_ram_header_lies_as_qemu_places_it() {
    let header = MappedRamHeader::at(0x8e - 28, ByteCount(16 << 20));
    assert_bytes(|out| header.encode(out), "00000001 0000000000001000 000000000000008e 0000000000100000");
}

#[test]
fn bitmaps_are_rounded_up_to_whole_words() {
    for (pages, bytes) in [(1, 8), (64, 8), (65, 16), (128, 16), (129, 24)] {
        assert_eq!(bitmap_bytes(ByteCount(pages << 12)), ByteCount(bytes));
        assert_eq!(received_bitmap_bytes(ByteCount(pages << 12)), ByteCount(bytes));
    }
}

#[test]
fn a_mapped_ram_bitmap_that_reaches_into_the_pages_is_refused() {
    let length = ByteCount(65 << 12);
    let decode = |bitmap: &str| {
        let bytes = hex(&format!("00000001 0000000000001000 {bitmap} 0000000000100000"));
        MappedRamHeader::decode(length, &bytes)
    };
    assert!(matches!(decode("00000000000ffff0"), Ok(Step::Item { used: 28, .. })));
    let limit = 0xf_fff0;
    let error = WireError::TooLarge { at: 12, field: Field::MappedRamBitmapOffset, got: limit + 1, limit };
    assert_eq!(decode("00000000000ffff1"), Err(error));
}

#[test]
fn a_footer_of_another_section_is_refused() {
    let mut decoder = StreamDecoder::without_header();
    let bytes = hex("02 00000001");
    let expected = StreamItem::SectionContinue { kind: ContinueKind::Part, id: SectionId(1) };
    assert_eq!(decoder.next(&bytes), Ok(Step::Item { used: 5, item: expected }));
    decoder.end_of_body();
    let error = WireError::Mismatch { at: 1, field: Field::FooterSectionId, expected: 1, got: 2 };
    assert_eq!(decoder.next(&hex("7e 00000002")), Err(error));
}

#[test]
#[should_panic(expected = "has not been consumed")]
fn a_body_that_nobody_consumed_is_a_mistake_of_ours() {
    let mut decoder = StreamDecoder::without_header();
    decoder.next(&hex("02 00000001")).unwrap();
    let _ = decoder.next(&hex("7e 00000001"));
}

#[test]
fn wrong_headers_are_refused() {
    let version = WireError::Mismatch { at: 4, field: Field::StreamVersion, expected: 3, got: 2 };
    assert_eq!(StreamDecoder::new().next(&hex("5145564d 00000002")), Err(version));
    let magic =
        WireError::Mismatch { at: 0, field: Field::StreamMagic, expected: 0x5145_564d, got: 0x1122_3344 };
    assert_eq!(StreamDecoder::new().next(&hex("11223344 00000001")), Err(magic));
}

#[test]
fn commands_of_wrong_number_or_length_are_refused() {
    let next = |digits| StreamDecoder::without_header().next(&hex(digits));
    let unknown = |got| Err(WireError::Unknown { at: 1, field: Field::CommandNumber, got });
    assert_eq!(next("08 0000 0000"), unknown(0));
    assert_eq!(next("08 000c 0000"), unknown(12));
    let length =
        |expected, got| Err(WireError::Mismatch { at: 3, field: Field::CommandLength, expected, got });
    assert_eq!(next("08 0002 0005 0000000000"), length(4, 5));
    assert_eq!(next("08 0003 0008 0000000000001000"), length(16, 8));
    assert_eq!(next("08 0006 0004 00 01 61 00"), length(20, 4));
    let limit = u64::from(limosa_wire::MAX_PACKAGE_BYTES);
    let package = WireError::TooLarge { at: 5, field: Field::PackageLength, got: 0xffff_ffff, limit };
    assert_eq!(next("08 0007 0004 ffffffff"), Err(package));
}

#[test]
fn elements_out_of_place_are_refused() {
    let misplaced = |got| Err(WireError::Misplaced { at: 0, field: Field::SectionType, got });
    for kind in [5, 6, 7, 0x7e] {
        let bytes = [kind, 0, 0, 0, 0];
        assert_eq!(StreamDecoder::without_header().next(&bytes), misplaced(u64::from(kind)));
    }
    let unknown = WireError::Unknown { at: 0, field: Field::SectionType, got: 9 };
    assert_eq!(StreamDecoder::without_header().next(&[9]), Err(unknown));
}

#[test]
fn ram_records_that_cannot_be_are_refused() {
    let next = |digits| RamDecoder::new(RamContext::new()).next(&hex(digits));
    assert_eq!(next("0000000000001028"), Err(WireError::NoPreviousBlock { at: 0 }));
    let zero = WireError::Mismatch { at: 10, field: Field::ZeroByte, expected: 0, got: 1 };
    assert_eq!(next("0000000000000002 01 61 01"), Err(zero));
    let flags = [("0000000000000024", 0x24), ("0000000000000030", 0x30)];
    for (digits, got) in flags {
        assert_eq!(next(digits), Err(WireError::Unknown { at: 0, field: Field::RamFlags, got }));
    }
    let offset = WireError::Mismatch { at: 0, field: Field::RamOffset, expected: 0, got: 0x1000 };
    assert_eq!(next("0000000000001010"), Err(offset));
    for (digits, got) in [("0000000000000100", 0x100), ("000000000000000a", 0xa), ("0000000000000080", 0x80)]
    {
        assert_eq!(next(digits), Err(WireError::Unknown { at: 0, field: Field::RamFlags, got }));
    }
    let long = WireError::TooLarge { at: 11, field: Field::XbzrleLength, got: 4097, limit: 4096 };
    assert_eq!(next("0000000000000040 01 61 01 1001"), Err(long));
}

#[test]
fn block_lengths_that_do_not_sum_up_are_refused() {
    let next = |digits| RamDecoder::new(RamContext::new()).next(&hex(digits));
    let sum = WireError::TooLarge { at: 10, field: Field::BlockLengthSum, got: 0x2000, limit: 0x1000 };
    assert_eq!(next("0000000000001004 01 61 0000000000002000"), Err(sum));
    assert_eq!(next("0000000000002004 01 61 0000000000001000"), Ok(Step::Need(19)));
    let empty = WireError::Empty { at: 10, field: Field::BlockLength };
    assert_eq!(next("0000000000001004 01 61 0000000000000000"), Err(empty));
}

#[test]
fn the_zero_page_shortcut_waits_for_its_byte_and_checks_it() {
    let mut decoder = RamDecoder::new(RamContext::new());
    decoder.next(&hex("0000000000000002 01 61 00")).unwrap();
    assert_eq!(decoder.next(&hex("0000000000001022")), Ok(Step::Need(9)));
    let error = WireError::Mismatch { at: 8, field: Field::ZeroByte, expected: 0, got: 7 };
    assert_eq!(decoder.next(&hex("0000000000001022 07")), Err(error));
    let Ok(Step::Item { used: 9, item: RamItem::Zero(page) }) = decoder.next(&hex("0000000000001022 00"))
    else {
        panic!("a zero page")
    };
    assert_eq!((page.offset, decoder.block_name()), (0x1000, Some("a")));
}

#[test]
fn return_messages_that_cannot_be_are_refused() {
    let next = |digits| ReturnDecoder::for_blocks_up_to(ByteCount(1 << 20)).next(&hex(digits));
    for (digits, got) in [("0000 0000", 0), ("0008 0000", 8)] {
        assert_eq!(next(digits), Err(WireError::Unknown { at: 0, field: Field::ReturnType, got }));
    }
    let long = WireError::TooLarge { at: 2, field: Field::ReturnLength, got: 513, limit: 512 };
    assert_eq!(next("0001 0201"), Err(long));
    let unaligned = WireError::Misaligned { at: 4, field: Field::RequestedPages, got: 1, unit: 4096 };
    assert_eq!(next("0004 000c 0000000000000001 00001000"), Err(unaligned));
    let bitmap = WireError::TooLarge { at: 6, field: Field::BitmapLength, got: 40, limit: 32 };
    assert_eq!(next("0005 0002 01 61 0000000000000028"), Err(bitmap));
}

#[test]
fn multifd_packets_that_cannot_be_are_refused() {
    let mut packet = Vec::new();
    PagesPacket::encode_sync(0, &mut packet);
    let refused = |changes: &[(usize, u8)]| {
        let mut bytes = packet.clone();
        changes.iter().for_each(|&(at, byte)| bytes[at] = byte);
        multifd::decode(&bytes).map(|_| ()).unwrap_err()
    };
    let too_large = |at, field, got, limit| WireError::TooLarge { at, field, got, limit };
    assert_eq!(refused(&[(15, 129)]), too_large(12, Field::PagesAllocated, 129, 128));
    assert_eq!(refused(&[(15, 4), (19, 5)]), too_large(16, Field::NormalPages, 5, 4));
    assert_eq!(refused(&[(15, 4), (19, 3), (35, 2)]), too_large(32, Field::ZeroPages, 2, 1));
    let method = WireError::Unknown { at: 8, field: Field::MultifdMethod, got: 0x06 };
    assert_eq!(refused(&[(11, 0x06)]), method);
    let flags = WireError::Unknown { at: 8, field: Field::MultifdFlags, got: 0x80 };
    assert_eq!(refused(&[(11, 0x80)]), flags);
    let payload = WireError::Mismatch { at: 20, field: Field::PayloadLength, expected: 4096, got: 0 };
    assert_eq!(refused(&[(15, 1), (19, 1), (64, b'a')]), payload);
    let payload = too_large(20, Field::PayloadLength, 0x0110_0000, 0x0010_0000);
    assert_eq!(refused(&[(11, 2), (15, 1), (19, 1), (20, 1), (21, 0x10), (64, b'a')]), payload);
    let block = WireError::Empty { at: 64, field: Field::BlockName };
    assert_eq!(refused(&[(15, 1), (35, 1)]), block);
}

#[test]
fn a_sync_packet_with_pages_of_an_older_source_is_accepted() {
    let block = name("pc.ram");
    let packet = PagesPacket {
        block: &block,
        normal: &[0x1000],
        zero: &[],
        compression: Compression::None,
        payload_bytes: 4096,
        packet_number: 0,
    };
    let mut bytes = Vec::new();
    packet.encode(&mut bytes);
    bytes[11] |= 1;
    let Ok(Step::Item { item: Packet::Pages(header), .. }) = multifd::decode(&bytes) else {
        panic!("a packet")
    };
    assert_eq!((header.sync, header.payload_bytes()), (true, 4096));
}

#[test]
fn a_report_of_populated_regions_has_a_count_and_numbers() {
    let block = name("pc.ram");
    let write = |out: &mut Vec<u8>| {
        let mut encoder = RamEncoder::new();
        encoder.populated(BlockId(0), &block, 0x20_0000, &[512, 0, 3], out);
        encoder.populated(BlockId(0), &block, 0x80_0000, &[1], out);
    };
    assert_bytes(write, "0000000000200400 06 70632e72616d 0003 0200 0000 0003   0000000000800420 0001 0001");
}

#[test]
fn reports_of_no_region_too_many_or_fuller_ones_are_refused() {
    let refused = |digits: &str| RamDecoder::new(RamContext::new()).next(&hex(digits)).unwrap_err();
    let misaligned = WireError::Misaligned { at: 0, field: Field::RamOffset, got: 0x1000, unit: 0x20_0000 };
    assert_eq!(refused("0000000000001400 01 61 0001 0000"), misaligned);
    assert_eq!(refused("0000000000000420 0001 0000"), WireError::NoPreviousBlock { at: 0 });
    let none = WireError::Empty { at: 10, field: Field::PopulatedRegions };
    assert_eq!(refused("0000000000000400 01 61 0000"), none);
    let many = WireError::TooLarge { at: 10, field: Field::PopulatedRegions, got: 8193, limit: 8192 };
    assert_eq!(refused("0000000000000400 01 61 2001"), many);
    let full = WireError::TooLarge { at: 14, field: Field::PopulatedPages, got: 513, limit: 512 };
    assert_eq!(refused("0000000000000400 01 61 0002 0200 0201"), full);
}

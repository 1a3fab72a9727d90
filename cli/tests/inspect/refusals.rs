//! Every kind of input that is no plain precopy stream is refused by its name.

use crate::command::inspect;
use crate::stream::{Stream, block, section_start};
use limosa_pages::{BlockId, BlockName};
use limosa_wire::multifd::InitPacket;
use limosa_wire::{
    Command, Configuration, DiscardRange, RamEncoder, ReturnMessage, SectionId, StartKind, encode,
};

#[test]
fn inputs_that_are_no_main_channel_are_named() {
    let mut init = Vec::new();
    InitPacket { uuid: [0; 16], channel: 0 }.encode(&mut init);
    let mut answer = Vec::new();
    ReturnMessage::Pong(1).encode(&mut answer);
    let mut recovery = Vec::new();
    let name = BlockName::new("pc.ram").unwrap();
    Command::RecvBitmap { block: name.clone() }.encode(&mut recovery);
    let mut preempt = Vec::new();
    RamEncoder::new().page(BlockId(0), &name, 0x1000, &mut preempt);
    preempt.extend([1; 4096]);
    let cases: [(&[u8], &str); 11] = [
        (b"", "no migration stream: the input is empty"),
        (b"\x7fELF\x02\x01\x01\0\0", "no migration stream: it begins with 7f 45 4c 46 02 01 01 00,"),
        (b"QE-", "no migration stream: it begins with 51 45 2d,"),
        (&init, "a multifd channel: it begins with 11 22 33 44"),
        (&answer, "a return path"),
        (&recovery, "a postcopy recovery: it begins with RECV_BITMAP"),
        (&preempt, "a postcopy preempt channel: it begins with a bare page of block \"pc.ram\""),
        (b"QCPR\0\0\0\x01", "a CPR channel"),
        (b"\x28\xb5\x2f\xfd\x04", "a zstd file"),
        (b"\x1f\x8b\x08", "a gzip file"),
        (b"LibvirtQemudSave\x02\0\0\0", "a libvirt save image"),
    ];
    for (input, name) in cases {
        inspect(input, &[]).failed_with(&["offset 0x0: ", name]);
    }
}

#[test]
fn mapped_ram_is_refused_at_its_configuration() {
    let configuration = Configuration {
        machine: "pc".into(),
        capabilities: Some(vec!["mapped-ram".into()]),
        ..Configuration::default()
    };
    let stream = Stream::new(&configuration);
    // The configuration is complete only when the byte behind it has been seen.
    let mut bytes = stream.bytes;
    encode::end_of_stream(&mut bytes);
    let said = inspect(&bytes, &[]);
    said.failed_with(&["offset 0x8: a mapped-ram file"]);
    assert!(said.stdout.contains("Capabilities    mapped-ram"), "{}", said.stdout);
}

#[test]
fn commands_of_postcopy_and_colo_are_refused_where_they_stand() {
    let name = BlockName::new("ram0").unwrap();
    let discard =
        Command::PostcopyRamDiscard { block: name, ranges: vec![DiscardRange { start: 0, length: 4096 }] };
    let cases = [
        (Command::PostcopyListen, "a postcopy stream: here is POSTCOPY_LISTEN"),
        (Command::Packaged { length: 100 }, "a postcopy stream: here is PACKAGED"),
        (discard, "a postcopy stream: here is POSTCOPY_RAM_DISCARD"),
        (Command::EnableColo, "a COLO stream"),
    ];
    for (command, name) in cases {
        let mut stream = Stream::of_machine("test");
        stream.start_ram(&[block("ram0", 1)]);
        let offset = format!("offset {:#x}: ", stream.offset());
        stream.command(&command);
        inspect(&stream.bytes, &[]).failed_with(&[&offset, name]);
    }
}

#[test]
fn a_background_snapshot_is_refused_at_its_first_device() {
    let mut stream = Stream::of_machine("test");
    stream.start_ram(&[block("ram0", 1)]);
    stream.part(|ram| ram.zero(0, 0));
    let offset = format!("offset {:#x}: a background snapshot", stream.offset());
    stream.device(3, "timer", &[0; 24], 24);
    let said = inspect(&stream.finish(), &["--json"]);
    said.failed_with(&[&offset, "\"timer\""]);
    let report = said.json();
    assert_eq!(report["error"]["kind"], "refused");
    assert_eq!(report["ram"][0]["zero"], 1, "what came before is reported");
}

#[test]
fn live_sections_of_unknown_formats_are_refused_by_name_and_version() {
    for (idstr, version) in [("0000:00:02.0/vfio", 1), ("ram", 3)] {
        let mut stream = Stream::of_machine("test");
        section_start(StartKind::Start, SectionId(2), idstr, 0, version, &mut stream.bytes);
        let name = format!("live section {idstr:?} of version {version}");
        inspect(&stream.bytes, &[]).failed_with(&[&name]);
    }
}

//! Streams that no engine would send.

use super::guest::{Guest, configuration};
use super::relay::{Medium, connection};
use super::stream::What;
use super::{Recording, Victim};
use limosa_engine::{Incoming, IncomingConfig, NoObserver, RunState};
use limosa_pages::{BlockId, BlockName, ByteCount, PAGE_BYTES};
use limosa_wire::{
    Command, Configuration, ContinueKind, DiscardRange, RamEncoder, RamSetup, SectionHeader, SectionId,
    SetupBlock, StartKind, encode,
};
use std::io::Write;
use std::sync::Arc;

/// Numbers that no recorded stream uses.
const RAM: SectionId = SectionId(0x52);
const COUNTER: SectionId = SectionId(0x53);
const MAIN: &str = "main.ram";

/// Writes a stream piece by piece.
#[derive(Clone)]
struct Forge {
    bytes: Vec<u8>,
    ram: RamEncoder,
}

impl Forge {
    /// Nothing yet.
    fn empty() -> Self {
        Self { bytes: Vec::new(), ram: RamEncoder::new() }
    }

    /// Header and configuration.
    fn opened() -> Self {
        let mut forge = Self::empty();
        encode::header(&mut forge.bytes);
        configuration().encode(&mut forge.bytes);
        forge
    }

    /// Up to the end of a good START section.
    fn set_up() -> Self {
        Self::opened()
            .start(StartKind::Start, RAM, "ram", 4)
            .blocks(&[(MAIN, 3), ("small.ram", 1)])
            .end_body(RAM)
    }

    /// In the body of a PART section.
    fn in_part() -> Self {
        Self::set_up().go_on(ContinueKind::Part, RAM)
    }

    fn start(mut self, kind: StartKind, id: SectionId, idstr: &str, version_id: u32) -> Self {
        let head = SectionHeader { kind, id, idstr: idstr.to_owned(), instance_id: 0, version_id };
        encode::section_start(&head, &mut self.bytes);
        self
    }

    fn go_on(mut self, kind: ContinueKind, id: SectionId) -> Self {
        encode::section_continue(kind, id, &mut self.bytes);
        self
    }

    fn blocks(mut self, blocks: &[(&str, u64)]) -> Self {
        let block = |(name, pages): &(&str, u64)| {
            SetupBlock::new(BlockName::new(*name).unwrap(), ByteCount(pages * PAGE_BYTES as u64))
        };
        self.ram.setup(&RamSetup { blocks: blocks.iter().map(block).collect() }, &mut self.bytes);
        self
    }

    fn end_body(mut self, id: SectionId) -> Self {
        self.ram.end_of_section(&mut self.bytes);
        encode::footer(id, &mut self.bytes);
        self
    }

    fn page(mut self, block: &str, offset: u64) -> Self {
        let name = BlockName::new(block).unwrap();
        self.ram.page(BlockId(u32::from(block.as_bytes()[0])), &name, offset, &mut self.bytes);
        self.raw(&[0x5a; PAGE_BYTES])
    }

    fn zero(mut self, block: &str, offset: u64) -> Self {
        let name = BlockName::new(block).unwrap();
        self.ram.zero(BlockId(u32::from(block.as_bytes()[0])), &name, offset, &mut self.bytes);
        self
    }

    fn command(mut self, command: &Command) -> Self {
        command.encode(&mut self.bytes);
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A word of the `ram` section, big-endian as all of it.
    fn word(self, word: u64) -> Self {
        self.raw(&word.to_be_bytes())
    }
}

/// Offers each stream and looks for each part in the error.
#[track_caller]
fn refuse_all(cases: &[(&str, Forge, &[&str])]) {
    let mut victim = Victim::new();
    for (what, forge, parts) in cases {
        let error = victim.refuse(&forge.bytes, what);
        for part in *parts {
            assert!(error.contains(part), "{what}: {part:?} is not in {error:?}");
        }
    }
}

#[test]
fn a_head_that_is_not_ours_is_refused() {
    let with = |change: &dyn Fn(&mut Configuration)| {
        let mut configuration = configuration();
        change(&mut configuration);
        let mut forge = Forge::empty();
        encode::header(&mut forge.bytes);
        configuration.encode(&mut forge.bytes);
        forge.raw(&[0])
    };
    let empty = Forge::empty;
    let header = || empty().raw(b"QEVM\0\0\0\x03");
    refuse_all(&[
        ("nothing", empty(), &["header at byte 0", "connection ended"]),
        ("http", empty().raw(b"GET / HTTP/1.1\r\n\r\n"), &["header at byte", "stream magic"]),
        ("version", empty().raw(b"QEVM\0\0\0\x02"), &["header at byte", "stream version", "0x2"]),
        ("no configuration", header().raw(&[0]), &["at byte 8", "without ram/0"]),
        (
            "no configuration",
            header().raw(&[8, 0, 1, 0, 0]),
            &["configuration at byte 8", "OPEN_RETURN_PATH"],
        ),
        (
            "long name",
            header().raw(&[7, 255, 255, 255, 255]),
            &["configuration at byte", "machine name", "limit 255"],
        ),
        ("machine", with(&|c| c.machine = "evil".into()), &["configuration at byte", "evil", "test-guest"]),
        ("page size", with(&|c| c.target_page_bits = Some(14)), &["2^14", "2^12"]),
        ("capability", with(&|c| c.capabilities = Some(vec!["mapped-ram".into()])), &["mapped-ram"]),
        (
            "subsection",
            header().raw(&[7, 0, 0, 0, 0, 5, 3]).raw(b"foo\0\0\0\x01"),
            &["configuration at byte", "subsection"],
        ),
    ]);
}

#[test]
fn section_heads_that_fit_nothing_are_refused() {
    let opened = Forge::opened;
    let full = |id, idstr, version| opened().start(StartKind::Full, id, idstr, version);
    let counter = || full(COUNTER, "counter", 2).raw(&[0; 16]);
    let closed = |forge: Forge, id: SectionId| {
        let mut forge = forge;
        encode::footer(id, &mut forge.bytes);
        forge
    };
    let twice = |idstr| closed(counter(), COUNTER).start(StartKind::Full, SectionId(9), idstr, 2);
    refuse_all(&[
        ("type", opened().raw(&[0x55]), &["between sections at byte", "section type", "0x55"]),
        ("text", opened().raw(&[0x06]), &["between sections at byte", "may not stand here"]),
        ("empty name", opened().raw(&[4, 0, 0, 0, 9, 0, 0, 0, 0, 0]), &["section idstr", "empty"]),
        ("not text", opened().raw(&[4, 0, 0, 0, 9, 1, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]), &["idstr", "UTF-8"]),
        ("unknown", full(COUNTER, "evil", 1), &["section evil/0 at byte", "there is no evil/0"]),
        ("old", full(COUNTER, "counter", 0), &["section counter/0 at byte", "version 0", "1 to 2"]),
        ("new", full(COUNTER, "counter", 3), &["section counter/0 at byte", "version 3", "1 to 2"]),
        ("ram as device", full(RAM, "ram", 4), &["section ram/0 at byte", "wrong kind"]),
        (
            "device as ram",
            opened().start(StartKind::Start, COUNTER, "counter", 2),
            &["section counter/0 at byte", "wrong kind"],
        ),
        ("ram 3", opened().start(StartKind::Start, RAM, "ram", 3), &["section ram/0", "version 3"]),
        ("footer mark", counter().raw(&[0x55, 0, 0, 0, 0x53]), &["section counter/0 at byte", "footer mark"]),
        ("footer id", closed(counter(), RAM), &["section counter/0 at byte", "footer", "0x53", "0x52"]),
        ("same entry twice", twice("counter"), &["section counter/0 at byte", "another section has set"]),
        (
            "same id twice",
            closed(counter(), COUNTER).start(StartKind::Full, COUNTER, "globalstate", 1),
            &["section globalstate/0 at byte", "0x53 is in use"],
        ),
        (
            "part of nothing",
            opened().go_on(ContinueKind::Part, SectionId(77)),
            &["between sections at byte", "PART", "0x4d"],
        ),
        (
            "part of a device",
            closed(counter(), COUNTER).go_on(ContinueKind::Part, COUNTER),
            &["section counter/0 at byte", "PART", "0x53"],
        ),
        (
            "part after end",
            Forge::set_up().go_on(ContinueKind::End, RAM).end_body(RAM).go_on(ContinueKind::Part, RAM),
            &["section ram/0 at byte", "PART", "0x52"],
        ),
    ]);
}

#[test]
fn block_lists_that_are_not_ours_are_refused() {
    const MEM_SIZE: u64 = 4;
    let start = || Forge::opened().start(StartKind::Start, RAM, "ram", 4);
    let named = |forge: Forge, name: &str, length: u64| {
        forge.raw(&[name.len() as u8]).raw(name.as_bytes()).raw(&length.to_be_bytes())
    };
    let many = (0..5000).fold(start().word(5000 * 4096 + MEM_SIZE), |forge, index| {
        named(forge, &format!("block{index}"), 4096)
    });
    let place = "section ram/0 at byte";
    refuse_all(&[
        ("unknown", start().blocks(&[("evil.ram", 4)]), &[place, "no RAM block \"evil.ram\""]),
        ("length", start().blocks(&[(MAIN, 4)]), &[place, "16384 bytes there and 12288 here"]),
        ("missing", start().blocks(&[(MAIN, 3)]), &[place, "does not have RAM block \"small.ram\""]),
        ("twice", start().blocks(&[(MAIN, 3), (MAIN, 3), ("small.ram", 1)]), &[place, "twice"]),
        ("none", start().word(MEM_SIZE), &[place, "does not have RAM block"]),
        ("too many", many, &[place, "RAM block count", "4096"]),
        ("huge", named(start().word((!0 << 12) | MEM_SIZE), MAIN, !0 << 12), &[place, "main.ram"]),
        ("zero length", named(start().word(4096 + MEM_SIZE), MAIN, 0), &[place, "length", "empty"]),
        ("odd length", named(start().word(4096 + MEM_SIZE), MAIN, 4097), &[place, "0x1001", "multiple"]),
        ("more than the sum", named(start().word(4096 + MEM_SIZE), MAIN, 12288), &[place, "sum", "12288"]),
    ]);
}

#[test]
fn ram_records_that_lie_are_refused() {
    let part = Forge::in_part;
    let place = "section ram/0 at byte";
    let early = || Forge::opened().start(StartKind::Start, RAM, "ram", 4);
    let xbzrle = |delta: &[u8]| {
        let name = BlockName::new(MAIN).unwrap();
        let mut forge = part();
        forge.ram.xbzrle(BlockId(0), &name, 0, delta, &mut forge.bytes);
        forge
    };
    let xbzrle_head = |encoding: u8, length: u16| {
        let head = part().word(0x40).raw(&[MAIN.len() as u8]).raw(MAIN.as_bytes());
        head.raw(&[encoding]).raw(&length.to_be_bytes())
    };
    refuse_all(&[
        ("page before blocks", early().page(MAIN, 0), &[place, "before the list of RAM blocks"]),
        ("zero before blocks", early().zero(MAIN, 0), &[place, "before the list of RAM blocks"]),
        ("page outside", part().page(MAIN, 12288), &[place, "0x3000 is outside RAM block \"main.ram\""]),
        (
            "zero outside",
            part().zero("small.ram", 4096),
            &[place, "0x1000 is outside RAM block \"small.ram\""],
        ),
        ("far outside", part().zero(MAIN, !0 << 12), &[place, "outside RAM block"]),
        ("unknown block", part().page("evil.ram", 0), &[place, "no RAM block \"evil.ram\""]),
        ("continues nothing", part().word(0x28), &[place, "continues the previous block"]),
        (
            "zero that is none",
            part().word(0x02).raw(&[8]).raw(MAIN.as_bytes()).raw(&[1]),
            &[place, "zero-page"],
        ),
        ("no record", part().word(0), &[place, "RAM record flags"]),
        ("two records", part().word(0x0a), &[place, "RAM record flags", "0xa"]),
        ("end with offset", part().word(0x1010), &[place, "RAM page offset"]),
        ("multifd flush", part().word(0x200), &[place, "multifd flush record in a plain precopy stream"]),
        ("delta is garbage", xbzrle(&[0xff; 7]), &[place, "a delta for offset 0x0 cannot be applied"]),
        ("delta too far", xbzrle(&[0xff, 0x1f, 2, 1, 1]), &[place, "a delta for offset 0x0"]),
        ("delta too long", xbzrle_head(1, 4097), &[place, "XBZRLE length", "4097"]),
        ("delta of another kind", xbzrle_head(2, 3), &[place, "XBZRLE encoding"]),
        (
            "pages are missing",
            part().page(MAIN, 0).end_body(RAM).go_on(ContinueKind::End, RAM).end_body(RAM).raw(&[0]),
            &["at byte"],
        ),
    ]);
}

#[test]
fn pages_that_never_came_are_named() {
    let recording = Recording::new();
    let mut forge = Forge::in_part().page(MAIN, 0).zero(MAIN, 8192).page("small.ram", 0).end_body(RAM);
    forge = forge.go_on(ContinueKind::End, RAM).end_body(RAM);
    // Devices and end are those of a good stream; the question between them would have no return path to answer on.
    let pieces = super::stream::pieces(&recording.stream);
    let devices = pieces.iter().position(|piece| piece.place == "section counter/0").unwrap() - 1;
    for piece in pieces[devices..].iter().filter(|piece| !matches!(piece.what, What::Command(_))) {
        forge = forge.raw(&recording.stream[piece.range.clone()]);
    }
    let error = Victim::new().refuse(&forge.bytes, "one page is missing");
    assert!(error.contains("RAM block \"main.ram\"") && error.contains("0x1000"), "{error}");
}

#[test]
fn commands_out_of_place_are_refused_by_name() {
    let block = || BlockName::new(MAIN).unwrap();
    let ranges = vec![DiscardRange { start: 0, length: 4096 }];
    let place = "between sections at byte";
    let opened = |command: &Command| Forge::opened().command(&Command::OpenReturnPath).command(command);
    refuse_all(&[
        ("early ping", Forge::opened().command(&Command::Ping(1)), &[place, "PING 0x1", "OPEN_RETURN_PATH"]),
        ("advise", opened(&Command::PostcopyAdvise(None)), &[place, "POSTCOPY_ADVISE is not supported"]),
        ("listen", opened(&Command::PostcopyListen), &[place, "POSTCOPY_LISTEN is not supported"]),
        ("run", opened(&Command::PostcopyRun), &[place, "POSTCOPY_RUN is not supported"]),
        (
            "discard",
            opened(&Command::PostcopyRamDiscard { block: block(), ranges }),
            &[place, "POSTCOPY_RAM_DISCARD is not supported"],
        ),
        ("packaged", opened(&Command::Packaged { length: 1 << 20 }), &[place, "PACKAGED is not supported"]),
        ("colo", opened(&Command::EnableColo), &[place, "ENABLE_COLO is not supported"]),
        ("resume", opened(&Command::PostcopyResume), &[place, "POSTCOPY_RESUME is not supported"]),
        ("bitmap", opened(&Command::RecvBitmap { block: block() }), &[place, "RECV_BITMAP is not supported"]),
        ("unknown", Forge::opened().raw(&[8, 0, 99, 0, 0]), &[place, "command number", "0x63"]),
        ("length", Forge::opened().raw(&[8, 0, 1, 0xff, 0xff]), &[place, "command payload length"]),
        ("package", Forge::opened().raw(&[8, 0, 7, 0, 4, 255, 255, 255, 255]), &[place, "package length"]),
    ]);
}

#[test]
fn ends_that_come_too_early_are_refused() {
    let recording = Recording::new();
    let end = recording.stream.len() - description_bytes(&recording);
    let description = |bytes: &[u8]| Forge::empty().raw(&recording.stream[..end]).raw(bytes);
    refuse_all(&[
        ("nothing was sent", Forge::opened().raw(&[0]), &["end of stream at byte", "without"]),
        ("ram has no end", Forge::set_up().raw(&[0]), &["end of stream at byte"]),
        (
            "4 GiB of text",
            description(&[6, 255, 255, 255, 255]),
            &["end of stream at byte", "vmdescription length", "4294967295"],
        ),
        (
            "64 MiB of text",
            description(&[6, 4, 0, 0, 0, b'{']),
            &["end of stream at byte", "connection ended"],
        ),
        ("no text", description(&[]), &["end of stream at byte", "connection ended"]),
        ("something else", description(&[4, 0, 0, 0, 9]), &["end of stream at byte", "vmdescription mark"]),
    ]);
}

fn description_bytes(recording: &Recording) -> usize {
    super::stream::pieces(&recording.stream).last().unwrap().range.len()
}

#[test]
fn device_state_that_cannot_be_is_refused_with_its_field() {
    let opened = || Forge::opened().start(StartKind::Full, SectionId(1), "globalstate", 1);
    let state = |size: u32, name: &[u8], bools: [u8; 2]| {
        let padding = vec![0; 32 - name.len()];
        opened().raw(&size.to_be_bytes()).raw(name).raw(&padding).raw(&bools).raw(&[0; 66])
    };
    let place = "section globalstate/0 at byte";
    refuse_all(&[
        ("length of the name", state(99, b"running", [0, 0]), &[place, "globalstate", "as long as it says"]),
        ("no such state", state(8, b"flying?", [0, 0]), &[place, "globalstate", "flying?"]),
        ("no bool", state(8, b"running", [7, 0]), &[place, "has_vm_was_suspended", "7"]),
        ("cut", opened().raw(&[0, 0]), &[place, "globalstate.size", "bytes missing"]),
    ]);
}

#[test]
fn a_return_path_that_nothing_can_go_back_on_is_refused() {
    let mut guest = Guest::tiny_incoming();
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&Forge::opened().command(&Command::OpenReturnPath).bytes).unwrap();
    let link = limosa_transport::Link::from_fd(reader.into(), limosa_transport::Role::Main).unwrap();
    let (savevm, vm) = (guest.take_savevm(), guest.vm());
    let config = IncomingConfig::default();
    let (report, _) = Incoming::over(link, config, savevm, vm, Arc::new(NoObserver)).unwrap().wait();
    let error = report.statistics.error.unwrap();
    assert!(error.contains("between sections at byte") && error.contains("return path"), "{error}");
}

#[test]
fn a_stream_that_never_ends_can_be_called_off() {
    const ENOUGH: u64 = 8 << 20;
    let mut guest = Guest::tiny_incoming();
    let (link, attacker) = connection(Medium::Unix);
    let (savevm, vm) = (guest.take_savevm(), guest.vm());
    let config = IncomingConfig::default();
    let incoming = Incoming::over(link, config, savevm, vm, Arc::new(NoObserver)).unwrap();
    let flood = std::thread::spawn(move || {
        let mut forge = Forge::in_part();
        (&attacker).write_all(&forge.bytes).unwrap();
        forge.bytes.clear();
        let zeros = (0..1000).fold(forge, |forge, _| forge.zero(MAIN, 4096)).bytes;
        // Until the victim hangs up.
        while (&attacker).write_all(&zeros).is_ok() {}
    });
    while incoming.statistics().ram.bytes.0 < ENOUGH {
        assert!(!incoming.has_ended());
        std::thread::yield_now();
    }
    incoming.cancel();
    let (report, _) = incoming.wait();
    flood.join().unwrap();
    assert_eq!(report.outcome.status().as_str(), "cancelled");
    assert_eq!(guest.run_state(), RunState::InMigrate);
}

//! Streams made by hand, element by element.

use limosa_pages::{BlockId, BlockName, ByteCount, PAGE_BYTES};
use limosa_wire::{
    Command, Configuration, ContinueKind, RamEncoder, RamSetup, SectionHeader, SectionId, SetupBlock,
    StartKind, encode,
};
use serde_json::{Value, json};

pub(crate) const RAM: SectionId = SectionId(1);
pub(crate) const PAGE: u64 = PAGE_BYTES as u64;

/// A stream under construction, with the offsets at which its elements begin.
pub(crate) struct Stream {
    pub(crate) bytes: Vec<u8>,
    blocks: Vec<SetupBlock>,
    ram: RamEncoder,
    devices: Vec<Value>,
}

impl Stream {
    /// Header and configuration of a machine called `machine`.
    pub(crate) fn new(configuration: &Configuration) -> Self {
        let mut bytes = Vec::new();
        encode::header(&mut bytes);
        configuration.encode(&mut bytes);
        Self { bytes, blocks: Vec::new(), ram: RamEncoder::new(), devices: Vec::new() }
    }

    pub(crate) fn of_machine(machine: &str) -> Self {
        Self::new(&Configuration { machine: machine.into(), ..Configuration::default() })
    }

    /// A stream whose RAM, one block of `pages` pages called `ram0`, is complete: all pages zero.
    pub(crate) fn with_zero_ram(pages: u64) -> Self {
        let mut stream = Self::of_machine("test");
        stream.start_ram(&[block("ram0", pages)]);
        stream.part(|ram| (0..pages).for_each(|page| ram.zero(0, page)));
        stream.end(|_| {});
        stream
    }

    pub(crate) fn offset(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn command(&mut self, command: &Command) {
        command.encode(&mut self.bytes);
    }

    pub(crate) fn start_ram(&mut self, blocks: &[SetupBlock]) {
        self.blocks = blocks.to_vec();
        section_start(StartKind::Start, RAM, "ram", 0, 4, &mut self.bytes);
        self.ram.setup(&RamSetup { blocks: blocks.to_vec() }, &mut self.bytes);
        self.ram.end_of_section(&mut self.bytes);
        encode::footer(RAM, &mut self.bytes);
    }

    pub(crate) fn part(&mut self, records: impl FnOnce(&mut Records<'_>)) {
        self.ram_section(ContinueKind::Part, records);
    }

    pub(crate) fn end(&mut self, records: impl FnOnce(&mut Records<'_>)) {
        self.ram_section(ContinueKind::End, records);
    }

    fn ram_section(&mut self, kind: ContinueKind, records: impl FnOnce(&mut Records<'_>)) {
        encode::section_continue(kind, RAM, &mut self.bytes);
        records(&mut Records { blocks: &self.blocks, encoder: &mut self.ram, out: &mut self.bytes });
        self.ram.end_of_section(&mut self.bytes);
        encode::footer(RAM, &mut self.bytes);
    }

    /// A device whose description says that its body is one buffer of `described` bytes.
    pub(crate) fn device(&mut self, id: u32, idstr: &str, body: &[u8], described: usize) {
        let fields = json!([{"name": "data", "type": "buffer", "size": described}]);
        self.device_with_fields(id, idstr, body, fields);
    }

    pub(crate) fn device_with_fields(&mut self, id: u32, idstr: &str, body: &[u8], fields: Value) {
        section_start(StartKind::Full, SectionId(id), idstr, 0, 1, &mut self.bytes);
        self.bytes.extend_from_slice(body);
        encode::footer(SectionId(id), &mut self.bytes);
        let format = format!("{idstr}-format");
        self.devices.push(json!({
            "name": idstr, "instance_id": 0, "vmsd_name": format, "version": 1, "fields": fields,
        }));
    }

    /// End mark and vmdescription.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let json = json!({"page_size": 4096, "devices": self.devices}).to_string();
        encode::end_of_stream(&mut self.bytes);
        encode::vm_description(json.as_bytes(), &mut self.bytes);
        self.bytes
    }
}

/// Writes the records of one section.
pub(crate) struct Records<'a> {
    blocks: &'a [SetupBlock],
    encoder: &'a mut RamEncoder,
    out: &'a mut Vec<u8>,
}

impl Records<'_> {
    pub(crate) fn zero(&mut self, block: u32, page: u64) {
        let name = &self.blocks[block as usize].name;
        self.encoder.zero(BlockId(block), name, page * PAGE, self.out);
    }

    pub(crate) fn page(&mut self, block: u32, page: u64) {
        let name = &self.blocks[block as usize].name;
        self.encoder.page(BlockId(block), name, page * PAGE, self.out);
        self.out.extend([0x5a; PAGE_BYTES]);
    }

    pub(crate) fn xbzrle(&mut self, block: u32, page: u64, delta: &[u8]) {
        let name = &self.blocks[block as usize].name;
        self.encoder.xbzrle(BlockId(block), name, page * PAGE, delta, self.out);
    }

    pub(crate) fn flush(&mut self) {
        self.encoder.multifd_flush(self.out);
    }

    /// A zero page of a block that the list need not have.
    pub(crate) fn zero_of(&mut self, name: &str, page: u64) {
        let name = BlockName::new(name).expect("a short name");
        self.encoder.zero(BlockId(u32::MAX), &name, page * PAGE, self.out);
    }
}

pub(crate) fn block(name: &str, pages: u64) -> SetupBlock {
    SetupBlock::new(BlockName::new(name).expect("a short name"), ByteCount(pages * PAGE))
}

pub(crate) fn section_start(
    kind: StartKind,
    id: SectionId,
    idstr: &str,
    instance_id: u32,
    version_id: u32,
    out: &mut Vec<u8>,
) {
    let header = SectionHeader { kind, id, idstr: idstr.into(), instance_id, version_id };
    encode::section_start(&header, out);
}

//! What stands where in a stream of a test guest.
#![allow(dead_code, reason = "each test binary uses the parts that it needs")]

use limosa_pages::PAGE_BYTES;
use limosa_wire::{
    Command, RamContext, RamDecoder, RamItem, ReturnDecoder, ReturnMessage, SectionId, Step, StreamDecoder,
    StreamItem,
};
use std::collections::HashMap;
use std::ops::Range;

/// Body of the device `counter`: a number and a tag.
pub(crate) const COUNTER_BYTES: usize = 16;
/// Body of `globalstate`: size, name, two bools, padding.
pub(crate) const GLOBAL_STATE_BYTES: usize = 4 + 32 + 2 + 66;

/// The source's last question before it hands the guest over: "have you loaded every device?".
const DEVICES_LOADED: ReturnMessage = ReturnMessage::Pong(0x4c00_0002);

/// A stretch of a stream that is read as one.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) range: Range<usize>,
    /// How an error names the place.
    pub(crate) place: String,
    pub(crate) what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    Header,
    Configuration,
    Command(Command),
    /// START, PART, END or FULL with all that belongs to its head.
    SectionHead,
    BlockList,
    /// A record without page content: zero page, end of section, or the word before a page.
    Record,
    /// 4096 bytes of a page.
    Content,
    Device,
    Footer,
    EndOfStream,
    Description,
}

/// Takes a stream apart, as far as it goes: the last piece of a stream that was cut may be missing.
pub(crate) fn pieces(stream: &[u8]) -> Vec<Piece> {
    let mut map =
        Map { stream, at: 0, place: "header".to_owned(), pieces: Vec::new(), names: HashMap::new() };
    map.walk();
    map.pieces
}

/// Whether the byte that lets the destination run the guest is among these.
pub(crate) fn has_end(stream: &[u8]) -> bool {
    pieces(stream).iter().any(|piece| piece.what == What::EndOfStream)
}

/// Whether any of the guest's pages is among these bytes, be it as zero.
pub(crate) fn has_pages(stream: &[u8]) -> bool {
    // The first record is the end of the START section; the end of a PART comes after its pages.
    pieces(stream).iter().filter(|piece| piece.what == What::Record).count() > 1
}

/// What the destination said in these bytes.
pub(crate) fn answers(mut bytes: &[u8]) -> Vec<ReturnMessage> {
    let mut decoder = ReturnDecoder::new();
    let mut messages = Vec::new();
    while let Ok(Step::Item { used, item }) = decoder.next(bytes) {
        messages.push(item);
        bytes = &bytes[used..];
    }
    messages
}

/// Whether the destination has said in these bytes that the source may hand the guest over.
pub(crate) fn lets_source_commit(bytes: &[u8]) -> bool {
    answers(bytes).contains(&DEVICES_LOADED)
}

/// The offset that an error of the destination names.
pub(crate) fn offset_in(error: &str) -> usize {
    let (_, rest) = error.split_once(" at byte ").unwrap_or_else(|| panic!("no offset: {error}"));
    let (number, _) = rest.split_once(" of the stream").unwrap_or_else(|| panic!("no offset: {error}"));
    number.parse().unwrap_or_else(|_| panic!("{number:?} is no offset: {error}"))
}

struct Map<'a> {
    stream: &'a [u8],
    at: usize,
    place: String,
    pieces: Vec<Piece>,
    /// `ram/0` and so on by section id.
    names: HashMap<SectionId, String>,
}

impl Map<'_> {
    fn walk(&mut self) {
        let mut decoder = StreamDecoder::new();
        let mut ram = RamDecoder::new(RamContext::new());
        while let Ok(Step::Item { used, item }) = decoder.next(&self.stream[self.at..]) {
            match item {
                StreamItem::Header => {
                    self.push(used, What::Header);
                    "configuration".clone_into(&mut self.place);
                }
                StreamItem::Configuration(_) => {
                    self.push(used, What::Configuration);
                    "between sections".clone_into(&mut self.place);
                }
                StreamItem::Command(command) => self.push(used, What::Command(command)),
                StreamItem::Footer(_) => {
                    self.push(used, What::Footer);
                    "between sections".clone_into(&mut self.place);
                }
                StreamItem::SectionStart(head) => {
                    let name = format!("{}/{}", head.idstr, head.instance_id);
                    self.names.insert(head.id, name);
                    if !self.section(used, head.id, &mut ram) {
                        return;
                    }
                    decoder.end_of_body();
                }
                StreamItem::SectionContinue { id, .. } => {
                    if !self.section(used, id, &mut ram) {
                        return;
                    }
                    decoder.end_of_body();
                }
                StreamItem::EndOfStream => {
                    self.push(used, What::EndOfStream);
                    "end of stream".clone_into(&mut self.place);
                }
                StreamItem::VmDescription(_) => {
                    self.push(used, What::Description);
                    return;
                }
            }
        }
    }

    /// The head and the body of a section; `false` if the stream ends in it.
    fn section(&mut self, head: usize, id: SectionId, ram: &mut RamDecoder) -> bool {
        self.push(head, What::SectionHead);
        let name = self.names[&id].clone();
        self.place = format!("section {name}");
        match name.as_str() {
            "ram/0" => self.ram(ram),
            "counter/0" => self.take(COUNTER_BYTES, What::Device),
            "globalstate/0" => self.take(GLOBAL_STATE_BYTES, What::Device),
            // Nobody knows how long the body of another handler is.
            _ => false,
        }
    }

    fn ram(&mut self, decoder: &mut RamDecoder) -> bool {
        while let Ok(Step::Item { used, item }) = decoder.next(&self.stream[self.at..]) {
            let what = if matches!(item, RamItem::Setup(_)) { What::BlockList } else { What::Record };
            self.push(used, what);
            match item {
                RamItem::EndOfSection => return true,
                RamItem::Page(_) if !self.take(PAGE_BYTES, What::Content) => return false,
                _ => {}
            }
        }
        false
    }

    fn take(&mut self, length: usize, what: What) -> bool {
        let whole = self.stream.len() - self.at >= length;
        if whole {
            self.push(length, what);
        }
        whole
    }

    fn push(&mut self, length: usize, what: What) {
        let range = self.at..self.at + length;
        self.at = range.end;
        self.pieces.push(Piece { range, place: self.place.clone(), what });
    }
}

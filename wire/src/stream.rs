//! The main channel, seen from above: header, configuration, sections, commands, end (wire 1).

use crate::command::Command;
use crate::configuration::Configuration;
use crate::cursor::{Cursor, Halt, Step, at_most, expect, step};
use crate::error::{Field, WireError};
use std::fmt;

/// First word of a main channel: "QEVM".
pub const STREAM_MAGIC: u32 = 0x5145_564d;

/// The only version of the stream in use.
pub const STREAM_VERSION: u32 = 3;

/// Longest vmdescription accepted: a small guest's has 15 to 100 KiB, a vCPU adds about 10 KiB, and
/// 4096 vCPUs x 16 KiB = 64 MiB.
pub const MAX_VM_DESCRIPTION_BYTES: usize = 64 << 20;

pub(crate) const END_OF_STREAM: u8 = 0x00;
pub(crate) const SECTION_START: u8 = 0x01;
pub(crate) const SECTION_PART: u8 = 0x02;
pub(crate) const SECTION_END: u8 = 0x03;
pub(crate) const SECTION_FULL: u8 = 0x04;
pub(crate) const SUBSECTION: u8 = 0x05;
pub(crate) const VM_DESCRIPTION: u8 = 0x06;
pub(crate) const CONFIGURATION: u8 = 0x07;
pub(crate) const COMMAND: u8 = 0x08;
pub(crate) const SECTION_FOOTER: u8 = 0x7e;

/// Number by which a source refers to a section it has opened. The source chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectionId(pub u32);

/// How a section opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartKind {
    /// First of several sections of a handler with live state.
    Start,
    /// The whole state of a device.
    Full,
}

/// How a section goes on with one that was opened before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContinueKind {
    /// Another piece; the guest is running.
    Part,
    /// The last piece; the guest is stopped.
    End,
}

/// Header of a START or FULL section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionHeader {
    /// START or FULL.
    pub kind: StartKind,
    /// The number that PART, END and footer sections repeat.
    pub id: SectionId,
    /// Name of the handler, `<device path>/<name>` or just the name; 1 to 255 bytes.
    pub idstr: String,
    /// Which of several handlers with this name.
    pub instance_id: u32,
    /// Version of the body's format.
    pub version_id: u32,
}

/// One element of the main channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamItem {
    /// Magic and version, both checked.
    Header,
    /// The configuration block.
    Configuration(Configuration),
    /// A START or FULL section opens; its body follows.
    SectionStart(SectionHeader),
    /// A PART or END section opens; its body follows.
    SectionContinue {
        /// PART or END.
        kind: ContinueKind,
        /// The section it continues; whether it exists is for the owner of the sections to check.
        id: SectionId,
    },
    /// The footer of the section that was open; its id has been checked.
    Footer(SectionId),
    /// A command. The blob of [`Command::Packaged`] follows and is taken by the caller.
    Command(Command),
    /// The end of all sections; a vmdescription may follow.
    EndOfStream,
    /// The JSON text that describes the device sections, unparsed.
    VmDescription(Vec<u8>),
}

/// Decodes the main channel, section by section.
///
/// A section's body has no length, so only its owner knows where it ends: after
/// [`StreamItem::SectionStart`] or [`StreamItem::SectionContinue`] the caller consumes the body itself, calls
/// [`Self::end_of_body`], and the footer is the next item.
#[derive(Debug)]
pub struct StreamDecoder {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    /// After the header; a configuration may come, then sections.
    Configuration,
    Sections,
    Body(SectionId),
    Footer(SectionId),
    /// After the end byte; a vmdescription may come.
    Ended,
    /// After the vmdescription; nothing may come.
    Finished,
}

impl Default for StreamDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl StreamDecoder {
    /// For a new main channel, which begins with a header.
    pub fn new() -> Self {
        Self { state: State::Header }
    }

    /// For a stream that begins with sections and commands: the blob of [`Command::Packaged`], or the main
    /// channel of a recovery (wire 2.1, 5.9).
    pub fn without_header() -> Self {
        Self { state: State::Sections }
    }

    /// The next element at the start of `input`.
    ///
    /// The largest [`Step::Need`] is [`MAX_VM_DESCRIPTION_BYTES`] + 5, and only after the end of the stream;
    /// before that it is under 128 KiB.
    ///
    /// # Errors
    /// Bytes that cannot stand here. The decoder's state is unchanged then; the stream cannot be read on.
    ///
    /// # Panics
    /// Inside a body: the body's owner must consume it and call [`Self::end_of_body`] first.
    pub fn next(&mut self, input: &[u8]) -> Result<Step<StreamItem>, WireError> {
        let state = self.state;
        let result = step(input, |cursor| read(state, cursor))?;
        if let Step::Item { item, .. } = &result {
            self.state = after(item);
        }
        Ok(result)
    }

    /// The owner of the open section has consumed its body: the footer comes next.
    ///
    /// # Panics
    /// If no body is open.
    pub fn end_of_body(&mut self) {
        let State::Body(id) = self.state else { panic!("no section body is open, but {:?}", self.state) };
        self.state = State::Footer(id);
    }
}

fn read(state: State, cursor: &mut Cursor<'_>) -> Result<StreamItem, Halt> {
    match state {
        State::Header => read_header(cursor),
        State::Configuration if cursor.peek()? == CONFIGURATION => {
            cursor.u8()?;
            Configuration::read(cursor).map(StreamItem::Configuration)
        }
        State::Configuration | State::Sections => read_section(cursor),
        State::Body(id) => panic!("the body of section {id} has not been consumed"),
        State::Footer(id) => read_footer(id, cursor),
        State::Ended => read_vm_description(cursor),
        State::Finished => {
            let at = cursor.at();
            let got = u64::from(cursor.u8()?);
            Err(WireError::Misplaced { at, field: Field::AfterEnd, got }.into())
        }
    }
}

fn after(item: &StreamItem) -> State {
    match item {
        StreamItem::Header => State::Configuration,
        StreamItem::SectionStart(section) => State::Body(section.id),
        StreamItem::SectionContinue { id, .. } => State::Body(*id),
        StreamItem::Configuration(_) | StreamItem::Footer(_) | StreamItem::Command(_) => State::Sections,
        StreamItem::EndOfStream => State::Ended,
        StreamItem::VmDescription(_) => State::Finished,
    }
}

fn read_header(cursor: &mut Cursor<'_>) -> Result<StreamItem, Halt> {
    cursor.expect_u32(Field::StreamMagic, STREAM_MAGIC)?;
    cursor.expect_u32(Field::StreamVersion, STREAM_VERSION)?;
    Ok(StreamItem::Header)
}

fn read_section(cursor: &mut Cursor<'_>) -> Result<StreamItem, Halt> {
    let at = cursor.at();
    let kind = cursor.u8()?;
    match kind {
        END_OF_STREAM => Ok(StreamItem::EndOfStream),
        SECTION_START => read_start(StartKind::Start, cursor),
        SECTION_FULL => read_start(StartKind::Full, cursor),
        SECTION_PART => read_continue(ContinueKind::Part, cursor),
        SECTION_END => read_continue(ContinueKind::End, cursor),
        COMMAND => Command::read(cursor).map(StreamItem::Command),
        SUBSECTION | VM_DESCRIPTION | CONFIGURATION | SECTION_FOOTER => {
            Err(WireError::Misplaced { at, field: Field::SectionType, got: u64::from(kind) }.into())
        }
        _ => Err(WireError::Unknown { at, field: Field::SectionType, got: u64::from(kind) }.into()),
    }
}

fn read_start(kind: StartKind, cursor: &mut Cursor<'_>) -> Result<StreamItem, Halt> {
    let id = SectionId(cursor.u32()?);
    let idstr = cursor.str8(Field::SectionName)?;
    let instance_id = cursor.u32()?;
    let version_id = cursor.u32()?;
    let idstr = idstr.to_owned();
    Ok(StreamItem::SectionStart(SectionHeader { kind, id, idstr, instance_id, version_id }))
}

fn read_continue(kind: ContinueKind, cursor: &mut Cursor<'_>) -> Result<StreamItem, Halt> {
    let id = SectionId(cursor.u32()?);
    Ok(StreamItem::SectionContinue { kind, id })
}

fn read_footer(id: SectionId, cursor: &mut Cursor<'_>) -> Result<StreamItem, Halt> {
    cursor.expect_u8(Field::FooterMark, SECTION_FOOTER)?;
    cursor.expect_u32(Field::FooterSectionId, id.0)?;
    Ok(StreamItem::Footer(id))
}

fn read_vm_description(cursor: &mut Cursor<'_>) -> Result<StreamItem, Halt> {
    let at = cursor.at();
    expect(at, Field::VmDescriptionMark, u64::from(VM_DESCRIPTION), u64::from(cursor.u8()?))?;
    let at = cursor.at();
    let length = cursor.u32()?;
    at_most(at, Field::VmDescriptionLength, u64::from(length), MAX_VM_DESCRIPTION_BYTES as u64)?;
    cursor.take(length as usize).map(|json| StreamItem::VmDescription(json.to_vec()))
}

impl fmt::Display for SectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

//! Division of device sections without sizes: by footers that chain up to the end.

use crate::cursor::Step;
use crate::devices::tail::{DeviceError, DeviceSection};
use crate::stream::{SECTION_FOOTER, SectionHeader, SectionId, StartKind, StreamDecoder, StreamItem};

/// Most places that may look like a footer before the division is given up. A large guest has 16,384 device
/// sections, and a false candidate needs five matching bytes with a plausible header behind them.
pub const MAX_FOOTER_CANDIDATES: usize = 65_536;

/// Most bytes searched, as a multiple of the tail's length: a hostile tail may make every candidate search to
/// the end.
const MAX_PASSES: usize = 64;

/// Most commands between two sections. A package opens with one and closes with two or three.
const MAX_COMMANDS: usize = 8;

const FOOTER_BYTES: usize = 5;

/// A section whose end is being looked for.
struct Open {
    header: SectionHeader,
    /// Where its body begins.
    body: usize,
    /// Where the search for its footer goes on.
    search: usize,
}

/// Divides `tail`, a run of device sections and commands, by looking for footers.
///
/// A footer counts only if a plausible section, a command or the end follows it, and the division only if it
/// reaches the end of `tail` (or the end-of-stream byte that is its last). Of several divisions the one with the
/// shortest first bodies is returned: device bytes that contain a whole footer and header cannot be told
/// from the real ones. Prefer [`split_by_sizes`](crate::devices::split_by_sizes) where there is a vmdescription.
///
/// # Errors
/// No division, or more candidates than [`MAX_FOOTER_CANDIDATES`].
pub fn split_by_footers(tail: &[u8]) -> Result<Vec<DeviceSection<'_>>, DeviceError> {
    let mut stack: Vec<Open> = Vec::new();
    match follow(tail, 0) {
        Follow::End => return Ok(Vec::new()),
        Follow::Section(open) => stack.push(open),
        Follow::Nothing => return Err(DeviceError::NoDivision),
    }
    let mut dead = std::collections::HashSet::new();
    let (mut candidates, mut searched) = (0, 0);
    while let Some(open) = stack.last_mut() {
        let from = open.search;
        let Some(footer) = find_footer(tail, from, open.header.id) else {
            searched += tail.len() - from;
            dead.insert(open.body);
            stack.pop();
            continue;
        };
        searched += footer - from;
        candidates += 1;
        if candidates > MAX_FOOTER_CANDIDATES || searched > tail.len().saturating_mul(MAX_PASSES) {
            return Err(DeviceError::TooAmbiguous { candidates, searched });
        }
        open.search = footer + 1;
        match follow(tail, footer + FOOTER_BYTES) {
            Follow::End => return Ok(sections(tail, stack)),
            Follow::Section(next) if plausible(open.header.id, &next) && !dead.contains(&next.body) => {
                stack.push(next);
            }
            Follow::Section(_) | Follow::Nothing => {}
        }
    }
    Err(DeviceError::NoDivision)
}

/// What stands between two sections.
enum Follow {
    End,
    Section(Open),
    Nothing,
}

/// Passes over commands from `at` on, to the next section or the end.
fn follow(tail: &[u8], mut at: usize) -> Follow {
    let mut decoder = StreamDecoder::without_header();
    let mut commands = 0;
    while at < tail.len() {
        let Ok(Step::Item { used, item }) = decoder.next(&tail[at..]) else { return Follow::Nothing };
        at += used;
        match item {
            StreamItem::SectionStart(header) if header.kind == StartKind::Full => {
                return Follow::Section(Open { header, body: at, search: at });
            }
            StreamItem::Command(_) if commands < MAX_COMMANDS => commands += 1,
            StreamItem::EndOfStream if at == tail.len() => return Follow::End,
            _ => return Follow::Nothing,
        }
    }
    Follow::End
}

/// Sources number their sections upward and name them in printable ASCII.
fn plausible(previous: SectionId, next: &Open) -> bool {
    next.header.id > previous && next.header.idstr.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}

fn find_footer(tail: &[u8], from: usize, id: SectionId) -> Option<usize> {
    let mut footer = [SECTION_FOOTER; FOOTER_BYTES];
    footer[1..].copy_from_slice(&id.0.to_be_bytes());
    let rest = tail.get(from..)?;
    rest.windows(FOOTER_BYTES).position(|window| window == footer).map(|position| from + position)
}

fn sections(tail: &[u8], stack: Vec<Open>) -> Vec<DeviceSection<'_>> {
    let close = |open: Open| {
        // The search stands one byte behind the footer that was taken.
        DeviceSection { header: open.header, body: &tail[open.body..open.search - 1] }
    };
    stack.into_iter().map(close).collect()
}

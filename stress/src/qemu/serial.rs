//! What the guest says on COM1, kept as it comes.

use parking_lot::{Condvar, Mutex};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// One line of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// The guest's counter.
    Tick(u32),
    /// The guest found a page, or its counter, that is not what it wrote: the guest-physical address it was at.
    Fault(u32),
}

/// The guest's output so far; a thread of its own empties the socket, so that the guest never waits for us.
pub struct Serial {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    output: Mutex<Output>,
    grew: Condvar,
}

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    closed: bool,
}

/// One read of the socket; the guest's lines have eleven bytes.
const READ_BYTES: usize = 4096;

/// Bytes of a line: a letter, a space, eight digits and the line feed.
const LINE_BYTES: usize = 11;

impl Serial {
    /// Listens to `stream` until the other end closes.
    pub(super) fn new(mut stream: UnixStream) -> Self {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            let mut chunk = [0; READ_BYTES];
            while let Ok(count @ 1..) = stream.read(&mut chunk) {
                writer.output.lock().bytes.extend_from_slice(&chunk[..count]);
                writer.grew.notify_all();
            }
            writer.output.lock().closed = true;
            writer.grew.notify_all();
        });
        Self { shared, reader: Some(reader) }
    }

    /// All bytes so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.shared.output.lock().bytes.clone()
    }

    /// The latest complete line.
    ///
    /// # Panics
    /// If the guest said what the payload cannot say.
    pub fn last(&self) -> Option<Line> {
        last_line(&self.shared.output.lock().bytes)
    }

    /// Waits until the latest line satisfies `wanted`; `None` if that did not happen by `deadline`.
    ///
    /// # Panics
    /// As [`Self::last`].
    pub(super) fn wait(&self, deadline: Instant, wanted: impl Fn(Line) -> bool) -> Option<Line> {
        let mut output = self.shared.output.lock();
        loop {
            if let Some(line) = last_line(&output.bytes).filter(|line| wanted(*line)) {
                return Some(line);
            }
            if output.closed || self.shared.grew.wait_until(&mut output, deadline).timed_out() {
                return None;
            }
        }
    }

    /// Waits until the other end is gone; `None` if it was still there at `deadline`.
    pub(super) fn wait_closed(&self, deadline: Instant) -> Option<()> {
        let mut output = self.shared.output.lock();
        while !output.closed {
            if self.shared.grew.wait_until(&mut output, deadline).timed_out() {
                return None;
            }
        }
        Some(())
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            // The process is gone by now, so the socket is at its end; a panic in the reader has said so itself.
            let _ = reader.join();
        }
    }
}

/// The lines of a guest that went through several QEMUs: a line begun in one is finished in the next.
///
/// # Panics
/// If the guest said what the payload cannot say.
pub fn lines_across(serials: &[&Serial]) -> Vec<Line> {
    let bytes: Vec<u8> = serials.iter().flat_map(|serial| serial.bytes()).collect();
    bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n")).map(parse).collect()
}

fn last_line(bytes: &[u8]) -> Option<Line> {
    let end = bytes.iter().rposition(|&byte| byte == b'\n')? + 1;
    // What comes before the first whole line was begun in another QEMU.
    let line = bytes[..end].rsplitn(3, |&byte| byte == b'\n').nth(1)?;
    (line.len() == LINE_BYTES - 1 || end > LINE_BYTES).then(|| parse(&bytes[end - line.len() - 1..end]))
}

fn parse(line: &[u8]) -> Line {
    let number = || {
        let digits = str::from_utf8(line.get(2..LINE_BYTES - 1)?).ok()?;
        u32::from_str_radix(digits, 16).ok()
    };
    match (line, number()) {
        ([b'T', b' ', .., b'\n'], Some(tick)) if line.len() == LINE_BYTES => Line::Tick(tick),
        ([b'F', b' ', .., b'\n'], Some(page)) if line.len() == LINE_BYTES => Line::Fault(page),
        _ => panic!("the guest said {:?}", String::from_utf8_lossy(line)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_last_whole_one() {
        assert_eq!(last_line(b"T 00000001"), None);
        assert_eq!(last_line(b"T 00000001\nT 0000"), Some(Line::Tick(1)));
        assert_eq!(last_line(b"T 00000001\nT 0000001f\n"), Some(Line::Tick(31)));
        assert_eq!(last_line(b"F 00100000\n"), Some(Line::Fault(0x10_0000)));
    }

    #[test]
    fn a_line_begun_elsewhere_is_not_taken_for_a_whole_one() {
        assert_eq!(last_line(b"\n"), None);
        assert_eq!(last_line(b"0001\nT 00"), None);
        assert_eq!(last_line(b"0001\nT 00000002\n"), Some(Line::Tick(2)));
    }

    #[test]
    #[should_panic(expected = "the guest said")]
    fn a_word_the_payload_does_not_know_is_a_panic() {
        let _ = last_line(b"T 00000001\nSeaBIOS\n");
    }
}

//! Stands between two VMMs and stops where a test wants it, so that one of them can be killed exactly there.

use crate::process::PATIENCE;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};

/// The command PACKAGED up to its length, in the stream (wire 2.1). Pages hold these bytes once in a terabyte.
const PACKAGED: [u8; 5] = [8, 0, 7, 0, 4];

/// Where a relay stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    Nowhere,
    /// The package does not get through, only the word that one comes.
    Package,
    /// Nor does its last byte.
    EndOfPackage,
    /// This message of the return path, and all after it, are kept from the source (wire 2.2).
    Answer(&'static [u8]),
}

/// The relay of one connection.
pub(crate) struct Relay {
    near: PathBuf,
    /// Both connections, once they are there.
    ends: Receiver<[UnixStream; 2]>,
    held: Receiver<()>,
}

impl Relay {
    /// Carries one connection between a socket at `near` and the destination at `far`.
    pub(crate) fn start(near: PathBuf, far: &Path, hold: Hold) -> Self {
        let listener = UnixListener::bind(&near).expect("it listens");
        let far = far.to_owned();
        let (say_ends, ends) = channel();
        let (say_held, held) = channel();
        std::thread::spawn(move || {
            let (source, _) = listener.accept().expect("a source");
            let destination = UnixStream::connect(far).expect("a destination");
            let copy = |end: &UnixStream| end.try_clone().expect("a descriptor");
            say_ends.send([copy(&source), copy(&destination)]).expect("the test goes on");
            let (stream, to) = (copy(&source), copy(&destination));
            let held = say_held.clone();
            // Both end when the link does, with an error perhaps.
            std::thread::spawn(move || drop(carry_stream(stream, to, hold, &held)));
            drop(carry_answers(destination, source, hold, &say_held));
        });
        Self { near, ends, held }
    }

    /// Where the source finds it.
    pub(crate) fn uri(&self) -> String {
        format!("unix:{}", self.near.display())
    }

    /// Waits until it has stopped.
    pub(crate) fn wait_held(&self) {
        self.held.recv_timeout(PATIENCE).expect("it comes to where it stops");
    }

    /// Ends both connections, as the kernel does for who has been killed.
    pub(crate) fn cut(self) {
        for end in self.ends.recv_timeout(PATIENCE).expect("it has carried something") {
            // One that has ended is as good as cut.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

fn carry_stream(mut from: UnixStream, mut to: UnixStream, hold: Hold, held: &Sender<()>) -> io::Result<()> {
    if !matches!(hold, Hold::Package | Hold::EndOfPackage) {
        return io::copy(&mut from, &mut to).map(drop);
    }
    let mut bytes = [0; 4096];
    // The last bytes that have passed, and behind them those that have come.
    let mut window = Vec::new();
    loop {
        let count = from.read(&mut bytes)?;
        let passed = window.len();
        window.extend_from_slice(&bytes[..count]);
        let Some(at) = window.windows(PACKAGED.len()).position(|bytes| bytes == PACKAGED) else {
            to.write_all(&bytes[..count])?;
            window.drain(..window.len().saturating_sub(PACKAGED.len() - 1));
            continue;
        };
        let (before, mut after) = window.split_at(at + PACKAGED.len());
        to.write_all(&before[passed..])?;
        if hold == Hold::EndOfPackage {
            let mut length = [0; 4];
            (&mut after).chain(&mut from).read_exact(&mut length)?;
            to.write_all(&length)?;
            let all_but_one = u64::from(u32::from_be_bytes(length) - 1);
            let sent = io::copy(&mut (&mut after).chain(&mut from).take(all_but_one), &mut to)?;
            assert_eq!(sent, all_but_one);
        }
        held.send(()).expect("the test goes on");
        return Ok(());
    }
}

fn carry_answers(mut from: UnixStream, mut to: UnixStream, hold: Hold, held: &Sender<()>) -> io::Result<()> {
    loop {
        let mut message = vec![0; 4];
        from.read_exact(&mut message)?;
        let length = u16::from_be_bytes([message[2], message[3]]);
        message.resize(4 + usize::from(length), 0);
        from.read_exact(&mut message[4..])?;
        if matches!(hold, Hold::Answer(awaited) if awaited == message) {
            held.send(()).expect("the test goes on");
            return Ok(());
        }
        to.write_all(&message)?;
    }
}

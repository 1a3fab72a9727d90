//! A relay between two engines that writes down what passes, and cuts the connection where a test wants it.
#![allow(dead_code, reason = "each test binary uses the parts that it needs")]

use limosa_transport::{Link, Role};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Which kind of connection stands between relay and engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    Unix,
    Tcp,
}

/// One way through the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the source to the destination.
    There,
    /// From the destination to the source.
    Back,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both ends closed at once, in both directions.
    Close,
    /// As `Close`, with a reset where the medium has one.
    Reset,
    /// The way that was counted ends and swallows what still comes; the other stays.
    OneWay,
}

/// Where a relay ends a connection: after exactly this many bytes of one way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) way: Way,
    pub(crate) after: usize,
    pub(crate) end: End,
}

/// What a relay has passed on.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) there: Vec<u8>,
    pub(crate) back: Vec<u8>,
}

/// A connection: the end for an engine, and the other one.
pub(crate) fn connection(medium: Medium) -> (Link, Socket) {
    let (engine, other): (OwnedFd, Socket) = match medium {
        Medium::Unix => {
            let (engine, other) = UnixStream::pair().unwrap();
            (engine.into(), other.into())
        }
        Medium::Tcp => {
            let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            let engine = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (other, _) = listener.accept().unwrap();
            engine.set_nodelay(true).unwrap();
            other.set_nodelay(true).unwrap();
            (engine.into(), other.into())
        }
    };
    (Link::from_fd(engine, Role::Main).unwrap(), other)
}

/// Starts a relay. Returns the link of the source, that of the destination, and the thread with the record.
pub(crate) fn relay(medium: Medium, cut: Option<Cut>) -> (Link, Link, JoinHandle<Traffic>) {
    let (source, near) = connection(medium);
    let (destination, far) = connection(medium);
    let thread = std::thread::spawn(move || pass_on(near, far, cut));
    (source, destination, thread)
}

/// One direction of a running relay.
struct Lane {
    way: Way,
    open: bool,
    swallows: bool,
}

fn pass_on(near: Socket, far: Socket, cut: Option<Cut>) -> Traffic {
    let mut traffic = Traffic::default();
    let mut lanes = [Way::There, Way::Back].map(|way| Lane { way, open: true, swallows: false });
    let mut cut = cut;
    while lanes.iter().any(|lane| lane.open) {
        if let Some(Cut { way, end, .. }) = cut.filter(|cut| traffic.of(cut.way).len() == cut.after) {
            cut = None;
            match end {
                End::Close => return traffic,
                End::Reset => {
                    near.set_linger(Some(Duration::ZERO)).unwrap();
                    far.set_linger(Some(Duration::ZERO)).unwrap();
                    return traffic;
                }
                End::OneWay => {
                    // Fails only if that engine has hung up.
                    drop(if way == Way::There { &far } else { &near }.shutdown(Shutdown::Write));
                    lanes[way as usize].swallows = true;
                }
            }
        }
        for ready in wait(&near, &far, &lanes) {
            let lane = &mut lanes[ready];
            let (from, to) = if lane.way == Way::There { (&near, &far) } else { (&far, &near) };
            let limit = cut.filter(|cut| cut.way == lane.way).map(|cut| cut.after);
            step(lane, from, to, traffic.of(lane.way), limit);
        }
    }
    traffic
}

/// Waits until something can be read, and says from which lanes.
fn wait(near: &Socket, far: &Socket, lanes: &[Lane; 2]) -> Vec<usize> {
    let open: Vec<usize> = (0..2).filter(|index| lanes[*index].open).collect();
    let mut waiting: Vec<PollFd<'_>> =
        open.iter().map(|index| PollFd::new([near, far][*index].as_fd(), PollFlags::POLLIN)).collect();
    poll(&mut waiting, PollTimeout::NONE).unwrap();
    let readable = waiting.iter().map(|fd| fd.any().unwrap_or(false));
    open.iter().zip(readable).filter(|(_, readable)| *readable).map(|(index, _)| *index).collect()
}

/// Passes on what is there, up to `limit` bytes in all.
fn step(lane: &mut Lane, mut from: &Socket, mut to: &Socket, record: &mut Vec<u8>, limit: Option<usize>) {
    let mut bytes = [0; 64 << 10];
    let room = limit.map_or(bytes.len(), |limit| (limit - record.len()).min(bytes.len()));
    match from.read(&mut bytes[..room]) {
        Ok(1..) if lane.swallows => {}
        Ok(count @ 1..) => match to.write_all(&bytes[..count]) {
            Ok(()) => record.extend_from_slice(&bytes[..count]),
            // The other engine has hung up, so this one's words are for nobody.
            Err(_) => lane.swallows = true,
        },
        Ok(_) | Err(_) => {
            lane.open = false;
            drop(to.shutdown(Shutdown::Write));
        }
    }
}

impl Traffic {
    fn of(&mut self, way: Way) -> &mut Vec<u8> {
        match way {
            Way::There => &mut self.there,
            Way::Back => &mut self.back,
        }
    }
}

/// A connection on which nothing passes in one way beyond a number of bytes, until the test lets it.
pub(crate) struct Held {
    pub(crate) source: Link,
    pub(crate) destination: Link,
    reached: Receiver<()>,
    release: Option<Sender<()>>,
}

/// Starts a relay that stops after `bytes` of `way`.
pub(crate) fn hold(way: Way, bytes: u64) -> Held {
    let (source, near) = connection(Medium::Unix);
    let (destination, far) = connection(Medium::Unix);
    let (tell, reached) = channel();
    let (release, released) = channel::<()>();
    let (near_again, far_again) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    let (from, to, back_from, back_to) = match way {
        Way::There => (near, far, far_again, near_again),
        Way::Back => (far, near, near_again, far_again),
    };
    std::thread::spawn(move || {
        // An engine that hangs up ends a copy early; that is its right.
        drop(std::io::copy(&mut Read::take(&from, bytes), &mut &to));
        let _ = tell.send(());
        let _ = released.recv();
        drop(std::io::copy(&mut &from, &mut &to));
        drop(to.shutdown(Shutdown::Write));
    });
    std::thread::spawn(move || {
        drop(std::io::copy(&mut &back_from, &mut &back_to));
        drop(back_to.shutdown(Shutdown::Write));
    });
    Held { source, destination, reached, release: Some(release) }
}

impl Held {
    /// The links, and the hand on the valve.
    pub(crate) fn split(self) -> (Link, Link, Valve) {
        (self.source, self.destination, Valve { reached: self.reached, release: self.release })
    }
}

/// Opens when told, or when dropped.
pub(crate) struct Valve {
    reached: Receiver<()>,
    release: Option<Sender<()>>,
}

impl Valve {
    /// Waits until as much has passed as may.
    pub(crate) fn wait_until_reached(&self) {
        self.reached.recv().unwrap();
    }

    pub(crate) fn open(&mut self) {
        self.release = None;
    }
}

//! Stands between two engines with all their connections, and does one of them harm.

use crossbeam_channel::{Receiver, Sender, bounded};
use limosa_transport::Address;
use limosa_wire::multifd::{InitPacket, PagesHeader};
use socket2::SockRef;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// A packet of a channel may be changed, left out or doubled: number and bytes in, bytes out. Number 0 is the init packet.
pub(crate) type Edit = Arc<dyn Fn(usize, Vec<u8>) -> Vec<u8> + Send + Sync>;

/// What happens to one channel.
#[derive(Clone)]
pub(crate) enum Mischief {
    None,
    /// Both its connections end after so many bytes.
    Cut(usize, End),
    /// Nothing arrives after so many bytes, though the source can write.
    Swallow(usize),
    /// Nothing is read from the source after so many bytes.
    Stall(usize),
    /// Its packets are changed.
    Edit(Edit),
}

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Close,
    Reset,
}

/// What the source wrote to a channel.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) number: u8,
    /// One after the other, the init packet first.
    pub(crate) packets: Vec<Vec<u8>>,
}

/// The proxy of one migration.
pub(crate) struct Proxy {
    address: SocketAddr,
    thread: JoinHandle<Vec<Recorded>>,
}

/// One connection through the proxy, and whether the migration goes on.
struct Passage {
    source: TcpStream,
    destination: TcpStream,
    /// Held by the main connection; all others let go as soon as they know that they are none.
    lives: Sender<()>,
    over: Receiver<()>,
}

impl Proxy {
    /// Accepts a main connection and `channels` others, and passes them on to `destination`; channel `victim` suffers
    /// `mischief`.
    pub(crate) fn start(destination: &Address, channels: u8, victim: u8, mischief: Mischief) -> Self {
        let Address::Tcp(destination) = destination else { panic!("{destination} is not TCP") };
        let destination = SocketAddr::from(([127, 0, 0, 1], destination.port));
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        if matches!(mischief, Mischief::Stall(_)) {
            // What nobody reads must not find room in the kernel.
            SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
        }
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (lives, over) = bounded(0);
            let passing: Vec<_> = (0..=channels)
                .map_while(|_| {
                    let source = listener.accept().unwrap().0;
                    // A destination that an earlier channel has made fail does not listen any more.
                    let destination = TcpStream::connect(destination).ok()?;
                    source.set_nodelay(true).unwrap();
                    destination.set_nodelay(true).unwrap();
                    let passage = Passage { source, destination, lives: lives.clone(), over: over.clone() };
                    let mischief = mischief.clone();
                    Some(std::thread::spawn(move || passage.pass(victim, mischief)))
                })
                .collect();
            drop((listener, lives));
            let mut recorded: Vec<_> =
                passing.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
            recorded.sort_by_key(|channel| channel.number);
            recorded
        });
        Self { address, thread }
    }

    pub(crate) fn address(&self) -> Address {
        format!("tcp:{}", self.address).parse().unwrap()
    }

    /// Waits until every connection has ended.
    pub(crate) fn finish(self) -> Vec<Recorded> {
        self.thread.join().unwrap()
    }
}

impl Passage {
    fn pass(self, victim: u8, mischief: Mischief) -> Option<Recorded> {
        let mut first = vec![0; 4];
        (&self.source).read_exact(&mut first).ok()?;
        if first == b"QEVM" {
            self.pass_main(&first);
            return None;
        }
        let Self { source, destination, lives, over } = self;
        drop(lives);
        first.resize(InitPacket::BYTES, 0);
        (&source).read_exact(&mut first[4..]).ok()?;
        let number = first[24];
        let mischief = if number == victim { mischief } else { Mischief::None };
        let mut packets = Vec::new();
        // An engine that hangs up ends this early; that is its right.
        drop(pass_channel(first, &source, &destination, &mischief, &mut packets));
        match mischief {
            Mischief::Cut(_, End::Reset) => {
                for end in [&source, &destination] {
                    SockRef::from(end).set_linger(Some(Duration::ZERO)).unwrap();
                }
            }
            // Both connections stay as they are until the main one has ended.
            Mischief::Swallow(_) | Mischief::Stall(_) => drop(over.recv()),
            _ => {}
        }
        Some(Recorded { number, packets })
    }

    fn pass_main(&self, first: &[u8]) {
        drop((&self.destination).write_all(first));
        std::thread::scope(|scope| {
            scope.spawn(|| copy(&self.source, &self.destination));
            copy(&self.destination, &self.source);
        });
    }
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    drop(io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
}

/// Passes packets on until an end or the mischief.
fn pass_channel(
    init: Vec<u8>,
    source: &TcpStream,
    mut destination: &TcpStream,
    mischief: &Mischief,
    packets: &mut Vec<Vec<u8>>,
) -> io::Result<()> {
    let limit = match mischief {
        Mischief::Cut(limit, _) | Mischief::Swallow(limit) | Mischief::Stall(limit) => *limit,
        Mischief::None | Mischief::Edit(_) => usize::MAX,
    };
    let mut passed = 0;
    let mut next = Some(init);
    while let Some(packet) = next {
        let bytes = match mischief {
            Mischief::Edit(edit) => edit(packets.len(), packet.clone()),
            _ => packet.clone(),
        };
        packets.push(packet);
        let room = bytes.len().min(limit - passed);
        destination.write_all(&bytes[..room])?;
        passed += room;
        if passed == limit {
            return Ok(());
        }
        next = read_packet(source)?;
    }
    destination.shutdown(Shutdown::Write)
}

/// The next packet with its payload; `None` at the end.
fn read_packet(mut source: &TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut packet = vec![0; PagesHeader::BYTES];
    if source.read(&mut packet[..1])? == 0 {
        return Ok(None);
    }
    source.read_exact(&mut packet[1..])?;
    let payload = u32::from_be_bytes(packet[20..24].try_into().unwrap());
    packet.resize(PagesHeader::BYTES + payload as usize, 0);
    source.read_exact(&mut packet[PagesHeader::BYTES..])?;
    Ok(Some(packet))
}

impl Recorded {
    /// Places between two packets, from the first byte to behind the last.
    pub(crate) fn boundaries(&self) -> Vec<usize> {
        let ends = self.packets.iter().scan(0, |at, packet| {
            *at += packet.len();
            Some(*at)
        });
        std::iter::once(0).chain(ends).collect()
    }
}

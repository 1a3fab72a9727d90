//! Stands between two engines with all their connections, and cuts them all after a number of bytes.

use limosa::transport::Address;
use parking_lot::Mutex;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;

/// The proxy of one connection between two engines: a main link, and whatever is connected beside it.
///
/// Dropping it cuts.
pub(crate) struct Proxy {
    address: SocketAddr,
    wires: Arc<Mutex<Wires>>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Wires {
    ends: Vec<TcpStream>,
    passed: u64,
    /// Bytes that may still pass; `None` for all.
    left: Option<u64>,
    cut: bool,
}

impl Proxy {
    /// Passes everything on to `destination`, until `after` bytes have passed in both directions together.
    pub(crate) fn start(destination: &Address, after: Option<u64>) -> Self {
        let Address::Tcp(destination) = destination else { panic!("{destination} is not TCP") };
        let destination = SocketAddr::from(([127, 0, 0, 1], destination.port));
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        let wires = Arc::new(Mutex::new(Wires { left: after, ..Wires::default() }));
        let shared = Arc::clone(&wires);
        let accepting = Some(std::thread::spawn(move || accept(&listener, destination, &shared)));
        Self { address, wires, accepting }
    }

    pub(crate) fn address(&self) -> Address {
        format!("tcp:{}", self.address).parse().expect("an address")
    }

    /// Bytes that have passed.
    pub(crate) fn passed(&self) -> u64 {
        self.wires.lock().passed
    }

    /// Whether it is not to be cut, as far as is known.
    pub(crate) fn is_whole(&self) -> bool {
        self.wires.lock().left.is_none()
    }

    /// Cuts after so many bytes more.
    pub(crate) fn cut_after(&self, bytes: u64) {
        let mut wires = self.wires.lock();
        wires.left = Some(bytes);
        wires.cut_if_due();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut_after(0);
        // Wakes it, if it still listens.
        drop(TcpStream::connect(self.address));
        let accepting = self.accepting.take().expect("joined once");
        // A panic in it has been printed, and would end the test without a reason if it were passed on here.
        drop(accepting.join());
    }
}

impl Wires {
    /// How many of `bytes` may pass.
    fn take(&mut self, bytes: usize) -> usize {
        let may = self.left.map_or(bytes, |left| usize::try_from(left).map_or(bytes, |left| left.min(bytes)));
        self.passed += may as u64;
        if let Some(left) = &mut self.left {
            *left -= may as u64;
        }
        may
    }

    fn cut_if_due(&mut self) {
        if self.left == Some(0) {
            self.cut = true;
            for end in self.ends.drain(..) {
                // One that has ended is as good as cut.
                drop(end.shutdown(Shutdown::Both));
            }
        }
    }
}

fn accept(listener: &TcpListener, destination: SocketAddr, wires: &Arc<Mutex<Wires>>) {
    let mut copying = Vec::new();
    while let Ok((source, _)) = listener.accept() {
        // The destination hears of every connection, even of one that is cut before its first byte.
        let Ok(destination) = TcpStream::connect(destination) else { break };
        let ends = [&source, &destination].map(|end| end.try_clone().expect("a descriptor"));
        for end in &ends {
            end.set_nodelay(true).expect("a TCP socket");
        }
        let mut shared = wires.lock();
        if shared.cut {
            break;
        }
        shared.ends.extend(ends);
        shared.cut_if_due();
        drop(shared);
        let again =
            (source.try_clone().expect("a descriptor"), destination.try_clone().expect("a descriptor"));
        for (from, to) in [(source, destination), (again.1, again.0)] {
            let wires = Arc::clone(wires);
            copying.push(std::thread::spawn(move || copy(from, to, &wires)));
        }
    }
    for thread in copying {
        thread.join().expect("it only copies");
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, wires: &Mutex<Wires>) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let may = wires.lock().take(count);
        let written = to.write_all(&bytes[..may]);
        // Cut only when the last byte is on its way.
        wires.lock().cut_if_due();
        if written.is_err() || may < count {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Write));
}

//! 256 pages into a socket: as one stretch of guest RAM, and each with a header before it, as records are.
#![allow(missing_docs, reason = "criterion's macro makes an undocumented function")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use limosa_pages::{BlockName, ByteCount, PageCount, PageIndex, PageRun};
use limosa_ram::{Gather, RamBlock};
use std::io::Read;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread::JoinHandle;

const PAGES: PageCount = PageCount(256);
const HEADER: usize = 8;

/// A connected socket whose other end reads and counts.
struct Drain {
    socket: TcpStream,
    reader: JoinHandle<u64>,
}

impl Drain {
    fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
        let socket = TcpStream::connect(listener.local_addr().expect("bound")).expect("loopback");
        let mut other = listener.accept().expect("connected").0;
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            let mut total = 0;
            while let Ok(count @ 1..) = other.read(&mut buffer) {
                total += count as u64;
            }
            total
        });
        Self { socket, reader }
    }

    /// Sends all of `gather`; returns its bytes.
    fn send(&self, mut gather: Gather<'_>) -> u64 {
        let bytes = gather.remaining().0;
        while !gather.is_empty() {
            gather.write_to(self.socket.as_fd()).expect("the other end reads");
        }
        bytes
    }

    /// Checks that `sent` bytes have arrived.
    fn finish(self, sent: u64) {
        self.socket.shutdown(Shutdown::Both).expect("connected");
        assert_eq!(self.reader.join().expect("the reader only reads"), sent);
    }
}

fn gather(criterion: &mut Criterion) {
    let name = BlockName::new("ram").expect("a short name");
    let block = RamBlock::memfd(name, ByteCount(PAGES.bytes().0)).expect("memory for the bench");
    block.preallocate(block.whole()).expect("memory for the bench");
    let headers = vec![7; PAGES.0 as usize * HEADER];
    let mut group = criterion.benchmark_group("gather");
    group.throughput(Throughput::Bytes(PAGES.bytes().0));

    let mut bench = |name: &str, send: &mut dyn FnMut(&Drain) -> u64| {
        let drain = Drain::new();
        let mut sent = send(&drain);
        assert!(sent >= PAGES.bytes().0);
        group.bench_function(name, |bencher| bencher.iter(|| sent += send(&drain)));
        drain.finish(sent);
    };
    bench("contiguous", &mut |drain| {
        let mut gather = Gather::new();
        gather.pages(&block, block.whole());
        drain.send(gather)
    });
    bench("page-by-page", &mut |drain| {
        let mut gather = Gather::new();
        for (page, header) in (0..PAGES.0).zip(headers.chunks_exact(HEADER)) {
            gather.bytes(header);
            gather.pages(&block, PageRun::new(PageIndex(page), PageCount(1)));
        }
        drain.send(gather)
    });
}

criterion_group!(benches, gather);
criterion_main!(benches);

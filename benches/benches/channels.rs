//! A guest's pages over loopback, by number of channels: of noise, straight from RAM to RAM, and of zeros, which both
//! sides read and nobody sends. More channels than processors must not cost anything.
#![allow(missing_docs, reason = "criterion's macro makes an undocumented function")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use limosa_multifd::{
    PageSink, RamSink, ReceiveChannels, ReceiveConfig, ReceiveLink, SendBatch, SendChannels, SendConfig,
};
use limosa_pages::{BlockId, BlockName, PageCount, PageIndex, PageRun};
use limosa_ram::{GuestRam, RamBlock};
use limosa_transport::{Link, Role};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

/// 128 MiB.
const PAGES: PageCount = PageCount(32 << 10);
const PACKET: PageCount = PageCount(128);
const RAM: BlockId = BlockId(0);

fn ram() -> GuestRam {
    let name = BlockName::new("ram").expect("a short name");
    let block = RamBlock::memfd(name, PAGES.bytes()).expect("memory for the bench");
    block.preallocate(block.whole()).expect("memory for the bench");
    GuestRam::new(vec![block]).expect("one name")
}

/// No two pages alike, and none of them short when compressed.
fn fill_with_noise(ram: &GuestRam) {
    let mut state = 0_u64;
    let mut page = vec![0; 4096];
    for index in 0..PAGES.0 {
        for word in page.as_chunks_mut::<8>().0 {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            *word = (mixed ^ (mixed >> 27)).to_le_bytes();
        }
        ram.block(RAM).copy_in(PageIndex(index).byte_offset(), &page);
    }
}

fn connected() -> (Link, Link) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
    let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("loopback");
    let (far, _) = listener.accept().expect("connected");
    // As links that the transport connects have it: a SYNC packet must not wait for an acknowledgement.
    near.set_nodelay(true).expect("a socket");
    let link = |stream: TcpStream| Link::from_fd(stream.into(), Role::Multifd(0)).expect("a socket");
    (link(near), link(far))
}

/// Two connected ends.
struct Ends {
    send: SendChannels,
    receive: ReceiveChannels,
    batch: SendBatch,
}

impl Ends {
    fn new(channels: usize, here: &GuestRam, there: &GuestRam) -> Self {
        let (near, far): (Vec<_>, Vec<_>) = (0..channels).map(|_| connected()).unzip();
        let readers = far.into_iter().map(|link| ReceiveLink::new(link.split().0)).collect();
        let sink: Arc<dyn PageSink> = Arc::new(RamSink::new(there.clone()));
        let receive = ReceiveChannels::new(readers, sink, ReceiveConfig::default()).expect("threads");
        let writers = near.into_iter().map(|link| link.split().1).collect();
        let send = SendChannels::new(writers, here.clone(), SendConfig::default()).expect("threads");
        let mut ends = Self { send, receive, batch: SendBatch::new(RAM) };
        ends.sync();
        ends
    }

    fn sync(&mut self) {
        self.send.sync().expect("every channel lives");
        self.receive.wait_sync().expect("every channel lives");
    }

    /// Sends all pages, until they are in place.
    fn round(&mut self) {
        for first in (0..PAGES.0).step_by(PACKET.0 as usize) {
            self.batch.content.push(PageRun::new(PageIndex(first), PACKET));
            self.send.submit(&mut self.batch).expect("every channel lives");
        }
        self.sync();
    }
}

fn channels(criterion: &mut Criterion) {
    let (noise, zeros, there) = (ram(), ram(), ram());
    fill_with_noise(&noise);
    for (content, here) in [("noise", noise), ("zeros", zeros)] {
        let mut group = criterion.benchmark_group(format!("channels/{content}"));
        group.sample_size(20).throughput(Throughput::Bytes(PAGES.bytes().0));
        for count in [1, 2, 4, 8] {
            let mut ends = Ends::new(count, &here, &there);
            group.bench_function(BenchmarkId::from_parameter(count), |bencher| bencher.iter(|| ends.round()));
        }
        group.finish();
    }
}

criterion_group!(benches, channels);
criterion_main!(benches);

//! Guests, links and packets for the tests of this crate.
#![allow(dead_code, reason = "every test file uses its part")]

use limosa_compress::{Method, PacketPages, PerPacketEncoder};
use limosa_multifd::{
    PageSink, RamSink, ReceiveChannels, ReceiveConfig, ReceiveLink, SendBatch, SendChannels, SendConfig,
};
use limosa_pages::{
    BlockId, BlockName, ByteCount, DirtyMap, PAGE_BYTES, PageBatch, PageCount, PageIndex, PageRun,
    PageScheduler,
};
use limosa_ram::{GuestRam, RamBlock};
use limosa_transport::{Link, Role};
use limosa_wire::multifd::{Compression, InitPacket, PACKET_PAGES, PagesPacket};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

/// Main RAM: 8 MiB.
pub(crate) const RAM: BlockId = BlockId(0);
/// A block of three pages.
pub(crate) const ROM: BlockId = BlockId(1);

/// What connects the two ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wire {
    SocketPair,
    Tcp,
}

/// Two links connected to each other.
pub(crate) fn connected(wire: Wire) -> (Link, Link) {
    match wire {
        Wire::SocketPair => Link::pair().expect("a pair"),
        Wire::Tcp => {
            let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
            let near = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
            let (far, _) = listener.accept().expect("the connection");
            let link = |stream: TcpStream| Link::from_fd(stream.into(), Role::Multifd(0)).expect("a link");
            (link(near), link(far))
        }
    }
}

/// Memory nobody has touched.
pub(crate) fn empty_ram() -> GuestRam {
    let block = |name: &str, pages| {
        RamBlock::memfd(BlockName::new(name).expect("a name"), PageCount(pages).bytes()).expect("memory")
    };
    GuestRam::new(vec![block("pc.ram", 2048), block("pc.rom", 3)]).expect("two names")
}

/// A guest with every class of content, in pieces of all lengths; every eighth piece was never touched.
pub(crate) fn guest() -> GuestRam {
    let ram = empty_ram();
    let (mut page, mut piece) = (0, 0);
    while page < ram.block(RAM).pages().0 {
        let length = (piece * 7 % 40 + 1).min(ram.block(RAM).pages().0 - page);
        for index in page..page + length {
            match piece % 8 {
                0 => {}
                1 => ram.block(RAM).copy_in(PageIndex(index).byte_offset(), &[0; PAGE_BYTES]),
                class => {
                    ram.block(RAM).copy_in(PageIndex(index).byte_offset(), &content(class, index));
                }
            }
        }
        (page, piece) = (page + length, piece + 1);
    }
    ram.block(ROM).copy_in(0, &content(3, 1));
    ram.block(ROM).copy_in(2 * PAGE_BYTES as u64, &content(4, 2));
    ram
}

/// A page of a class: text, noise, one word, half and half.
pub(crate) fn content(class: u64, seed: u64) -> Vec<u8> {
    let text = || b"The godwit sleeps with one half of its brain. ".repeat(90)[seed as usize % 46..].to_vec();
    let mut page = match class % 4 {
        0 => noise(seed),
        1 => text(),
        2 => vec![0; PAGE_BYTES],
        _ => [&noise(seed)[..PAGE_BYTES / 2], &text()].concat(),
    };
    page.truncate(PAGE_BYTES);
    page[8..16].copy_from_slice(&(seed | 1 << 63).to_le_bytes());
    page
}

pub(crate) fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut word = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb).to_le_bytes()
    };
    (0..PAGE_BYTES / 8).flat_map(|_| word()).collect()
}

/// The page's bytes.
pub(crate) fn page(ram: &GuestRam, block: BlockId, index: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_BYTES];
    ram.block(block).copy_out(PageIndex(index).byte_offset(), &mut bytes);
    bytes
}

/// Compares all memory page by page.
pub(crate) fn assert_same(here: &GuestRam, there: &GuestRam, what: &str) {
    for (id, block) in here.iter() {
        for index in 0..block.pages().0 {
            assert!(
                page(here, id, index) == page(there, id, index),
                "{what}: page {index} of {}",
                block.name()
            );
        }
    }
}

/// Everything that `owed` holds as batches; what is not in `populated` is untouched.
pub(crate) fn batches(owed: &DirtyMap, populated: &DirtyMap) -> Vec<SendBatch> {
    let (mut scheduler, mut claimed) = (PageScheduler::new(), PageBatch::default());
    let mut batches = Vec::new();
    while scheduler.next_batch(owed, PageCount(PACKET_PAGES as u64), &mut claimed) {
        let mut batch = SendBatch::new(claimed.block);
        for page in claimed.runs.iter().flat_map(|run| run.pages()) {
            let touched = populated.block(claimed.block).is_owed(page);
            let runs = if touched { &mut batch.content } else { &mut batch.untouched };
            match runs.last_mut() {
                Some(last) if last.end() == page => last.count += PageCount(1),
                _ => runs.push(PageRun::new(page, PageCount(1))),
            }
        }
        batches.push(batch);
    }
    batches
}

/// Which pages have memory behind them.
pub(crate) fn populated(ram: &GuestRam) -> DirtyMap {
    let map = DirtyMap::clean(ram.layout());
    for (id, block) in ram.iter() {
        block.populated().owe_into(map.block(id));
    }
    map
}

/// All pages of `ram`, in batches.
pub(crate) fn all_batches(ram: &GuestRam) -> Vec<SendBatch> {
    let owed = DirtyMap::clean(ram.layout());
    owed.owe_all();
    batches(&owed, &populated(ram))
}

/// A batch of `count` pages of main RAM.
pub(crate) fn batch_of(first: u64, count: u64) -> SendBatch {
    let mut batch = SendBatch::new(RAM);
    batch.content.push(PageRun::new(PageIndex(first), PageCount(count)));
    batch
}

/// The receiving end over fresh memory, and the other ends of its links.
pub(crate) struct Receiver {
    pub(crate) channels: ReceiveChannels,
    pub(crate) peers: Vec<Link>,
    pub(crate) sink: Arc<RamSink>,
}

pub(crate) fn receiver(count: usize, config: ReceiveConfig) -> Receiver {
    let (peers, ours): (Vec<_>, Vec<_>) = (0..count).map(|_| connected(Wire::SocketPair)).unzip();
    let sink = Arc::new(RamSink::new(empty_ram()));
    let links = ours.into_iter().map(|link| ReceiveLink::new(link.split().0)).collect();
    let as_sink: Arc<dyn PageSink> = Arc::clone(&sink) as _;
    let channels = ReceiveChannels::new(links, as_sink, config).expect("threads");
    Receiver { channels, peers, sink }
}

impl Receiver {
    /// Waits until a channel has received this many packets; of a SYNC packet, until it stands at its point.
    pub(crate) fn wait_for_packets(&self, accepted: usize, packets: u64) {
        while self.channels.statistics()[accepted].packets < packets {
            thread::yield_now();
        }
    }
}

/// Two pools that are connected.
pub(crate) struct Pools {
    pub(crate) send: SendChannels,
    pub(crate) receive: ReceiveChannels,
    pub(crate) sink: Arc<RamSink>,
}

pub(crate) fn pools(wire: Wire, count: usize, ram: &GuestRam, config: SendConfig) -> Pools {
    pools_over((0..count).map(|_| connected(wire)).collect(), ram, config)
}

/// Over links whose ends are connected, however.
pub(crate) fn pools_over(links: Vec<(Link, Link)>, ram: &GuestRam, config: SendConfig) -> Pools {
    let (near, far): (Vec<Link>, Vec<Link>) = links.into_iter().unzip();
    let sink = Arc::new(RamSink::new(empty_ram()));
    let links = far.into_iter().map(|link| ReceiveLink::new(link.split().0)).collect();
    let receiving = ReceiveConfig {
        compression: config.codec.compression(),
        codec_workers: config.codec_workers,
        ..ReceiveConfig::default()
    };
    let as_sink: Arc<dyn PageSink> = Arc::clone(&sink) as _;
    let receive = ReceiveChannels::new(links, as_sink, receiving).expect("threads");
    let links = near.into_iter().map(|link| link.split().1).collect();
    let send = SendChannels::new(links, ram.clone(), config).expect("threads");
    Pools { send, receive, sink }
}

impl Pools {
    /// A synchronisation point on both sides, as SYNC packets and FLUSH make it.
    pub(crate) fn sync(&mut self) {
        self.send.sync().expect("every channel lives");
        self.receive.wait_sync().expect("every channel lives");
    }

    pub(crate) fn submit_all(&mut self, batches: Vec<SendBatch>) {
        for mut batch in batches {
            self.send.submit(&mut batch).expect("every channel lives");
            assert_eq!(batch.pages(), PageCount(0), "an empty batch comes back");
        }
    }
}

/// A channel into `sink` that has passed its first point.
pub(crate) fn channel_into(sink: Arc<dyn PageSink>, compression: Compression) -> (ReceiveChannels, Link) {
    let (mut peer, ours) = connected(Wire::SocketPair);
    let config = ReceiveConfig { compression, ..ReceiveConfig::default() };
    let receive =
        ReceiveChannels::new(vec![ReceiveLink::new(ours.split().0)], sink, config).expect("a thread");
    peer.write_all(&[init_packet(0), sync_packet()].concat()).expect("read");
    receive.wait_sync().expect("a proper opening");
    (receive, peer)
}

pub(crate) fn init_packet(channel: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    InitPacket { uuid: [0; 16], channel }.encode(&mut bytes);
    bytes
}

pub(crate) fn sync_packet() -> Vec<u8> {
    let mut bytes = Vec::new();
    PagesPacket::encode_sync(0, &mut bytes);
    bytes
}

/// A packet of main RAM with this payload.
pub(crate) fn pages_packet(
    normal: &[u64],
    zero: &[u64],
    compression: Compression,
    payload: &[u8],
) -> Vec<u8> {
    named_packet("pc.ram", normal, zero, compression, payload)
}

pub(crate) fn named_packet(
    name: &str,
    normal: &[u64],
    zero: &[u64],
    compression: Compression,
    payload: &[u8],
) -> Vec<u8> {
    let block = BlockName::new(name).expect("a name");
    let payload_bytes = payload.len() as u32;
    let packet = PagesPacket { block: &block, normal, zero, compression, payload_bytes, packet_number: 0 };
    let mut bytes = Vec::new();
    packet.encode(&mut bytes);
    bytes.extend_from_slice(payload);
    bytes
}

/// The payload of a packet of `pages`, each in the form `forms` says: what stands before the raw pages, and these.
pub(crate) fn per_packet_payload(method: Method, pages: &[(Form, Vec<u8>)]) -> Vec<u8> {
    let mut packet = PacketPages::new();
    let mut raw = Vec::new();
    for (form, bytes) in pages {
        packet.candidate().copy_from_slice(bytes);
        match form {
            Form::Compressed => packet.compress(),
            Form::Delta => assert!(packet.delta(&[0; PAGE_BYTES]), "small enough"),
            Form::Raw => {
                packet.raw();
                raw.extend_from_slice(bytes);
            }
        }
    }
    let mut payload = Vec::new();
    let head = PerPacketEncoder::new().and_then(|mut encoder| encoder.encode(method, &packet, &mut payload));
    assert_eq!(head.expect("memory").raw, packet.raw_pages(), "what is to be compressed shrinks");
    payload.extend_from_slice(&raw);
    payload
}

/// How a page leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    Compressed,
    /// Against a page of zeros.
    Delta,
    Raw,
}

/// Bytes of a length.
pub(crate) fn bytes_of(pages: u64) -> ByteCount {
    PageCount(pages).bytes()
}

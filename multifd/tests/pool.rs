//! The codec pool under the channels.

mod support;

use limosa_compress::{Method, PacketEncoder};
use limosa_multifd::{
    Codec, PageSink, PlaceError, Reason, ReceiveFailure, SendChannels, SendConfig, ZeroDetection,
};
use limosa_pages::{BlockId, BlockName, ByteCount, DirtyMap, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_ram::{GuestRam, RamBlock};
use limosa_transport::Link;
use limosa_wire::multifd::{Compression, InitPacket, PagesHeader, PerPacketHead};
use std::any::Any;
use std::num::NonZeroU8;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use support::*;

const CODECS: [Codec; 5] = [
    Codec::Zlib { level: 1 },
    Codec::Zstd { level: 1 },
    Codec::Lz4,
    Codec::ZstdPacket { level: 1 },
    Codec::Auto,
];

fn with_workers(codec: Codec, workers: u8) -> SendConfig {
    let codec_workers = NonZeroU8::new(workers);
    SendConfig { codec, codec_workers, delta_cache: ByteCount(4 << 20), ..SendConfig::default() }
}

#[test]
fn every_number_of_workers_and_channels_moves_a_guest_whole() {
    for codec in CODECS {
        for workers in [1, 2, 4] {
            for channels in [1, 2, 8] {
                let what = format!("{codec:?}, {workers} workers, {channels} channels");
                let ram = guest();
                let mut pools = pools(Wire::Tcp, channels, &ram, with_workers(codec, workers));
                pools.sync();
                pools.submit_all(all_batches(&ram));
                pools.sync();
                assert_same(&ram, pools.sink.ram(), &what);
                for round in 0..5 {
                    pools.submit_all(batches(&change(&ram, round), &populated(&ram)));
                    pools.sync();
                    assert_same(&ram, pools.sink.ram(), &what);
                }
                assert_counted(&pools, usize::from(workers), &what);
            }
        }
    }
}

/// Changes pages in every way there is; says which.
fn change(ram: &GuestRam, round: u64) -> DirtyMap {
    let owed = DirtyMap::clean(ram.layout());
    for index in (round % 2..ram.block(RAM).pages().0).step_by(2) {
        let at = PageIndex(index).byte_offset();
        // Over the rounds every class follows every other somewhere.
        match noise(index ^ (round << 32))[0] % 8 {
            // A word, which a delta is enough for.
            0..=3 => ram.block(RAM).copy_in(at + 8 * (index % 500), &(!round).to_le_bytes()),
            4 => ram.block(RAM).copy_in(at, &vec![0; PAGE_BYTES]),
            5 => ram.block(RAM).copy_in(at, &noise(index + round)),
            class => ram.block(RAM).copy_in(at, &content(class.into(), index + round)),
        }
        owed.block(RAM).mark(PageRun::new(PageIndex(index), PageCount(1)));
    }
    owed
}

#[test]
fn a_page_that_was_zero_in_between_is_no_delta_of_what_it_was_before() {
    let ram = empty_ram();
    let mut pools = pools(Wire::SocketPair, 1, &ram, with_workers(Codec::Lz4, 1));
    pools.sync();
    let mut changed = content(1, 7);
    changed[100] ^= 1;
    for bytes in [content(1, 7), vec![0; PAGE_BYTES], changed] {
        ram.block(RAM).copy_in(0, &bytes);
        pools.submit_all(vec![batch_of(0, 2)]);
        pools.sync();
        assert_same(&ram, pools.sink.ram(), "between");
    }
}

#[test]
fn a_page_that_changed_in_a_word_leaves_as_a_delta_from_the_next_interval_on() {
    const PAGES: u64 = 128;
    let ram = empty_ram();
    (0..PAGES).for_each(|index| ram.block(RAM).copy_in(PageIndex(index).byte_offset(), &content(1, index)));
    let mut pools = pools(Wire::SocketPair, 1, &ram, with_workers(Codec::Lz4, 1));
    pools.sync();
    pools.submit_all(vec![batch_of(0, PAGES)]);
    pools.sync();
    let before = pools.send.statistics()[0].bytes;
    (0..PAGES).for_each(|index| ram.block(RAM).copy_in(PageIndex(index).byte_offset() + 800, &[1; 8]));
    pools.submit_all(vec![batch_of(0, PAGES)]);
    pools.sync();
    assert_same(&ram, pools.sink.ram(), "deltas");
    let bytes = pools.send.statistics()[0].bytes - before;
    // A record is a map of lines, a map of words and a word.
    let expected = 2 * PagesHeader::BYTES + PerPacketHead::BYTES + PAGES as usize * (8 + 1 + 8);
    assert_eq!(bytes, ByteCount(expected as u64));
}

#[test]
fn pages_that_would_not_shrink_leave_as_they_are_and_cost_a_head() {
    const PAGES: u64 = 128;
    let ram = empty_ram();
    (0..PAGES).for_each(|index| ram.block(RAM).copy_in(PageIndex(index).byte_offset(), &noise(index)));
    for codec in [Codec::Lz4, Codec::ZstdPacket { level: 1 }] {
        let mut pools = pools(Wire::SocketPair, 1, &ram, with_workers(codec, 1));
        pools.sync();
        pools.submit_all(vec![batch_of(0, PAGES)]);
        pools.sync();
        assert_same(&ram, pools.sink.ram(), "noise");
        let opening = InitPacket::BYTES + PagesHeader::BYTES;
        let packets = 2 * PagesHeader::BYTES + PerPacketHead::BYTES + PAGES as usize * PAGE_BYTES;
        assert_eq!(pools.send.statistics()[0].bytes, ByteCount((opening + packets) as u64), "{codec:?}");
    }
}

/// A link between two others that is slower than the codecs on every machine: for each 64 KiB it compresses 128 KiB
/// of text, with more effort than most of them.
fn slow_link(mut from: Link, mut to: Link) -> JoinHandle<()> {
    thread::spawn(move || {
        let text = (0..32).flat_map(|seed| content(1, seed)).collect::<Vec<_>>();
        let mut chunk = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read_some(&mut chunk) {
            let compressed = zstd::bulk::compress(&text, 9).expect("memory");
            assert!(!compressed.is_empty());
            if to.write_all(&chunk[..count]).is_err() {
                return;
            }
        }
    })
}

#[test]
fn on_a_slow_link_the_adaptive_codec_compresses_and_says_why() {
    let ram = empty_ram();
    // Half noise, half text: what compression leaves is still more than the sockets hold.
    (0..2048).for_each(|index| ram.block(RAM).copy_in(PageIndex(index).byte_offset(), &content(3, index)));
    let (near, slow) = Link::pair().expect("a pair");
    let (slow_end, far) = Link::pair().expect("a pair");
    let between = slow_link(slow, slow_end);
    let mut pools = pools_over(vec![(near, far)], &ram, with_workers(Codec::Auto, 2));
    pools.sync();
    for _ in 0..3 {
        pools.submit_all(all_batches(&ram));
        pools.sync();
    }
    assert_same(&ram, pools.sink.ram(), "a slow link");
    let report = pools.send.choices().expect("it chooses");
    let raw = report.counts().iter().filter(|count| count.choice.method == Method::None);
    let raw: u64 = raw.filter(|count| !count.choice.delta).map(|count| count.packets).sum();
    assert!(raw * 4 <= report.packets(), "{report}");
    assert!(report.counts().iter().any(|count| count.choice.reason != Reason::Unmeasured), "{report}");
    pools.send.close().expect("no channel failed");
    pools.receive.close().expect("no channel failed");
    between.join().expect("no panic");
}

/// What one end made is what the other took apart.
fn assert_counted(pools: &Pools, workers: usize, what: &str) {
    let made = pools.send.pool_statistics().expect("a codec");
    let taken = pools.receive.pool_statistics().expect("a codec");
    assert_eq!((made.workers, taken.workers), (workers, workers), "{what}");
    assert!(made.packets >= taken.packets && taken.packets > 0, "{what}: {made:?} {taken:?}");
    let channels = pools.send.statistics();
    let normal: PageCount = channels.iter().map(|channel| channel.normal).sum();
    match pools.send.choices() {
        None => assert_eq!(made.bytes_in, normal.bytes(), "{what}"),
        Some(report) => {
            let raw = report.counts().iter().filter(|count| count.choice.method == Method::None);
            let raw: u64 = raw.map(|count| count.packets).sum();
            assert_eq!(made.packets, report.packets() - raw, "{what}: {report}");
        }
    }
    assert!(!made.busy.is_zero() && !taken.busy.is_zero(), "{what}");
    let queue = pools.send.queue_statistics();
    assert_eq!(queue.depth, 0, "{what}");
    assert!((1..=queue.capacity).contains(&queue.depth_max), "{what}: {queue:?}");
}

#[test]
fn without_a_codec_there_is_no_pool() {
    let pools = pools(Wire::SocketPair, 1, &guest(), SendConfig::default());
    assert_eq!((pools.send.pool_statistics(), pools.receive.pool_statistics()), (None, None));
}

/// Stops at each page until it is told to go on, and panics if nobody will.
struct GatedSink {
    ram: GuestRam,
    arrived: Mutex<mpsc::Sender<()>>,
    gate: Mutex<mpsc::Receiver<()>>,
}

impl PageSink for GatedSink {
    fn ram(&self) -> &GuestRam {
        &self.ram
    }

    fn place(&self, _: BlockId, _: PageRun) -> Result<(), PlaceError> {
        self.arrived.lock().expect("no panic").send(()).expect("the test listens");
        self.gate.lock().expect("no panic").recv().expect("a bug in a sink");
        Ok(())
    }

    fn zero(&self, _: BlockId, _: PageRun) -> Result<(), PlaceError> {
        Ok(())
    }
}

/// A sink, what tells that a worker is at a page, and what lets it go on.
fn gated() -> (Arc<GatedSink>, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let ((arrivals, arrived), (open, gate)) = (mpsc::channel(), mpsc::channel());
    let sink = GatedSink { ram: empty_ram(), arrived: Mutex::new(arrivals), gate: Mutex::new(gate) };
    (Arc::new(sink), arrived, open)
}

/// A packet of one page.
fn compressed_page() -> Vec<u8> {
    let mut payload = Vec::new();
    PacketEncoder::zlib(1).encode(&noise(1), &mut payload).expect("fits");
    pages_packet(&[0], &[], Compression::Zlib, &payload)
}

#[test]
fn a_synchronisation_point_waits_for_what_is_on_the_pool() {
    let (sink, arrived, open) = gated();
    let (receive, mut peer) = channel_into(sink, Compression::Zlib);
    peer.write_all(&[compressed_page(), sync_packet()].concat()).expect("read");
    arrived.recv().expect("the worker is at the page");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| receive.wait_sync());
        while peer.queued_bytes() > 0 {
            thread::yield_now();
        }
        assert!(!waiting.is_finished(), "the channel has read the point, but the page is not in place");
        // The opening, and the packet of the page.
        assert!(receive.statistics()[0].packets <= 2);
        open.send(()).expect("the worker waits");
        waiting.join().expect("no panic").expect("a proper packet");
    });
}

#[test]
fn a_worker_that_panics_fails_the_channel_while_its_link_is_silent() {
    let (sink, _arrived, open) = gated();
    drop(open);
    let (receive, mut peer) = channel_into(sink, Compression::Zlib);
    peer.write_all(&compressed_page()).expect("read");
    let error = receive.wait_sync().expect_err("a panic");
    assert!(matches!(&*error.failure, ReceiveFailure::WorkerPanicked), "{:?}", error.failure);
    assert_eq!((error.connection.channel, error.packet), (Some(0), 1));
    assert!(matches!(peer.read_some(&mut [0]), Ok(0) | Err(_)), "the source hears of it");
}

#[test]
fn packets_are_made_while_one_is_being_written() {
    let ram = guest();
    let (near, mut far) = Link::pair().expect("a pair");
    let config =
        SendConfig { zero_detection: ZeroDetection::None, ..with_workers(Codec::Zlib { level: 0 }, 1) };
    let mut send = SendChannels::new(vec![near.split().1], ram, config).expect("threads");
    send.sync().expect("fits into the socket");
    // Level 0 stores: a packet is larger than what a socket pair takes unread, so the first is never written.
    for index in 0..4 {
        send.submit(&mut batch_of(index * 128, 128)).expect("there is room in the queue and the channel");
    }
    while send.pool_statistics().expect("a codec").packets < 2 {
        thread::yield_now();
    }
    assert_eq!(send.statistics()[0].normal, PageCount(0), "still inside its first packet");
    far.read_exact(&mut [0; InitPacket::BYTES + PagesHeader::BYTES]).expect("sent before");
    drop(far);
    assert_eq!(send.sync().expect_err("its link is gone").channel, 0);
}

#[test]
fn dropping_the_sender_leaves_nobody_at_work_on_guest_memory() {
    for codec in CODECS {
        let owner: Arc<dyn Any + Send + Sync> = Arc::new(());
        let name = BlockName::new("pc.ram").expect("a name");
        let block = RamBlock::memfd(name, bytes_of(2048)).expect("memory").kept_alive_by(Arc::clone(&owner));
        let ram = GuestRam::new(vec![block]).expect("one name");
        let (near, _far) = Link::pair().expect("a pair");
        let config = SendConfig { zero_detection: ZeroDetection::None, ..with_workers(codec, 2) };
        let mut send = SendChannels::new(vec![near.split().1], ram, config).expect("threads");
        send.sync().expect("fits into the socket");
        for index in 0..3 {
            send.submit(&mut batch_of(index * 128, 128)).expect("the queue has room");
        }
        drop(send);
        assert_eq!(Arc::strong_count(&owner), 1, "{codec:?}");
    }
}

//! Two pools move a guest.

mod support;

use limosa_multifd::{
    Codec, PageSink, RamSink, ReceiveChannels, ReceiveConfig, ReceiveLink, SendChannels, SendConfig,
    SendFailure, ZeroDetection,
};
use limosa_pages::{DirtyMap, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_ram::GuestRam;
use limosa_transport::Link;
use limosa_wire::multifd::{InitPacket, PagesHeader};
use std::sync::Arc;
use std::thread;
use support::*;

const CODECS: [Codec; 3] = [Codec::None, Codec::Zlib { level: 1 }, Codec::Zstd { level: 1 }];

#[test]
fn every_number_of_channels_and_codec_moves_a_guest_whole_over_both_kinds_of_socket() {
    for wire in [Wire::SocketPair, Wire::Tcp] {
        for count in [1, 2, 4, 8, 16] {
            for codec in CODECS {
                move_guest(wire, count, codec);
            }
        }
    }
}

fn move_guest(wire: Wire, count: usize, codec: Codec) {
    let what = format!("{wire:?}, {count} channels, {codec:?}");
    let ram = guest();
    let mut pools = pools(wire, count, &ram, SendConfig { codec, ..SendConfig::default() });
    pools.sync();
    pools.submit_all(all_batches(&ram));
    pools.sync();
    // Before the comparison, which reads every page.
    assert_untouched_stays_untouched(&ram, pools.sink.ram(), &what);
    assert_same(&ram, pools.sink.ram(), &what);
    assert_eq!(pools.sink.received().count(), PageCount(2051), "{what}");

    // A second round: what was zero gets content, what had content becomes zero, some of it was never touched.
    let owed = DirtyMap::clean(ram.layout());
    for index in (0..ram.block(RAM).pages().0).step_by(3) {
        let zero = ram.block(RAM).is_zero(PageIndex(index));
        let bytes = if zero { content(index, !index) } else { vec![0; PAGE_BYTES] };
        ram.block(RAM).copy_in(PageIndex(index).byte_offset(), &bytes);
        owed.block(RAM).mark(PageRun::new(PageIndex(index), PageCount(1)));
    }
    let again = owed.count();
    pools.submit_all(batches(&owed, &populated(&ram)));
    pools.sync();
    assert_same(&ram, pools.sink.ram(), &what);

    let received = pools.receive.close().expect("no channel failed");
    let sent = pools.send.close().expect("no channel failed");
    let pages: PageCount = sent.iter().map(|channel| channel.normal + channel.zero).sum();
    assert_eq!(pages, PageCount(2051) + again, "{what}");
    for (sent, received) in sent.iter().zip(&received) {
        assert_eq!(sent.packets, received.packets, "{what}");
        assert_eq!(sent.bytes.0, received.bytes.0 + InitPacket::BYTES as u64, "{what}");
        assert_eq!((sent.normal, sent.zero), (received.normal, received.zero), "{what}");
        assert!(sent.packets >= 3, "{what}: every channel has every synchronisation point");
    }
}

/// The destination is no larger than the source: zero pages get no memory there.
fn assert_untouched_stays_untouched(here: &GuestRam, there: &GuestRam, what: &str) {
    let populated = populated(there);
    for index in 0..here.block(RAM).pages().0 {
        let page = PageIndex(index);
        if populated.block(RAM).is_owed(page) {
            assert!(!here.block(RAM).is_zero(page), "{what}: page {index} got memory for zeros");
        }
    }
}

#[test]
fn guest_pages_sent_without_a_copy_arrive_whole() {
    for codec in [Codec::None, Codec::Lz4] {
        let ram = guest();
        let mut pools =
            pools(Wire::Tcp, 2, &ram, SendConfig { codec, zero_copy: true, ..SendConfig::default() });
        pools.sync();
        pools.submit_all(all_batches(&ram));
        pools.sync();
        assert_same(&ram, pools.sink.ram(), "zero copy");
    }
}

#[test]
fn zero_copy_over_a_link_that_has_none_is_refused_at_once() {
    let config = SendConfig { zero_copy: true, ..SendConfig::default() };
    let (near, _far) = connected(Wire::SocketPair);
    let error = SendChannels::new(vec![near.split().1], guest(), config).unwrap_err();
    let SendFailure::Link(error) = &*error.failure else { panic!("{error:?}") };
    assert!(matches!(error.failure, limosa_transport::Failure::NoZeroCopy(_)), "{error:?}");
}

#[test]
fn without_detection_touched_zero_pages_are_sent_with_their_bytes() {
    let ram = guest();
    let config = SendConfig { zero_detection: ZeroDetection::None, ..SendConfig::default() };
    let mut pools = pools(Wire::SocketPair, 2, &ram, config);
    let touched = populated(&ram).count();
    pools.sync();
    pools.submit_all(all_batches(&ram));
    pools.sync();
    assert_same(&ram, pools.sink.ram(), "no detection");
    let sent = pools.send.statistics();
    assert_eq!(sent.iter().map(|channel| channel.normal).sum::<PageCount>(), touched);
}

#[test]
fn packets_of_zeros_do_not_wait_for_one_with_pages() {
    for codec in [Codec::None, Codec::Zlib { level: 1 }] {
        let ram = guest();
        let mut pools = pools(Wire::SocketPair, 1, &ram, SendConfig { codec, ..SendConfig::default() });
        pools.sync();
        let mut batch = batch_of(0, 0);
        batch.content.clear();
        batch.untouched.push(PageRun::new(PageIndex(0), PageCount(1)));
        pools.submit_all(vec![batch]);
        // Neither a synchronisation point nor another packet follows.
        while pools.sink.received().count() < PageCount(1) {
            thread::yield_now();
        }
    }
}

#[test]
fn a_channel_that_nobody_reads_gets_one_packet_and_the_other_the_rest() {
    const BATCHES: u64 = 16;
    let ram = guest();
    let (near, far): (Vec<Link>, Vec<Link>) = (0..2).map(|_| connected(Wire::SocketPair)).unzip();
    let links = near.into_iter().map(|link| link.split().1).collect();
    // Every packet of 128 pages is larger than what a socket pair takes unread.
    let config = SendConfig { zero_detection: ZeroDetection::None, ..SendConfig::default() };
    let mut send = SendChannels::new(links, ram, config).expect("threads");
    send.sync().expect("both write");
    let packet = PagesHeader::BYTES + 128 * PAGE_BYTES;
    let before = InitPacket::BYTES + PagesHeader::BYTES;
    let [slow, fast] = far.try_into().expect("two");
    // Which of the two is read does not matter; one of them gets all that is left.
    let reader = thread::spawn(move || {
        let mut fast = fast;
        fast.read_exact(&mut vec![0; before + packet * (BATCHES as usize - 1)]).expect("all but one");
        fast
    });
    for index in 0..BATCHES {
        send.submit(&mut batch_of(index * 128, 128)).expect("the other channel takes it");
    }
    let _fast = reader.join().expect("no panic");
    let sent = send.statistics();
    assert!(sent[0].packets <= 1, "{sent:?}");
    assert_eq!(sent[0].normal, PageCount(0), "still inside its first packet");
    drop(slow);
    assert_eq!(send.sync().expect_err("its link is gone").channel, 0);
}

#[test]
fn an_owner_that_has_read_the_init_packet_hands_it_over() {
    let ram = guest();
    let (near, far): (Vec<Link>, Vec<Link>) = (0..2).map(|_| connected(Wire::SocketPair)).unzip();
    let links = near.into_iter().map(|link| link.split().1).collect();
    let mut send = SendChannels::new(links, ram.clone(), SendConfig::default()).expect("threads");
    let sink = Arc::new(RamSink::new(empty_ram()));
    let link = |mut link: Link| {
        let mut bytes = [0; InitPacket::BYTES];
        link.read_exact(&mut bytes).expect("sent at once");
        let limosa_wire::Step::Item { item, .. } = InitPacket::decode(&bytes).expect("an init packet") else {
            panic!("a whole one");
        };
        ReceiveLink { reader: link.split().0, init: Some(item) }
    };
    // In another order than they were connected.
    let links = far.into_iter().rev().map(link).collect();
    let as_sink: Arc<dyn PageSink> = Arc::clone(&sink) as _;
    let receive = ReceiveChannels::new(links, as_sink, ReceiveConfig::default()).expect("threads");
    send.sync().expect("lives");
    receive.wait_sync().expect("lives");
    for mut batch in all_batches(&ram) {
        send.submit(&mut batch).expect("lives");
    }
    send.sync().expect("lives");
    receive.wait_sync().expect("lives");
    assert_same(&ram, sink.ram(), "handed over");
}

#[test]
fn a_source_that_ends_first_is_no_failure_once_the_migration_is_over() {
    let ram = guest();
    let mut pools = pools(Wire::Tcp, 2, &ram, SendConfig::default());
    pools.sync();
    pools.submit_all(all_batches(&ram));
    pools.sync();
    pools.send.close().expect("no channel failed");
    pools.receive.close().expect("no channel failed");
    assert_same(&ram, pools.sink.ram(), "closed");
}

#[test]
fn a_link_lost_at_any_packet_is_told_by_the_next_calls_with_its_channel() {
    let ram = guest();
    let noise = SendConfig { zero_detection: ZeroDetection::None, ..SendConfig::default() };
    for lost in 0..2 {
        for packets in 0..6 {
            let (near, far): (Vec<Link>, Vec<Link>) = (0..2).map(|_| connected(Wire::SocketPair)).unzip();
            let links = near.into_iter().map(|link| link.split().1).collect();
            let mut send = SendChannels::new(links, ram.clone(), noise).expect("threads");
            let readers: Vec<_> = far
                .into_iter()
                .enumerate()
                .map(|(number, mut link)| {
                    thread::spawn(move || {
                        let start = InitPacket::BYTES + PagesHeader::BYTES;
                        let bytes = start + packets * (PagesHeader::BYTES + 128 * PAGE_BYTES);
                        if number == lost {
                            return link.read_exact(&mut vec![0; bytes]).is_ok();
                        }
                        let mut chunk = vec![0; 1 << 20];
                        while link.read_some(&mut chunk).is_ok_and(|count| count > 0) {}
                        true
                    })
                })
                .collect();
            send.sync().expect("both were read so far");
            let error = loop {
                if let Err(error) = send.submit(&mut batch_of(0, 128)) {
                    break error;
                }
            };
            assert_eq!(usize::from(error.channel), lost);
            assert_eq!(send.sync().expect_err("for good").to_string(), error.to_string());
            assert_eq!(send.failure().expect("for good").channel, error.channel);
            drop(send);
            for reader in readers {
                assert!(reader.join().expect("no panic"));
            }
        }
    }
}

#[test]
fn a_shutdown_wakes_a_coordinator_that_waits_for_a_channel() {
    let (near, far) = connected(Wire::SocketPair);
    let links = vec![near.split().1];
    let config = SendConfig { zero_detection: ZeroDetection::None, ..SendConfig::default() };
    let mut send = SendChannels::new(links, guest(), config).expect("threads");
    send.sync().expect("fits into the socket");
    let handle = send.shutdown_handle();
    let (full, is_full) = std::sync::mpsc::channel();
    let coordinator = thread::spawn(move || {
        loop {
            // Nobody reads: at the latest the fourth has to wait.
            let _ = full.send(());
            if let Err(error) = send.submit(&mut batch_of(0, 128)) {
                return error;
            }
        }
    });
    for _ in 0..4 {
        is_full.recv().expect("the coordinator lives");
    }
    handle.shutdown();
    assert_eq!(coordinator.join().expect("no panic").channel, 0);
    drop(far);
}

#[test]
#[should_panic = "before the first synchronisation point"]
fn pages_before_the_first_synchronisation_point_are_a_bug() {
    let (near, _far) = connected(Wire::SocketPair);
    let links = vec![near.split().1];
    let mut send = SendChannels::new(links, guest(), SendConfig::default()).expect("threads");
    let _ = send.submit(&mut batch_of(0, 1));
}

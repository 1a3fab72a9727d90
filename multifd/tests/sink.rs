//! What a sink gets, and when.

mod support;

use limosa_compress::PacketEncoder;
use limosa_multifd::{PageSink, PlaceError, RamSink, ReceiveFailure};
use limosa_pages::{BlockId, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_ram::GuestRam;
use limosa_wire::multifd::Compression;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use support::*;

const PAGE: u64 = PAGE_BYTES as u64;

fn one(page: u64) -> PageRun {
    PageRun::new(PageIndex(page), PageCount(1))
}

#[test]
fn a_zero_page_clears_what_was_there_or_received_and_gives_no_memory_to_the_rest() {
    let ram = empty_ram();
    ram.block(RAM).copy_in(0, &noise(1)); // As a ROM is there before the migration.
    let sink = RamSink::new(ram.clone());
    ram.block(RAM).copy_in(PAGE, &noise(2));
    sink.place(RAM, one(1)).expect("in memory already");
    sink.zero(RAM, PageRun::new(PageIndex(0), PageCount(600))).expect("in memory");
    let populated = populated(&ram);
    assert!(
        (2..600).all(|page| !populated.block(RAM).is_owed(PageIndex(page))),
        "fresh pages stay without memory"
    );
    assert!(ram.block(RAM).is_zero(PageIndex(0)), "what was there before");
    assert!(ram.block(RAM).is_zero(PageIndex(1)), "what was received before");
    assert_eq!(sink.received().block(RAM).count(), PageCount(600));
    assert_eq!(sink.received().block(ROM).count(), PageCount(0));
}

/// Looks, when it is told of pages, whether they are there.
struct WatchingSink {
    ram: GuestRam,
    placed: AtomicU64,
}

impl PageSink for WatchingSink {
    fn ram(&self) -> &GuestRam {
        &self.ram
    }

    fn place(&self, block: BlockId, run: PageRun) -> Result<(), PlaceError> {
        for index in run.pages() {
            assert!(page(&self.ram, block, index.0) == noise(index.0), "{index} is not there yet");
        }
        self.placed.fetch_add(run.count.0, Ordering::Relaxed);
        Ok(())
    }

    fn zero(&self, _: BlockId, _: PageRun) -> Result<(), PlaceError> {
        Ok(())
    }
}

#[test]
fn pages_are_in_memory_when_the_sink_is_told_of_them() {
    let pages = [noise(3), noise(4), noise(9)].concat();
    for compression in [Compression::None, Compression::Zlib, Compression::Zstd] {
        let mut payload = pages.clone();
        match compression {
            Compression::Zlib => PacketEncoder::zlib(1).encode(&pages, &mut payload).expect("fits"),
            Compression::Zstd => {
                PacketEncoder::zstd(1).expect("memory").encode(&pages, &mut payload).expect("fits");
            }
            _ => {}
        }
        let sink = Arc::new(WatchingSink { ram: empty_ram(), placed: AtomicU64::new(0) });
        let (receive, mut peer) = channel_into(Arc::clone(&sink) as _, compression);
        let packet = pages_packet(&[3 * PAGE, 4 * PAGE, 9 * PAGE], &[], compression, &payload);
        peer.write_all(&[packet, sync_packet()].concat()).expect("read");
        receive.wait_sync().expect("a proper packet");
        assert_eq!(sink.placed.load(Ordering::Relaxed), 3, "{compression:?}");
    }
}

/// Does not take pages.
struct RefusingSink {
    ram: GuestRam,
}

impl PageSink for RefusingSink {
    fn ram(&self) -> &GuestRam {
        &self.ram
    }

    fn place(&self, block: BlockId, run: PageRun) -> Result<(), PlaceError> {
        let block = self.ram.block(block).name().clone();
        Err(PlaceError { block, run, source: io::Error::from_raw_os_error(12) })
    }

    fn zero(&self, _: BlockId, _: PageRun) -> Result<(), PlaceError> {
        panic!("a bug in a sink");
    }
}

#[test]
fn a_sink_that_refuses_fails_the_channel_with_its_reason() {
    let (receive, mut peer) = channel_into(Arc::new(RefusingSink { ram: empty_ram() }), Compression::None);
    peer.write_all(&pages_packet(&[PAGE], &[], Compression::None, &noise(1))).expect("read");
    let error = receive.wait_sync().expect_err("refused");
    let ReceiveFailure::Place(place) = &*error.failure else { panic!("{:?}", error.failure) };
    assert_eq!((place.run, place.source.raw_os_error()), (one(1), Some(12)));
}

#[test]
fn a_sink_that_panics_fails_the_channel_and_leaves_nobody_waiting() {
    let (receive, mut peer) = channel_into(Arc::new(RefusingSink { ram: empty_ram() }), Compression::None);
    peer.write_all(&pages_packet(&[], &[0], Compression::None, &[])).expect("read");
    let error = receive.wait_sync().expect_err("a panic");
    assert!(matches!(&*error.failure, ReceiveFailure::Panicked), "{:?}", error.failure);
    assert!(matches!(peer.read_some(&mut [0]), Ok(0) | Err(_)), "the source hears of it");
}

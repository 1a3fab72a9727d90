//! The source's answers: asked once, served once, and nothing that cannot be asked for.

use limosa_pages::{BlockId, BlockName, ByteCount, DirtyMap, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_postcopy::{
    FaultHint, REQUEST_BYTES_MAX, RequestError, Served, URGENT_QUEUE, UrgentPages, UrgentServer,
};
use limosa_ram::{GuestRam, RamBlock};
use limosa_transport::{Link, LinkReader};
use limosa_wire::{RamContext, RamDecoder, RamItem, RequestedPages, Step};
use std::sync::Arc;

const PAGE: u64 = PAGE_BYTES as u64;
const RAM: BlockId = BlockId(0);

fn name(name: &str) -> BlockName {
    BlockName::new(name).unwrap()
}

fn guest() -> GuestRam {
    let block = |text, pages| RamBlock::memfd(name(text), ByteCount(pages * PAGE)).unwrap();
    let guest = GuestRam::new(vec![block("pc.ram", 4096), block("pc.bios", 32)]).unwrap();
    for (_, block) in guest.iter() {
        (1..32).for_each(|page| block.copy_in(page * PAGE, &[page as u8; PAGE_BYTES]));
    }
    guest
}

fn owing_all(guest: &GuestRam) -> Arc<DirtyMap> {
    let dirty = DirtyMap::clean(guest.layout());
    dirty.owe_all();
    Arc::new(dirty)
}

fn pages(start: u64, count: u32) -> RequestedPages {
    RequestedPages { start: start * PAGE, length: count * PAGE_BYTES as u32 }
}

/// Block, page and first byte of every record until the link ends.
fn records(mut link: LinkReader) -> Vec<(String, u64, u8)> {
    let (mut decoder, mut bytes, mut found) = (RamDecoder::new(RamContext::new()), Vec::new(), Vec::new());
    let mut part = [0; 4096];
    while let Ok(count @ 1..) = link.read_some(&mut part) {
        bytes.extend_from_slice(&part[..count]);
    }
    while let Step::Item { used, item } = decoder.next(&bytes).unwrap() {
        bytes.drain(..used);
        let (address, first) = match item {
            RamItem::Zero(address) => (address, 0),
            RamItem::Page(address) => (address, bytes.drain(..PAGE_BYTES).next().unwrap()),
            other => panic!("{other:?} on a preempt channel"),
        };
        found.push((decoder.block_name().unwrap().to_owned(), address.offset / PAGE, first));
    }
    assert!(bytes.is_empty());
    found
}

#[test]
fn a_flood_of_one_request_is_answered_once() {
    let guest = guest();
    let (near, far) = Link::pair().unwrap();
    let hint = Arc::new(FaultHint::new());
    let mut server =
        UrgentServer::preempt(guest.clone(), owing_all(&guest), Arc::clone(&hint), near.split().1);
    assert_eq!(server.serve(Some(&name("pc.ram")), pages(7, 1)).unwrap(), Served::Pages(PageCount(1)));
    for _ in 0..10_000 {
        assert_eq!(server.serve(None, pages(7, 1)).unwrap(), Served::Before);
    }
    assert_eq!(server.serve(None, pages(6, 3)).unwrap(), Served::Pages(PageCount(2)));
    assert_eq!(server.serve(Some(&name("pc.bios")), pages(0, 2)).unwrap(), Served::Pages(PageCount(2)));
    assert_eq!(hint.take(), Some((BlockId(1), PageIndex(0))));
    let statistics = server.statistics();
    assert_eq!((statistics.requests, statistics.repeated, statistics.pages), (10_003, 10_000, PageCount(5)));
    assert_eq!(statistics.serve.count, 3);
    drop(server);
    let expected =
        [("pc.ram", 7, 7), ("pc.ram", 6, 6), ("pc.ram", 8, 8), ("pc.bios", 0, 0), ("pc.bios", 1, 1)];
    let got = records(far.split().0);
    assert_eq!(
        got.iter().map(|(name, page, byte)| (name.as_str(), *page, *byte)).collect::<Vec<_>>(),
        expected
    );
}

#[test]
fn what_the_push_has_claimed_is_not_sent_again() {
    let guest = guest();
    let dirty = owing_all(&guest);
    let (mut server, _queue) = UrgentServer::queue(guest, Arc::clone(&dirty), Arc::default());
    assert!(dirty.block(RAM).claim(PageIndex(20)));
    assert_eq!(server.serve(Some(&name("pc.ram")), pages(20, 1)).unwrap(), Served::Before);
    assert_eq!(server.serve(None, pages(19, 3)).unwrap(), Served::Pages(PageCount(2)));
}

#[test]
fn requests_that_nobody_may_make_are_refused_and_claim_nothing() {
    let guest = guest();
    let dirty = owing_all(&guest);
    let (mut server, queue) = UrgentServer::queue(guest, Arc::clone(&dirty), Arc::default());
    assert!(matches!(server.serve(None, pages(0, 1)), Err(RequestError::NoPreviousBlock)));
    assert!(matches!(server.serve(Some(&name("vga")), pages(0, 1)), Err(RequestError::UnknownBlock { .. })));
    let too_many = (REQUEST_BYTES_MAX.0 / PAGE) as u32 + 1;
    let wrong = [
        pages(4096, 1),
        pages(4095, 2),
        pages(0, too_many),
        RequestedPages { start: 1, length: PAGE_BYTES as u32 },
        RequestedPages { start: 0, length: 100 },
        RequestedPages { start: 0, length: 0 },
        RequestedPages { start: u64::MAX - PAGE + 1, length: PAGE_BYTES as u32 },
    ];
    for pages in wrong {
        let refused = server.serve(Some(&name("pc.ram")), pages);
        assert!(matches!(refused, Err(RequestError::Range { .. })), "{pages:?}: {refused:?}");
    }
    assert!(queue.is_empty());
    assert_eq!(dirty.count(), PageCount(4096 + 32));
}

#[test]
fn without_a_preempt_channel_claimed_pages_go_to_the_owner_of_the_main_channel() {
    let guest = guest();
    let dirty = owing_all(&guest);
    let (mut server, queue) = UrgentServer::queue(guest, Arc::clone(&dirty), Arc::default());
    for page in 0..URGENT_QUEUE as u64 {
        assert_eq!(server.serve(Some(&name("pc.ram")), pages(page, 1)).unwrap(), Served::Pages(PageCount(1)));
    }
    let late = URGENT_QUEUE as u64;
    assert_eq!(server.serve(None, pages(late, 1)).unwrap(), Served::Later);
    assert!(dirty.block(RAM).is_owed(PageIndex(late)), "it comes with the push");
    let first = queue.recv().unwrap();
    assert_eq!(first, UrgentPages { block: RAM, run: PageRun::new(PageIndex(0), PageCount(1)) });
    assert!(!dirty.block(RAM).is_owed(PageIndex(0)));
    assert_eq!(server.serve(None, pages(late, 1)).unwrap(), Served::Pages(PageCount(1)));
}

#[test]
fn a_lost_preempt_channel_is_an_error_and_a_new_one_begins_with_names() {
    let guest = guest();
    let dirty = owing_all(&guest);
    let (near, far) = Link::pair().unwrap();
    let mut server = UrgentServer::preempt(guest, Arc::clone(&dirty), Arc::default(), near.split().1);
    drop(far);
    let lost = server.serve(Some(&name("pc.ram")), pages(1, 1));
    assert!(matches!(lost, Err(RequestError::Transport(error)) if error.is_loss()));

    let (near, far) = Link::pair().unwrap();
    dirty.owe_all();
    server.reconnect(near.split().1);
    assert!(matches!(server.serve(None, pages(1, 1)), Err(RequestError::NoPreviousBlock)));
    server.serve(Some(&name("pc.ram")), pages(1, 1)).unwrap();
    drop(server);
    assert_eq!(records(far.split().0), [("pc.ram".to_owned(), 1, 1)]);
}

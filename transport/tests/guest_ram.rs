//! Guest pages straight through a link.

mod support;

use limosa_pages::{BlockName, ByteCount, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_ram::{Gather, RamBlock, Scatter};
use limosa_transport::{ConnectOptions, Failure, Link, Listener};
use std::thread;
use support::{each_socket, echo, failure};

/// 8 MiB: more than one call can move, so both sides have to go on after partial transfers.
const PAGES: u64 = 2048;

fn block() -> RamBlock {
    RamBlock::memfd(BlockName::new("pc.ram").unwrap(), PageCount(PAGES).bytes()).unwrap()
}

/// What a page of the source is full of: never zero, and different for pages that are near.
fn content(page: u64) -> u8 {
    (page % 251 + 1) as u8
}

fn filled() -> RamBlock {
    let block = block();
    for page in block.whole().pages() {
        block.copy_in(page.byte_offset(), &[content(page.0); PAGE_BYTES]);
    }
    block
}

/// Every other page, so that each is a vector of its own and the limit of vectors per call is passed.
fn scattered_runs() -> impl Iterator<Item = PageRun> {
    (0..PAGES).step_by(2).map(|page| PageRun::new(PageIndex(page), PageCount(1)))
}

fn assert_page(block: &RamBlock, page: u64, value: u8) {
    let mut bytes = [0; PAGE_BYTES];
    block.copy_out(PageIndex(page).byte_offset(), &mut bytes);
    assert!(bytes.iter().all(|byte| *byte == value), "page {page} should be full of {value}");
}

#[test]
fn pages_and_their_header_arrive_where_they_belong() {
    for (left, right) in each_socket() {
        let (source, destination) = (filled(), block());
        let (mut writer, mut reader) = (left.split().1, right.split().0);
        // Part of the message has been looked at before it is received.
        let mut header = [0; 6];
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut gather = Gather::new();
                gather.bytes(b"header");
                scattered_runs().for_each(|run| gather.pages(&source, run));
                writer.write_gather(&mut gather).unwrap();
                assert!(gather.is_empty());
            });
            assert_eq!(reader.peek(4).unwrap(), b"head");
            let mut scatter = Scatter::new();
            scatter.bytes(&mut header);
            scattered_runs().for_each(|run| scatter.pages(&destination, run));
            reader.read_scatter(&mut scatter).unwrap();
        });
        assert_eq!(&header, b"header");
        for page in (0..PAGES).step_by(2) {
            assert_page(&destination, page, content(page));
            assert_page(&destination, page + 1, 0);
        }
    }
}

#[test]
fn pages_go_through_a_command_too() {
    let (source, destination) = (filled(), block());
    let (mut reader, mut writer) = echo().split();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut gather = Gather::new();
            gather.pages(&source, source.whole());
            writer.write_gather(&mut gather).unwrap();
        });
        let mut scatter = Scatter::new();
        scatter.pages(&destination, destination.whole());
        reader.read_scatter(&mut scatter).unwrap();
    });
    (0..PAGES).for_each(|page| assert_page(&destination, page, content(page)));
}

#[test]
fn a_stream_that_ends_among_the_pages_says_how_much_is_missing() {
    for (mut left, mut right) in each_socket() {
        let destination = block();
        left.write_all(&[1; PAGE_BYTES]).unwrap();
        drop(left);
        let mut scatter = Scatter::new();
        scatter.pages(&destination, PageRun::new(PageIndex(0), PageCount(3)));
        let Failure::Ended { wanted } = failure(right.read_scatter(&mut scatter)) else { panic!("no end") };
        assert_eq!(ByteCount(wanted), PageCount(2).bytes());
    }
}

#[test]
fn pages_sent_without_a_copy_arrive_and_are_let_go() {
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let near = Link::connect(listener.local_address(), &ConnectOptions::default()).unwrap();
    let mut reader = listener.accept(None).unwrap().split().0;
    let (source, destination) = (filled(), block());
    let mut writer = near.split().1;
    writer.use_zero_copy().unwrap();
    let mut headers = [[0; 4]; 2];
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut gather = Gather::new();
            gather.header(|out| out.extend_from_slice(b"head"));
            scattered_runs().for_each(|run| gather.pages(&source, run));
            gather.bytes(b"tail");
            writer.write_gather(&mut gather).unwrap();
            writer.wait_zero_copy().unwrap();
        });
        let mut scatter = Scatter::new();
        let (head, tail) = headers.split_at_mut(1);
        scatter.bytes(&mut head[0]);
        scattered_runs().for_each(|run| scatter.pages(&destination, run));
        scatter.bytes(&mut tail[0]);
        reader.read_scatter(&mut scatter).unwrap();
    });
    assert_eq!(headers, [*b"head", *b"tail"]);
    scattered_runs().for_each(|run| assert_page(&destination, run.start.0, content(run.start.0)));
}

#[test]
fn pages_are_let_go_before_they_are_read_and_a_link_that_is_shut_down_takes_none() {
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let near = Link::connect(listener.local_address(), &ConnectOptions::default()).unwrap();
    let far = listener.accept(None).unwrap();
    let source = filled();
    let mut writer = near.split().1;
    writer.use_zero_copy().unwrap();
    let mut gather = Gather::new();
    gather.pages(&source, PageRun::new(PageIndex(0), PageCount(4)));
    writer.write_gather(&mut gather).unwrap();
    // Taken by the other side's kernel, if not by its reader.
    writer.wait_zero_copy().unwrap();
    writer.shutdown_handle().shutdown();
    gather.pages(&source, PageRun::new(PageIndex(0), PageCount(4)));
    assert!(matches!(writer.write_gather(&mut gather).unwrap_err().failure, Failure::ShutDown));
    drop(far);
}

#[test]
fn a_link_that_is_not_tcp_refuses_to_send_without_a_copy() {
    let mut writer = Link::pair().unwrap().0.split().1;
    let error = writer.use_zero_copy().unwrap_err();
    assert!(matches!(error.failure, Failure::NoZeroCopy(_)), "{error:?}");
}

//! Kernel ring: vectored sends from guest RAM and receives into it, over sockets, pipes and files.
#![allow(unsafe_code, reason = "asks which signals are pending")]

use limosa_pages::{BlockName, ByteCount, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_ram::{Gather, RamBlock, Scatter};
use nix::sys::signal::{SigSet, Signal};
use proptest::collection::vec;
use proptest::prelude::*;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

const PAGES: u64 = 1024;

/// A block whose pages are all different: each word holds its position.
fn numbered() -> RamBlock {
    let block = empty();
    let bytes: Vec<u8> = (0..PAGES * 512).flat_map(|word| word.to_le_bytes()).collect();
    block.copy_in(0, &bytes);
    block
}

fn empty() -> RamBlock {
    RamBlock::memfd(BlockName::new("ram").unwrap(), ByteCount(PAGES * PAGE_BYTES as u64)).unwrap()
}

fn run(start: u64, count: u64) -> PageRun {
    PageRun::new(PageIndex(start), PageCount(count))
}

fn contents(block: &RamBlock) -> Vec<u8> {
    let mut bytes = vec![0; block.length().0 as usize];
    block.copy_out(0, &mut bytes);
    bytes
}

/// Every second page, backwards, each behind a header of 8 bytes: nothing can be merged.
fn scattered<'a>(block: &'a RamBlock, gather: &mut Gather<'a>) {
    for page in (0..PAGES).rev().step_by(2) {
        gather.header(|out| out.extend_from_slice(&page.to_be_bytes()));
        gather.pages(block, run(page, 1));
    }
}

/// What `scattered` sends, made without it.
fn scattered_bytes(block: &RamBlock) -> Vec<u8> {
    let memory = contents(block);
    let page_of = |page: u64| memory[page as usize * PAGE_BYTES..][..PAGE_BYTES].iter().copied();
    (0..PAGES).rev().step_by(2).flat_map(|page| page.to_be_bytes().into_iter().chain(page_of(page))).collect()
}

#[test]
fn headers_and_pages_cross_a_socket_in_order_and_land_in_guest_memory() {
    let (source, target) = (numbered(), empty());
    let (left, right) = UnixStream::pair().unwrap();
    let mut headers = vec![[0; 8]; PAGES as usize / 2];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut gather = Gather::new();
            scattered(&source, &mut gather);
            assert_eq!(gather.remaining(), ByteCount(PAGES / 2 * (8 + PAGE_BYTES as u64)));
            while !gather.is_empty() {
                gather.write_to(left.as_fd()).unwrap();
            }
            assert_eq!(gather.write_to(left.as_fd()).unwrap(), 0, "nothing is left to send");
        });
        let mut scatter = Scatter::new();
        for (header, page) in headers.iter_mut().zip((0..PAGES).rev().step_by(2)) {
            scatter.bytes(header);
            scatter.pages(&target, run(page, 1));
        }
        while !scatter.is_empty() {
            assert_ne!(scatter.read_from(right.as_fd()).unwrap(), 0, "the stream ended early");
        }
    });
    let pages: Vec<u64> = headers.into_iter().map(u64::from_be_bytes).collect();
    assert_eq!(pages, (0..PAGES).rev().step_by(2).collect::<Vec<_>>());
    let (sent, received) = (contents(&source), contents(&target));
    for (page, (sent, received)) in sent.chunks(PAGE_BYTES).zip(received.chunks(PAGE_BYTES)).enumerate() {
        assert!(if page % 2 == 1 { sent == received } else { received == [0; PAGE_BYTES] }, "page {page}");
    }
}

#[test]
fn the_same_bytes_reach_a_file_and_come_back() {
    let (source, target) = (numbered(), empty());
    let mut file = tempfile::tempfile().unwrap();
    let mut gather = Gather::new();
    scattered(&source, &mut gather);
    while !gather.is_empty() {
        gather.write_to(file.as_fd()).unwrap();
    }
    file.rewind().unwrap();
    let mut written = Vec::new();
    file.read_to_end(&mut written).unwrap();
    assert_eq!(written, scattered_bytes(&source));

    file.rewind().unwrap();
    let mut scatter = Scatter::new();
    let (mut first, whole) = ([0; 8], target.whole());
    scatter.bytes(&mut first);
    scatter.pages(&target, whole);
    while scatter.read_from(file.as_fd()).unwrap() > 0 {}
    let left = ByteCount(whole.bytes().0 + 8 - written.len() as u64);
    assert_eq!(scatter.remaining(), left, "a stream that ends early leaves places empty");
    assert_eq!(contents(&target)[..written.len() - 8], written[8..]);
}

#[test]
fn one_call_takes_at_most_1024_vectors_and_neighbouring_pages_are_one() {
    let block = numbered();
    let file = tempfile::tempfile().unwrap();
    let mut gather = Gather::new();
    for page in 0..600 {
        gather.header(|out| out.push(1));
        gather.pages(&block, run(page, 1));
    }
    assert_eq!(gather.write_to(file.as_fd()).unwrap(), 512 * (1 + PAGE_BYTES));
    assert_eq!(gather.write_to(file.as_fd()).unwrap(), 88 * (1 + PAGE_BYTES));

    let mut gather = gather.reset();
    for page in 0..PAGES {
        gather.pages(&block, run(page, 1));
    }
    gather.pages(&block, run(0, PAGES));
    assert_eq!(gather.write_to(file.as_fd()).unwrap() as u64, 2 * block.length().0, "two vectors");
}

#[test]
fn a_full_pipe_keeps_the_progress_and_says_that_it_would_block() {
    let block = numbered();
    let (mut read_end, write_end) = std::io::pipe().unwrap();
    nix::fcntl::fcntl(&write_end, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    let mut gather = Gather::new();
    gather.bytes(b"head");
    gather.pages(&block, block.whole());
    let mut received = Vec::new();
    while !gather.is_empty() {
        match gather.write_to(write_end.as_fd()) {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                let mut some = vec![0; 50_001];
                let count = read_end.read(&mut some).unwrap();
                received.extend_from_slice(&some[..count]);
            }
        }
    }
    drop(write_end);
    read_end.read_to_end(&mut received).unwrap();
    assert_eq!((&received[..4], &received[4..]), (&b"head"[..], &contents(&block)[..]));
}

#[test]
fn a_peer_that_is_gone_is_an_error_and_no_signal() {
    let block = numbered();
    let (left, right) = UnixStream::pair().unwrap();
    drop(right);
    let mut gather = Gather::new();
    gather.pages(&block, block.whole());
    // A blocked signal stays pending also where it is ignored, as in this process, so it can be seen.
    SigSet::from(Signal::SIGPIPE).thread_block().unwrap();
    assert_eq!(gather.write_to(left.as_fd()).unwrap_err().kind(), ErrorKind::BrokenPipe);
    let mut pending: libc::sigset_t = *SigSet::empty().as_ref();
    // SAFETY: writes the set of this thread's pending signals into `pending`.
    assert_eq!(unsafe { libc::sigpending(&mut pending) }, 0);
    // SAFETY: the kernel has just written the set.
    let pending = unsafe { SigSet::from_sigset_t_unchecked(pending) };
    assert!(!pending.contains(Signal::SIGPIPE));
    assert_eq!(gather.remaining(), block.length(), "nothing was sent");
}

#[test]
fn the_end_of_a_stream_is_zero_bytes() {
    let block = empty();
    let (left, mut right) = UnixStream::pair().unwrap();
    right.write_all(&[5; 100]).unwrap();
    drop(right);
    let mut scatter = Scatter::new();
    scatter.pages(&block, run(1, 1));
    assert_eq!(scatter.read_from(left.as_fd()).unwrap(), 100);
    assert_eq!(scatter.read_from(left.as_fd()).unwrap(), 0);
    assert_eq!(scatter.remaining(), ByteCount(PAGE_BYTES as u64 - 100));
}

/// What a list is made of: a borrowed slice, a header, or a run of pages.
#[derive(Clone, Debug)]
enum Part {
    Bytes(Vec<u8>),
    Header(Vec<u8>),
    Pages(u64, u64),
}

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let part = prop_oneof![
        vec(any::<u8>(), 0..40).prop_map(Part::Bytes),
        vec(any::<u8>(), 0..40).prop_map(Part::Header),
        (0..PAGES - 4, 0..4_u64).prop_map(|(start, count)| Part::Pages(start, count)),
    ];
    vec(part, 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_pieces_taken_in_any_bites_are_their_concatenation(
        parts in parts(),
        bites in vec(1..9000_usize, 1..8),
    ) {
        let source = numbered();
        let memory = contents(&source);
        let mut gather = Gather::new();
        let mut expected = Vec::new();
        for part in &parts {
            match part {
                Part::Bytes(bytes) => {
                    gather.bytes(bytes);
                    expected.extend_from_slice(bytes);
                }
                Part::Header(bytes) => {
                    gather.header(|out| out.extend_from_slice(bytes));
                    expected.extend_from_slice(bytes);
                }
                Part::Pages(start, count) => {
                    gather.pages(&source, run(*start, *count));
                    expected.extend_from_slice(&memory[*start as usize * PAGE_BYTES..][..*count as usize * PAGE_BYTES]);
                }
            }
        }
        prop_assert_eq!(gather.remaining(), ByteCount(expected.len() as u64));

        let target = empty();
        let mut buffer = vec![0; 33];
        let mut scatter = Scatter::new();
        scatter.bytes(&mut buffer);
        scatter.pages(&target, run(10, 3));
        scatter.pages(&target, run(13, 200));

        let mut copied = Vec::new();
        for bite in bites.iter().cycle() {
            let mut some = vec![0; *bite];
            let count = gather.copy_to(&mut some);
            if count == 0 {
                break;
            }
            prop_assert_eq!(scatter.copy_from(&some[..count]), count);
            copied.extend_from_slice(&some[..count]);
        }
        prop_assert!(gather.is_empty());
        prop_assert_eq!(&copied, &expected);
        drop(scatter);
        let mut landed = buffer;
        landed.extend_from_slice(&contents(&target)[10 * PAGE_BYTES..]);
        prop_assert_eq!(&landed[..expected.len()], &expected[..]);
    }
}

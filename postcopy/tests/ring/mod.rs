//! What the tests of the kernel ring share: a guest that touches its memory, and a source that serves it.
#![allow(dead_code, reason = "each test takes what it needs")]

use limosa_pages::{BlockId, BlockName, ByteCount, DirtyMap, PAGE_BYTES, PageIndex, ReceivedMap};
use limosa_postcopy::{FaultHint, FaultReport, FaultThread, UffdSink, UrgentServer, UrgentStatistics, probe};
use limosa_ram::{GuestRam, RamBlock};
use limosa_transport::{Link, LinkReader};
use limosa_wire::{ReturnDecoder, ReturnMessage, Step};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

pub(crate) const BLOCK: BlockId = BlockId(0);

/// How the guest's memory is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Memfd,
    Anonymous,
}

pub(crate) const KINDS: [Kind; 2] = [Kind::Memfd, Kind::Anonymous];

/// Says that a test was left out because the machine lacks `what`; a failure where nothing may be left out.
pub(crate) fn left_out(what: &str, why: &dyn std::fmt::Display) {
    let required = std::env::var("LIMOSA_REQUIRE_ALL_RINGS").is_ok_and(|value| value == "1");
    assert!(!required, "kernel ring: {what} is required here: {why}");
    eprintln!("LEFT OUT: a test of the kernel ring needs {what}: {why}");
}

/// Whether this machine lets us handle faults; says so if not.
pub(crate) fn ready() -> bool {
    probe(&ram(Kind::Memfd, 1)).inspect_err(|why| left_out("userfaultfd", why)).is_ok()
}

pub(crate) fn ram(kind: Kind, pages: u64) -> GuestRam {
    let (name, length) = (BlockName::new("pc.ram").unwrap(), ByteCount(pages * PAGE_BYTES as u64));
    let block = match kind {
        Kind::Memfd => RamBlock::memfd(name, length),
        Kind::Anonymous => RamBlock::anonymous(name, length),
    };
    GuestRam::new(vec![block.unwrap()]).unwrap()
}

/// What the source's guest has in `page`: nothing in every eighth, so zero pages take part.
pub(crate) fn content(page: u64) -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    if !page.is_multiple_of(8) {
        for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&(page << 16 | at as u64 | 1 << 60).to_le_bytes());
        }
    }
    bytes
}

pub(crate) fn filled_source(pages: u64) -> GuestRam {
    let source = ram(Kind::Memfd, pages);
    (0..pages).for_each(|page| source.block(BLOCK).copy_in(page * PAGE_BYTES as u64, &content(page)));
    source
}

/// Reads a page as the guest does, through its own mapping: waits in the kernel while it is missing.
pub(crate) fn guest_reads(ram: &GuestRam, page: u64) -> [u8; PAGE_BYTES] {
    let block = ram.block(BLOCK);
    assert!(page < block.pages().0);
    let mut bytes = [0; PAGE_BYTES];
    let start = block.guest_address().as_ptr().wrapping_add(page as usize * PAGE_BYTES);
    for (at, byte) in bytes.iter_mut().enumerate() {
        // SAFETY: inside of the block, which is mapped while borrowed; a volatile read of a byte that anybody may write.
        *byte = unsafe { start.wrapping_add(at).read_volatile() };
    }
    bytes
}

/// Writes one byte as the guest does.
pub(crate) fn guest_writes(ram: &GuestRam, page: u64, value: u8) {
    let block = ram.block(BLOCK);
    assert!(page < block.pages().0);
    // SAFETY: inside of the block, which is mapped while borrowed; a volatile write to memory without references.
    unsafe { block.guest_address().as_ptr().wrapping_add(page as usize * PAGE_BYTES).write_volatile(value) }
}

/// A source in a thread: hears requests and answers on the preempt channel until the return path ends.
pub(crate) struct Source {
    thread: JoinHandle<UrgentStatistics>,
}

impl Source {
    pub(crate) fn start(ram: GuestRam, dirty: Arc<DirtyMap>, requests: LinkReader, preempt: Link) -> Self {
        let server = UrgentServer::preempt(ram, dirty, Arc::new(FaultHint::new()), preempt.split().1);
        Self { thread: std::thread::spawn(move || serve(server, requests)) }
    }

    pub(crate) fn finish(self) -> UrgentStatistics {
        self.thread.join().unwrap()
    }
}

/// Serves until the link ends.
fn serve(mut server: UrgentServer, requests: LinkReader) -> UrgentStatistics {
    for_each_message(requests, |message| match message {
        ReturnMessage::RequestPages { block, pages } => server.serve(block.as_ref(), pages).is_ok(),
        _ => true,
    });
    server.statistics()
}

/// Decodes messages until the link ends or `take` has enough.
pub(crate) fn for_each_message(mut link: LinkReader, mut take: impl FnMut(ReturnMessage) -> bool) {
    let (mut buffer, mut decoder) = (Vec::new(), ReturnDecoder::new());
    loop {
        while let Step::Item { used, item } = decoder.next(&buffer).unwrap() {
            buffer.drain(..used);
            if !take(item) {
                return;
            }
        }
        let mut bytes = [0; 4096];
        match link.read_some(&mut bytes) {
            Ok(count) if count > 0 => buffer.extend_from_slice(&bytes[..count]),
            _ => return,
        }
    }
}

/// A destination that listens: the sink, its threads, and a source that serves it.
pub(crate) struct Destination {
    pub(crate) ram: GuestRam,
    pub(crate) sink: Arc<UffdSink>,
    pub(crate) faults: FaultThread,
    pub(crate) reports: mpsc::Receiver<FaultReport>,
    pub(crate) source: Option<Source>,
}

impl Destination {
    /// Nothing received yet, no connection.
    pub(crate) fn listening(ram: GuestRam) -> Self {
        let received = Arc::new(ReceivedMap::empty(ram.layout()));
        Self::listening_with(ram, received)
    }

    pub(crate) fn listening_with(ram: GuestRam, received: Arc<ReceivedMap>) -> Self {
        let sink = Arc::new(UffdSink::listen(ram.clone(), received).unwrap());
        let (say, reports) = mpsc::channel();
        let report = move |report| {
            assert!(!matches!(report, FaultReport::Failed(_)), "{report:?}");
            // A test that is over hears no more.
            let _ = say.send(report);
        };
        let faults = FaultThread::start(Arc::clone(&sink), report).unwrap();
        Self { ram, sink, faults, reports, source: None }
    }

    /// Connects it with a source that owes `dirty`.
    pub(crate) fn connect(&mut self, source: &GuestRam, dirty: &Arc<DirtyMap>) {
        let (back, requests) = Link::pair().unwrap();
        let (near, far) = Link::pair().unwrap();
        self.source = Some(Source::start(source.clone(), Arc::clone(dirty), requests.split().0, far));
        self.faults.connect(back.split().1).unwrap();
        self.faults.receive(near.split().0).unwrap();
        self.faults.ask().unwrap();
    }

    /// Cuts both links and waits until nothing more comes. Returns what the source has measured.
    pub(crate) fn cut(&mut self) -> UrgentStatistics {
        self.faults.disconnect().unwrap();
        self.source.take().unwrap().finish()
    }
}

pub(crate) fn owing_all(ram: &GuestRam) -> Arc<DirtyMap> {
    let dirty = DirtyMap::clean(ram.layout());
    dirty.owe_all();
    Arc::new(dirty)
}

pub(crate) fn page(index: u64) -> PageIndex {
    PageIndex(index)
}

/// Memory of `count` huge pages of 2 MiB, if the machine has them to spare.
pub(crate) fn huge_ram(count: u64) -> Result<GuestRam, Box<dyn std::error::Error>> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::os::fd::AsRawFd;
    let length = ByteCount(count << 21);
    let file =
        memfd_create(c"limosa-test", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB)?;
    nix::unistd::ftruncate(&file, length.0 as i64)?;
    // Reserves the pages: a fault without one would kill the test.
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, length.0 as i64)?;
    nix::fcntl::fallocate(
        &file,
        nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE,
        0,
        length.0 as i64,
    )?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let block = RamBlock::file(BlockName::new("pc.ram")?, path.as_ref(), length)?;
    Ok(GuestRam::new(vec![block])?)
}

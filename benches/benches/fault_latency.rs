//! How long a guest waits for a page, against what the mechanism costs at least.
//!
//! Two processes, TCP over loopback, pages of 4 KiB in a memfd with two mappings. Three ways to get a page, in turns:
//!
//! * `bare`: one thread asks, receives into the alias and places the page. Nobody faults: the floor that the requirement names.
//! * `handler`: the same, in a thread that is told of faults by the kernel; measured by the thread that faults. The least
//!   that a fault can cost.
//! * `limosa`: the fault thread and the urgent server; measured by the thread that faults.
//!
//! Each idle, and beside a bulk connection that is never empty; what that one carried meanwhile is told, since a way that is
//! slower because it leaves the bulk more, or faster because it leaves it less, is not comparable. Run it with `cargo bench -p limosa-benches --bench
//! fault_latency`, on a quiet machine.
#![allow(unsafe_code, reason = "reads guest memory as a guest does")]

use limosa_pages::{
    BlockId, BlockName, ByteCount, DirtyMap, PAGE_BYTES, PageCount, PageIndex, PageRun, ReceivedMap,
};
use limosa_postcopy::{FaultHint, FaultReport, FaultThread, LatencyHold, UffdSink, UrgentServer};
use limosa_ram::{Gather, GuestRam, RamBlock, Scatter};
use limosa_transport::{Address, ConnectOptions, Link, LinkReader, LinkWriter, Listener, Role};
use limosa_wire::{ReturnDecoder, ReturnMessage, Step};
use std::error::Error;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use userfaultfd::{FeatureFlags, RegisterMode, Uffd, UffdBuilder};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// 64 MiB: more than the caches.
const PAGES: u64 = 16_384;
/// Pages asked for in each turn.
const FAULTS: u64 = 4000;
/// Turns of every way; the figures are medians of them.
const TURNS: usize = 7;
/// Bytes of a bulk write.
const BULK: usize = 512 << 10;
const BLOCK: BlockId = BlockId(0);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Bare,
    Handler,
    Limosa,
}

const WAYS: [Way; 3] = [Way::Bare, Way::Handler, Way::Limosa];

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, way, load, address] = arguments.as_slice()
        && mode == "source"
    {
        return source(way, load == "bulk", address);
    }
    let hold = LatencyHold::acquire();
    println!("processors kept awake: {}", if hold.is_some() { "yes" } else { "no" });
    for bulk in [false, true] {
        let mut figures: [Vec<Turn>; 3] = Default::default();
        for turn in 0..TURNS {
            for at in 0..WAYS.len() {
                let at = (at + turn) % WAYS.len();
                figures[at].push(measure(WAYS[at], bulk)?);
            }
        }
        println!(
            "\n{}, microseconds, medians of {TURNS} turns of {FAULTS} pages",
            if bulk { "beside bulk" } else { "idle" }
        );
        let floor = Turn::median(&figures[0]);
        for (way, turns) in WAYS.iter().zip(&figures) {
            let Turn { p50, p99, bulk } = Turn::median(turns);
            let name = format!("{way:?}").to_lowercase();
            println!(
                "  {name:8} p50 {p50:7.1} ({:4.2} of bare)   p99 {p99:7.1} ({:4.2})   bulk {bulk:4.2} GB/s",
                p50 / floor.p50,
                p99 / floor.p99
            );
        }
    }
    Ok(())
}

/// What one turn measured, or the medians of several.
struct Turn {
    /// Microseconds.
    p50: f64,
    /// Microseconds.
    p99: f64,
    /// GB/s on the bulk connection while pages were asked for.
    bulk: f64,
}

impl Turn {
    fn median(turns: &[Self]) -> Self {
        let of = |part: fn(&Self) -> f64| median(turns.iter().map(part));
        Self { p50: of(|turn| turn.p50), p99: of(|turn| turn.p99), bulk: of(|turn| turn.bulk) }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn ram() -> Outcome<GuestRam> {
    let block = RamBlock::memfd(BlockName::new("ram")?, ByteCount(PAGES * PAGE_BYTES as u64))?;
    block.preallocate(block.whole())?;
    Ok(GuestRam::new(vec![block])?)
}

/// One turn.
fn measure(way: Way, bulk: bool) -> Outcome<Turn> {
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse()?)?;
    let mut child = start_source(way, bulk, listener.local_address())?;
    let (requests, preempt, background) =
        (listener.accept(None)?, listener.accept(None)?, listener.accept(None)?);
    let stop = background.shutdown_handle();
    let drained = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&drained);
    let drain = std::thread::spawn(move || drain(background.split().0, &count));
    let ram = ram()?;
    let (before, began) = (drained.load(Ordering::Relaxed), Instant::now());
    let latencies = match way {
        Way::Bare => bare(&ram, requests),
        Way::Handler => handler(&ram, requests),
        Way::Limosa => limosa(&ram, requests, preempt),
    };
    let bulk = (drained.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64() / 1e9;
    stop.shutdown();
    drain.join().expect("the bulk reader ends");
    child.wait()?;
    let mut latencies = latencies?;
    latencies.sort_unstable();
    let at = |part: usize| latencies[(latencies.len() - 1) * part / 100].as_secs_f64() * 1e6;
    Ok(Turn { p50: at(50), p99: at(99), bulk })
}

fn start_source(way: Way, bulk: bool, address: &Address) -> Outcome<Child> {
    let program = std::env::current_exe()?;
    let load = if bulk { "bulk" } else { "idle" };
    Ok(Command::new(program).args(["source", &format!("{way:?}"), load, &address.to_string()]).spawn()?)
}

/// Pages in an order that no cache foresees, each once.
fn order() -> impl Iterator<Item = PageIndex> {
    (0..FAULTS).map(|at| PageIndex(at * 7919 % PAGES))
}

fn drain(mut link: LinkReader, drained: &AtomicU64) {
    let mut buffer = vec![0; 2 * BULK];
    while let Ok(count @ 1..) = link.read_some(&mut buffer) {
        drained.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// Reads a byte of every page as the guest does, and says how long each took.
fn touch_all(ram: &GuestRam) -> Vec<Duration> {
    let start = ram.block(BLOCK).guest_address().as_ptr();
    let touch = |page: PageIndex| {
        let begin = Instant::now();
        // SAFETY: the page is inside the block, which is mapped while borrowed; a volatile read of a byte.
        unsafe { start.wrapping_add(page.byte_offset() as usize).read_volatile() };
        begin.elapsed()
    };
    order().map(touch).collect()
}

/// A request and its answer with nothing around them, as both ends of the floor make them.
struct BarePages<'a> {
    ram: &'a GuestRam,
    reader: LinkReader,
    writer: LinkWriter,
    uffd: Uffd,
}

impl<'a> BarePages<'a> {
    fn new(ram: &'a GuestRam, link: Link, blocking: bool) -> Outcome<Self> {
        const FEATURES: u64 = 1 << 5 | 1 << 10; // Shared memory, missing and minor.
        let uffd = UffdBuilder::new()
            .user_mode_only(false)
            .non_blocking(!blocking)
            .require_features(FeatureFlags::from_bits_retain(FEATURES))
            .create()?;
        let block = ram.block(BLOCK);
        let (start, length) = (block.guest_address().as_ptr(), block.length().0 as usize);
        uffd.register_with_mode(start.cast(), length, RegisterMode::MISSING | RegisterMode::MINOR)?;
        let (reader, writer) = link.split();
        Ok(Self { ram, reader, writer, uffd })
    }

    fn fetch(&mut self, page: PageIndex) -> Outcome<()> {
        let block = self.ram.block(BLOCK);
        self.writer.write_all(&page.0.to_le_bytes())?;
        let mut scatter = Scatter::new();
        scatter.pages(block, PageRun::new(page, PageCount(1)));
        self.reader.read_scatter(&mut scatter)?;
        let address = block.guest_address().as_ptr().wrapping_add(page.byte_offset() as usize);
        self.uffd.r#continue(address.cast(), PAGE_BYTES, true)?;
        Ok(())
    }
}

fn bare(ram: &GuestRam, link: Link) -> Outcome<Vec<Duration>> {
    let mut pages = BarePages::new(ram, link, false)?;
    let mut fetch = |page| {
        let begin = Instant::now();
        pages.fetch(page)?;
        Ok(begin.elapsed())
    };
    order().map(&mut fetch).collect()
}

fn handler(ram: &GuestRam, link: Link) -> Outcome<Vec<Duration>> {
    let mut pages = BarePages::new(ram, link, true)?;
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| touch_all(ram));
        let start = ram.block(BLOCK).guest_address().as_ptr().addr();
        for _ in 0..FAULTS {
            let Some(userfaultfd::Event::Pagefault { addr, .. }) = pages.uffd.read_event()? else { continue };
            pages.fetch(PageIndex::containing((addr.addr() - start) as u64))?;
        }
        Ok(guest.join().expect("a guest that only reads"))
    })
}

fn limosa(ram: &GuestRam, requests: Link, preempt: Link) -> Outcome<Vec<Duration>> {
    let received = Arc::new(ReceivedMap::empty(ram.layout()));
    let sink = Arc::new(UffdSink::listen(ram.clone(), received)?);
    let faults = FaultThread::start(Arc::clone(&sink), |report| {
        if let FaultReport::Failed(failure) = report {
            panic!("{failure}");
        }
    })?;
    faults.connect(requests.split().1)?;
    faults.receive(preempt.split().0)?;
    faults.ask()?;
    let latencies = touch_all(ram);
    drop(faults);
    Ok(latencies)
}

/// The other process.
fn source(way: &str, bulk: bool, address: &str) -> Outcome<()> {
    let hold = LatencyHold::acquire();
    let address: Address = address.parse()?;
    let connect = |role| Link::connect(&address, &ConnectOptions { role, ..ConnectOptions::default() });
    let (requests, preempt, background) =
        (connect(Role::Main)?, connect(Role::Preempt)?, connect(Role::Multifd(0))?);
    let ram = ram()?;
    for page in 0..PAGES {
        ram.block(BLOCK).copy_in(page * PAGE_BYTES as u64, &[page as u8 | 1; PAGE_BYTES]);
    }
    let load = std::thread::spawn(move || {
        if bulk {
            push(background.split().1);
        } else {
            drain(background.split().0, &AtomicU64::new(0));
        }
    });
    if way == "Limosa" {
        serve_urgent(ram, requests.split().0, preempt.split().1)?;
    } else {
        serve_bare(&ram, requests);
    }
    load.join().expect("the load ends with its link");
    drop(hold);
    Ok(())
}

fn push(mut link: LinkWriter) {
    let bytes = vec![0x5a; BULK];
    while link.write_all(&bytes).is_ok() {}
}

fn serve_bare(ram: &GuestRam, link: Link) {
    let (mut reader, mut writer) = link.split();
    let mut number = [0; 8];
    while reader.read_exact(&mut number).is_ok() {
        let mut gather = Gather::new();
        gather.pages(ram.block(BLOCK), PageRun::new(PageIndex(u64::from_le_bytes(number)), PageCount(1)));
        if writer.write_gather(&mut gather).is_err() {
            return;
        }
    }
}

fn serve_urgent(ram: GuestRam, mut requests: LinkReader, preempt: LinkWriter) -> Outcome<()> {
    let dirty = Arc::new(DirtyMap::clean(ram.layout()));
    dirty.owe_all();
    let mut server = UrgentServer::preempt(ram, dirty, Arc::new(FaultHint::new()), preempt);
    let (mut decoder, mut bytes, mut buffer) = (ReturnDecoder::new(), Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = requests.read_some(&mut buffer) {
        bytes.extend_from_slice(&buffer[..count]);
        while let Step::Item { used, item } = decoder.next(&bytes)? {
            bytes.drain(..used);
            if let ReturnMessage::RequestPages { block, pages } = item {
                server.serve(block.as_ref(), pages)?;
            }
        }
    }
    Ok(())
}

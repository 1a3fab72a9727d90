//! How much memory a destination has in the end, against its source.

use crate::parameters::{Capabilities, Parameters};
use crate::ram::RamHandler;
use crate::savevm::{ChannelSync, LiveState, LoadSetup, ReceiveLinks, SaveSetup, SendLinks};
use crate::stream::{StreamReader, StreamWriter};
use limosa_multifd::{ReceiveConfig, ReceiveLink};
use limosa_pages::{BlockId, BlockName, ByteCount, DirtyMap, PAGE_BYTES, PageCount, PageIndex, PageRun};
use limosa_ram::{DirtyLog, DirtyLogError, GuestRam, Populated, RamBlock};
use limosa_transport::Link;
use limosa_wire::Features;
use parking_lot::Mutex;

const RAM: BlockId = BlockId(0);
/// Eight regions and a half.
const PAGES: u64 = 8 * 512 + 256;

/// What a page of the source is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Page {
    Untouched,
    Zero,
    Content,
}

/// The log of a guest that stands still.
struct Still(GuestRam);

impl DirtyLog for Still {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn populated(&mut self, block: BlockId) -> Result<Populated, DirtyLogError> {
        Ok(self.0.block(block).populated())
    }

    fn sync_into(&mut self, _: &DirtyMap) -> Result<PageCount, DirtyLogError> {
        Ok(PageCount(0))
    }

    fn clear_before_read(&mut self, _: BlockId, _: PageRun) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }
}

fn memory() -> GuestRam {
    let block = RamBlock::memfd(BlockName::new("ram").unwrap(), PageCount(PAGES).bytes()).unwrap();
    GuestRam::new(vec![block]).unwrap()
}

fn guest(kind: impl Fn(u64) -> Page) -> GuestRam {
    let ram = memory();
    for page in 0..PAGES {
        let byte = match kind(page) {
            Page::Untouched => continue,
            Page::Zero => 0,
            Page::Content => page as u8 | 1,
        };
        ram.block(RAM).copy_in(PageIndex(page).byte_offset(), &[byte; PAGE_BYTES]);
    }
    ram
}

/// Moves `source` through `channels` multifd channels, or the main channel if there are none.
fn migrate(source: &GuestRam, channels: u8, features: Features) -> GuestRam {
    let destination = memory();
    let (near, far) = Link::pair().unwrap();
    let mut pairs = Vec::new();
    pairs.resize_with(usize::from(channels), || Link::pair().unwrap());
    let (here, there): (Vec<Link>, Vec<Link>) = pairs.into_iter().unzip();
    let sync = ChannelSync::PerRound;
    let receive = ReceiveLinks {
        links: there.into_iter().map(|link| ReceiveLink::new(link.split().0)).collect(),
        config: ReceiveConfig::default(),
        sync,
    };
    let send =
        SendLinks { links: here.into_iter().map(|link| link.split().1).collect(), uuid: Some([0; 16]), sync };
    std::thread::scope(|scope| {
        let arrives = destination.clone();
        scope.spawn(move || {
            let mut handler = RamHandler::new(arrives, None);
            let mut input = StreamReader::new(far.split().0);
            let setup = LoadSetup { features, channels: Mutex::new((channels > 0).then_some(receive)) };
            handler.load_setup(&setup).unwrap();
            handler.load_state(&mut input).unwrap();
            handler.load_state(&mut input).unwrap();
            handler.load_complete().unwrap();
        });
        let mut handler = RamHandler::new(source.clone(), Some(Box::new(Still(source.clone()))));
        let mut out = StreamWriter::new(near.split().1);
        let setup = SaveSetup {
            capabilities: &Capabilities::default(),
            parameters: &Parameters::default(),
            features,
            channels: Mutex::new((channels > 0).then_some(send)),
        };
        handler.save_setup(&setup, &mut out).unwrap();
        handler.sync().unwrap();
        handler.save_live_complete_precopy(&mut out).unwrap();
        out.flush().unwrap();
        // Its channels must not end before the other side has read what they carry.
        let _ = out.finish();
    });
    destination
}

fn pages(ram: &GuestRam) -> u64 {
    ram.block(RAM).populated().pages().0
}

fn assert_same(source: &GuestRam, destination: &GuestRam, what: &str) {
    let mut bytes = [[0; PAGE_BYTES]; 2];
    for page in 0..PAGES {
        let offset = PageIndex(page).byte_offset();
        source.block(RAM).copy_out(offset, &mut bytes[0]);
        destination.block(RAM).copy_out(offset, &mut bytes[1]);
        assert!(bytes[0] == bytes[1], "{what}: page {page}");
    }
}

/// Moves a guest in every way, and compares the memory of both sides.
fn assert_no_larger(kind: impl Fn(u64) -> Page) {
    for channels in [0, 1, 3] {
        for features in [Features::POPULATED_REPORT, Features::NONE] {
            let what = format!("{channels} channels, features: {features}");
            let source = guest(&kind);
            let touched = pages(&source);
            let destination = migrate(&source, channels, features);
            let resident = pages(&destination);
            assert!(resident * 50 <= touched * 51, "{what}: {resident} pages for {touched}");
            assert_same(&source, &destination, &what);
        }
    }
}

fn every(step: u64, kind: Page) -> impl Fn(u64) -> Page {
    move |page| if page % step == 0 { kind } else { Page::Untouched }
}

#[test]
fn a_full_guest_needs_no_more_memory_than_before() {
    assert_no_larger(|_| Page::Content);
}

#[test]
fn a_page_in_each_region_stays_a_page() {
    assert_no_larger(every(512, Page::Content));
}

#[test]
fn sixteen_pages_in_each_region_stay_sixteen() {
    assert_no_larger(every(32, Page::Content));
    assert_no_larger(|page| if page % 512 < 16 { Page::Content } else { Page::Untouched });
}

#[test]
fn a_tenth_of_all_pages_stays_a_tenth() {
    let random = |page: u64| page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    assert_no_larger(|page| if random(page) % 10 == 0 { Page::Content } else { Page::Untouched });
}

#[test]
fn regions_with_holes_at_their_end_keep_them() {
    for content in [128, 400, 501, 502, 511] {
        assert_no_larger(|page| if page % 512 < content { Page::Content } else { Page::Untouched });
    }
}

#[test]
fn zero_pages_that_the_guest_touched_get_no_memory() {
    for channels in [0, 2] {
        let source = guest(|_| Page::Zero);
        assert_eq!(pages(&source), PAGES);
        assert_eq!(pages(&migrate(&source, channels, Features::POPULATED_REPORT)), 0);
    }
}

#[test]
fn content_among_zero_pages_that_were_touched_makes_nothing_larger() {
    assert_no_larger(|page| if page % 5 == 0 { Page::Content } else { Page::Zero });
}

#[test]
fn a_full_guest_that_is_reported_arrives_in_whole_regions() {
    let source = guest(|page| if page % 512 == 7 { Page::Content } else { Page::Zero });
    let destination = migrate(&source, 0, Features::POPULATED_REPORT);
    assert_eq!(pages(&destination), PAGES, "allocated with the first content, as the source has it");
}

#[test]
fn a_report_of_many_regions_comes_in_pieces() {
    let name = BlockName::new("large").unwrap();
    let block = RamBlock::memfd(name, ByteCount(40 << 30)).unwrap();
    let ram = GuestRam::new(vec![block]).unwrap();
    ram.block(RAM).copy_in(39 << 30, &[1]);
    let mut report = super::PopulationReport::default();
    report.add(&ram, RAM, &ram.block(RAM).populated());
    let (mut bytes, mut encoder) = (Vec::new(), limosa_wire::RamEncoder::new());
    report.encode(&ram, &mut encoder, &mut bytes);
    let mut decoder = limosa_wire::RamDecoder::new(limosa_wire::RamContext::new());
    let (mut at, mut reported) = (0, Vec::new());
    while let Ok(limosa_wire::Step::Item { used, item }) = decoder.next(&bytes[at..]) {
        let limosa_wire::RamItem::Populated { start, pages } = item else { panic!("{item:?}") };
        let region = start.offset >> 21;
        reported.extend(pages.iter().zip(region..).filter(|(pages, _)| **pages > 0).map(|(_, at)| at));
        at += used;
    }
    assert_eq!((at, reported), (bytes.len(), vec![39 << 9]));
}

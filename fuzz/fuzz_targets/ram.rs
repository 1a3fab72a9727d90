//! A RAM channel, plain and with all optional fields: no bytes panic, block lists stay within their limit and
//! encode back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use limosa_pages::{BlockLayout, BlockName, ByteCount, PageSize, RamLayout};
use limosa_wire::{MAX_POPULATED_REGIONS, MAX_RAM_BLOCKS, POPULATED_REGION, RamContext, RamDecoder, RamEncoder, RamItem, Step};

fuzz_target!(|input: (u8, &[u8])| {
    let (options, bytes) = input;
    let mut decoder = RamDecoder::new(context(options));
    let mut at = 0;
    while at <= bytes.len() {
        let rest = &bytes[at..];
        match decoder.next(rest) {
            Ok(Step::Need(total)) => {
                assert!(total > rest.len());
                // The longest block is name, length, page size, address and mapped-ram header.
                assert!(total <= 8 + MAX_RAM_BLOCKS * (256 + 8 + 8 + 8 + 28));
                break;
            }
            Ok(Step::Item { used, item }) => {
                assert!(used > 0);
                at += used + behind(&item, &rest[..used], decoder.block_name());
            }
            Err(error) => {
                assert!(error.at() < rest.len());
                break;
            }
        }
    }
});

fn context(options: u8) -> RamContext {
    let mut context = RamContext::new();
    if options & 1 != 0 {
        let name = BlockName::new("hp").expect("short");
        let page_size = PageSize::new(2 << 20).expect("2 MiB");
        let block = BlockLayout { name, length: ByteCount(2 << 20), page_size };
        context = context.with_postcopy(&RamLayout::new(vec![block]).expect("one block"));
    }
    if options & 2 != 0 {
        context = context.with_guest_addresses();
    }
    if options & 4 != 0 {
        context = context.with_mapped_ram();
    }
    context
}

/// Checks `item` and says how many bytes behind it are the caller's.
fn behind(item: &RamItem, bytes: &[u8], block: Option<&str>) -> usize {
    match item {
        RamItem::Setup(setup) => {
            assert!(setup.blocks.len() <= MAX_RAM_BLOCKS);
            let mut out = Vec::new();
            RamEncoder::new().setup(setup, &mut out);
            assert_eq!(out, bytes);
            0
        }
        RamItem::MappedBlock(block) => {
            assert!(block.mapped_resume_offset().is_some());
            0
        }
        RamItem::Page(page) => {
            assert!(block.is_some() && page.offset.is_multiple_of(4096));
            4096
        }
        RamItem::Zero(page) => {
            assert!(block.is_some() && page.offset.is_multiple_of(4096));
            0
        }
        RamItem::Xbzrle { length, .. } => {
            assert!(block.is_some() && *length <= 4096);
            usize::from(*length)
        }
        RamItem::Populated { start, pages } => {
            assert!(block.is_some() && start.offset.is_multiple_of(2 << 20));
            assert!((1..=MAX_POPULATED_REGIONS).contains(&pages.len()));
            assert!(pages.iter().all(|&pages| u64::from(pages) <= POPULATED_REGION.0));
            0
        }
        RamItem::MappedSetup { .. } | RamItem::MultifdFlush | RamItem::EndOfSection => 0,
    }
}

//! What sockets and memory can do at all.

use super::pair::{Pair, RAM};
use super::{ChannelBenchError, transfer};
use limosa_pages::{ByteCount, PageCount, PageIndex, PageRun};
use limosa_ram::{Gather, RamBlock, Scatter};
use limosa_transport::{LinkReader, LinkWriter};
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

/// Sent and received with one call, if the kernel takes it: as much as a packet has.
const PIECE: PageCount = PageCount(128);

impl Pair {
    /// The time that all bytes of the source take over `connections`, each sending its share of the pieces.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn bare(&self, connections: u8) -> Result<Duration, ChannelBenchError> {
        let (writers, readers) = transfer::connect(connections)?;
        let (source, destination) = (self.source.block(RAM), self.destination.block(RAM));
        let began = Instant::now();
        thread::scope(|scope| {
            let step = u64::from(connections);
            let mut ends = Vec::new();
            for (first, (writer, reader)) in (0..).zip(writers.into_iter().zip(readers)) {
                ends.push(scope.spawn(move || send(writer, source, first, step)));
                ends.push(scope.spawn(move || receive(reader, destination, first, step)));
            }
            let ends = ends
                .into_iter()
                .map(|end| end.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            ends.collect::<Result<(), _>>()
        })?;
        Ok(began.elapsed())
    }
}

fn send(mut writer: LinkWriter, block: &RamBlock, first: u64, step: u64) -> Result<(), ChannelBenchError> {
    let mut spare = Gather::new();
    for run in pieces(block, first, step) {
        let mut gather = std::mem::take(&mut spare).reset();
        gather.pages(block, run);
        writer.write_gather(&mut gather)?;
        spare = gather.reset();
    }
    Ok(())
}

fn receive(mut reader: LinkReader, block: &RamBlock, first: u64, step: u64) -> Result<(), ChannelBenchError> {
    let mut spare = Scatter::new();
    for run in pieces(block, first, step) {
        let mut scatter = std::mem::take(&mut spare).reset();
        scatter.pages(block, run);
        reader.read_scatter(&mut scatter)?;
        spare = scatter.reset();
    }
    Ok(())
}

fn pieces(block: &RamBlock, first: u64, step: u64) -> impl Iterator<Item = PageRun> {
    let pages = block.pages().0;
    let starts = (first * PIECE.0..pages).step_by((step * PIECE.0) as usize);
    starts.map(move |start| PageRun::new(PageIndex(start), PageCount(PIECE.0.min(pages - start))))
}

/// Bytes per second that `threads` read from memory of `bytes`, each its share, with nothing but a sum of all words.
pub fn read_bandwidth(bytes: ByteCount, threads: usize) -> f64 {
    // Written, so that it is no shared zero page.
    let words = vec![1_u64; (bytes.0 / 8) as usize];
    let began = Instant::now();
    thread::scope(|scope| {
        for share in words.chunks(words.len().div_ceil(threads)) {
            scope.spawn(move || black_box(share.iter().fold(0, |sum: u64, word| sum.wrapping_add(*word))));
        }
    });
    bytes.0 as f64 / began.elapsed().as_secs_f64()
}

//! The source through multifd channels.

use super::ChannelBenchError;
use super::pair::{Pair, RAM};
use limosa_multifd::{
    Codec, PageSink, RamSink, ReceiveChannels, ReceiveConfig, ReceiveLink, SendBatch, SendChannels,
    SendConfig,
};
use limosa_pages::{DirtyMap, PageBatch, PageCount, PageIndex, PageRun, PageScheduler};
use limosa_ram::REGION;
use limosa_transport::{Address, ConnectOptions, Link, LinkReader, LinkWriter, Listener};
use limosa_wire::multifd::PACKET_PAGES;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a transfer is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// How many channels.
    pub channels: u8,
    /// How packets are made.
    pub codec: Codec,
}

impl Pair {
    /// The time from the first batch until the last page is in the destination.
    ///
    /// # Errors
    /// What a channel says.
    pub fn transfer(&self, setting: Setting) -> Result<Duration, ChannelBenchError> {
        let (writers, readers) = connect(setting.channels)?;
        let sink = RamSink::new(self.destination.clone());
        // As the engine of the destination is told.
        let regions = self.source.block(RAM).populated().by_region(self.source.block(RAM).pages());
        for (region, &populated) in (0..).zip(&regions) {
            let start = PageIndex(region * REGION.0);
            sink.preallocation().expect(RAM, start, PageCount(u64::from(populated)));
        }
        let sink = Arc::new(sink);
        let pages: Arc<dyn PageSink> = Arc::clone(&sink) as Arc<_>;
        let links = readers.into_iter().map(ReceiveLink::new).collect();
        let config = ReceiveConfig { compression: setting.codec.compression(), ..ReceiveConfig::default() };
        let receive = ReceiveChannels::new(links, pages, config)?;
        let config = SendConfig { codec: setting.codec, ..SendConfig::default() };
        let mut send = SendChannels::new(writers, self.source.clone(), config)?;
        send.sync()?;
        receive.wait_sync()?;
        let began = Instant::now();
        let ahead = sink.allocate_ahead()?;
        self.submit_all(&mut send)?;
        send.sync()?;
        receive.wait_sync()?;
        let took = began.elapsed();
        drop(ahead);
        send.close()?;
        receive.close()?;
        Ok(took)
    }

    /// All pages in address order, those never touched as such: what the engine does in its first round.
    fn submit_all(&self, send: &mut SendChannels) -> Result<(), ChannelBenchError> {
        let layout = self.source.layout();
        let (owed, populated) = (DirtyMap::clean(layout), DirtyMap::clean(layout));
        owed.owe_all();
        self.source.block(RAM).populated().owe_into(populated.block(RAM));
        let (mut scheduler, mut claimed) = (PageScheduler::new(), PageBatch::default());
        let mut batch = SendBatch::new(RAM);
        while scheduler.next_batch(&owed, PageCount(PACKET_PAGES as u64), &mut claimed) {
            batch.clear();
            for &run in &claimed.runs {
                let mut rest = run;
                while !rest.is_empty() {
                    let touched = populated.block(RAM).is_owed(rest.start);
                    let alike = |page: &_| populated.block(RAM).is_owed(*page) == touched;
                    let part =
                        PageRun::new(rest.start, PageCount(rest.pages().take_while(alike).count() as u64));
                    rest = PageRun::new(part.end(), rest.count - part.count);
                    if touched { &mut batch.content } else { &mut batch.untouched }.push(part);
                }
            }
            send.submit(&mut batch)?;
        }
        Ok(())
    }
}

/// Both ends of so many connections over TCP on this host.
pub(super) fn connect(connections: u8) -> Result<(Vec<LinkWriter>, Vec<LinkReader>), ChannelBenchError> {
    let any: Address = "tcp:127.0.0.1:0".parse().expect("an address");
    let listener = Listener::bind(&any)?;
    let mut ends = (Vec::new(), Vec::new());
    for _ in 0..connections {
        let near = Link::connect(listener.local_address(), &ConnectOptions::default())?;
        let far = listener.accept(None)?;
        ends.0.push(near.split().1);
        ends.1.push(far.split().0);
    }
    Ok(ends)
}

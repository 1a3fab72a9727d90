//! The multifd channels as the sending half sees them: batches out, and in line with the main channel at the right time.

use super::counters::{RamCounters, add};
use crate::error::SaveFault;
use crate::parameters::ZeroPageDetection;
use crate::savevm::{ChannelSync, SaveSetup, SendLinks};
use crate::stream::{PUSH_QUEUE, StreamWriter};
use limosa_multifd::{ChannelStatistics, SendBatch, SendChannels, SendConfig, ZeroDetection};
use limosa_pages::{BlockId, ByteCount, PageCount, PageRun};
use limosa_ram::GuestRam;
use limosa_wire::RamEncoder;

/// Pages of a packet: 128 x 4 KiB = 512 KiB, what a QEMU accepts (wire 4.4).
pub(super) const PACKET_PAGES: PageCount = PageCount(128);

/// How the channels of one outgoing migration are made, at its start and after every loss.
#[derive(Clone, Copy)]
pub(super) struct ChannelSettings(SendConfig);

/// The channels of one outgoing migration.
pub(super) struct Channels {
    pool: SendChannels,
    batch: SendBatch,
    sync: ChannelSync,
    /// Pages were submitted after the last synchronisation point.
    racing: bool,
    /// Zero pages that left on the main channel.
    zero_on_main: PageCount,
    /// Pages with and without content that are in the counters already.
    counted: (PageCount, PageCount),
    /// What the channels of lost connections had done.
    earlier: Vec<ChannelStatistics>,
}

impl ChannelSettings {
    /// As the user has set them.
    pub(super) fn of(setup: &SaveSetup<'_>) -> Self {
        let zero_detection = match setup.parameters.zero_page_detection {
            ZeroPageDetection::Multifd => ZeroDetection::Multifd,
            // In the legacy mode none is left to find.
            ZeroPageDetection::Legacy | ZeroPageDetection::None => ZeroDetection::None,
        };
        let codec = setup.parameters.multifd_codec;
        // What leaves as zero on the main channel would stay in the cache of the others as what it was.
        let delta_cache = match setup.parameters.zero_page_detection {
            ZeroPageDetection::Legacy => ByteCount(0),
            ZeroPageDetection::Multifd | ZeroPageDetection::None => setup.parameters.xbzrle_cache_size,
        };
        let codec_workers = setup.parameters.codec_workers;
        let zero_copy = setup.capabilities.zero_copy_send;
        Self(SendConfig { uuid: None, codec, zero_detection, delta_cache, codec_workers, zero_copy })
    }

    /// The same for a guest that has moved: what it holds there is dropped or is not sent again.
    pub(super) fn without_deltas(self) -> Self {
        Self(SendConfig { delta_cache: ByteCount(0), ..self.0 })
    }
}

impl Channels {
    /// Starts channels on `links`, in the place of others that had done what is in `earlier`.
    pub(super) fn begin(
        ram: &GuestRam,
        links: SendLinks,
        settings: ChannelSettings,
        earlier: Vec<ChannelStatistics>,
    ) -> Result<Self, SaveFault> {
        let SendLinks { links, uuid, sync } = links;
        Ok(Self {
            pool: SendChannels::new(links, ram.clone(), SendConfig { uuid, ..settings.0 })?,
            batch: SendBatch::new(BlockId(0)),
            sync,
            racing: false,
            zero_on_main: PageCount(0),
            counted: (PageCount(0), PageCount(0)),
            earlier,
        })
    }

    /// Begins a packet of pages of `block`.
    pub(super) fn begin_packet(&mut self, block: BlockId) {
        self.batch.clear();
        self.batch.block = block;
    }

    /// Adds pages to be read when their channel is free for them.
    pub(super) fn add_content(&mut self, run: PageRun) {
        match self.batch.content.last_mut() {
            Some(last) if last.end() == run.start => last.count += run.count,
            _ => self.batch.content.push(run),
        }
    }

    /// Adds pages that were never touched.
    pub(super) fn add_untouched(&mut self, run: PageRun) {
        self.batch.untouched.push(run);
    }

    /// Notes zero pages that leave on the main channel instead.
    pub(super) fn count_zero_on_main(&mut self, pages: PageCount) {
        self.zero_on_main += pages;
        self.racing = true;
    }

    /// Hands the packet to whichever channel is free.
    pub(super) fn submit(&mut self, counters: &RamCounters) -> Result<(), SaveFault> {
        self.racing |= self.batch.pages() > PageCount(0);
        self.pool.submit(&mut self.batch)?;
        self.count(counters);
        Ok(())
    }

    /// Ends a round, where that is the mode: what was sent so far is in place before anything that follows (I5).
    pub(super) fn end_round(
        &mut self,
        encoder: &mut RamEncoder,
        out: &mut StreamWriter,
        counters: &RamCounters,
    ) -> Result<(), SaveFault> {
        if self.sync == ChannelSync::PerRound && self.racing {
            encoder.multifd_flush(out.buffer());
            self.bring_into_line(out, counters)?;
        }
        Ok(())
    }

    /// After the end of a section, where that is the mode.
    pub(super) fn end_section(
        &mut self,
        out: &mut StreamWriter,
        counters: &RamCounters,
    ) -> Result<(), SaveFault> {
        if self.sync == ChannelSync::PerSection {
            self.bring_into_line(out, counters)?;
        }
        Ok(())
    }

    /// The guest moves: the versions that the destination had of its pages are dropped there, and queues are kept short. No
    /// channel may send a page before the next synchronisation point: a destination that still drops what is stale, and does
    /// not listen yet, would drop the page too (I5).
    pub(super) fn begin_postcopy(&mut self) {
        self.racing = true;
        self.pool.forget_versions();
        self.pool.limit_queues(PUSH_QUEUE);
    }

    /// The first synchronisation point comes with the next section: no channel may send a page before it.
    pub(super) fn open(&mut self) {
        self.racing = true;
    }

    /// Whether no page is under way that a later one could overtake.
    pub(super) fn are_in_line(&self) -> bool {
        !self.racing
    }

    /// Bytes on all channels so far.
    pub(super) fn bytes(&self) -> ByteCount {
        self.pool.statistics().iter().map(|channel| channel.bytes).sum()
    }

    fn bring_into_line(&mut self, out: &mut StreamWriter, counters: &RamCounters) -> Result<(), SaveFault> {
        // The mark must be on its way before the channels are free to go on.
        out.flush()?;
        self.pool.sync()?;
        counters.show_choices(self.pool.choices());
        self.racing = false;
        self.count(counters);
        Ok(())
    }

    /// Shows what the channels have counted. They lag behind the coordinator by what is queued.
    fn count(&mut self, counters: &RamCounters) {
        let channels = self.pool.statistics();
        let normal: PageCount = channels.iter().map(|channel| channel.normal).sum();
        let zero = channels.iter().map(|channel| channel.zero).sum::<PageCount>() + self.zero_on_main;
        add(&counters.normal, (normal - self.counted.0).0);
        add(&counters.zero, (zero - self.counted.1).0);
        self.counted = (normal, zero);
        counters.show_channels(self.statistics());
    }

    /// What the channels have done, together with those that were lost.
    pub(super) fn statistics(&self) -> Vec<ChannelStatistics> {
        let mut channels = self.pool.statistics();
        for (channel, earlier) in channels.iter_mut().zip(&self.earlier) {
            *channel += *earlier;
        }
        channels
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::{Capabilities, Parameters};
    use crate::ram::RamHandler;
    use crate::savevm::{Budget, LiveState};
    use limosa_pages::{BlockName, PAGE_BYTES};
    use limosa_ram::RamBlock;
    use limosa_ram::dirty_log::FakeDirtyLog;
    use limosa_transport::Link;
    use std::time::{Duration, Instant};

    /// A FLUSH record and the end of the section.
    const END_OF_ROUND: [u8; 16] = [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];

    /// RAM of one page that leaves on one channel, set up for a peer with these features.
    fn handler(features: limosa_wire::Features) -> (RamHandler, StreamWriter, [Link; 2]) {
        let block = RamBlock::memfd(BlockName::new("ram").unwrap(), ByteCount(PAGE_BYTES as u64)).unwrap();
        block.copy_in(0, &[1; PAGE_BYTES]);
        let ram = GuestRam::new(vec![block]).unwrap();
        let log = FakeDirtyLog::new(ram.layout());
        let mut handler = RamHandler::new(ram, Some(Box::new(log)));
        let (near, main) = Link::pair().unwrap();
        let mut out = StreamWriter::new(near.split().1);
        // What one channel says fits into its socket unread.
        let (near, far) = Link::pair().unwrap();
        let links = SendLinks { links: vec![near.split().1], uuid: None, sync: ChannelSync::PerRound };
        let setup = SaveSetup {
            capabilities: &Capabilities { multifd: true, ..Capabilities::default() },
            parameters: &Parameters::default(),
            features,
            channels: parking_lot::Mutex::new(Some(links)),
        };
        handler.save_setup(&setup, &mut out).unwrap();
        (handler, out, [main, far])
    }

    #[test]
    fn a_barrier_behind_the_package_comes_before_the_first_page_of_the_push() {
        let (mut handler, _out, _far) = handler(limosa_wire::Features::POSTCOPY_CHANNELS);
        handler.sync().unwrap();
        assert!(!handler.is_racing());
        handler.begin_postcopy();
        assert!(handler.is_racing(), "a destination that does not listen yet would drop what comes");
    }

    #[test]
    fn a_slice_that_is_used_up_with_the_last_page_ends_the_round_all_the_same() {
        let (mut handler, mut out, [mut main, _far]) = handler(limosa_wire::Features::NONE);
        handler.sync().unwrap();
        let mut nothing_left = Budget::new(ByteCount(0), Duration::ZERO, Instant::now());
        handler.save_live_iterate(&mut out, &mut nothing_left).unwrap();
        assert_eq!(handler.state_pending(), ByteCount(0));
        out.finish().unwrap();
        let mut said = Vec::new();
        let mut chunk = [0; 4096];
        while let count @ 1.. = main.read_some(&mut chunk).unwrap() {
            said.extend_from_slice(&chunk[..count]);
        }
        assert!(said.ends_with(&END_OF_ROUND), "the next round would race this one: {said:02x?}");
    }
}

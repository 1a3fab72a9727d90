//! The sending half once the guest has moved: what is stale there, and the pages that are still here.
//!
//! What is owed is shared with whoever serves requests: both claim pages from one bitmap, so each leaves once (I1, I4).

use super::super::counters::add;
use super::{BATCH_PAGES, Channels, PACKET_PAGES, Part, RamSave};
use crate::error::SaveFault;
use crate::savevm::SendLinks;
use crate::stream::StreamWriter;
use crossbeam_channel::Receiver;
use limosa_pages::{
    BlockId, ByteCount, DirtyBitmap, DirtyMap, PageCount, PageIndex, PageRun, PageSize, RamLayout,
    ReceivedMap, Urgency,
};
use limosa_postcopy::{FaultHint, UrgentPages};
use limosa_ram::DirtyLog;
use limosa_wire::{Command, DiscardRange, MAX_DISCARD_RANGES};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Pages of a bite of the push where urgent pages leave on the same connection: 16 x 4 KiB = 64 KiB. At 1 GB/s that is
/// 66 microseconds, which is what a fault takes anyway; larger bites push a little faster and delay every fault.
const BITE_PAGES: PageCount = PageCount(16);

/// Pages of a packet of the push: 32 x 4 KiB = 128 KiB. A page that somebody comes to need is often in a packet that waits for
/// its channel.
const PUSH_PACKET_PAGES: PageCount = PageCount(32);

/// How pages leave that somebody waits for, as far as the push must know.
#[derive(Debug)]
pub(crate) struct UrgentPath {
    /// Where the guest faulted last.
    pub(crate) hint: Arc<FaultHint>,
    /// Claimed pages to be sent on the main channel; `None` if they have one of their own.
    pub(crate) claimed: Option<Receiver<UrgentPages>>,
}

impl RamSave {
    /// Brings the multifd channels into line, where there are any: the body of a section (wire 12).
    pub(in crate::ram) fn write_barrier(&mut self, out: &mut StreamWriter) -> Result<(), SaveFault> {
        let in_line = match &mut self.channels {
            Some(channels) => channels.end_round(&mut self.encoder, out, &self.counters),
            None => Ok(()),
        };
        self.end_body(in_line, out)
    }

    /// Ends the body of a section, as far as it was `written`. A lost channel breaks it off, and leaves the main stream to
    /// go on.
    pub(in crate::ram) fn end_body(
        &mut self,
        written: Result<(), SaveFault>,
        out: &mut StreamWriter,
    ) -> Result<(), SaveFault> {
        match written {
            Ok(()) => self.write_end(out),
            Err(SaveFault::Channel(_)) => {
                self.encoder.end_of_section(out.buffer());
                written
            }
            Err(_) => written,
        }
    }

    /// Whether pages are on the channels behind the last barrier.
    pub(in crate::ram) fn is_racing(&self) -> bool {
        self.channels.as_ref().is_some_and(|channels| !channels.are_in_line())
    }

    /// Appends commands that take back every page that is owed and was not taken back before; at least one in all (wire 5.3,
    /// 5.4).
    pub(in crate::ram) fn write_discards(&mut self, out: &mut Vec<u8>) {
        if self.owed.count() == PageCount(0) {
            // A QEMU does not run the guest without one (wire 5.3). The page that it names is sent again.
            let host_page = self.ram.layout().block(BlockId(0)).page_size.target_pages();
            self.owed.block(BlockId(0)).mark(PageRun::new(PageIndex(0), host_page));
        }
        self.write_discards_ahead(out);
        self.counters.owed.store(self.owed.count().0, Ordering::Relaxed);
    }

    /// As [`Self::write_discards`] while the guest still runs; returns how many pages are taken back. A huge page with one
    /// stale page in it is stale as a whole.
    pub(in crate::ram) fn write_discards_ahead(&mut self, out: &mut Vec<u8>) -> PageCount {
        self.owe_whole_host_pages();
        let discarded = self.discarded.get_or_insert_with(|| DirtyMap::clean(self.ram.layout()));
        let mut pages = PageCount(0);
        for (id, block) in self.ram.iter() {
            let runs = runs_of(&self.owed.block(id).without(discarded.block(id)));
            for runs in runs.chunks(MAX_DISCARD_RANGES) {
                let range = |run: &PageRun| DiscardRange { start: run.byte_offset(), length: run.bytes().0 };
                let ranges = runs.iter().map(range).collect();
                Command::PostcopyRamDiscard { block: block.name().clone(), ranges }.encode(out);
            }
            pages += runs.iter().map(|run| discarded.block(id).mark(*run)).sum::<PageCount>();
        }
        pages
    }

    /// The guest has moved: records name their block anew, and each page leaves whole and once (wire 5.6). Returns what
    /// is owed, to be shared with whoever serves requests.
    pub(in crate::ram) fn begin_postcopy(&mut self) -> Arc<DirtyMap> {
        self.encoder.forget_block();
        (self.xbzrle, self.discarded) = (None, None);
        self.scheduler.claim_whole_host_pages(self.ram.layout());
        match &mut self.channels {
            Some(channels) if self.channels_in_postcopy => channels.begin_postcopy(),
            _ => self.resting = self.channels.take(),
        }
        Arc::clone(&self.owed)
    }

    /// Writes owed pages until none is left or `spent`, told the bytes of each bite, says that it is enough. Before
    /// each bite come the pages that somebody waits for, and the push goes on where the guest faulted last.
    pub(in crate::ram) fn push(
        &mut self,
        urgent: &UrgentPath,
        out: &mut StreamWriter,
        spent: impl FnMut(ByteCount) -> bool,
    ) -> Result<(), SaveFault> {
        let pushed = self.push_bites(urgent, out, spent);
        // Others claim too, so that it cannot be reckoned.
        self.counters.owed.store(self.owed.count().0, Ordering::Relaxed);
        pushed
    }

    fn push_bites(
        &mut self,
        urgent: &UrgentPath,
        out: &mut StreamWriter,
        mut spent: impl FnMut(ByteCount) -> bool,
    ) -> Result<(), SaveFault> {
        loop {
            let before = self.written(out);
            self.write_requested(urgent, out)?;
            if let Some((block, page)) = urgent.hint.take() {
                self.scheduler.seek(block, page);
            }
            if !self.scheduler.next_batch(&self.owed, self.bite(urgent), &mut self.batch) {
                return Ok(());
            }
            self.send_bite(out)?;
            if spent(self.written(out) - before) {
                return Ok(());
            }
        }
    }

    /// Writes the pages that somebody waits for, which are claimed already, and nothing else.
    pub(in crate::ram) fn write_requested(
        &mut self,
        urgent: &UrgentPath,
        out: &mut StreamWriter,
    ) -> Result<(), SaveFault> {
        let Some(claimed) = &urgent.claimed else { return Ok(()) };
        while let Ok(UrgentPages { block, run }) = claimed.try_recv() {
            self.batch.block = block;
            self.batch.urgency = Urgency::Urgent;
            self.batch.runs.clear();
            self.batch.runs.push(run);
            self.send_bite(out)?;
            // Zero pages are small, and would wait for company.
            out.flush()?;
        }
        Ok(())
    }

    /// After a loss, when nobody claims any more: owes exactly what the destination lacks (I1). The channels are gone
    /// with the connection.
    pub(in crate::ram) fn owe_missing(&mut self, received: &ReceivedMap) {
        self.owed.replace_with_missing(received);
        self.owe_whole_host_pages();
        self.counters.owed.store(self.owed.count().0, Ordering::Relaxed);
        self.encoder.forget_block();
    }

    /// The channels of a new connection. They carry the push behind the next barrier.
    pub(in crate::ram) fn open_channels(&mut self, links: SendLinks) -> Result<(), SaveFault> {
        let earlier = std::mem::take(&mut self.lost_channels);
        let settings = self.channel_settings.without_deltas();
        let mut channels = Channels::begin(&self.ram, links, settings, earlier)?;
        channels.begin_postcopy();
        self.channels = Some(channels);
        Ok(())
    }

    /// Ends the threads of the multifd channels, whose connections are lost.
    pub(in crate::ram) fn drop_channels(&mut self) {
        if let Some(channels) = &self.channels {
            self.lost_channels = channels.statistics();
        }
        (self.channels, self.resting) = (None, None);
    }

    /// Owes the rest of every huge host page of which a part is owed: they are placed whole.
    fn owe_whole_host_pages(&self) {
        for (id, block) in self.ram.layout().iter().filter(|(_, block)| block.page_size > PageSize::FOUR_KIB)
        {
            self.owed.block(id).owe_whole(block.page_size);
        }
    }

    /// Most pages of a bite, but for a huge page, which is one by itself.
    fn bite(&self, urgent: &UrgentPath) -> PageCount {
        match urgent.claimed {
            _ if self.channels.is_some() => PUSH_PACKET_PAGES,
            Some(_) => BITE_PAGES,
            None => BATCH_PAGES,
        }
    }

    /// Hands out the batch in parts of which the guest has touched every page, or none.
    fn for_each_part(&mut self, mut part: impl FnMut(&mut Self, Part)) {
        for index in 0..self.batch.runs.len() {
            let mut rest = self.batch.runs[index];
            while !rest.is_empty() {
                let leading = self.leading_part(rest);
                rest = PageRun::new(leading.run.end(), rest.count - leading.run.count);
                part(self, leading);
            }
        }
    }

    /// Hands the claimed batch to the channels. A huge page is several packets, on whichever channels are free; the
    /// destination waits for the last of them (wire 14.3).
    fn submit_bite(&mut self, channels: &mut Channels) -> Result<(), SaveFault> {
        let block = self.batch.block;
        channels.begin_packet(block);
        let (mut room, mut submitted) = (PACKET_PAGES, Ok(()));
        self.for_each_part(|saving, part| {
            let mut rest = part.run;
            while !rest.is_empty() && submitted.is_ok() {
                let run = PageRun::new(rest.start, rest.count.min(room));
                rest = PageRun::new(run.end(), rest.count - run.count);
                match part.touched {
                    true => channels.add_content(run),
                    false => channels.add_untouched(run),
                }
                room -= run.count;
                if room == PageCount(0) {
                    submitted = channels.submit(&saving.counters);
                    channels.begin_packet(block);
                    room = PACKET_PAGES;
                }
            }
        });
        submitted?;
        channels.submit(&self.counters)
    }

    /// Sends the claimed batch: on the channels if there are any and nobody waits for it.
    fn send_bite(&mut self, out: &mut StreamWriter) -> Result<(), SaveFault> {
        self.records.clear();
        if self.batch.urgency == Urgency::Urgent {
            add(&self.counters.requested, self.batch.pages().0);
        } else if let Some(mut channels) = self.channels.take() {
            let submitted = self.submit_bite(&mut channels);
            self.channels = Some(channels);
            return submitted;
        }
        let main_before = out.offset();
        self.for_each_part(|saving, part| match part.touched {
            true => saving.encode_plain(part.run),
            false => saving.encode_untouched(part.run),
        });
        self.send_records(out)?;
        add(&self.counters.bytes, (out.offset() - main_before).0);
        Ok(())
    }
}

/// Adds what was written since the last look to what is owed, and to what was touched. Returns how many pages are newly
/// owed.
pub(super) fn sync_into_both(
    log: &mut dyn DirtyLog,
    layout: &RamLayout,
    touched: &DirtyMap,
    owed: &DirtyMap,
) -> Result<PageCount, SaveFault> {
    let written = DirtyMap::clean(layout);
    log.sync_into(&written)?;
    let mut fresh = PageCount(0);
    for (id, _) in layout.iter() {
        for run in runs_of(written.block(id)) {
            touched.block(id).mark(run);
            fresh += owed.block(id).mark(run);
        }
    }
    Ok(fresh)
}

/// All that is owed, in as few runs as possible.
fn runs_of(owed: &DirtyBitmap) -> Vec<PageRun> {
    let mut from = PageIndex(0);
    std::iter::from_fn(|| {
        let run = owed.next_owed(from, PageCount(u64::MAX))?;
        from = run.end();
        Some(run)
    })
    .collect()
}

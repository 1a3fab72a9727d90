//! What the machine asks for on the way to postcopy and in it: discards, the package, the push.

use super::connect::introduce_channel;
use super::steps::{StepError, Steps};
use crate::error::{SaveError, SaveFault};
use crate::ram::UrgentPath;
use crate::savevm::{Budget, SendLinks};
use crate::stream::PUSH_QUEUE;
use crate::vmdescription::VmDescription;
use limosa_pages::{ByteCount, PageCount};
use limosa_postcopy::LatencyHold;
use limosa_protocol::{SourceAction, SourceEvent, SourceStep};
use limosa_transport::{During, Failure, LinkWriter, Role, TransportError};
use limosa_wire::{Command, MAX_PACKAGE_BYTES, encode};
use std::time::{Duration, Instant};

/// Bytes that may wait in our kernel where urgent pages leave on the main channel. One that is asked for waits behind
/// these, a bite of the push (64 KiB) and what the peer's kernel holds; at 1 Gbit/s they take 1 ms.
const SHARED_QUEUE: usize = 128 << 10;

/// What only a migration has that may go on in postcopy.
#[derive(Default)]
pub(super) struct Following {
    /// Built and not yet sent.
    package: Vec<u8>,
    /// Multifd channels are not yet in line with a destination that listens: behind the package, and in a recovery.
    unaligned: bool,
    /// Connected, and not yet handed to whoever serves requests.
    preempt: Option<LinkWriter>,
    /// From when the package leaves.
    path: Option<UrgentPath>,
    /// Short waits for the processor while pages are asked for, where we may have them.
    _hold: Option<LatencyHold>,
}

impl Steps {
    /// Does an action that only a postcopy asks for; `before` is what had been written.
    pub(super) fn perform_in_postcopy(
        &mut self,
        action: SourceAction,
        before: ByteCount,
    ) -> Result<Option<SourceEvent>, StepError> {
        Ok(Some(match action {
            SourceAction::OpenPreempt => self.open_preempt()?,
            SourceAction::OpenChannels => self.open_channels()?,
            SourceAction::CompleteForPostcopy => {
                self.complete_for_postcopy().map_err(StepError::save(SourceStep::CompleteForPostcopy))?;
                SourceEvent::CompletedForPostcopy { sent: self.sent_since(before)? }
            }
            SourceAction::DiscardAhead => {
                let pages = self.discard_ahead().map_err(StepError::save(SourceStep::SendDiscards))?;
                SourceEvent::DiscardedAhead { sent: self.sent_since(before)?, pages }
            }
            SourceAction::SendDiscards => {
                let failed = StepError::save(SourceStep::SendDiscards);
                self.savevm.save_discards(&mut self.out).map_err(failed)?;
                SourceEvent::DiscardsSent { sent: self.sent_since(before)? }
            }
            SourceAction::PackageDevices { ping } => self.package_devices(ping)?,
            SourceAction::SendPackage => {
                self.send_package()?;
                SourceEvent::PackageSent { sent: self.sent_since(before)? }
            }
            SourceAction::Push { max_bytes, max_time } => {
                self.push(max_bytes, max_time).map_err(StepError::save(SourceStep::Push))?;
                SourceEvent::Pushed { sent: self.sent_since(before)?, pending: self.pending() }
            }
            SourceAction::ReplaceLinks => {
                self.replace_links()?;
                SourceEvent::LinksDropped
            }
            SourceAction::CompletePostcopy => {
                self.complete_postcopy().map_err(StepError::save(SourceStep::CompletePostcopy))?;
                SourceEvent::PostcopyCompleted { sent: self.sent_since(before)? }
            }
            _ => unreachable!(
                "others do it: the steps of precopy, or the coordinator, which has the return path"
            ),
        }))
    }

    /// Everything but RAM is complete, and nothing of RAM is in flight.
    fn complete_for_postcopy(&mut self) -> Result<(), SaveError> {
        self.announce_switchover();
        self.savevm.save_live_complete_for_postcopy(&mut self.out)?;
        self.savevm.bring_into_line(&mut self.out)?;
        self.end_rounds();
        Ok(())
    }

    /// Names what is stale by now; the guest runs. Returns how many pages had not been named before.
    pub(super) fn discard_ahead(&mut self) -> Result<PageCount, SaveError> {
        self.savevm.bring_into_line(&mut self.out)?;
        self.savevm.sync()?;
        self.savevm.save_discards_ahead(&mut self.out)
    }

    /// Builds what the destination needs to run the guest: LISTEN, its devices, RUN (wire 5.4).
    fn package_devices(&mut self, ping: u32) -> Result<SourceEvent, StepError> {
        let mut package = Vec::new();
        Command::PostcopyListen.encode(&mut package);
        let mut description = VmDescription::new(self.savevm.configuration());
        self.note_run_state();
        self.savevm
            .save_devices(&mut package, &mut description)
            .map_err(StepError::save(SourceStep::PackageDevices))?;
        Command::Ping(ping).encode(&mut package);
        Command::PostcopyRun.encode(&mut package);
        let size = ByteCount(package.len() as u64);
        if size.0 > u64::from(MAX_PACKAGE_BYTES) {
            let limit = ByteCount(u64::from(MAX_PACKAGE_BYTES));
            return Err(StepError::Handler(
                SourceStep::PackageDevices,
                Box::new(SaveFault::PackageTooLong { size, limit }),
            ));
        }
        self.following.package = package;
        Ok(SourceEvent::DevicesPackaged { size })
    }

    /// The commit point. Requests may come from the moment in which LISTEN is read.
    fn send_package(&mut self) -> Result<(), StepError> {
        self.limit_queue()?;
        self.let_guest_go();
        let (ram, owed) = self.savevm.begin_postcopy().expect("postcopy is refused to a guest without RAM");
        self.following.unaligned = true;
        let preempt = self.following.preempt.take();
        self.following.path = Some(self.urgent.begin(ram, owed, preempt));
        self.following._hold = LatencyHold::acquire();
        let package = std::mem::take(&mut self.following.package);
        Command::Packaged { length: package.len() as u32 }.encode(self.out.buffer());
        self.out.buffer().extend_from_slice(&package);
        Ok(())
    }

    /// The main channel must not hold much: urgent pages wait behind it where they share it (I10), and a page that is in it
    /// already comes no sooner for being asked for.
    fn limit_queue(&mut self) -> Result<(), StepError> {
        let apart = self.config.capabilities.postcopy_preempt;
        self.out.limit_queue(if apart { PUSH_QUEUE } else { SHARED_QUEUE }).map_err(StepError::main)
    }

    /// Writes a slice of what is owed.
    fn push(&mut self, max_bytes: ByteCount, max_time: Duration) -> Result<(), SaveError> {
        if std::mem::take(&mut self.following.unaligned) {
            self.savevm.bring_into_line(&mut self.out)?;
        }
        let path = self.following.path.as_ref().expect("the package has left");
        let mut budget = Budget::new(max_bytes, max_time, Instant::now());
        self.savevm.push(path, &mut self.out, &mut budget)
    }

    /// Writes pages that somebody waits for, while the push rests.
    pub(super) fn save_requested(&mut self) -> Result<(), StepError> {
        let Some(path) = &self.following.path else { return Ok(()) };
        self.savevm.save_requested(path, &mut self.out).map_err(StepError::save(SourceStep::Push))?;
        self.flush()
    }

    /// Writes the end: no vmdescription follows (wire 5.4).
    fn complete_postcopy(&mut self) -> Result<(), SaveError> {
        // Nothing is owed, so nothing more will be claimed: what was claimed last is in the queue, behind the lock.
        self.urgent.settle();
        let path = self.following.path.as_ref().expect("the package has left");
        self.savevm.save_requested(path, &mut self.out)?;
        self.savevm.save_live_complete_postcopy(&mut self.out)?;
        encode::end_of_stream(self.out.buffer());
        Ok(())
    }

    /// Connects the link for pages that somebody waits for.
    fn open_preempt(&mut self) -> Result<SourceEvent, StepError> {
        let link = self.dialer.connect(Role::Preempt).map_err(StepError::preempt)?;
        self.links.add(link.shutdown_handle());
        // Nothing ever comes back on it; its reading half is dropped and the socket stays.
        let (_, mut writer) = link.split();
        writer.set_deadline(Some(self.config.write_deadline)).map_err(StepError::preempt)?;
        self.following.preempt = Some(writer);
        Ok(SourceEvent::PreemptOpened)
    }

    /// Connects the multifd channels of a recovery. The preempt link comes after them: that is how the destination tells
    /// them apart (wire 14.3).
    fn open_channels(&mut self) -> Result<SourceEvent, StepError> {
        let uuid = self.savevm.configuration().uuid.unwrap_or_default();
        let mut links = Vec::new();
        for channel in 0..self.config.parameters.multifd_channels {
            let link = self.dialer.connect(Role::Multifd(channel)).map_err(StepError::main)?;
            self.links.add(link.shutdown_handle());
            let deadline = self.config.write_deadline;
            links.push(introduce_channel(link, uuid, channel, deadline).map_err(StepError::main)?);
        }
        let links = SendLinks { links, uuid: None, sync: self.config.channel_sync };
        self.savevm.open_channels(links).map_err(StepError::save(SourceStep::OpenChannels))?;
        self.following.unaligned = true;
        Ok(SourceEvent::ChannelsOpened)
    }

    /// Serves requests over a new connection.
    pub(super) fn serve_again(&mut self) -> Result<(), StepError> {
        self.limit_queue()?;
        let preempt = self.following.preempt.take();
        self.urgent.resume(preempt);
        Ok(())
    }

    /// Puts what was pushed on channels in place there.
    pub(super) fn bring_into_line(&mut self) -> Result<(), StepError> {
        self.savevm.bring_into_line(&mut self.out).map_err(StepError::save(SourceStep::Push))
    }

    /// Whether the pages that somebody has asked for have arrived, as far as our kernel knows.
    ///
    /// # Errors
    /// If it is `deadline`, and they have not.
    pub(super) fn is_drained(&self, deadline: Instant) -> Result<bool, StepError> {
        if self.urgent.queued() == ByteCount(0) {
            return Ok(true);
        }
        if Instant::now() < deadline {
            return Ok(false);
        }
        let failure = Failure::TimedOut { after: self.config.write_deadline };
        Err(StepError::preempt(TransportError { role: Role::Preempt, during: During::Write, failure }))
    }

    /// Ends the connection and everything that was sent or served over it.
    pub(super) fn silence(&mut self) {
        // The links first: whoever serves may be blocked in one.
        self.links.stop();
        self.drop_beside();
    }

    /// Gives the links beside the main one up, and says so on it. No section is open there: what a lost channel broke off
    /// has been ended.
    fn replace_links(&mut self) -> Result<(), StepError> {
        self.links.stop_beside();
        self.drop_beside();
        Command::ReplaceLinks.encode(self.out.buffer());
        self.flush()
    }

    /// Forgets what was sent or served beside the main link. Those links are shut down.
    fn drop_beside(&mut self) {
        if let Some(path) = &self.following.path {
            self.urgent.pause(path);
        }
        (self.following.preempt, self.following.unaligned) = (None, false);
        self.savevm.drop_channels();
    }
}

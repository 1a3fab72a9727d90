//! The coordinator on the way to postcopy and in it: what the machine asks for, and who is heard.

use super::loader::Running;
use super::main_reader::Feed;
use super::postcopy::{Finished, Postcopy, Said};
use crate::error::LoadFault;
use crate::stream::{StreamReader, StreamWriter};
use limosa_pages::ByteCount;
use limosa_protocol::{DestinationAction, DestinationEvent, GuestFate};
use limosa_transport::{LinkReader, LinkWriter};
use limosa_wire::{Command, Features, StreamDecoder};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Running {
    /// Reads a package whole, if the machine has nothing against it (wire 2.1).
    pub(super) fn take_package(&mut self, length: u32) -> Result<(), LoadFault> {
        self.tell(DestinationEvent::CommandRead(Command::Packaged { length }));
        if self.machine.outcome().is_some() {
            return Ok(());
        }
        let main = self.main.as_mut().expect("a package comes on the main link");
        let package = main.input.take_package(length as usize)?;
        let input = StreamReader::of_package(package);
        self.package = Some(Feed { stream: StreamDecoder::without_header(), input });
        Ok(())
    }

    /// Hears who has something to say, and waits for somebody if there is nothing else to do. `true` if there is more of
    /// the package to read.
    pub(super) fn may_read_on(&mut self) -> Result<bool, LoadFault> {
        let patience = self.package.is_some().then_some(Duration::ZERO);
        let said = self.postcopy.as_ref().and_then(|postcopy| postcopy.hear(patience));
        if let Some(said) = said {
            self.on_said(said);
            return Ok(false);
        }
        let ended = self.package.as_ref().is_some_and(|package| package.input.buffered().is_empty());
        if ended {
            self.package = None;
            self.loader.savevm.check_devices(&self.progress).map_err(|(place, fault)| {
                self.place = place;
                fault
            })?;
            self.tell(DestinationEvent::PackageEnded);
        }
        Ok(!ended)
    }

    fn on_said(&mut self, said: Said) {
        match said {
            Said::Event(event) => self.tell(event),
            Said::Failed(event, fault) => {
                self.note(fault);
                self.tell(event);
            }
            Said::Recover(listener) => {
                let postcopy = self.postcopy.as_mut().expect("heard in postcopy only");
                if self.machine.paused().is_some()
                    && let Err(fault) = postcopy.await_source(listener)
                {
                    self.note(fault);
                }
            }
            Said::Connected(listener, link) => {
                let postcopy = self.postcopy.as_mut().expect("heard in postcopy only");
                if self.machine.paused().is_some() {
                    match postcopy.reconnect(listener, link, self.machine.postcopy_stream()) {
                        Ok(()) => {
                            self.error = None;
                            self.tell(DestinationEvent::Reconnected);
                        }
                        Err(fault) => self.note(fault),
                    }
                }
            }
        }
    }

    /// Does what only a postcopy asks for.
    pub(super) fn act_in_postcopy(&mut self, action: DestinationAction) {
        let done = match action {
            DestinationAction::PreparePostcopy => self.with_ram(|ram| ram.prepare_postcopy()),
            DestinationAction::Discard { block, ranges } => self.with_ram(|ram| ram.discard(&block, &ranges)),
            DestinationAction::Listen => self.listen(),
            DestinationAction::AwaitPages => {
                let said = self.postcopy().await_pages();
                self.on_said(said);
                Ok(())
            }
            DestinationAction::Pause => {
                self.postcopy().pause();
                self.machine.handle(DestinationEvent::Paused);
                Ok(())
            }
            DestinationAction::DropLinks => self.postcopy().drop_links(),
            DestinationAction::SendBitmap { block } => self.postcopy().send_bitmap(&block),
            DestinationAction::TakeLinks => self.postcopy().take_links(),
            DestinationAction::ResumeFaults => self.postcopy().ask(),
            _ => unreachable!("the loader does the others"),
        };
        if let Err(fault) = done {
            self.fail(fault);
        }
    }

    fn with_ram(
        &mut self,
        step: impl FnOnce(&mut crate::ram::RamHandler) -> Result<(), LoadFault>,
    ) -> Result<(), LoadFault> {
        let (_, ram) = self.loader.savevm.ram_mut().expect("postcopy is refused to a guest without RAM");
        step(ram)
    }

    /// Faults are watched from here on, and the main link is read beside the package.
    fn listen(&mut self) -> Result<(), LoadFault> {
        let section = self.loader.savevm.ram_section(&self.progress).ok_or(LoadFault::PageBeforeSetup)?;
        let (_, ram) = self.loader.savevm.ram_mut().expect("a section of it has come");
        let ram = ram.listen()?;
        let inbox = self.inbox.take().expect("LISTEN comes once");
        let mut config = self.loader.config.clone();
        config.channels = config.channels.filter(|_| self.features.contains(Features::POSTCOPY_CHANNELS));
        let received = Arc::clone(&self.loader.shared.received);
        let vcpus = self.loader.vm.vcpu_threads();
        let mut postcopy = Postcopy::listen(ram, section, (config, self.features), inbox, received, &vcpus)?;
        *self.loader.shared.faults.lock() = Some(Arc::clone(postcopy.sink()));
        let main = self.main.take().expect("it has been read until now");
        let answers = self.answers.take().expect("the machine wants a return path for postcopy").into_link();
        let order = self.machine.postcopy_stream();
        let connected = postcopy.connect(self.main_link.clone(), main, order, answers, self.listener.take());
        // The channels of precopy go on.
        let asked = connected.and_then(|()| postcopy.take_preempt()).and_then(|()| postcopy.ask());
        self.postcopy = Some(postcopy);
        asked
    }

    fn postcopy(&mut self) -> &mut Postcopy {
        self.postcopy.as_mut().expect("it has been listened for")
    }

    /// Shows what postcopy has changed.
    pub(super) fn show_postcopy(&mut self) {
        let status = self.machine.status();
        if self.machine.outcome().is_some() || !status.is_postcopy() {
            return;
        }
        let error = self.machine.paused().map(|failure| match &self.error {
            Some(error) => format!("{failure}: {error}"),
            None => failure.to_string(),
        });
        self.loader.shared.view.lock().statistics.error = error;
        self.enter(status);
    }

    /// Bytes read so far, of the present connection in postcopy.
    pub(super) fn received(&self) -> ByteCount {
        let read = self.main.as_ref().map(|main| main.input.offset());
        ByteCount(read.unwrap_or_else(|| self.loader.shared.received.load(Ordering::Relaxed)))
    }

    /// Ends what runs beside, and gives back the connection.
    pub(super) fn take_links(&mut self) -> (Option<LinkReader>, Option<LinkWriter>) {
        match self.postcopy.take() {
            Some(postcopy) => {
                let lost = self.machine.outcome().is_some_and(|outcome| outcome.fate == GuestFate::Lost);
                let Finished { statistics, main, answers } = postcopy.finish(lost);
                // In this order: whoever asks meanwhile finds the figures in one of the two.
                self.loader.shared.view.lock().statistics.postcopy = Some(statistics);
                *self.loader.shared.faults.lock() = None;
                (main, answers)
            }
            None => {
                let main = self.main.take().map(|main| main.input.into_link());
                (main, self.answers.take().map(StreamWriter::into_link))
            }
        }
    }
}

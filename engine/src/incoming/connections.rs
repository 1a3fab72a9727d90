//! The connections of a stream: the main one, and the multifd channels that belong to it.

use super::{IncomingChannels, IncomingConfig, Shared};
use crate::error::LoadFault;
use crate::savevm::ReceiveLinks;
use crate::stop::Stop;
use limosa_multifd::{ReceiveConfig, ReceiveLink};
use limosa_transport::{Failure, Link, Listener, Role};
use limosa_wire::STREAM_MAGIC;
use limosa_wire::multifd::MULTIFD_MAGIC;
use std::time::{Duration, Instant};

/// How long a new connection may keep to itself what it is. Sources say it at once (wire 4.3).
const INTRODUCTION: Duration = Duration::from_secs(30);

/// The same for a connection that nobody waits for, or in a recovery. The stream stands meanwhile.
const LATE_INTRODUCTION: Duration = Duration::from_millis(200);

/// Where a stream comes from.
pub(super) enum Origin {
    Listener(Listener),
    Link(Link),
}

/// Where to read the stream, and where its channels will come from.
pub(super) struct Connections {
    pub(super) main: Link,
    pub(super) company: Option<Company>,
}

/// The channels of a stream, as they come in. They are waited for when the first section needs them: a source that has
/// other settings than ours says so before that.
pub(super) struct Company {
    listener: Listener,
    /// `None` without multifd.
    wanted: Option<IncomingChannels>,
    links: Vec<ReceiveLink>,
    /// Ends the main connection, the channels so far, and the wait for more.
    stop: Stop,
}

impl Origin {
    /// The main connection, and what came before it.
    pub(super) fn connections(
        self,
        config: &IncomingConfig,
        shared: &Shared,
    ) -> Result<Connections, LoadFault> {
        let channels = config.channels.as_ref();
        let preempt = config.uses_preempt();
        let listener = match (self, channels) {
            (Self::Link(_), _) if channels.is_some() || preempt => return Err(LoadFault::SingleConnection),
            (Self::Link(main), _) => return Ok(Connections { main, company: None }),
            (Self::Listener(listener), None) => {
                let main = listener.accept(None)?;
                let stop = Stop::from(main.shutdown_handle());
                *shared.stop.lock() = Some(stop.clone());
                stop.add(listener.shutdown_handle());
                let company = Company { listener, wanted: None, links: Vec::new(), stop };
                return Ok(Connections { main, company: Some(company) });
            }
            (Self::Listener(listener), Some(_)) => listener,
        };
        let wanted = channels.cloned();
        let stop = Stop::from(listener.shutdown_handle());
        let mut company = Company { listener, wanted, links: Vec::new(), stop };
        loop {
            if let Some(main) = company.accept(None, INTRODUCTION, shared)? {
                return Ok(Connections { main, company: Some(company) });
            }
        }
    }
}

impl Company {
    /// The channels, once they are all there; `None` without multifd. And the listener: what else
    /// comes there is another stream's, unless it is the connection for urgent pages.
    pub(super) fn gather(
        mut self,
        config: &IncomingConfig,
        shared: &Shared,
    ) -> Result<(Option<ReceiveLinks>, Listener), LoadFault> {
        let patience = config.channel_patience;
        let deadline = Instant::now().checked_add(patience);
        let expected = self.wanted.as_ref().map_or(0, |wanted| wanted.count);
        while self.links.len() < usize::from(expected) {
            match self.accept(deadline, INTRODUCTION, shared) {
                Ok(None) => {}
                Ok(Some(_)) => return Err(LoadFault::SecondStream),
                Err(LoadFault::Transport(error)) if matches!(error.failure, Failure::TimedOut { .. }) => {
                    let got = self.links.len() as u8;
                    return Err(LoadFault::MissingChannels { expected, got, patience });
                }
                Err(LoadFault::Transport(error)) => return Err(LoadFault::Accept(Box::new(error))),
                Err(fault) => return Err(fault),
            }
        }
        // A source makes all of them before its first section, so one too many is here by now.
        if !config.uses_preempt()
            && let Ok(None) = self.accept(Some(Instant::now()), LATE_INTRODUCTION, shared)
        {
            return Err(LoadFault::ExtraChannel { expected });
        }
        let channels = self.wanted.map(|wanted| receive_links(self.links, &wanted, config));
        Ok((channels, self.listener))
    }

    /// Takes in the next connection: a channel, which is kept, or a main stream.
    fn accept(
        &mut self,
        deadline: Option<Instant>,
        introduction: Duration,
        shared: &Shared,
    ) -> Result<Option<Link>, LoadFault> {
        let mut link = self.listener.accept(deadline)?;
        self.stop.add(link.shutdown_handle());
        {
            // Under the lock a cancel is either here already or finds the new connection too.
            let mut stop = shared.stop.lock();
            if shared.is_cancelled() {
                return Err(LoadFault::Cancelled);
            }
            *stop = Some(self.stop.clone());
        }
        if !is_channel(&mut link, introduction)? {
            return Ok(Some(link));
        }
        self.links.push(ReceiveLink::new(link.split().0));
        Ok(None)
    }
}

/// The channels of a recovery: the source has connected them, in front of the preempt link, before it says RESUME (wire 14.3).
///
/// # Errors
/// If they have not come by `deadline`, or something else has.
pub(super) fn accept_channels(
    listener: &mut Listener,
    wanted: &IncomingChannels,
    config: &IncomingConfig,
    deadline: Instant,
) -> Result<ReceiveLinks, LoadFault> {
    let mut links = Vec::new();
    while links.len() < usize::from(wanted.count) {
        let mut link = listener.accept(Some(deadline))?;
        if !is_channel(&mut link, LATE_INTRODUCTION)? {
            return Err(LoadFault::SecondStream);
        }
        links.push(ReceiveLink::new(link.split().0));
    }
    Ok(receive_links(links, wanted, config))
}

fn receive_links(
    links: Vec<ReceiveLink>,
    wanted: &IncomingChannels,
    config: &IncomingConfig,
) -> ReceiveLinks {
    let &IncomingChannels { compression, sync, uuid, .. } = wanted;
    let &IncomingConfig { codec_workers, sync_patience, .. } = config;
    let ours = ReceiveConfig { uuid, compression, codec_workers, sync_patience, on_failure: None };
    ReceiveLinks { links, config: ours, sync }
}

/// Whether a new connection is a multifd channel. If not, it is a main stream.
fn is_channel(link: &mut Link, introduction: Duration) -> Result<bool, LoadFault> {
    link.set_role(Role::Unidentified);
    link.set_deadline(Some(introduction))?;
    let first =
        link.peek(size_of::<u32>()).map_err(|error| LoadFault::Unintroduced(Box::new(error)))?.to_vec();
    let magic = <[u8; 4]>::try_from(first.as_slice()).map(u32::from_be_bytes);
    let is_channel = match magic {
        Ok(STREAM_MAGIC) => false,
        Ok(MULTIFD_MAGIC) => true,
        _ => return Err(LoadFault::Stranger { got: first }),
    };
    // The number of a channel comes with its first packet.
    link.set_role(if is_channel { Role::Multifd(0) } else { Role::Main });
    link.set_deadline(None)?;
    Ok(is_channel)
}

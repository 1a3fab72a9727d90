//! Making the connections of an outgoing migration: the main one, those beside it, and others when they are lost.

use super::Target;
use super::coordinator::{Control, Coordinator};
use super::return_path::Peer;
use super::urgent::Urgent;
use crate::error::StartError;
use crate::savevm::SendLinks;
use crate::stop::Stop;
use crate::stream::StreamWriter;
use crossbeam_channel::{never, select};
use limosa_transport::{Address, ConnectOptions, During, Failure, Link, LinkWriter, Role, TransportError};
use limosa_wire::encode;
use limosa_wire::multifd::InitPacket;
use std::sync::Arc;
use std::time::Duration;

/// What a migration runs over.
pub(super) struct Connected {
    /// The stream, with header and configuration written.
    pub(super) out: StreamWriter,
    /// The return path, if there is one.
    pub(super) peer: Option<Peer>,
    /// Connections for pages, if they were asked for.
    pub(super) channels: Option<SendLinks>,
    /// Ends all of them.
    pub(super) stop: Stop,
    /// Makes more of them.
    pub(super) dialer: Dialer,
    /// Who serves what the destination asks for.
    pub(super) urgent: Arc<Urgent>,
}

/// Makes connections that belong to a migration under way.
pub(super) struct Dialer {
    /// `None` over a link that was handed in, until a recovery says where to connect.
    pub(super) address: Option<Address>,
}

impl Dialer {
    /// Another connection, for `role`. Blocks until it stands, or for [`limosa_transport::CONNECT_TIMEOUT`].
    pub(super) fn connect(&self, role: Role) -> Result<Link, TransportError> {
        let address = self.address.as_ref().expect("one connection serves no migration that needs more");
        Link::connect(address, &ConnectOptions { role, ..ConnectOptions::default() })
    }
}

/// Says that a new connection is a multifd channel. At once, as the header on the main one: a QEMU reads no command before it
/// has them all.
pub(super) fn introduce_channel(
    link: Link,
    uuid: [u8; 16],
    channel: u8,
    deadline: Duration,
) -> Result<LinkWriter, TransportError> {
    let mut writer = link.split().1;
    writer.set_deadline(Some(deadline))?;
    let mut init = Vec::with_capacity(InitPacket::BYTES);
    InitPacket { uuid, channel }.encode(&mut init);
    writer.write_all(&init)?;
    Ok(writer)
}

impl Coordinator {
    /// Makes the connections, writes what every stream begins with, and starts the return path.
    pub(super) fn connect(&mut self, target: Target) -> Result<Connected, StartError> {
        let capabilities = &mut self.config.capabilities;
        if matches!(target, Target::Address(Address::File { .. })) {
            if capabilities.postcopy_ram {
                return Err(StartError::NobodyToAsk);
            }
            // Nobody is in there who could answer. Any other link that cannot is refused: its user expects a word.
            (capabilities.return_path, capabilities.switchover_ack) = (false, false);
        }
        let (listens, multifd) = (capabilities.listens(), capabilities.multifd);
        let preempt = capabilities.postcopy_preempt;
        let (link, address) = match target {
            Target::Address(address) if (multifd || preempt) && !address.is_multi_channel() => {
                return Err(StartError::SingleConnection);
            }
            Target::Link(_) if multifd || preempt => return Err(StartError::SingleConnection),
            Target::Address(address) => (self.connect_to(&address, Role::Main)?, Some(address)),
            Target::Link(link) => (link, None),
        };
        let stop = Stop::from(link.shutdown_handle());
        *self.shared.stop.lock() = Some(stop.clone());
        let (reader, mut writer) = link.split();
        writer.set_deadline(Some(self.config.write_deadline))?;
        let mut out = StreamWriter::new(writer);
        // At once: a QEMU tells a main connection from a channel by its first bytes, and waits for them (wire 4.3).
        encode::header(out.buffer());
        self.savevm.configuration().encode(out.buffer());
        out.flush()?;
        let urgent = Urgent::new();
        let peer = listens.then(|| Peer::listen(reader, Arc::clone(&urgent), stop.clone())).transpose()?;
        let channels = match &address {
            Some(address) if multifd => Some(self.connect_channels(address, &stop)?),
            _ => None,
        };
        Ok(Connected { out, peer, channels, stop, dialer: Dialer { address }, urgent })
    }

    fn connect_channels(&mut self, address: &Address, stop: &Stop) -> Result<SendLinks, StartError> {
        let mut links: Vec<LinkWriter> = Vec::new();
        let uuid = self.savevm.configuration().uuid.unwrap_or_default();
        for channel in 0..self.config.parameters.multifd_channels {
            let link = self.connect_to(address, Role::Multifd(channel))?;
            let writer = introduce_channel(link, uuid, channel, self.config.write_deadline)?;
            stop.add(writer.shutdown_handle());
            links.push(writer);
        }
        Ok(SendLinks { links, uuid: None, sync: self.config.channel_sync })
    }

    /// Connects on a thread of its own: resolving a name and connecting cannot be called off, only left alone.
    fn connect_to(&mut self, address: &Address, role: Role) -> Result<Link, StartError> {
        let (hand_over, connected) = crossbeam_channel::bounded(1);
        let target = address.clone();
        std::thread::Builder::new().name("connect".to_owned()).spawn(move || {
            let options = ConnectOptions { role, ..ConnectOptions::default() };
            // Nobody takes the link of a migration that was cancelled meanwhile; it closes.
            drop(hand_over.send(Link::connect(&target, &options)));
        })?;
        while !self.shared.is_cancelled() {
            select! {
                recv(connected) -> link => return Ok(link.expect("connecting does not panic")?),
                recv(self.control) -> control => match control {
                    Ok(Control::Parameters(parameters)) => self.config.parameters = parameters,
                    Ok(Control::StartPostcopy) => self.postcopy_asked = true,
                    // The others mean nothing before the migration has begun.
                    Ok(_) => {}
                    Err(_) => self.control = never(),
                },
            }
        }
        let during = During::Connect(address.clone());
        Err(TransportError { role, during, failure: Failure::ShutDown }.into())
    }
}

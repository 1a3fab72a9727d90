//! The connections of a stream: the main one, and the multifd channels that belong to it.

use super::{IncomingChannels, Shared};
use crate::error::LoadFault;
use crate::savevm::ReceiveLinks;
use crate::stop::Stop;
use limosa_multifd::{ReceiveConfig, ReceiveLink, SYNC_PATIENCE};
use limosa_transport::{Link, Listener, Role};
use limosa_wire::STREAM_MAGIC;
use limosa_wire::multifd::MULTIFD_MAGIC;
use std::time::{Duration, Instant};

/// How long a new connection may keep to itself what it is. Sources say it at once (wire 4.3).
const INTRODUCTION: Duration = Duration::from_secs(30);

/// How long the connections of one stream may take to come in after the first. A source that was set to fewer
/// channels will never make more, and both sides should hear of it.
const COMPANY: Duration = Duration::from_secs(10);

/// Where a stream comes from.
pub(super) enum Origin {
    Listener(Listener),
    Link(Link),
}

/// Everything that is needed to read a stream.
pub(super) struct Connections {
    pub(super) main: Link,
    pub(super) channels: Option<ReceiveLinks>,
}

impl Origin {
    /// The connections, once they are all there. The listener ends with it: another stream is not this guest's.
    pub(super) fn connections(
        self,
        channels: Option<&IncomingChannels>,
        shared: &Shared,
    ) -> Result<Connections, LoadFault> {
        let listener = match (self, channels) {
            (Self::Link(main), None) => return Ok(Connections { main, channels: None }),
            (Self::Link(_), Some(_)) => return Err(LoadFault::SingleConnection),
            (Self::Listener(listener), None) => {
                let main = listener.accept(None)?;
                *shared.stop.lock() = Some(main.shutdown_handle().into());
                return Ok(Connections { main, channels: None });
            }
            (Self::Listener(listener), Some(_)) => listener,
        };
        let wanted = channels.expect("the other cases have returned");
        let (mut main, mut links) = (None, Vec::new());
        let mut stop = Stop::from(listener.shutdown_handle());
        let mut deadline = None;
        while main.is_none() || links.len() < usize::from(wanted.count) {
            let mut link = listener.accept(deadline)?;
            deadline.get_or_insert_with(|| Instant::now() + COMPANY);
            stop.add(link.shutdown_handle());
            // Under the lock a cancel is either here already or finds the new connection too.
            *shared.stop.lock() = Some(stop.clone());
            if shared.is_cancelled() {
                return Err(LoadFault::Cancelled);
            }
            if is_channel(&mut link)? {
                links.push(ReceiveLink::new(link.split().0));
            } else if main.replace(link).is_some() {
                return Err(LoadFault::SecondStream);
            }
        }
        let config = ReceiveConfig {
            uuid: wanted.uuid,
            compression: wanted.compression,
            sync_patience: SYNC_PATIENCE,
            on_failure: None,
            codec_workers: None,
        };
        let channels = Some(ReceiveLinks { links, config, sync: wanted.sync });
        Ok(Connections { main: main.expect("waited for above"), channels })
    }
}

/// Whether a new connection is a multifd channel. If not, it is a main stream.
fn is_channel(link: &mut Link) -> Result<bool, LoadFault> {
    link.set_deadline(Some(INTRODUCTION))?;
    let first = link.peek(size_of::<u32>())?.to_vec();
    let magic = <[u8; 4]>::try_from(first.as_slice()).map(u32::from_be_bytes);
    let is_channel = match magic {
        Ok(STREAM_MAGIC) => false,
        Ok(MULTIFD_MAGIC) => true,
        _ => return Err(LoadFault::Stranger { got: first }),
    };
    if is_channel {
        // Its number comes with its first packet.
        link.set_role(Role::Multifd(0));
    }
    link.set_deadline(None)?;
    Ok(is_channel)
}

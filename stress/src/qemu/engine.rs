//! The engine as QEMU's other side.

use super::process::{PATIENCE, Qemu, QemuError};
use limosa::transport::{Address, Link, Listener, TransportError};
use limosa::{NotStarted, Observer, Outgoing, OutgoingConfig, OutgoingReport, SaveVm, Vm};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// A kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP on the loopback interface, at a free port.
    Tcp,
    /// A unix socket.
    Unix,
}

impl Transport {
    /// Where to listen; a unix socket is made in `folder`.
    ///
    /// # Panics
    /// If the folder's name cannot stand in a URI.
    pub fn address(self, folder: &Path) -> Address {
        let uri = match self {
            Self::Tcp => "tcp:127.0.0.1:0".to_owned(),
            Self::Unix => format!("unix:{}", folder.join("migration").display()),
        };
        uri.parse().expect("a temporary folder's name is plain")
    }
}

impl Qemu {
    /// Begins to migrate to a listener of ours; the connection.
    ///
    /// # Errors
    /// The monitor refuses, or QEMU does not connect.
    pub fn migrate_to_us(&mut self, transport: Transport) -> Result<Link, QemuError> {
        let failed = |error: TransportError| QemuError::Io {
            doing: "waiting for a migration",
            source: io::Error::other(error),
        };
        let listener = Listener::bind(&transport.address(self.folder())).map_err(failed)?;
        self.migrate(&listener.local_address().to_string())?;
        let mut link = listener.accept(Some(Instant::now() + PATIENCE)).map_err(failed)?;
        link.set_deadline(Some(PATIENCE)).map_err(failed)?;
        Ok(link)
    }

    /// Begins to listen for a migration; where.
    ///
    /// # Errors
    /// The monitor refuses.
    ///
    /// # Panics
    /// If QEMU says something that is no address.
    pub fn listen(&mut self, transport: Transport) -> Result<Address, QemuError> {
        let address = transport.address(self.folder());
        self.migrate_incoming(&address.to_string())?;
        match transport {
            Transport::Unix => Ok(address),
            Transport::Tcp => {
                Ok(format!("tcp:{}", self.incoming_address()?).parse().expect("QEMU's own address"))
            }
        }
    }
}

/// Sends `savevm` to `address` and waits for the end.
///
/// # Errors
/// The migration could not begin.
pub fn send(
    savevm: SaveVm,
    address: Address,
    config: OutgoingConfig,
    vm: Arc<dyn Vm>,
    observer: Arc<dyn Observer>,
) -> Result<OutgoingReport, NotStarted> {
    Ok(Outgoing::start(address, config, savevm, vm, observer)?.wait().0)
}

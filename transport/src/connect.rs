//! From an address to a link.

use crate::address::{Address, FdName};
use crate::error::{During, Failure, Role, TransportError};
use crate::link::{Ends, Link};
use crate::{exec, kernel, tcp, unix};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// How long connecting may take unless said otherwise: a lost SYN is sent again after 1, 3 and 7 s.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Permissions of a file that a stream creates: guest RAM is nobody else's business.
const FILE_MODE: u32 = 0o600;

/// How to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// What the link is for.
    pub role: Role,
    /// Longest time until the connection stands.
    pub timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { role: Role::Main, timeout: CONNECT_TIMEOUT }
    }
}

impl Link {
    /// Connects to `address`, as the side that sends the guest.
    ///
    /// `exec:` starts the command; `file:` creates the file if it is missing, cuts or extends it to the offset and
    /// writes from there on; `fd:` takes over the descriptor, which the process must have inherited.
    ///
    /// # Errors
    /// If there is no connection before the timeout, with the reason of the last attempt.
    pub fn connect(address: &Address, options: &ConnectOptions) -> Result<Self, TransportError> {
        let ends = match address {
            Address::Tcp(tcp) => {
                tcp::connect(tcp, options.timeout).and_then(|socket| socket_ends(socket.into()))
            }
            Address::Unix(path) => {
                unix::connect(path, options.timeout).and_then(|socket| socket_ends(socket.into()))
            }
            Address::Fd(name) => adopt(name),
            Address::Exec(argv) => exec::spawn(argv),
            Address::File { path, offset } => {
                file_to_write(path, *offset).and_then(|file| Ends::of_descriptor(file.into()))
            }
        };
        match ends {
            Ok(ends) => Ok(Self::new(ends, options.role)),
            Err(failure) => Err(TransportError::new(options.role, During::Connect(address.clone()), failure)),
        }
    }
}

/// The other side of the addresses that make a single connection.
pub(crate) fn open_to_receive(address: &Address) -> Result<Ends, Failure> {
    match address {
        Address::Tcp(_) | Address::Unix(_) => unreachable!("these are listened at"),
        Address::Fd(name) => adopt(name),
        Address::Exec(argv) => exec::spawn(argv),
        Address::File { path, offset } => {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(*offset))?;
            Ends::of_descriptor(file.into())
        }
    }
}

fn socket_ends(fd: std::os::fd::OwnedFd) -> Result<Ends, Failure> {
    Ok(Ends::of_socket(fd)?)
}

fn adopt(name: &FdName) -> Result<Ends, Failure> {
    match name {
        FdName::Number(number) => Ends::of_descriptor(kernel::adopt_inherited(*number)?),
        FdName::Named(name) => Err(Failure::NamedDescriptor { name: name.clone() }),
    }
}

fn file_to_write(path: &Path, offset: u64) -> Result<File, Failure> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(path)?;
    if file.metadata()?.is_file() {
        // What stood behind the offset would otherwise follow the new stream.
        file.set_len(offset)?;
        file.seek(SeekFrom::Start(offset))?;
    }
    Ok(file)
}

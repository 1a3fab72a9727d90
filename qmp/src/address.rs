//! Addresses as JSON objects (wire 6.2).

use crate::arguments::{Argument, Arguments, not_accepted};
use crate::message::CommandError;
use limosa_transport::{Address, FdName, TcpAddress};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An address of a socket, as `query-migrate` shows where a destination listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum SocketAddress {
    /// TCP.
    Inet {
        /// Name or address, without brackets.
        host: String,
        /// Port number, as text.
        port: String,
    },
    /// A unix socket.
    Unix {
        /// Its file.
        path: String,
    },
    /// A socket of a virtual machine.
    Vsock {
        /// Number of the machine.
        cid: String,
        /// Port number, as text.
        port: String,
    },
    /// An open descriptor.
    Fd {
        /// Number or name.
        str: String,
    },
}

/// One entry of the argument `channels`: the main one, which is the only kind we know.
pub(crate) struct Channel(pub(crate) Address);

impl SocketAddress {
    /// The socket behind `address`, if it is one.
    pub fn of(address: &Address) -> Option<Self> {
        match address {
            Address::Tcp(tcp) => Some(Self::Inet { host: tcp.host.clone(), port: tcp.port.to_string() }),
            Address::Unix(path) => Some(Self::Unix { path: path.display().to_string() }),
            Address::Fd(FdName::Number(number)) => Some(Self::Fd { str: number.to_string() }),
            Address::Fd(FdName::Named(name)) => Some(Self::Fd { str: name.clone() }),
            Address::Exec(_) | Address::File { .. } => None,
        }
    }
}

impl Argument for Channel {
    fn read(value: Value, path: &str) -> Result<Self, CommandError> {
        let mut members = Arguments::nested(value, path)?;
        let kind: String = members.required("channel-type")?;
        let MigrationAddress(address) = members.required("addr")?;
        members.finish()?;
        match kind.as_str() {
            "main" => Ok(Self(address)),
            "cpr" => Err(CommandError::generic("channel type cpr is not supported")),
            other => Err(not_accepted("channel-type", other)),
        }
    }
}

/// QEMU's union of that name.
struct MigrationAddress(Address);

impl Argument for MigrationAddress {
    fn read(value: Value, path: &str) -> Result<Self, CommandError> {
        let mut members = Arguments::nested(value, path)?;
        let address = match members.required::<String>("transport")?.as_str() {
            "socket" => read_socket(&mut members, path)?,
            "exec" => Address::Exec(members.required("args")?),
            "file" => Address::File {
                path: members.required::<String>("filename")?.into(),
                offset: members.optional("offset")?.unwrap_or(0),
            },
            "rdma" => return Err(CommandError::generic("transport rdma is not supported")),
            other => return Err(not_accepted("transport", other)),
        };
        members.finish()?;
        Ok(Self(address))
    }
}

fn read_socket(members: &mut Arguments, path: &str) -> Result<Address, CommandError> {
    match members.required::<String>("type")?.as_str() {
        "inet" => read_inet(members, path).map(Address::Tcp),
        "unix" => Ok(Address::Unix(members.required::<String>("path")?.into())),
        "fd" => Ok(Address::Fd(FdName::parse(&members.required::<String>("str")?))),
        "vsock" => Err(CommandError::generic("transport vsock is not supported")),
        other => Err(not_accepted("type", other)),
    }
}

fn read_inet(members: &mut Arguments, path: &str) -> Result<TcpAddress, CommandError> {
    let port: String = members.required("port")?;
    let number = port
        .parse()
        .map_err(|_| CommandError::generic(format!("Parameter '{path}.port' is no port number: '{port}'")))?;
    let to: Option<u64> = members.optional("to")?;
    let to = to
        .map(u16::try_from)
        .transpose()
        .map_err(|_| CommandError::generic(format!("Parameter '{path}.to' expects uint16")))?;
    // That the host is an address and no name needs no help from the client.
    members.optional::<bool>("numeric")?;
    Ok(TcpAddress {
        host: members.required("host")?,
        port: number,
        to,
        ipv4: members.optional("ipv4")?,
        ipv6: members.optional("ipv6")?,
        keep_alive: members.optional("keep-alive")?,
    })
}

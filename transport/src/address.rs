//! Addresses of migration streams, as QEMU writes them (wire 6.2).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;

/// Where a migration stream goes to or comes from.
///
/// ```
/// use limosa_transport::Address;
///
/// let address: Address = "tcp:[::1]:4444,keep-alive=off".parse()?;
/// assert_eq!(address.to_string(), "tcp:[::1]:4444,keep-alive=off");
/// # Ok::<(), limosa_transport::AddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `tcp:host:port`: both directions, any number of channels.
    Tcp(TcpAddress),
    /// `unix:path`: both directions, any number of channels.
    Unix(PathBuf),
    /// `fd:number` or `fd:name`: one connection; both directions if it is a socket.
    Fd(FdName),
    /// `exec:command`: a child's stdin and stdout. A URI becomes `/bin/sh -c command`; QMP can give any argv.
    Exec(Vec<String>),
    /// `file:path,offset=N`: written or read from that byte on; no return path.
    File {
        /// The file.
        path: PathBuf,
        /// Where the stream begins, in bytes.
        offset: u64,
    },
}

/// Host, port and options of `tcp:`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpAddress {
    /// A name or an address, without brackets. Empty means any address to listen at, this host to connect to.
    pub host: String,
    /// The port; 0 lets the kernel choose when listening.
    pub port: u16,
    /// `to=N`: when listening, the last port to try.
    pub to: Option<u16>,
    /// `ipv4`: whether IPv4 may be used. If neither is said, both may; if one is asked for, the other is not.
    pub ipv4: Option<bool>,
    /// `ipv6`: whether IPv6 may be used.
    pub ipv6: Option<bool>,
    /// `keep-alive`: on, unless switched off.
    pub keep_alive: Option<bool>,
}

/// A descriptor that somebody else opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FdName {
    /// Inherited under this number.
    Number(i32),
    /// Passed to the host under this name (QMP `getfd`).
    Named(String),
}

/// Text that is no address we can use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// A transport nobody knows.
    #[error("unknown migration protocol: {uri}")]
    UnknownTransport {
        /// The whole text.
        uri: String,
    },
    /// A transport of QEMU's that is not built here.
    #[error("transport {transport} is not supported")]
    Unsupported {
        /// Its name.
        transport: &'static str,
    },
    /// `tcp:` without `host:port`.
    #[error("error parsing address '{address}': expected host:port")]
    HostPort {
        /// What stood there.
        address: String,
    },
    /// A port that is no number up to 65535.
    #[error("port '{port}' is not a number up to 65535")]
    Port {
        /// What stood there.
        port: String,
    },
    /// An option of another transport, or with a value that it cannot have.
    #[error("option '{option}' is not understood")]
    Option {
        /// The option with its value.
        option: String,
    },
    /// Nothing behind the colon.
    #[error("{transport} address is empty")]
    Empty {
        /// Name of the transport.
        transport: &'static str,
    },
}

/// What a URI's `exec:` runs its command with.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

impl Address {
    /// The address that `/bin/sh -c command` stands for.
    pub fn shell(command: impl Into<String>) -> Self {
        Self::Exec(vec![SHELL[0].to_owned(), SHELL[1].to_owned(), command.into()])
    }

    /// Whether more than one connection can be made to it, so that it can carry multifd or preempt channels.
    pub fn is_multi_channel(&self) -> bool {
        matches!(self, Self::Tcp(_) | Self::Unix(_))
    }
}

impl TcpAddress {
    /// `host` and `port` without options.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port, ..Self::default() }
    }

    /// Whether an address of this family may be used.
    pub(crate) fn allows(&self, ipv6: bool) -> bool {
        let (this, other) = if ipv6 { (self.ipv6, self.ipv4) } else { (self.ipv4, self.ipv6) };
        this.unwrap_or(other != Some(true))
    }

    fn parse(text: &str) -> Result<Self, AddressError> {
        let (address, options) = text.split_once(',').unwrap_or((text, ""));
        let bad = || AddressError::HostPort { address: address.to_owned() };
        let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(bad)?,
            None if host.contains(':') => return Err(bad()),
            None => host,
        };
        let mut parsed = Self::new(host, parse_port(port)?);
        for option in options.split(',').filter(|option| !option.is_empty()) {
            parsed.set_option(option)?;
        }
        Ok(parsed)
    }

    fn set_option(&mut self, option: &str) -> Result<(), AddressError> {
        let (name, value) =
            option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("to", Some(value)) => self.to = Some(parse_port(value)?),
            ("ipv4", value) => self.ipv4 = Some(parse_switch(option, value)?),
            ("ipv6", value) => self.ipv6 = Some(parse_switch(option, value)?),
            ("keep-alive", value) => self.keep_alive = Some(parse_switch(option, value)?),
            _ => return Err(AddressError::Option { option: option.to_owned() }),
        }
        Ok(())
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(uri: &str) -> Result<Self, AddressError> {
        let unknown = || AddressError::UnknownTransport { uri: uri.to_owned() };
        let (transport, rest) = uri.split_once(':').ok_or_else(unknown)?;
        let non_empty = |transport| match rest {
            "" => Err(AddressError::Empty { transport }),
            rest => Ok(rest),
        };
        match transport {
            "tcp" => TcpAddress::parse(rest).map(Self::Tcp),
            "unix" => Ok(Self::Unix(non_empty("unix")?.into())),
            "fd" => Ok(Self::Fd(FdName::parse(non_empty("fd")?))),
            "exec" => Ok(Self::shell(non_empty("exec")?)),
            "file" => parse_file(non_empty("file")?),
            "vsock" => Err(AddressError::Unsupported { transport: "vsock" }),
            "rdma" => Err(AddressError::Unsupported { transport: "rdma" }),
            _ => Err(unknown()),
        }
    }
}

impl FdName {
    /// A number if it is one, a name otherwise.
    pub fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Named(text.to_owned()), Self::Number)
    }
}

fn parse_port(port: &str) -> Result<u16, AddressError> {
    port.parse().map_err(|_| AddressError::Port { port: port.to_owned() })
}

/// An option that may stand alone, for `on`.
fn parse_switch(option: &str, value: Option<&str>) -> Result<bool, AddressError> {
    match value {
        None | Some("on" | "yes" | "true") => Ok(true),
        Some("off" | "no" | "false") => Ok(false),
        Some(_) => Err(AddressError::Option { option: option.to_owned() }),
    }
}

fn parse_file(text: &str) -> Result<Address, AddressError> {
    let Some((path, offset)) = text.rsplit_once(",offset=") else {
        return Ok(Address::File { path: text.into(), offset: 0 });
    };
    let offset =
        parse_size(offset).ok_or_else(|| AddressError::Option { option: format!("offset={offset}") })?;
    Ok(Address::File { path: path.into(), offset })
}

/// Decimal or `0x` hexadecimal, with an optional suffix K, M or G, as QEMU reads sizes.
fn parse_size(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok();
    }
    let (digits, unit) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 1 << 10),
        b'm' | b'M' => (&text[..text.len() - 1], 1 << 20),
        b'g' | b'G' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Fd(FdName::Number(number)) => write!(f, "fd:{number}"),
            Self::Fd(FdName::Named(name)) => write!(f, "fd:{name}"),
            Self::Exec(argv) => match argv.as_slice() {
                [shell, option, command] if [shell, option] == SHELL => write!(f, "exec:{command}"),
                argv => {
                    write!(f, "exec:{}", argv.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "))
                }
            },
            Self::File { path, offset: 0 } => write!(f, "file:{}", path.display()),
            Self::File { path, offset } => write!(f, "file:{},offset={offset}", path.display()),
        }
    }
}

impl fmt::Display for TcpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "tcp:[{}]:{}", self.host, self.port)?;
        } else {
            write!(f, "tcp:{}:{}", self.host, self.port)?;
        }
        if let Some(to) = self.to {
            write!(f, ",to={to}")?;
        }
        for (name, value) in [("ipv4", self.ipv4), ("ipv6", self.ipv6), ("keep-alive", self.keep_alive)] {
            if let Some(on) = value {
                write!(f, ",{name}={}", if on { "on" } else { "off" })?;
            }
        }
        Ok(())
    }
}

/// One word for a shell, so that an argv printed as a URI runs the same command.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(uri: &str) -> Address {
        uri.parse().unwrap()
    }

    #[test]
    fn what_is_printed_parses_back_to_the_same() {
        for uri in [
            "tcp:example.org:4444",
            "tcp::0",
            "tcp:[::1]:4444,to=4450,ipv4=off,ipv6=on,keep-alive=on",
            "unix:/run/guest.sock",
            "fd:7",
            "fd:migration",
            "exec:gzip -c > /var/tmp/guest.gz",
            "file:/var/tmp/guest",
            "file:/var/tmp/guest,offset=4096",
        ] {
            assert_eq!(parsed(uri).to_string(), uri);
        }
    }

    #[test]
    fn options_of_tcp_mean_what_they_mean_in_qemu() {
        let Address::Tcp(address) = parsed("tcp:host:1,ipv6") else { panic!("no tcp address") };
        assert_eq!((address.allows(true), address.allows(false)), (true, false));
        let Address::Tcp(address) = parsed("tcp:host:1,ipv4=off") else { panic!("no tcp address") };
        assert_eq!((address.allows(true), address.allows(false)), (true, false));
        let Address::Tcp(address) = parsed("tcp:host:1") else { panic!("no tcp address") };
        assert_eq!((address.allows(true), address.allows(false)), (true, true));
    }

    #[test]
    fn an_offset_may_have_a_unit() {
        let at = |offset| Address::File { path: "f".into(), offset };
        assert_eq!(parsed("file:f,offset=0x1000"), at(4096));
        assert_eq!(parsed("file:f,offset=2M"), at(2 << 20));
        assert_eq!(parsed("file:f,offset=7"), at(7));
    }

    #[test]
    fn a_command_line_prints_as_the_shell_would_read_it() {
        let argv = ["cat", "it's"].map(str::to_owned).to_vec();
        assert_eq!(Address::Exec(argv).to_string(), r"exec:'cat' 'it'\''s'");
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        let error = |uri: &str| uri.parse::<Address>().unwrap_err();
        assert_eq!(error("foo:1"), AddressError::UnknownTransport { uri: "foo:1".into() });
        assert_eq!(error("tcp"), AddressError::UnknownTransport { uri: "tcp".into() });
        assert_eq!(error("vsock:3:1234"), AddressError::Unsupported { transport: "vsock" });
        assert_eq!(error("rdma:host:1"), AddressError::Unsupported { transport: "rdma" });
        assert_eq!(error("tcp:host"), AddressError::HostPort { address: "host".into() });
        assert_eq!(error("tcp:::1:80"), AddressError::HostPort { address: "::1:80".into() });
        assert_eq!(error("tcp:host:65536"), AddressError::Port { port: "65536".into() });
        assert_eq!(error("tcp:host:1,mptcp"), AddressError::Option { option: "mptcp".into() });
        assert_eq!(error("tcp:host:1,ipv4=maybe"), AddressError::Option { option: "ipv4=maybe".into() });
        assert_eq!(error("unix:"), AddressError::Empty { transport: "unix" });
        assert_eq!(error("file:f,offset=x"), AddressError::Option { option: "offset=x".into() });
    }
}

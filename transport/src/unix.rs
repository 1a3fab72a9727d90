//! Unix sockets: connecting, and listening at a path that may hold a dead socket.

use crate::error::Failure;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A socket file of ours; removed when dropped, unless another has taken its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode: the file's identity, whatever happens to its name.
    identity: (u64, u64),
}

/// Connects to `path`; a listener whose queue is full is waited for until `timeout`.
pub(crate) fn connect(path: &Path, timeout: Duration) -> Result<Socket, Failure> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(timeout))?; // Bounds connect(2) too (unix(7)).
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => {
            socket.set_write_timeout(None)?;
            Ok(socket)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Failure::TimedOut { after: timeout }),
        Err(error) => Err(error.into()),
    }
}

/// Listens at `path`; a socket file that nobody listens behind is replaced.
pub(crate) fn listen(path: &Path, backlog: i32) -> Result<(Socket, SocketFile), Failure> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let address = SockAddr::unix(path)?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path, &address)? => {
            std::fs::remove_file(path)?;
            socket.bind(&address)?;
        }
        result => result?,
    }
    let file = SocketFile { path: path.to_owned(), identity: identity(path)? };
    socket.listen(backlog)?;
    Ok((socket, file))
}

/// Whether `path` is a socket that refuses connections: its listener died without removing it.
fn is_stale(path: &Path, address: &SockAddr) -> io::Result<bool> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Ok(false);
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?; // A living listener with a full queue must not hold us up.
    Ok(probe.connect(address).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // If it cannot be removed, the next listener finds it stale.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

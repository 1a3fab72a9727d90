//! Connected byte streams with manners.
//!
//! An [`Address`] (QEMU's migration URIs) becomes a [`Link`], by [`Link::connect`] on one side and by a
//! [`Listener`] on the other. A link has one owner and moves; [`Link::split`] makes a [`LinkReader`] and a
//! [`LinkWriter`] of it, one owner each, because the return path is the other direction of the same stream.
//! Reads and writes are exact, go straight from and into guest RAM where asked, and end at a deadline; from any
//! other thread a [`ShutdownHandle`] ends them at once.
//!
//! Sockets block in the call itself, with the kernel's own timeouts: one system call per transfer. Pipes, which
//! have neither timeouts nor `shutdown(2)`, are nonblocking and wait in `poll(2)` with a wake-up descriptor.
//!
//! A peer that is gone is an error, not a signal: sockets are written without `SIGPIPE`. Pipes have no such flag; for
//! them the process has to ignore the signal, as Rust's runtime does before `main`.
//!
//! Trade-off taken: one concrete type for every transport, told apart by a `match`, and no trait: a socket pair is
//! as easy to test with as a fake, and has the kernel's manners.
//!
//! **Deliberately absent:** messages, buffering, retries, a thread of its own (but the one that reaps an `exec:`
//! child), encryption (for now).

mod address;
mod connect;
mod descriptor;
mod error;
mod exec;
mod kernel;
mod link;
mod listener;
mod shutdown;
mod tcp;
mod unix;
mod zero_copy;

pub use address::{Address, AddressError, FdName, TcpAddress};
pub use connect::{CONNECT_TIMEOUT, ConnectOptions};
pub use error::{During, Failure, Role, TransportError};
pub use link::{Link, LinkReader, LinkWriter, PEEK_BYTES_MAX};
pub use listener::{BACKLOG, Listener};
pub use shutdown::ShutdownHandle;
pub use tcp::{KEEPALIVE_COUNT, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, USER_TIMEOUT};

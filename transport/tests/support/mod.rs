//! What several test programs need: connected links of each kind, and threads that are known to be blocked.
#![allow(dead_code, reason = "each test program uses a part of it")]

use limosa_transport::{Address, ConnectOptions, Failure, Link, Listener, TcpAddress, TransportError};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; reached only by a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Short: what is waited for with it never comes.
pub(crate) const MOMENT: Duration = Duration::from_millis(1);

/// More than any kernel buffers between two ends of a link.
pub(crate) const MORE_THAN_BUFFERS: usize = 64 << 20;

pub(crate) fn later() -> Option<Instant> {
    Some(Instant::now() + PATIENCE)
}

/// Both ends of a new connection: who connected, and who accepted.
pub(crate) fn connected(address: &Address) -> (Link, Link) {
    let listener = Listener::bind(address).unwrap();
    let connected = Link::connect(listener.local_address(), &ConnectOptions::default()).unwrap();
    (connected, listener.accept(later()).unwrap())
}

/// A connection of each kind of socket.
pub(crate) fn each_socket() -> Vec<(Link, Link)> {
    let directory = tempfile::tempdir().unwrap();
    vec![
        connected(&Address::Tcp(TcpAddress::new("127.0.0.1", 0))),
        connected(&Address::Unix(directory.path().join("socket"))),
        Link::pair().unwrap(),
    ]
}

/// A child that sends back what it is sent.
pub(crate) fn echo() -> Link {
    Link::connect(&Address::shell("cat"), &ConnectOptions::default()).unwrap()
}

/// Runs `work` in a thread and returns when that thread sleeps in the kernel: `work` has to block.
pub(crate) fn blocked_in<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let id = Arc::new(AtomicI32::new(0));
    let publish = Arc::clone(&id);
    let handle = thread::spawn(move || {
        publish.store(nix::unistd::gettid().as_raw(), Ordering::Release);
        work()
    });
    let deadline = Instant::now() + PATIENCE;
    while !sleeps(id.load(Ordering::Acquire)) {
        assert!(!handle.is_finished(), "the thread came back instead of blocking");
        assert!(Instant::now() < deadline, "the thread neither blocks nor ends");
        thread::yield_now();
    }
    handle
}

fn sleeps(thread: i32) -> bool {
    // "7 (name of the thread) S 1 ...": the state is behind the last parenthesis.
    let Ok(stat) = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")) else { return false };
    stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('S'))
}

pub(crate) fn failure<T: std::fmt::Debug>(result: Result<T, TransportError>) -> Failure {
    result.expect_err("the operation should fail").failure
}

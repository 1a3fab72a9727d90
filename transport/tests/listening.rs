//! Listeners: where they listen, how long they wait, and what they leave behind.

mod support;

use limosa_transport::{Address, ConnectOptions, Failure, Link, Listener, TcpAddress};
use std::os::unix::net::UnixListener;
use std::time::Instant;
use support::{MOMENT, blocked_in, failure, later};

fn loopback(port: u16) -> TcpAddress {
    TcpAddress::new("127.0.0.1", port)
}

fn port(listener: &Listener) -> u16 {
    match listener.local_address() {
        Address::Tcp(address) => address.port,
        other => panic!("{other} has no port"),
    }
}

#[test]
fn port_zero_becomes_a_port_that_can_be_connected_to() {
    let listener = Listener::bind(&Address::Tcp(loopback(0))).unwrap();
    assert_ne!(port(&listener), 0);
    Link::connect(listener.local_address(), &ConnectOptions::default()).unwrap();
    listener.accept(later()).unwrap();
}

#[test]
fn an_empty_host_listens_at_every_address() {
    let listener = Listener::bind(&"tcp::0".parse().unwrap()).unwrap();
    let here = Address::Tcp(loopback(port(&listener)));
    Link::connect(&here, &ConnectOptions::default()).unwrap();
    listener.accept(later()).unwrap();
}

#[test]
fn a_taken_port_is_in_use_unless_a_range_is_allowed() {
    let first = Listener::bind(&Address::Tcp(loopback(0))).unwrap();
    let taken = loopback(port(&first));
    assert!(matches!(failure(Listener::bind(&Address::Tcp(taken.clone()))), Failure::InUse(_)));
    // Neighbours may be taken too, but not thousands of them.
    let range = TcpAddress { to: Some(u16::MAX), ..taken.clone() };
    let second = Listener::bind(&Address::Tcp(range)).unwrap();
    assert!(port(&second) > taken.port);
}

#[test]
fn a_host_without_an_address_of_the_allowed_family_is_refused() {
    let address = "tcp:127.0.0.1:0,ipv6".parse().unwrap();
    assert!(matches!(failure(Listener::bind(&address)), Failure::NoAddress));
}

#[test]
fn waiting_for_a_connection_ends_at_the_deadline() {
    let listener = Listener::bind(&Address::Tcp(loopback(0))).unwrap();
    let error = failure(listener.accept(Some(Instant::now() + MOMENT)));
    assert!(matches!(error, Failure::TimedOut { .. }));
}

#[test]
fn the_handle_wakes_who_waits_for_a_connection() {
    let directory = tempfile::tempdir().unwrap();
    for address in [Address::Tcp(loopback(0)), Address::Unix(directory.path().join("socket"))] {
        let listener = Listener::bind(&address).unwrap();
        let handle = listener.shutdown_handle();
        let waiting = blocked_in(move || listener.accept(None));
        handle.shutdown();
        assert!(matches!(failure(waiting.join().unwrap()), Failure::ShutDown));
    }
}

#[test]
fn a_dropped_listener_removes_its_socket_file_and_keeps_its_connections() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let (mut left, mut right) = support::connected(&Address::Unix(path.clone()));
    assert!(!path.exists());
    left.write_all(&[1]).unwrap();
    right.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_socket_file_that_another_listener_has_replaced_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let first = Listener::bind(&Address::Unix(path.clone())).unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = Listener::bind(&Address::Unix(path.clone())).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

#[test]
fn a_socket_file_without_a_listener_is_replaced_and_one_with_a_listener_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let address = Address::Unix(path.clone());
    // The standard library's listener leaves its file behind, like a process that was killed.
    let alive = UnixListener::bind(&path).unwrap();
    assert!(matches!(failure(Listener::bind(&address)), Failure::InUse(_)));
    drop(alive);
    Listener::bind(&address).unwrap();
}

#[test]
fn a_file_that_is_no_socket_is_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("important");
    std::fs::write(&path, "kept").unwrap();
    assert!(matches!(failure(Listener::bind(&Address::Unix(path.clone()))), Failure::InUse(_)));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept");
}

#[test]
fn a_file_is_a_single_connection() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stream");
    std::fs::write(&path, "bytes").unwrap();
    let listener = Listener::bind(&Address::File { path, offset: 0 }).unwrap();
    let mut link = listener.accept(later()).unwrap();
    assert_eq!(link.peek(5).unwrap(), b"bytes");
    assert!(matches!(failure(listener.accept(later())), Failure::SingleConnection));
}

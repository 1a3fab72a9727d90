//! Files, commands and inherited descriptors as links.

mod support;

use limosa_transport::{Address, ConnectOptions, Failure, FdName, Link, Listener, Role};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::fs;
use std::io::PipeWriter;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use support::{MOMENT, MORE_THAN_BUFFERS, blocked_in, echo, failure, later};

fn connect(address: &Address) -> Link {
    Link::connect(address, &ConnectOptions::default()).unwrap()
}

/// A descriptor as if the parent had passed it on.
fn inherited(fd: OwnedFd) -> Address {
    fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    Address::Fd(FdName::Number(fd.into_raw_fd()))
}

/// A command that reads nothing of its stdin, and ends when the second value is dropped.
fn idle_command() -> (Link, PipeWriter) {
    let (ours, theirs) = std::io::pipe().unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), ours.as_raw_fd());
    let mut link = connect(&Address::shell(format!("exec 3<{path}; echo; exec cat /dev/fd/3")));
    // Once it has said something, it has opened its own descriptor of the pipe.
    link.read_exact(&mut [0]).unwrap();
    (link, theirs)
}

#[test]
fn a_file_is_written_from_its_offset_and_ends_with_the_stream() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stream");
    fs::write(&path, "keep me, not me").unwrap();
    let address = Address::File { path: path.clone(), offset: 7 };
    let mut link = connect(&address);
    assert!(!link.is_bidirectional());
    link.write_all(b" and me").unwrap();
    assert!(matches!(failure(link.read_some(&mut [0])), Failure::OneWay { direction: "receiving" }));
    link.close().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "keep me and me");

    let mut link = Listener::bind(&address).unwrap().accept(later()).unwrap();
    let mut received = [0; 7];
    link.read_exact(&mut received).unwrap();
    assert_eq!((&received, link.read_some(&mut [0]).unwrap()), (b" and me", 0));
    assert!(matches!(failure(link.write_all(&[0])), Failure::OneWay { direction: "sending" }));
}

#[test]
fn a_new_file_is_private_to_its_owner() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stream");
    connect(&Address::File { path: path.clone(), offset: 4096 });
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.permissions().mode() & 0o777, metadata.len()), (0o600, 4096));
}

#[test]
fn a_file_that_was_shut_down_takes_nothing_more() {
    let directory = tempfile::tempdir().unwrap();
    let mut link = connect(&Address::File { path: directory.path().join("stream"), offset: 0 });
    link.shutdown_handle().shutdown();
    assert!(matches!(failure(link.write_all(&[0])), Failure::ShutDown));
}

#[test]
fn a_command_takes_the_stream_and_answers() {
    let mut link = echo();
    assert!(link.is_bidirectional());
    link.write_all(b"there and back").unwrap();
    link.finish().unwrap();
    let mut received = [0; 14];
    link.read_exact(&mut received).unwrap();
    assert_eq!((&received, link.read_some(&mut [0]).unwrap()), (b"there and back", 0));
    link.close().unwrap();
}

#[test]
fn an_argv_is_run_as_it_is() {
    let argv = ["printf", "%s", "$HOME; exit"].map(str::to_owned).to_vec();
    let mut link = Listener::bind(&Address::Exec(argv)).unwrap().accept(later()).unwrap();
    let mut received = [0; 11];
    link.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"$HOME; exit");
}

#[test]
fn closing_waits_for_the_command_reports_how_it_ended_and_leaves_no_zombie() {
    let mut link = connect(&Address::shell("echo $$; cat >/dev/null; exit 3"));
    let mut text = Vec::new();
    while text.last() != Some(&b'\n') {
        let mut byte = [0];
        link.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
    }
    let process = format!("/proc/{}", String::from_utf8(text).unwrap().trim());
    assert!(fs::exists(&process).unwrap());
    let Failure::Command(status) = failure(link.close()) else { panic!("a success") };
    assert_eq!(status.code(), Some(3));
    assert!(!fs::exists(&process).unwrap());
}

#[test]
fn a_command_that_does_not_end_is_not_waited_for_beyond_the_deadline() {
    let (mut link, _life) = idle_command();
    link.set_deadline(Some(MOMENT)).unwrap();
    assert!(matches!(failure(link.close()), Failure::TimedOut { .. }));
}

#[test]
fn a_command_that_cannot_be_started_is_an_error() {
    let argv = vec!["/nonexistent/command".to_owned()];
    let error = Link::connect(&Address::Exec(argv), &ConnectOptions::default()).unwrap_err();
    assert!(matches!(error.failure, Failure::Os(_)), "{error:?}");
    let error = Link::connect(&Address::Exec(Vec::new()), &ConnectOptions::default()).unwrap_err();
    assert!(matches!(error.failure, Failure::Address(_)), "{error:?}");
}

#[test]
fn a_command_that_does_not_read_ends_a_write_at_the_deadline() {
    let (mut link, _life) = idle_command();
    link.set_deadline(Some(MOMENT)).unwrap();
    assert!(matches!(failure(link.write_all(&vec![0; MORE_THAN_BUFFERS])), Failure::TimedOut { .. }));
    assert!(link.queued_bytes() > 0);
}

#[test]
fn a_command_that_is_gone_is_a_loss_for_the_writer() {
    let mut link = connect(&Address::shell("exit 0"));
    // Its end of the pipe is closed once its own output has ended.
    assert_eq!(link.read_some(&mut [0]).unwrap(), 0);
    let error = loop {
        if let Err(error) = link.write_all(&[0; 4096]) {
            break error;
        }
    };
    assert!(error.is_loss(), "{error:?}");
}

#[test]
fn the_handle_wakes_who_is_blocked_on_a_pipe() {
    let mut link = echo();
    let handle = link.shutdown_handle();
    let reading = blocked_in(move || link.read_some(&mut [0]));
    handle.shutdown();
    assert!(matches!(failure(reading.join().unwrap()), Failure::ShutDown));

    let mut link = echo();
    let handle = link.shutdown_handle();
    let writing = blocked_in(move || link.write_all(&vec![0; MORE_THAN_BUFFERS]));
    handle.shutdown();
    assert!(matches!(failure(writing.join().unwrap()), Failure::ShutDown));
}

#[test]
fn an_inherited_pipe_is_a_link_of_one_direction() {
    let (receiving, sending) = std::io::pipe().unwrap();
    let mut writer = connect(&inherited(sending.into()));
    let mut reader = Listener::bind(&inherited(receiving.into())).unwrap().accept(later()).unwrap();
    assert!(!writer.is_bidirectional() && !reader.is_bidirectional());
    writer.write_all(b"through").unwrap();
    drop(writer);
    let mut received = [0; 7];
    reader.read_exact(&mut received).unwrap();
    assert_eq!((&received, reader.read_some(&mut [0]).unwrap()), (b"through", 0));
}

#[test]
fn an_inherited_socket_goes_both_ways_even_if_it_came_nonblocking() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut link = connect(&inherited(theirs.into()));
    assert!(link.is_bidirectional());
    let reading = blocked_in(move || {
        let mut byte = [0];
        link.read_exact(&mut byte).map(|()| byte)
    });
    std::io::Write::write_all(&mut &ours, &[9]).unwrap();
    assert_eq!(reading.join().unwrap().unwrap(), [9]);
}

#[test]
fn a_descriptor_is_taken_once_and_only_if_it_was_inherited() {
    let refused = |number| {
        let address = Address::Fd(FdName::Number(number));
        let failure = failure(Link::connect(&address, &ConnectOptions::default()));
        let Failure::Descriptor { reason, .. } = failure else { panic!("{failure:?}") };
        reason
    };
    let (_receiving, sending) = std::io::pipe().unwrap();
    let address = inherited(sending.into());
    let Address::Fd(FdName::Number(number)) = address else { panic!("a number was made") };
    let link = connect(&address);
    assert_eq!(refused(number), "not inherited, or taken already");
    drop(link);
    assert_eq!(refused(-1), "not a descriptor");
    assert_eq!(refused(1 << 20), "not open");
}

#[test]
fn a_descriptor_with_a_name_is_for_the_host_to_resolve() {
    let address: Address = "fd:migration".parse().unwrap();
    let failure = failure(Link::connect(&address, &ConnectOptions::default()));
    assert!(matches!(failure, Failure::NamedDescriptor { name } if name == "migration"));
    let directory = fs::File::open("/").unwrap();
    let failure = support::failure(Link::from_fd(directory.into(), Role::Main));
    assert!(matches!(failure, Failure::Descriptor { .. }));
}

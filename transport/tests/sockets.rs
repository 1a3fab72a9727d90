//! Links over loopback sockets: exactness, deadlines, loss, and waking who is blocked.

mod support;

use limosa_transport::{ConnectOptions, Failure, Link, LinkWriter, Role};
use std::thread;
use std::time::Instant;
use support::{MOMENT, MORE_THAN_BUFFERS, PATIENCE, blocked_in, connected, each_socket, failure};

/// Bytes that would show a swap or a loss anywhere: no short period divides a power of two.
fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|position| (position % 251) as u8).collect()
}

/// Writes until nothing moves any more.
fn fill(writer: &mut LinkWriter) -> Failure {
    writer.set_deadline(Some(MOMENT)).unwrap();
    failure(writer.write_all(&vec![0; MORE_THAN_BUFFERS]))
}

#[test]
fn both_directions_carry_bytes_at_once() {
    for (left, right) in each_socket() {
        let sent = pattern(3 << 20);
        let (mut left_reader, mut left_writer) = left.split();
        let (mut right_reader, mut right_writer) = right.split();
        let mut received = [vec![0; sent.len()], vec![0; sent.len()]];
        let [from_left, from_right] = &mut received;
        thread::scope(|scope| {
            scope.spawn(|| left_writer.write_all(&sent).unwrap());
            scope.spawn(|| right_writer.write_all(&sent).unwrap());
            scope.spawn(|| left_reader.read_exact(from_right).unwrap());
            scope.spawn(|| right_reader.read_exact(from_left).unwrap());
        });
        assert!(received.iter().all(|bytes| *bytes == sent));
    }
}

#[test]
fn a_peer_that_closes_in_the_middle_of_a_message_is_told_from_one_that_closes_after_it() {
    for (mut left, mut right) in each_socket() {
        left.write_all(&[1, 2, 3]).unwrap();
        drop(left);
        let Failure::Ended { wanted } = failure(right.read_exact(&mut [0; 8])) else { panic!("no end") };
        assert_eq!(wanted, 5);
        assert_eq!(right.read_some(&mut [0; 8]).unwrap(), 0);
    }
}

#[test]
fn writing_to_a_peer_that_is_gone_is_a_loss_and_no_signal() {
    for (mut left, right) in each_socket() {
        drop(right);
        // TCP learns of it with the answer to its first segments.
        let error = loop {
            if let Err(error) = left.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert!(error.is_loss(), "{error:?}");
        assert!(matches!(error.failure, Failure::Lost(_)));
    }
}

#[test]
fn a_silent_peer_ends_a_read_at_the_deadline() {
    for (mut left, _right) in each_socket() {
        left.set_deadline(Some(MOMENT)).unwrap();
        let Failure::TimedOut { after } = failure(left.read_some(&mut [0])) else { panic!("no timeout") };
        assert_eq!(after, MOMENT);
    }
}

#[test]
fn a_peer_that_does_not_read_ends_a_write_at_the_deadline() {
    for (left, _right) in each_socket() {
        let mut writer = left.split().1;
        assert!(matches!(fill(&mut writer), Failure::TimedOut { .. }));
    }
}

#[test]
fn the_deadline_of_one_direction_leaves_the_other_alone() {
    for (left, mut right) in each_socket() {
        let (mut reader, mut writer) = left.split();
        assert!(matches!(fill(&mut writer), Failure::TimedOut { .. }));
        let reading = blocked_in(move || {
            let mut byte = [0];
            reader.read_exact(&mut byte).map(|()| byte)
        });
        right.write_all(&[7]).unwrap();
        assert_eq!(reading.join().unwrap().unwrap(), [7]);
    }
}

#[test]
fn the_handle_wakes_a_blocked_read() {
    for (mut left, _right) in each_socket() {
        let handle = left.shutdown_handle();
        let reading = blocked_in(move || left.read_some(&mut [0]));
        handle.shutdown();
        assert!(matches!(failure(reading.join().unwrap()), Failure::ShutDown));
    }
}

#[test]
fn the_handle_wakes_a_blocked_write() {
    for (left, _right) in each_socket() {
        let mut writer = left.split().1;
        let handle = writer.shutdown_handle();
        let writing = blocked_in(move || writer.write_all(&vec![0; MORE_THAN_BUFFERS]));
        handle.shutdown();
        assert!(matches!(failure(writing.join().unwrap()), Failure::ShutDown));
    }
}

#[test]
fn after_a_shutdown_nothing_works_and_the_peer_sees_the_end() {
    for (mut left, mut right) in each_socket() {
        let handle = left.shutdown_handle();
        handle.clone().shutdown();
        handle.shutdown();
        assert!(matches!(failure(left.write_all(&[0])), Failure::ShutDown));
        assert!(matches!(failure(left.read_some(&mut [0])), Failure::ShutDown));
        assert_eq!(right.read_some(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn a_handle_does_not_keep_the_link_open() {
    for (left, mut right) in each_socket() {
        let handle = left.shutdown_handle();
        drop(left);
        assert_eq!(right.read_some(&mut [0]).unwrap(), 0);
        handle.shutdown();
    }
}

#[test]
fn finishing_ends_one_direction_and_leaves_the_other() {
    for (mut left, mut right) in each_socket() {
        left.write_all(b"last").unwrap();
        left.finish().unwrap();
        left.finish().unwrap();
        let mut received = [0; 4];
        right.read_exact(&mut received).unwrap();
        assert_eq!((&received, right.read_some(&mut [0]).unwrap()), (b"last", 0));
        right.write_all(b"shut").unwrap();
        left.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"shut");
        assert!(matches!(failure(left.write_all(b"more")), Failure::OneWay { direction: "sending" }));
    }
}

#[test]
fn peeked_bytes_are_still_to_be_read() {
    for (mut left, mut right) in each_socket() {
        left.write_all(b"QEVM and more").unwrap();
        assert_eq!(right.peek(4).unwrap(), b"QEVM");
        assert_eq!(right.peek(2).unwrap(), b"QE");
        let mut reader = right.split().0;
        let mut received = [0; 6];
        reader.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"QEVM a");
        assert_eq!(reader.peek(3).unwrap(), b"nd ");
    }
}

#[test]
fn a_stream_shorter_than_the_peek_shows_what_there_is() {
    for (mut left, mut right) in each_socket() {
        left.write_all(b"QE").unwrap();
        drop(left);
        assert_eq!(right.peek(4).unwrap(), b"QE");
        assert!(matches!(failure(right.read_exact(&mut [0; 4])), Failure::Ended { wanted: 2 }));
    }
}

#[test]
fn what_a_tcp_peer_has_not_taken_is_counted() {
    let (left, right) = connected(&"tcp:127.0.0.1:0".parse().unwrap());
    let mut writer = left.split().1;
    assert_eq!(writer.queued_bytes(), 0);
    assert!(matches!(fill(&mut writer), Failure::TimedOut { .. }));
    assert!(writer.queued_bytes() > 0);

    // Let it be taken: the count must come down to nothing.
    let mut reader = right.split().0;
    let draining = thread::spawn(move || while reader.read_some(&mut [0; 1 << 16]).unwrap() > 0 {});
    let deadline = Instant::now() + PATIENCE;
    while writer.queued_bytes() > 0 {
        assert!(Instant::now() < deadline, "bytes stay in the queue of a peer that reads");
        thread::yield_now();
    }
    drop(writer);
    draining.join().unwrap();
}

#[test]
fn a_limited_queue_holds_little_of_what_a_tcp_peer_has_not_taken() {
    const LIMIT: usize = 128 << 10;
    let (left, _right) = connected(&"tcp:127.0.0.1:0".parse().unwrap());
    let mut writer = left.split().1;
    writer.limit_queue(LIMIT).unwrap();
    assert!(matches!(fill(&mut writer), Failure::TimedOut { .. }));
    // The kernel may go over it by what it puts into one packet, up to 64 KiB.
    assert!(writer.queued_bytes() <= LIMIT as u64 + (64 << 10), "{}", writer.queued_bytes());
}

#[test]
fn a_limited_reader_leaves_most_of_it_to_its_peer() {
    const LIMIT: usize = 128 << 10;
    const MUCH: usize = 256 << 20;
    let waiting_with = |limit: bool| {
        let (left, right) = connected(&"tcp:127.0.0.1:0".parse().unwrap());
        let (mut reader, mut writer) = (right.split().0, left.split().1);
        // The kernel gives a busy connection more and more.
        let sending = thread::spawn(move || {
            writer.write_all(&vec![0; MUCH]).unwrap();
            writer
        });
        let mut buffer = vec![0; 1 << 16];
        let mut read = 0;
        while read < MUCH {
            read += reader.read_some(&mut buffer).unwrap();
        }
        let mut writer = sending.join().unwrap();
        writer.limit_queue(LIMIT).unwrap();
        if limit {
            reader.limit_queue(LIMIT).unwrap();
        }
        fill(&mut writer);
        writer.finish().unwrap();
        let chunks = std::iter::from_fn(|| Some(reader.read_some(&mut buffer).unwrap()));
        chunks.take_while(|count| *count > 0).sum::<usize>()
    };
    let (limited, unlimited) = (waiting_with(true), waiting_with(false));
    assert!(limited * 2 < unlimited, "{limited} and {unlimited} bytes");
}

#[test]
fn an_error_says_which_link_and_what_it_was_doing() {
    let mut left = Link::pair().unwrap().0;
    left.set_role(Role::Multifd(3));
    assert_eq!(left.role(), Role::Multifd(3));
    let error = left.read_exact(&mut [0]).unwrap_err();
    assert_eq!(error.to_string(), "multifd 3 channel: receive");
    assert_eq!(error.failure.to_string(), "stream ended with 1 bytes still to come");
}

#[test]
fn nobody_listening_is_a_refusal() {
    let listener = limosa_transport::Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_address().clone();
    drop(listener);
    let error =
        Link::connect(&address, &ConnectOptions { role: Role::Preempt, timeout: PATIENCE }).unwrap_err();
    assert!(matches!(error.failure, Failure::Refused(_)), "{error:?}");
    assert_eq!(error.to_string(), format!("preempt channel: connect to {address}"));
}

#[test]
fn standard_traits_read_and_write_it() {
    use std::io::Read;
    let (left, right) = Link::pair().unwrap();
    let (mut reader, mut writer) = (right.split().0, left.split().1);
    std::io::copy(&mut "over".as_bytes(), &mut writer).unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "over");
}

#[test]
fn what_is_not_here_yet_is_not_waited_for_and_the_end_is_told_from_it() {
    for (left, right) in each_socket() {
        let (mut reader, _back) = left.split();
        let (_unread, mut writer) = right.split();
        let mut bytes = [0; 8];
        assert_eq!(reader.read_ready(&mut bytes).unwrap(), None);
        assert_eq!(writer.write_ready(&[1, 2, 3]).unwrap(), 3);
        assert_eq!(reader.read_ready(&mut bytes).unwrap(), Some(3), "loopback has handed it over");
        assert_eq!(bytes[..3], [1, 2, 3]);
        writer.finish().unwrap();
        assert_eq!(reader.read_ready(&mut bytes).unwrap(), Some(0));
        reader.shutdown_handle().shutdown();
        assert!(matches!(failure(reader.read_ready(&mut bytes)), Failure::ShutDown));
    }
}

#[test]
fn what_was_peeked_at_is_ready() {
    let (mut left, mut right) = Link::pair().unwrap();
    right.write_all(&[1, 2, 3, 4]).unwrap();
    assert_eq!(left.peek(2).unwrap(), [1, 2]);
    let (mut reader, _writer) = left.split();
    let mut bytes = [0; 8];
    assert_eq!(reader.read_ready(&mut bytes).unwrap(), Some(2));
    assert_eq!(reader.read_ready(&mut bytes).unwrap(), Some(2));
    assert_eq!(bytes[..2], [3, 4]);
}

#[test]
fn a_kernel_that_takes_nothing_is_no_error_before_the_deadline() {
    for (left, right) in each_socket() {
        let (_back, mut writer) = left.split();
        let sent = pattern(MORE_THAN_BUFFERS);
        let mut taken = 0;
        while let count @ 1.. = writer.write_ready(&sent[taken..]).unwrap() {
            taken += count;
        }
        writer.set_deadline(Some(MOMENT)).unwrap();
        let late = loop {
            match writer.write_ready(&sent[taken..]) {
                // TCP moves what it holds to the peer's buffer, and then takes more.
                Ok(count) => taken += count,
                Err(error) => break error,
            }
        };
        assert!(matches!(late.failure, Failure::TimedOut { after } if after == MOMENT), "{late:?}");
        let (mut reader, _unused) = right.split();
        let mut received = vec![0; taken];
        reader.read_exact(&mut received).unwrap();
        assert_eq!(received, sent[..taken]);
    }
}

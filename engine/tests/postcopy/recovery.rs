//! The connection of a postcopy is lost, and another takes its place.

use super::guest::memory::read_word;
use super::guest::{Guest, assert_completed};
use super::{Migration, Setting, assert_same_but_for_writes, start};
use limosa_engine::{GuestFate, NotNow, OperatorWord, RecoverError};
use limosa_pages::{BlockId, PAGE_BYTES};
use limosa_transport::{Address, Listener};
use nix::unistd::{Pid, gettid};
use std::sync::mpsc::channel;

/// Pages that the guest writes: few, so that it does not fetch its memory itself before a test has paused it.
const HOT: u64 = 40;

fn anywhere() -> Address {
    "tcp:127.0.0.1:0".parse().unwrap()
}

impl Migration {
    fn status_here(&self) -> &'static str {
        self.outgoing.statistics().status.as_str()
    }

    fn status_there(&self) -> &'static str {
        self.incoming.statistics().status.as_str()
    }

    pub(super) fn wait_both(&self, status: &str) {
        while (self.status_here(), self.status_there()) != (status, status) {
            assert!(!self.outgoing.has_ended(), "{:?}", self.outgoing.statistics());
            std::thread::yield_now();
        }
    }

    pub(super) fn recover(&self) {
        let address = self.incoming.recover_postcopy(&anywhere()).unwrap();
        self.outgoing.resume_postcopy(address).unwrap();
    }
}

/// A running guest, gone over to postcopy.
fn in_postcopy(source: &mut Guest, destination: &mut Guest, preempt: bool, channels: u8) -> Migration {
    source.let_write(1000);
    let setting = Setting { preempt, autostart: true, channels, ..Setting::default() };
    let migration = start(source, destination, setting);
    migration.outgoing.start_postcopy().unwrap();
    migration.wait_both("postcopy-active");
    // Before that the source is in doubt.
    migration.wait_until(|migration| migration.outgoing.statistics().downtime.is_some());
    migration
}

#[test]
fn a_paused_postcopy_goes_on_over_another_connection_as_often_as_it_takes() {
    for (preempt, channels) in [(false, 0), (true, 0), (false, 2), (true, 3)] {
        let (mut source, mut destination) = (Guest::running(HOT), Guest::incoming(HOT));
        let migration = in_postcopy(&mut source, &mut destination, preempt, channels);
        for pause in 1..=3 {
            if pause == 2 {
                migration.incoming.pause_postcopy().unwrap();
            } else {
                migration.outgoing.pause_postcopy().unwrap();
            }
            migration.wait_both("postcopy-paused");
            assert_eq!(migration.outgoing.pause_postcopy(), Err(NotNow::NotActive));
            assert!(migration.outgoing.statistics().error.is_some());
            migration.recover();
            migration.wait_both("postcopy-active");
        }
        let (outgoing, incoming) = migration.wait(&mut source, &mut destination);
        assert_completed(&outgoing, &incoming);
        assert_eq!(outgoing.statistics.pauses, 3);
        // Those of the last connection: without them the push would have left on the main one.
        let pushed: u64 = outgoing.statistics.channels.iter().map(|channel| channel.normal.0).sum();
        assert!(channels == 0 || pushed > 100, "{:?}", outgoing.statistics.channels);
        let sent = source.counter.lock().writes;
        destination.let_write(100);
        destination.stop();
        assert_same_but_for_writes(&source, &destination, sent);
    }
}

#[test]
fn a_recovery_that_fails_leaves_postcopy_paused() {
    let (mut source, mut destination) = (Guest::running(HOT), Guest::incoming(HOT));
    let migration = in_postcopy(&mut source, &mut destination, false, 0);
    assert_eq!(migration.outgoing.resume_postcopy(anywhere()), Err(NotNow::NotPaused));
    let refused = migration.incoming.recover_postcopy(&anywhere());
    assert!(matches!(refused, Err(RecoverError::NotNow(NotNow::NotPaused))), "{refused:?}");

    migration.outgoing.pause_postcopy().unwrap();
    migration.wait_both("postcopy-paused");
    // Nobody listens there any more, and then somebody who hangs up.
    let nowhere = Listener::bind(&anywhere()).unwrap().local_address().clone();
    let rude = Listener::bind(&anywhere()).unwrap();
    let hangs_up = rude.local_address().clone();
    let rude = std::thread::spawn(move || drop(rude.accept(None)));
    for address in [nowhere, hangs_up] {
        let pauses = migration.outgoing.statistics().pauses;
        migration.outgoing.resume_postcopy(address).unwrap();
        while migration.outgoing.statistics().pauses == pauses {
            std::thread::yield_now();
        }
        migration.wait_both("postcopy-paused");
    }
    rude.join().unwrap();
    migration.recover();
    let (outgoing, incoming) = migration.wait(&mut source, &mut destination);
    assert_completed(&outgoing, &incoming);
}

/// What a thread waits for in the kernel, and whether it runs: `None` if it has ended.
fn waits_for(thread: Pid) -> Option<String> {
    std::fs::read_to_string(format!("/proc/self/task/{thread}/wchan")).ok()
}

#[test]
fn memory_that_never_came_is_waited_for_after_the_guest_is_given_up() {
    let (mut source, mut destination) = (Guest::running(1400), Guest::incoming(1400));
    let migration = in_postcopy(&mut source, &mut destination, false, 0);
    assert_eq!(migration.outgoing.end_postcopy(OperatorWord::GiveUp), Err(NotNow::NotPaused));
    migration.outgoing.pause_postcopy().unwrap();
    migration.wait_both("postcopy-paused");
    let ram = destination.ram.clone();
    let (tell, told) = channel();
    let reader = std::thread::spawn(move || {
        tell.send(gettid()).unwrap();
        (0..1500).rev().map(|page| read_word(&ram, BlockId(0), page * PAGE_BYTES as u64)).sum::<u64>()
    });
    let thread = told.recv().unwrap();
    while waits_for(thread).is_none_or(|what| what != "handle_userfault") {
        assert!(!reader.is_finished(), "a page is missing");
        std::thread::yield_now();
    }
    migration.outgoing.end_postcopy(OperatorWord::GiveUp).unwrap();
    migration.incoming.give_up_postcopy().unwrap();
    let (outgoing, incoming) = migration.wait(&mut source, &mut destination);
    assert_eq!(outgoing.guest(), GuestFate::Paused);
    assert_eq!(incoming.outcome.fate, GuestFate::Lost);
    assert_eq!(waits_for(thread).as_deref(), Some("handle_userfault"));
    assert!(!reader.is_finished());
    // Its writer may wait for a page for ever too, and is not to be waited for.
    std::mem::forget(destination);
}
